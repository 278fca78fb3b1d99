// Kernels that run an element's step (csrc/math/optimizer_step.h) over many tensors, and their
// launches. Included by the .cu files alone.
#pragma once

#include <cstdint>
#include <cstring>

#include "chunk_table.h"
#include "launch.h"

namespace fastgan::cuda {

inline constexpr int kThreads = 256;
inline constexpr int kVectorBytes = 16;

template <typename T>
inline constexpr int kVectorSize = kVectorBytes / static_cast<int>(sizeof(T));

// Vectors of each tensor that a thread loads before it computes: enough bytes in flight to hide
// memory latency, few enough registers for full occupancy.
template <typename T>
inline constexpr int kVectorsInFlight = sizeof(T) == 2 ? 1 : 2;

inline constexpr int kRounds = 4;

template <typename T>
inline constexpr std::int64_t kChunkElements =
    std::int64_t{kThreads} * kVectorSize<T> * kVectorsInFlight<T> * kRounds;

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Pack {
    T elements[kSize];
};

// Stores the aligned pack in one instruction. By itself nvcc splits the pack for the elements'
// arithmetic and stores it in pieces, in as many transactions.
template <typename T, int kSize>
__device__ __forceinline__ void store(T* to, const Pack<T, kSize>& pack) {
#if defined(__CUDA_ARCH__)
    if constexpr (kSize > 1 && sizeof(pack) >= sizeof(std::uint32_t)) {
        constexpr int kWords = static_cast<int>(sizeof(pack) / sizeof(std::uint32_t));
        static_assert(kWords == 1 || kWords == 2 || kWords == 4);
        std::uint32_t words[kWords];
        std::memcpy(words, pack.elements, sizeof(pack));
        const auto address = __cvta_generic_to_global(to);
        if constexpr (kWords == 4) {
            asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                         :
                         : "l"(address), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                         : "memory");
        } else if constexpr (kWords == 2) {
            asm volatile("st.global.v2.b32 [%0], {%1, %2};"
                         :
                         : "l"(address), "r"(words[0]), "r"(words[1])
                         : "memory");
        } else {
            asm volatile("st.global.b32 [%0], %1;" : : "l"(address), "r"(words[0]) : "memory");
        }
        return;
    }
#endif
    *reinterpret_cast<Pack<T, kSize>*>(to) = pack;
}

template <typename S, typename T, int kSize>
__device__ __forceinline__ void store_rounded(void* shadows, std::int64_t index,
                                              const Pack<T, kSize>& params) {
    Pack<S, kSize> rounded;
#pragma unroll
    for (int e = 0; e < kSize; ++e) {
        rounded.elements[e] = shadow_of<S>(params.elements[e]);
    }
    store(static_cast<S*>(shadows) + index, rounded);
}

template <typename T, int kSize>
__device__ __forceinline__ void store_shadow(void* shadows, FloatType type, std::int64_t index,
                                             const Pack<T, kSize>& params) {
    if (type == FloatType::float16) {
        store_rounded<Half>(shadows, index, params);
    } else {
        store_rounded<BFloat16>(shadows, index, params);
    }
}

// The step of kSize adjacent elements; index[place]: the position of the first one in that tensor.
template <typename T, int kSize, typename Step>
struct Neighbours {
    Pack<T, kSize> values[Step::kValues];

    __device__ __forceinline__ void load(void* const (&data)[kPlaces],
                                         const std::int64_t (&index)[kPlaces]) {
#pragma unroll
        for (int v = 0; v < Step::kValues; ++v) {
            values[v] =
                *reinterpret_cast<const Pack<T, kSize>*>(static_cast<const T*>(data[v]) + index[v]);
        }
    }

    __device__ __forceinline__ void compute_and_store(const Step& step,
                                                      void* const (&data)[kPlaces],
                                                      const std::int64_t (&index)[kPlaces],
                                                      FloatType shadow_type) {
#pragma unroll
        for (int e = 0; e < kSize; ++e) {
            T element[Step::kValues];
#pragma unroll
            for (int v = 0; v < Step::kValues; ++v) {
                element[v] = values[v].elements[e];
            }
            step(element);
#pragma unroll
            for (int v = 0; v < Step::kValues; ++v) {
                values[v].elements[e] = element[v];
            }
        }
#pragma unroll
        for (int v = 0; v < Step::kValues; ++v) {
            if (step.writes(v)) {
                store(static_cast<T*>(data[v]) + index[v], values[v]);
            }
        }
        if (data[kShadow] != nullptr) {
            store_shadow(data[kShadow], shadow_type, index[kShadow], values[0]);
        }
    }
};

