// The traced build: the compiler announces every read and write of a kernel, and here each is held
// against what CUDA allows. The announcements are those of ThreadSanitizer's instrumentation
// (-fsanitize=thread), whose library is not linked: these functions take its place.
//
// Found: an access to what is neither device memory, nor shared memory, nor the thread's own stack;
// a read of memory that nothing has written; and a race: two accesses to a byte by different
// threads, at least one of them a write, not both atomic, with nothing that puts one before the
// other. What does:
//   - within a block, a barrier of the block between them;
//   - within a warp, a meeting of lanes (__syncwarp, a shuffle, a vote) that both threads took part
//   in,
//     or a chain of such meetings: vector clocks (Lamport 1978, Mattern 1989), one entry a lane;
//   - between blocks, only __threadfence and then an atomic on one side, and an atomic to the same
//   address
//     on the other, later.
#include <cstdint>
#include <map>
#include <set>
#include <string>

#include "fibers.h"
#include "memory.h"
#include "report.h"
#include "symbols.h"

namespace fastgan_host {

namespace {

enum class Kind { read, write, atomic };

// Between blocks.
struct Atomics {
    std::uint32_t of_launch = 0;
    std::uint32_t of_block = 0;
    bool fenced = false;                  // the running block
    std::set<std::uint32_t> seen_blocks;  // whose work before their fence the running block sees
    std::map<const void*, std::set<std::uint32_t>> released;  // by address, blocks of this launch

    void update() {
        if (of_launch != running.first_block_of_launch) {
            of_launch = running.first_block_of_launch;
            released.clear();
        }
        if (of_block != running.block_serial) {
            of_block = running.block_serial;
            fenced = false;
            seen_blocks.clear();
        }
    }
} atomics;

bool is_before(const Access& earlier, const Thread& thread) {
    if (earlier.block == 0 || earlier.block < running.first_block_of_launch) {
        return true;
    }
    if (earlier.block != running.block_serial) {
        atomics.update();
        return atomics.seen_blocks.count(earlier.block) != 0;
    }
    if (earlier.thread == thread.number || earlier.barriers_passed < running.barriers_passed) {
        return true;
    }
    return earlier.thread / warpSize == thread.warp() &&
           earlier.clock <= thread.clocks[earlier.thread % warpSize];
}

Access now(const Thread& thread, Kind kind) {
    Access access;
    access.block = running.block_serial;
    access.barriers_passed = running.barriers_passed;
    access.clock = thread.clocks[thread.lane()];
    access.thread = static_cast<std::uint16_t>(thread.number);
    access.atomic = kind == Kind::atomic;
    return access;
}

std::string instruction(const void* caller) {
    // The address after the call, as it is in the file: the driver asks addr2line for the line.
    char text[40];
    std::snprintf(text, sizeof(text), " [at 0x%zx]",
                  static_cast<std::size_t>(static_cast<const char*>(caller) - image().begin - 1));
    return text;
}

std::string verb(Kind kind) {
    return kind == Kind::read ? "reads" : kind == Kind::write ? "writes" : "atomically updates";
}

struct Attempt {
    const char* address;
    std::size_t size;
    Kind kind;
    const void* caller;

