// Accesses outside of what a kernel was given. (g++, not nvcc, compiles this folder.)
#include <memory>
#include <vector>

#include "planted.h"

namespace {

using namespace planted;

template <bool corrected>
__global__ void write_past_the_end(float* values, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (corrected ? i < count : i <= count) {
        values[i] = 1.0f;
    }
}

template <bool corrected>
__global__ void read_past_the_end(float* values, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) {
        const bool has_next = !corrected || i + 1 < count;
        values[i] = values[i] * 2.0f + (has_next && i == count - 1 ? values[i + 1] : 0.0f);
    }
}

// The element before a tensor that begins within a 16-byte vector.
template <bool corrected>
__global__ void write_before_the_begin(float* values, int count) {
    const int i = static_cast<int>(threadIdx.x) - (corrected ? 0 : 1);
    if (i < count) {
        values[i] = 1.0f;
    }
}

template <bool corrected>
__global__ void misaligned_vector(float* values, int count) {
    const int head =
        corrected ? (16 - static_cast<int>(reinterpret_cast<std::uintptr_t>(values) % 16)) % 16 / 4
                  : 0;
    if (head + 4 <= count) {
        float4* const vector = reinterpret_cast<float4*>(values + head);
        float4 value = *vector;
        value.x += 1.0f;
        *vector = value;
    }
}

template <bool corrected>
__device__ void shift(float* shared, int size) {
    const int i = static_cast<int>(threadIdx.x);
    shared[i] = static_cast<float>(i);
    __syncthreads();
    const float next = shared[corrected && i + 1 == size ? 0 : i + 1];
    __syncthreads();
    shared[i] = next;
}

// Two arrays, so that what lies behind the first is an array, not the end of memory.
template <bool corrected>
__global__ void static_shared_past_the_end(float* values) {
    __shared__ float first[32];
    __shared__ float second[32];
    second[threadIdx.x] = -1.0f;
    shift<corrected>(first, 32);
    values[threadIdx.x] = first[threadIdx.x] + second[threadIdx.x];
}

template <bool corrected>
__global__ void dynamic_shared_past_the_end(float* values) {
    float* const shared = fastgan::cuda::dynamic_shared<float>();
    shift<corrected>(shared, 32);
    values[threadIdx.x] = shared[threadIdx.x];
}

// The last byte of the index's range: 32 bits don't hold the element's number.
template <bool corrected>
__global__ void index_in_32_bits(std::uint16_t* values, std::int64_t count) {
    const int block = static_cast<int>(blockIdx.x);
    const int size = static_cast<int>(blockDim.x);
    const std::int64_t i = corrected ? std::int64_t{block} * size + threadIdx.x
                                     : block * size + static_cast<int>(threadIdx.x);
    if (i < count) {
        values[i] = 7;
    }
}

// What the host's memory holds must be copied, or passed by value.
template <bool corrected>
__global__ void host_memory(float* values, const float* scale, float scale_by_value) {
    values[threadIdx.x] *= corrected ? scale_by_value : *scale;
}

// The table is the host's and gone when the kernel runs.
template <bool corrected>
__global__ void table_that_is_gone(float* values, const int* table, int by_value) {
    values[threadIdx.x] += static_cast<float>(corrected ? by_value : *table);
}

}  // namespace

FASTGAN_HOST_ENTRY(write_past_the_end) {
    LAUNCH_PLANTED(write_past_the_end, 3, 64, 0, stream(request), data<float>(request, "values"),
                   count(request, "values"));
}

FASTGAN_HOST_ENTRY(read_past_the_end) {
    LAUNCH_PLANTED(read_past_the_end, 3, 64, 0, stream(request), data<float>(request, "values"),
                   count(request, "values"));
}

FASTGAN_HOST_ENTRY(write_before_the_begin) {
    LAUNCH_PLANTED(write_before_the_begin, 1, 64, 0, stream(request),
                   data<float>(request, "values"), count(request, "values"));
}

FASTGAN_HOST_ENTRY(misaligned_vector) {
    LAUNCH_PLANTED(misaligned_vector, 1, 1, 0, stream(request), data<float>(request, "values"),
                   count(request, "values"));
}

FASTGAN_HOST_ENTRY(static_shared_past_the_end) {
    LAUNCH_PLANTED(static_shared_past_the_end, 1, 32, 0, stream(request),
                   data<float>(request, "values"));
}

FASTGAN_HOST_ENTRY(dynamic_shared_past_the_end) {
    LAUNCH_PLANTED(dynamic_shared_past_the_end, 1, 32, 32 * sizeof(float), stream(request),
                   data<float>(request, "values"));
}

FASTGAN_HOST_ENTRY(index_in_32_bits) {
    const std::int64_t count = request.tensor("values").numel;
    LAUNCH_PLANTED(index_in_32_bits, fastgan::cuda::blocks_for(count, 256), 256, 0, stream(request),
                   data<std::uint16_t>(request, "values"), count);
}

FASTGAN_HOST_ENTRY(host_memory) {
    static const auto scale = std::make_unique<float>(2.0f);
    LAUNCH_PLANTED(host_memory, 1, 64, 0, stream(request), data<float>(request, "values"),
                   scale.get(), *scale);
}

FASTGAN_HOST_ENTRY(table_that_is_gone) {
    const std::vector<int> table(4, 1);
    LAUNCH_PLANTED(table_that_is_gone, 1, 64, 0, stream(request), data<float>(request, "values"),
                   table.data(), table[0]);
}
