// The chunk table: one launch over many tensors.
//
// Tensors are cut into chunks of one size, a tensor's last one being shorter; the grid has one block
// per chunk, and a block finds its tensor by a binary search over the chunks' beginnings. The table
// is passed by value as a kernel parameter: a CUDA graph keeps its own copy, nothing is copied to
// the device or kept alive, and no step waits for the previous one. Its size is limited to the 4
// KiB of parameters that every driver accepts; longer lists take several launches.
#pragma once

#include <cstdint>

#include "../multi_tensor.h"

namespace fastgan::cuda {

struct ChunkTableEntry {
    void* data[kPlaces];
    ScalarReference step;
    std::int64_t numel;
    std::int64_t first_chunk : 62;
    // Every tensor is aligned to 16 bytes (the shadow to its share of them).
    std::uint64_t aligned : 1;
};

struct ChunkTable {
    // Leaves space for the settings within 4 KiB.
    static constexpr int kCapacity = 40;

    int size = 0;
    std::int64_t chunks = 0;
    ChunkTableEntry entries[kCapacity];
};

// A block's work: elements [begin, end) of a tensor.
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
    // An empty tensor has one, too, which counts its step.
    table.chunks += chunks > 0 ? chunks : 1;
}

FASTGAN_INLINE Chunk find_chunk(const ChunkTable& table, std::int64_t chunk,
                                std::int64_t chunk_elements) {
    // The last entry that begins at or before `chunk` is in [low, high).
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