    std::string text() const { return verb(kind) + " " + std::to_string(size) + " bytes"; }
};

[[noreturn]] void report_race(const Region& region, std::size_t offset, const Attempt& attempt,
                              const Access& earlier, bool earlier_wrote) {
    const std::string deed = earlier.atomic  ? "atomically updated"
                             : earlier_wrote ? "wrote"
                                             : "read";
    const bool same_block = earlier.block == running.block_serial;
    std::string who = "a thread of another block " + deed + " without an order between the blocks";
    if (same_block) {
        who = "thread " +
              describe(uint3{earlier.thread % blockDim.x, earlier.thread / blockDim.x % blockDim.y,
                             earlier.thread / blockDim.x / blockDim.y}) +
              " " + deed + " without a barrier between";
    }
    fail("race", attempt.text() + " of " + region.describe() + " at offset " +
                     std::to_string(offset) + ", which " + who + instruction(attempt.caller));
}

void check(Region& region, const Attempt& attempt, const Thread& thread) {
    if (region.space == Region::Space::arguments) {
        if (attempt.kind != Kind::read) {
            fail("bad access", attempt.text() + " of the kernel's arguments, which are constant" +
                                   instruction(attempt.caller));
        }
        return;
    }
    if (region.history.empty()) {
        region.history.resize(region.size);
        for (ByteHistory& byte : region.history) {
            byte.written = region.initialised;
        }
    }
    const bool shared = region.space == Region::Space::shared;
    const Access access = now(thread, attempt.kind);
    const std::size_t offset = attempt.address - region.begin;
    for (std::size_t i = offset; i < offset + attempt.size; ++i) {
        ByteHistory& byte = region.history[i];
        if (shared && byte.write.block != running.block_serial) {
            byte = ByteHistory{};  // of an earlier block, which had its own shared memory
        }
        if (attempt.kind != Kind::write && !byte.written) {
            fail("read of uninitialised memory",
                 attempt.text() + " of " + region.describe() + " at offset " +
                     std::to_string(offset) + ", of which nothing has written byte " +
                     std::to_string(i) + instruction(attempt.caller));
        }
        if (!(access.atomic && byte.write.atomic) && !is_before(byte.write, thread)) {
            report_race(region, i, attempt, byte.write, true);
        }
        if (attempt.kind == Kind::read) {
            Access& slot = is_before(byte.reads[0], thread) ? byte.reads[0] : byte.reads[1];
            slot = access;
            continue;
        }
        for (const Access& read : byte.reads) {
            if (!is_before(read, thread)) {
                report_race(region, i, attempt, read, false);
            }
        }
        byte.write = access;
        byte.reads[0] = byte.reads[1] = Access{};
        byte.written = true;
    }
}

// "up to 4 bytes after the end of device memory 'values' (400 bytes)", if there is a region so near
// that it must have been meant.
std::string neighbourhood(const char* address, std::size_t size) {
    const Region* nearest = nullptr;
    std::size_t distance = 64;
    bool after = false;
    const auto consider = [&](const Region& region) {
        const char* const end = region.begin + region.size;
        if (address + size > end && address >= region.begin &&
            std::size_t(address + size - end) <= distance) {
            nearest = &region;
            distance = address + size - end;
            after = true;
        } else if (address < region.begin && std::size_t(region.begin - address) <= distance) {
            nearest = &region;
            distance = region.begin - address;
            after = false;
        }
    };
    for (const Region& region : shared_memory()) {
        consider(region);
    }
    for (const auto& region : device_memory()) {
        if (region->space == Region::Space::device) {
            consider(*region);
        }
    }
    if (nearest == nullptr) {
        return "of what is neither device memory, nor shared memory, nor the thread's own stack";
    }
    return "up to " + std::to_string(distance) + " bytes " +
           (after ? "after the end of " : "before the begin of ") + nearest->describe();
}

bool is_tracing_now = false;

void announce(const volatile void* pointer, std::size_t size, Kind kind, const void* caller) {
    Thread* const thread = running.thread;
    if (thread == nullptr || is_tracing_now) {
        return;
    }
    const char* const address = const_cast<const char*>(static_cast<const volatile char*>(pointer));
    if (thread->fiber->on_stack(address)) {
        return;
    }
    is_tracing_now = true;  // what this calls may be instrumented too
    const Attempt attempt{address, size, kind, caller};
    Region* found = nullptr;
    static const Image program = image();
    for (Region& region : shared_memory()) {
        if (region.contains(address, size)) {
            found = &region;
        }
    }
    if (found == nullptr) {
        Region* const region = find_device_memory(address);
        if (region != nullptr && region->contains(address, size)) {
            found = region;
        }
    }
    if (found != nullptr) {
        check(*found, attempt, *thread);
    } else if (address < program.begin || address >= program.end) {
        fail("out of bounds",
             attempt.text() + " " + neighbourhood(address, size) + instruction(caller));
    }
    is_tracing_now = false;
}

}  // namespace

void trace_atomic(void* address, std::size_t size) {
    if (running.thread == nullptr) {
        return;
    }
    atomics.update();
    auto& released = atomics.released[address];
    atomics.seen_blocks.insert(released.begin(), released.end());
    if (atomics.fenced) {
        released.insert(running.block_serial);
    }
    announce(address, size, Kind::atomic, __builtin_return_address(0));
}

void trace_fence() {
    atomics.update();
    atomics.fenced = true;
}

void trace_host_write(void* address, std::size_t size) {
    Region* const region = find_device_memory(address);
    if (region == nullptr || !region->contains(address, size)) {
        fail("bad copy", "a copy or fill in a stream writes what is not device memory");
    }
    if (region->history.empty()) {
        region->history.resize(region->size);
        for (ByteHistory& byte : region->history) {
            byte.written = region->initialised;
        }
    }
    const std::size_t offset = static_cast<char*>(address) - region->begin;
    for (std::size_t i = offset; i < offset + size; ++i) {
        region->history[i].written = true;
    }
}

bool is_tracing() {
    return true;
}

}  // namespace fastgan_host

// --- What the compiler calls ---------------------------------------------------------------------

#define FASTGAN_TRACE(name, size, kind)                                 \
    void __tsan_##name(void* address) {                                 \
        fastgan_host::announce(address, size, fastgan_host::Kind::kind, \
                               __builtin_return_address(0));            \
    }
#define FASTGAN_TRACE_SIZE(size)                      \
    FASTGAN_TRACE(read##size, size, read)             \
    FASTGAN_TRACE(write##size, size, write)           \
    FASTGAN_TRACE(unaligned_read##size, size, read)   \
    FASTGAN_TRACE(unaligned_write##size, size, write) \
    FASTGAN_TRACE(volatile_read##size, size, read)    \
    FASTGAN_TRACE(volatile_write##size, size, write)

extern "C" {
FASTGAN_TRACE_SIZE(1)
FASTGAN_TRACE_SIZE(2)
FASTGAN_TRACE_SIZE(4)
FASTGAN_TRACE_SIZE(8)
FASTGAN_TRACE_SIZE(16)

void __tsan_read_range(void* address, std::size_t size) {
    fastgan_host::announce(address, size, fastgan_host::Kind::read, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t size) {
    fastgan_host::announce(address, size, fastgan_host::Kind::write, __builtin_return_address(0));
}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// std::atomic and its like: CUDA's atomics don't use them, but host code in a .cu file may, if only
// in the guard of a static variable.
#define FASTGAN_HOST_ATOMICS(bits, type)                                            \
    type __tsan_atomic##bits##_load(const volatile type* address, int) {            \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                          \
    }                                                                               \
    void __tsan_atomic##bits##_store(volatile type* address, type value, int) {     \
        __atomic_store_n(address, value, __ATOMIC_SEQ_CST);                         \
    }                                                                               \
    type __tsan_atomic##bits##_fetch_add(volatile type* address, type value, int) { \
        return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);                \
    }
FASTGAN_HOST_ATOMICS(8, std::uint8_t)
FASTGAN_HOST_ATOMICS(32, std::uint32_t)
FASTGAN_HOST_ATOMICS(64, std::uint64_t)
}
