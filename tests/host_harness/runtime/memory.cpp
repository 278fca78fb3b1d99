#include "memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "report.h"
#include "symbols.h"

extern "C" {
__attribute__((weak)) void __asan_poison_memory_region(const volatile void* begin,
                                                       std::size_t size);
__attribute__((weak)) void __asan_unpoison_memory_region(const volatile void* begin,
                                                         std::size_t size);
}

namespace fastgan_host {

namespace {

std::vector<std::unique_ptr<Region>> device_regions;  // by address
std::vector<Region> shared_regions;
char* dynamic_shared = nullptr;

void find_shared_variables() {
    static bool found = false;
    if (found) {
        return;
    }
    found = true;
    const SharedSegment segment = shared_segment();
    if (__asan_poison_memory_region != nullptr && segment.size > 0) {
        __asan_poison_memory_region(segment.begin, segment.size);
    }
    for (const SharedVariable& variable : shared_variables()) {
        Region region;
        region.name = variable.name;
        region.begin = variable.begin;
        region.size = variable.size;
        region.space = Region::Space::shared;
        region.initialised = false;
        shared_regions.push_back(region);
        if (__asan_unpoison_memory_region != nullptr) {
            __asan_unpoison_memory_region(variable.begin, variable.size);
        }
    }
}

}  // namespace

std::string Region::describe() const {
    const char* const kind = space == Space::shared      ? "shared memory"
                             : space == Space::arguments ? "the kernel's arguments"
                                                         : "device memory";
    return std::string(kind) + " '" + name + "' (" + std::to_string(size) + " bytes)";
}

Region& add_device_memory(const std::string& name, void* begin, std::size_t size,
                          bool initialised) {
    auto region = std::make_unique<Region>();
    region->name = name;
    region->begin = static_cast<char*>(begin);
    region->size = size;
    region->initialised = initialised;
    const auto place =
        std::upper_bound(device_regions.begin(), device_regions.end(), region,
                         [](const auto& a, const auto& b) { return a->begin < b->begin; });
    return **device_regions.insert(place, std::move(region));
}

void remove_device_memory(Region& region) {
    std::erase_if(device_regions, [&](const auto& other) { return other.get() == &region; });
}

const std::vector<std::unique_ptr<Region>>& device_memory() {
    return device_regions;
}

Region* find_device_memory(const void* address) {
    const auto after =
        std::upper_bound(device_regions.begin(), device_regions.end(), address,
                         [](const void* a, const auto& region) { return a < region->begin; });
    return after == device_regions.begin() ? nullptr : std::prev(after)->get();
}

std::vector<Region>& shared_memory() {
    return shared_regions;
}

void* dynamic_shared_memory() {
    if (dynamic_shared == nullptr) {
        fail("no dynamic shared memory", "the launch asked for 0 bytes of it");
    }
    return dynamic_shared;
}

void allocate_dynamic_shared_memory(std::size_t bytes) {
    find_shared_variables();
    if (bytes == 0) {
        return;
    }
    // Of exactly this size, so that AddressSanitizer guards its end.
    if (posix_memalign(reinterpret_cast<void**>(&dynamic_shared), 16, bytes) != 0) {
        fail("out of memory", "for dynamic shared memory");
    }
    Region region;
    region.name = "dynamic_shared";
    region.begin = dynamic_shared;
    region.size = bytes;
    region.space = Region::Space::shared;
    region.initialised = false;
    shared_regions.push_back(region);
}

void fill_shared_memory(unsigned char poison) {
    for (const Region& region : shared_regions) {
        std::memset(region.begin, poison, region.size);
    }
}

void release_dynamic_shared_memory() {
    if (dynamic_shared != nullptr) {
        shared_regions.pop_back();
        std::free(dynamic_shared);
        dynamic_shared = nullptr;
    }
}

__attribute__((weak)) void trace_atomic(void*, std::size_t) {}
__attribute__((weak)) void trace_fence() {}
__attribute__((weak)) void trace_host_write(void*, std::size_t) {}
__attribute__((weak)) bool is_tracing() {
    return false;
}

}  // namespace fastgan_host
