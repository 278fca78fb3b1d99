// How the batch-norm kernels distribute a tensor over threads.
//
// Channels-last tensors: a block is `lanes` threads wide, each with its own vector of channels, and
// as many rows high as its threads allow. So reads coalesce, a thread has the same channels in
// every row, and their parameters stay in registers.
//
// Contiguous tensors: vectors of one channel's values; the vector's position gives the channel.
//
// Vectors have 16 bytes if channels (or an image's values) are a multiple of that and all memory is
// aligned; otherwise one element.
#pragma once

#include "../batch_norm.h"
#include "../math/compensated_sum.h"
#include "../math/float_pairs.h"
#include "launch.h"

namespace fastgan::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kVectorBytes = 16;

template <typename T>
inline constexpr int kFullVector = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T, int kSize>
struct alignas(sizeof(T) * kSize) Vector {
    T elements[kSize];
};

template <typename T>
using Arithmetic = decltype(to_arithmetic(T{}));

template <int kVector, typename T>
__device__ __forceinline__ Vector<T, kVector> load(const T* values) {
    return *reinterpret_cast<const Vector<T, kVector>*>(values);
}

template <int kVector, typename T>
__device__ __forceinline__ void store(T* values, const Vector<T, kVector>& vector) {
    *reinterpret_cast<Vector<T, kVector>*>(values) = vector;
}

// Division by a number known on the host. The device's 64-bit division is a function call, which
// costs registers.
struct Divisor {
    std::int64_t value;
    double inverse;

    static Divisor of(std::int64_t value) {
        return Divisor{value, 1.0 / static_cast<double>(value)};
    }

    // dividend / value, for 0 <= dividend < 2^52.
    __device__ __forceinline__ std::int64_t quotient(std::int64_t dividend) const {
        if (((dividend | value) >> 32) == 0) {
            return static_cast<std::uint32_t>(dividend) / static_cast<std::uint32_t>(value);
        }
        // Off by at most one: both roundings are 2^-53.
        const std::int64_t guess =
            static_cast<std::int64_t>(static_cast<double>(dividend) * inverse);
        const std::int64_t remainder = dividend - guess * value;
        return remainder < 0 ? guess - 1 : (remainder >= value ? guess + 1 : guess);
    }
};

// A layout's divisors.
struct LayoutDivisors {
    Divisor image_size;
    Divisor channels;

    static LayoutDivisors of(const ChannelLayout& layout) {
        return LayoutDivisors{Divisor::of(layout.image_size), Divisor::of(layout.channels)};
    }
};

// A block over columns, and a thread's position in it.
struct ColumnBlocks {
    int lanes;       // threads next to each other: a power of two, up to 32
    Divisor groups;  // number of adjacent blocks that cover all channels

    // The number of blocks for this many parts of the rows.
    unsigned count(std::int64_t parts) const { return blocks_for(parts * groups.value, 1); }
};

inline ColumnBlocks column_blocks(std::int64_t channels, int vector) {
    const std::int64_t vectors = (channels + vector - 1) / vector;
    int lanes = 1;
    while (lanes < 32 && lanes < vectors) {
        lanes *= 2;
    }
    return ColumnBlocks{lanes, Divisor::of((vectors + lanes - 1) / lanes)};
}

struct ColumnThread {
    std::int64_t part;     // the block's part of the rows
    std::int64_t channel;  // the first of the thread's vector
    int lane;
    int row;   // among the block's
    int rows;  // the block's height

    template <int kVector>
    __device__ __forceinline__ static ColumnThread of(const ColumnBlocks& blocks) {
        const int thread = static_cast<int>(threadIdx.x);
        const std::int64_t block = blockIdx.x;
        const std::int64_t part = blocks.groups.quotient(block);
        const std::int64_t group = block - part * blocks.groups.value;
        const int row = thread / blocks.lanes;
        const int lane = thread - row * blocks.lanes;
        return ColumnThread{part, (group * blocks.lanes + lane) * kVector, lane, row,
                            kTileThreads / blocks.lanes};
    }
};

