// The chunk table: how one launch walks many tensors.
//
// Every tensor is cut into chunks of one size, the last one of a tensor shorter; the grid has one
// block per chunk, and a block finds its tensor by a binary search over where each begins. The
// table is passed by value, as a kernel parameter. So a CUDA graph that captures the launch keeps
// its own copy, nothing has to be copied to the device or kept alive, and no step waits for the one
// before it. The price is a limit on its size, the 4 KiB of parameters that every driver takes;
// longer lists take several launches.
#pragma once

#include <cstdint>

#include "../multi_tensor.h"

namespace fastgan::cuda {

struct ChunkTableEntry {
    void* data[kPlaces];
    ScalarReference step;
    std::int64_t numel;
    std::int64_t first_chunk : 62;
    // Every tensor begins at a multiple of 16 bytes (the shadow, of its share of them).
    std::uint64_t aligned : 1;
};

struct ChunkTable {
    // With room for the settings beside them in 4 KiB.
    static constexpr int kCapacity = 40;

    int size = 0;
    std::int64_t chunks = 0;
    ChunkTableEntry entries[kCapacity];
};

// What one block works on: elements [begin, end) of a tensor.
struct Chunk {
    int entry;
    std::int64_t begin;
    std::int64_t end;
};

FASTGAN_INLINE void add_to_table(ChunkTable& table, const MultiTensorItem& item, bool aligned,
                                 std::int64_t chunk_elements) {
    ChunkTableEntry& entry = table.entries[table.size++];
    for (int place = 0; place < kPlaces; ++place) {
        entry.data[place] = item.data[place];
    }
    entry.step = item.step;
    entry.numel = item.numel;
    entry.first_chunk = table.chunks;
    entry.aligned = aligned ? 1 : 0;
    const std::int64_t chunks = (item.numel + chunk_elements - 1) / chunk_elements;
    // An empty tensor has one too: its step is counted all the same.
    table.chunks += chunks > 0 ? chunks : 1;
}

FASTGAN_INLINE Chunk find_chunk(const ChunkTable& table, std::int64_t chunk,
                                std::int64_t chunk_elements) {
    // The last entry that begins at `chunk` or before lies in [low, high).
    int low = 0;
    int high = table.size;
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (table.entries[middle].first_chunk <= chunk) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const std::int64_t numel = table.entries[low].numel;
    const std::int64_t begin = (chunk - table.entries[low].first_chunk) * chunk_elements;
    const std::int64_t end = begin + chunk_elements;
    return Chunk{low, begin, end < numel ? end : numel};
}

}  // namespace fastgan::cuda
