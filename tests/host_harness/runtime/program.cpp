// main(): reads cases from the standard input, runs them, writes what became of their tensors to
// the standard output. tests/host_harness/__init__.py is the other side; the formats are written
// there.
#include "program.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>

#include "blocks.h"
#include "memory.h"
#include "report.h"
#include "streams.h"

extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* begin,
                                                       std::size_t size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* begin,
                                                         std::size_t size);
}

namespace fastgan_host {

namespace {

std::map<std::string, Entry>& entries() {
    static std::map<std::string, Entry> all;
    return all;
}

void read_bytes(void* target, std::size_t size) {
    if (std::fread(target, 1, size, stdin) != size) {
        fail("internal error", "the request ends early");
    }
}

std::int64_t read_integer() {
    std::int64_t value;
    read_bytes(&value, sizeof(value));
    return value;
}

double read_number() {
    double value;
    read_bytes(&value, sizeof(value));
    return value;
}

std::string read_string() {
    std::string text(static_cast<std::size_t>(read_integer()), '\0');
    read_bytes(text.data(), text.size());
    return text;
}

void write_bytes(const void* source, std::size_t size) {
    if (std::fwrite(source, 1, size, stdout) != size) {
        fail("internal error", "the answer can't be written");
    }
}

void write_integer(std::int64_t value) {
    write_bytes(&value, sizeof(value));
}

// The memory of one tensor.
class Buffer {
  public:
    // `misalignment` bytes after a 16-byte boundary; of exactly `size` bytes, so that both ends are
    // guarded. A sparse one is mapped instead, and takes memory only where it is touched.
    Buffer(const std::string& name, std::size_t size, std::size_t misalignment, bool initialised,
           bool sparse)
        : size_(size), misalignment_(misalignment), sparse_(sparse) {
        if (sparse) {
            memory_ = mmap(nullptr, size + misalignment, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (memory_ == MAP_FAILED) {
                fail("out of memory", "for a sparse tensor of " + std::to_string(size) + " bytes");
            }
        } else if (posix_memalign(&memory_, 16, size + misalignment) != 0) {
            fail("out of memory", "for a tensor of " + std::to_string(size) + " bytes");
        }
        if (__asan_poison_memory_region != nullptr && misalignment > 0) {
            __asan_poison_memory_region(memory_, misalignment);
        }
        region_ = &add_device_memory(name, data(), size, initialised);
    }
    Buffer(const Buffer&) = delete;
    ~Buffer() {
        remove_device_memory(*region_);
        if (sparse_) {
            munmap(memory_, size_ + misalignment_);
            return;
        }
        if (__asan_unpoison_memory_region != nullptr) {
            __asan_unpoison_memory_region(memory_, misalignment_);
        }
        std::free(memory_);
    }
    char* data() const { return static_cast<char*>(memory_) + misalignment_; }

  private:
    void* memory_ = nullptr;
    std::size_t size_;
    std::size_t misalignment_;
    bool sparse_;
    Region* region_;
};

// A piece of a tensor's memory that the test gives and wants back.
struct Window {
    char* begin;
    std::size_t size;
};

void run_case() {
    Request request;
    std::vector<std::unique_ptr<Buffer>> buffers;
    std::vector<Window> windows;

    const std::string entry = read_string();
    running.label = read_string();
    schedule.order = static_cast<Schedule::Order>(read_integer());
    schedule.seed = static_cast<std::uint64_t>(read_integer());
    schedule.poison = static_cast<unsigned char>(read_integer());
    const int replays = static_cast<int>(read_integer());
    schedule.only_blocks.resize(read_integer());
    for (std::int64_t& number : schedule.only_blocks) {
        number = read_integer();
    }
    for (std::int64_t left = read_integer(); left > 0; --left) {
        const std::string name = read_string();
        request.integers_[name] = read_integer();
    }
    for (std::int64_t left = read_integer(); left > 0; --left) {
        const std::string name = read_string();
        request.numbers_[name] = read_number();
    }
    for (std::int64_t left = read_integer(); left > 0; --left) {
        const std::string name = read_string();
        const std::int64_t count = read_integer();
        auto& views = request.tensors_[name];
        for (std::int64_t i = 0; i < count; ++i) {
            Tensor view;
            view.type = static_cast<fastgan::FloatType>(read_integer());
            view.sizes.resize(read_integer());
            view.strides.resize(view.sizes.size());
            for (std::int64_t& size : view.sizes) {
                size = read_integer();
                view.numel *= size;
            }
            for (std::int64_t& stride : view.strides) {
                stride = read_integer();
            }
            const auto bytes = static_cast<std::size_t>(read_integer());
            const auto misalignment = static_cast<std::size_t>(read_integer());
            const bool initialised = read_integer() != 0;
            const bool sparse = read_integer() != 0;
            const std::string label = count == 1 ? name : name + "[" + std::to_string(i) + "]";
            buffers.push_back(
                std::make_unique<Buffer>(label, bytes, misalignment, initialised, sparse));
            view.data = buffers.back()->data();
            for (std::int64_t w = read_integer(); w > 0; --w) {
                const std::int64_t offset = read_integer();
                const auto size = static_cast<std::size_t>(read_integer());
                windows.push_back({buffers.back()->data() + offset, size});
                read_bytes(windows.back().begin, size);
            }
            views.push_back(view);
        }
    }

    const auto found = entries().find(entry);
    if (found == entries().end()) {
        fail("internal error", "this program has no entry '" + entry + "'");
    }
    std::string error;
    try {
        found->second(request);
    } catch (const std::exception& exception) {
        error = exception.what();
        forget_streams();
    }
    run_streams(replays);

    write_integer(static_cast<std::int64_t>(error.size()));
    write_bytes(error.data(), error.size());
    for (const Window& window : windows) {
        write_bytes(window.begin, window.size);
    }
}

}  // namespace

EntryRegistration::EntryRegistration(const char* name, Entry entry) {
    entries()[name] = entry;
}

Tensor Request::tensor(const std::string& name) const {
    const auto all = tensors(name);
    if (all.size() != 1) {
        fail("internal error", "'" + name + "' names " + std::to_string(all.size()) + " tensors");
    }
    return all.front();
}

std::vector<Tensor> Request::tensors(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) {
        fail("internal error", "the case has no tensor '" + name + "'");
    }
    return found->second;
}

double Request::number(const std::string& name) const {
    const auto found = numbers_.find(name);
    if (found == numbers_.end()) {
        fail("internal error", "the case has no number '" + name + "'");
    }
    return found->second;
}

std::int64_t Request::integer(const std::string& name) const {
    const auto found = integers_.find(name);
    if (found == integers_.end()) {
        fail("internal error", "the case has no integer '" + name + "'");
    }
    return found->second;
}

void* Request::stream() const {
    return test_stream();
}

}  // namespace fastgan_host

int main() {
    for (std::int64_t left = fastgan_host::read_integer(); left > 0; --left) {
        fastgan_host::run_case();
    }
    std::fflush(stdout);
    return 0;
}