// Sums over the threads of a block's column, in a fixed order, into the first row. shared:
// kTileThreads * kVector elements.
template <int kVector, typename A>
__device__ __forceinline__ void add_rows_of_block(const ColumnThread& place, int lanes,
                                                  A (&values)[kVector], A* shared) {
    const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        shared[v * kTileThreads + thread] = values[v];
    }
    __syncthreads();
    for (int half = place.rows / 2; half > 0; half /= 2) {
        if (place.row < half) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
                shared[v * kTileThreads + thread] +=
                    shared[v * kTileThreads + thread + half * lanes];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        values[v] = shared[v * kTileThreads + thread];
    }
    // The next call overwrites what this one reads.
    __syncthreads();
}

// The sum over a warp, in a fixed order, in every lane.
template <typename A>
__device__ __forceinline__ A sum_of_warp(A value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// A tile of one channel of a contiguous tensor: the position of its i-th value.
struct ChannelTile {
    std::int64_t first_image;
    std::int64_t within;  // the tile's beginning in the first image
    Divisor image_size;
    std::int64_t image_stride;
    std::int64_t channel_start;

    __device__ __forceinline__ static ChannelTile of(const LayoutDivisors& layout,
                                                     std::int64_t begin, std::int64_t channel) {
        const std::int64_t size = layout.image_size.value;
        const std::int64_t image = layout.image_size.quotient(begin);
        return ChannelTile{image, begin - image * size, layout.image_size,
                           size * layout.channels.value, channel * size};
    }

    __device__ __forceinline__ std::int64_t offset(std::int64_t i) const {
        const std::int64_t place = within + i;
        const std::int64_t images = image_size.quotient(place);
        return (first_image + images) * image_stride + channel_start +
               (place - images * image_size.value);
    }
};

inline bool is_aligned(const void* pointer) {
    return reinterpret_cast<std::uintptr_t>(pointer) % kVectorBytes == 0;
}

// Whether vectors of 16 bytes fit the layout, given that the memory is aligned.
template <typename T>
bool takes_vectors(const ChannelLayout& layout) {
    return (layout.is_columns() ? layout.channels : layout.image_size) % kFullVector<T> == 0;
}

template <int kVector>
struct VectorTag {
    static constexpr int value = kVector;
};

template <int kVectors>
struct CountTag {
    static constexpr int value = kVectors;
};

// Calls body(tag, count, first) until all of a thread's kInFlight vectors are done, `count` of them
// from `first` on. Piecewise linear activations process all at once, with all loads in flight.
// Smooth ones process one at a time: unrolling their long code would cost the compiler minutes, and
// the block's other threads hide the latency.
template <int kInFlight, typename Body>
__device__ __forceinline__ void for_vectors_in_flight(Activation activation, const Body& body) {
    if_piecewise_linear(
        activation, [&](auto tag) { body(tag, CountTag<kInFlight>(), 0); },
        [&] {
            with_smooth(activation, [&](auto tag) {
        // Downwards, because ptxas then doesn't spill on sm_100.
#pragma unroll 1
                for (int first = kInFlight - 1; first >= 0; --first) {
                    body(tag, CountTag<1>(), first);
                }
            });
        });
}

// call(T{}, VectorTag<...>{}) for the tensor's type and the widest possible vectors.
template <typename Call>
void with_vectors(FloatType type, const ChannelLayout& layout, bool aligned, const Call& call) {
    for_float_type(type, [&]<typename T>() {
        if (aligned && takes_vectors<T>(layout)) {
            call(T{}, VectorTag<kFullVector<T>>());
        } else {
            call(T{}, VectorTag<1>());
        }
    });
}

// Merging tiles: a block has 32 channels, and 32 threads per channel that share its tiles.
inline constexpr int kMergeChannels = 32;
inline constexpr int kMergeThreads = 32;

template <typename A>
using MergeSums = CompensatedSum<A>[kMergeThreads][kMergeChannels];

// The sum over a channel's threads, in a fixed order, in each of them.
template <typename A>
__device__ __forceinline__ CompensatedSum<A> sum_of_merge(const CompensatedSum<A>& value,
                                                          MergeSums<A>& shared) {
    const int x = static_cast<int>(threadIdx.x);
    const int y = static_cast<int>(threadIdx.y);
    shared[y][x] = value;
    __syncthreads();
    for (int half = kMergeThreads / 2; half > 0; half /= 2) {
        if (y < half) {
            shared[y][x] += shared[y + half][x];
        }
        __syncthreads();
    }
    const CompensatedSum<A> sum = shared[0][x];
    // The next call overwrites what this one reads.
    __syncthreads();
    return sum;
}

}  // namespace fastgan::cuda
