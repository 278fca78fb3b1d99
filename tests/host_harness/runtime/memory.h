// The memories of the pretended GPU: device memory, and the running block's shared memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fastgan_host_harness.h"

namespace fastgan_host {

// When and by whom a byte was accessed.
struct Access {
    std::uint32_t block = 0;  // its serial number; 0: never
    std::uint32_t barriers_passed = 0;
    std::uint32_t clock = 0;  // of the thread: how often it had met other lanes of its warp
    std::uint16_t thread = 0;
    bool atomic = false;
};

struct ByteHistory {
    Access write;
    // Two reads since that write, by different threads, the latest if there are more.
    Access reads[2];
    bool written = false;  // ever, by a kernel or a copy
};

// A piece of memory that kernels may use.
struct Region {
    enum class Space { device, shared, arguments };

    std::string name;
    char* begin = nullptr;
    std::size_t size = 0;
    Space space = Space::device;
    bool initialised = true;           // before any kernel ran
    std::vector<ByteHistory> history;  // one a byte, where accesses are traced; made at first use

    bool contains(const void* address, std::size_t bytes) const {
        const auto at = static_cast<const char*>(address);
        return at >= begin && at <= begin + size && bytes <= std::size_t(begin + size - at);
    }
    std::string describe() const;
};

Region& add_device_memory(const std::string& name, void* begin, std::size_t size, bool initialised);
void remove_device_memory(Region& region);

const std::vector<std::unique_ptr<Region>>& device_memory();

// The region that holds the address, or the nearest before it, or null.
Region* find_device_memory(const void* address);

// Shared memory, static and dynamic, of the running block.
std::vector<Region>& shared_memory();

// Makes room for a launch, and ends it. Between, fill_shared_memory starts a block.
void allocate_dynamic_shared_memory(std::size_t bytes);
void fill_shared_memory(unsigned char poison);
void release_dynamic_shared_memory();

// --- Tracing: defined in trace.cpp in the traced build, as nothing in the other ------------------

void trace_atomic(void* address, std::size_t size);
void trace_fence();
// A copy or a fill, in a stream, initialises what it writes.
void trace_host_write(void* address, std::size_t size);
bool is_tracing();

}  // namespace fastgan_host