// A block owns one chunk of a dense tensor. In aligned tensors a thread owns kVectorsInFlight
// vectors in each of kRounds rounds, kThreads apart so that reads coalesce; the remainder, and
// unaligned tensors, are processed element by element.
template <typename T, typename Step>
__device__ __forceinline__ void run_chunk(const ChunkTableEntry& entry, const Chunk& chunk,
                                          const Step& step, FloatType shadow_type) {
    constexpr int kSize = kVectorSize<T>;
    const int thread = static_cast<int>(threadIdx.x);
    std::int64_t vector_end = chunk.begin;
    if (entry.aligned) {
        vector_end += (chunk.end - chunk.begin) / kSize * kSize;
        for (std::int64_t round = chunk.begin; round < vector_end;
             round += std::int64_t{kThreads} * kSize * kVectorsInFlight<T>) {
            Neighbours<T, kSize, Step> loaded[kVectorsInFlight<T>];
            std::int64_t index[kVectorsInFlight<T>][kPlaces];
#pragma unroll
            for (int v = 0; v < kVectorsInFlight<T>; ++v) {
                const std::int64_t first = round + (std::int64_t{v} * kThreads + thread) * kSize;
#pragma unroll
                for (int place = 0; place < kPlaces; ++place) {
                    index[v][place] = first;
                }
                if (first < vector_end) {
                    loaded[v].load(entry.data, index[v]);
                }
            }
#pragma unroll
            for (int v = 0; v < kVectorsInFlight<T>; ++v) {
                if (index[v][0] < vector_end) {
                    loaded[v].compute_and_store(step, entry.data, index[v], shadow_type);
                }
            }
        }
    }
    for (std::int64_t i = vector_end + thread; i < chunk.end; i += kThreads) {
        const std::int64_t index[kPlaces] = {i, i, i, i, i, i};
        Neighbours<T, 1, Step> one;
        one.load(entry.data, index);
        one.compute_and_store(step, entry.data, index, shadow_type);
    }
}

// A thread owns one element of tensors with different or non-dense layouts.
template <typename T, typename Step>
__device__ __forceinline__ void run_strided(const MultiTensorItem& item, const JointLayout& layout,
                                            const Step& step, FloatType shadow_type) {
    const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (i >= layout.numel) {
        return;
    }
    std::int64_t index[kPlaces] = {};
    layout.for_each_position(i, [&](int d, std::int64_t position) {
#pragma unroll
        for (int place = 0; place < kPlaces; ++place) {
            index[place] += position * layout.strides[place][d];
        }
    });
    Neighbours<T, 1, Step> one;
    one.load(item.data, index);
    one.compute_and_store(step, item.data, index, shadow_type);
}

// --- Launching -----------------------------------------------------------------------------------

inline bool is_aligned(const MultiTensorItem& item, FloatType type, FloatType shadow_type) {
    const auto starts_at_multiple_of = [&](int place, std::int64_t bytes) {
        return reinterpret_cast<std::uintptr_t>(item.data[place]) %
                   static_cast<std::uintptr_t>(bytes) ==
               0;
    };
    for (int place = 0; place < kShadow; ++place) {
        if (!starts_at_multiple_of(place, kVectorBytes)) {
            return false;
        }
    }
    return starts_at_multiple_of(kShadow, kVectorBytes * bytes_of(shadow_type) / bytes_of(type));
}

// Calls dense(table) with tables that cover all dense items, and strided(item, layout) for each
// other item.
template <typename Dense, typename Strided>
void for_each_launch(const MultiTensor& tensors, FloatType shadow_type, std::int64_t chunk_elements,
                     const Dense& dense, const Strided& strided) {
    ChunkTable table;
    for (const MultiTensorItem& item : tensors.items) {
        if (item.layout != MultiTensorItem::kDense) {
            strided(item, tensors.layouts[static_cast<std::size_t>(item.layout)]);
            continue;
        }
        add_to_table(table, item, is_aligned(item, tensors.type, shadow_type), chunk_elements);
        if (table.size == ChunkTable::kCapacity) {
            dense(table);
            table = ChunkTable();
        }
    }
    if (table.size > 0) {
        dense(table);
    }
}

}  // namespace fastgan::cuda
