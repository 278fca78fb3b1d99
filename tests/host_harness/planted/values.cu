// Reads of what nobody wrote, and races. (g++, not nvcc, compiles this folder.)
#include "planted.h"

namespace {

using namespace planted;

// The tail of the tile is read, but only its first `count` elements were written.
template <bool corrected>
__global__ void uninitialised_static_shared(float* values, int count) {
    __shared__ float tile[64];
    const int i = static_cast<int>(threadIdx.x);
    if (i < count) {
        tile[i] = values[i];
    } else if (corrected) {
        tile[i] = 0.0f;
    }
    __syncthreads();
    values[i] = tile[63 - i];
}

template <bool corrected>
__global__ void uninitialised_dynamic_shared(float* values, int count) {
    float* const tile = fastgan::cuda::dynamic_shared<float>();
    const int i = static_cast<int>(threadIdx.x);
    if (i < count || corrected) {
        tile[i] = values[i];
    }
    __syncthreads();
    values[i] = tile[63 - i];
}

// Never true for a thread: the first block's threads find what the second's would have.
template <bool corrected>
__global__ void uninitialised_shared_scalar(float* values) {
    __shared__ int chunk;
    if (corrected ? threadIdx.x == 0 : blockIdx.x == 1 && threadIdx.x == 0) {
        chunk = static_cast<int>(blockIdx.x);
    }
    __syncthreads();
    values[blockIdx.x * blockDim.x + threadIdx.x] += static_cast<float>(chunk);
}

// What the first block left in shared memory is not there for the second.
template <bool corrected>
__global__ void shared_memory_of_the_block_before(float* values) {
    __shared__ float scale;
    if (threadIdx.x == 0 && (corrected || blockIdx.x == 0)) {
        scale = 3.0f;
    }
    __syncthreads();
    values[blockIdx.x * blockDim.x + threadIdx.x] *= scale;
}

// A harmless read: its value is thrown away, and every schedule gives the same result.
template <bool corrected>
__global__ void uninitialised_but_without_effect(float* values) {
    __shared__ float tile[64];
    const int i = static_cast<int>(threadIdx.x);
    if (corrected || i % 2 == 0) {
        tile[i] = 1.0f;
    }
    __syncthreads();
    const float found = tile[i];
    values[i] = i % 2 == 0 ? found : 1.0f;
    if (found == 1e30f) {
        values[i] = 1.0f;
    }
}

// The output is added to, though it was to be overwritten.
template <bool corrected>
__global__ void uninitialised_output(float* values, float* output) {
    const int i = static_cast<int>(threadIdx.x);
    output[i] = corrected ? values[i] : output[i] + values[i];
}

// A tree whose last steps lack their barrier.
template <bool corrected>
__global__ void reduction_without_barrier(float* values) {
    __shared__ float partial[64];
    const unsigned i = threadIdx.x;
    partial[i] = values[i];
    __syncthreads();
    for (unsigned half = 32; half > 0; half /= 2) {
        if (i < half) {
            partial[i] += partial[i + half];
        }
        if (corrected || half > 32) {
            __syncthreads();
        }
    }
    values[i] = corrected || i == 0 ? partial[0] : 0.0f;
}

// The tile is filled again before everybody has read it.
template <bool corrected>
__global__ void tile_overwritten_too_early(float* values) {
    __shared__ float tile[64];
    const int i = static_cast<int>(threadIdx.x);
    for (int round = 0; round < 2; ++round) {
        tile[i] = values[i];
        __syncthreads();
        values[i] = tile[(i + 1) % 64] + 1.0f;
        if (corrected) {
            __syncthreads();
        }
    }
}

// Lanes of one warp exchange through shared memory as if they ran in lockstep.
template <bool corrected>
__global__ void lockstep_assumed(float* values) {
    __shared__ float tile[64];
    const int i = static_cast<int>(threadIdx.x);
    tile[i] = values[i];
    if (corrected) {
        __syncwarp();
    }
    values[i] = tile[i ^ 1];
}

// __syncwarp orders lanes of a warp, not two warps.
template <bool corrected>
__global__ void syncwarp_for_a_block(float* values) {
    __shared__ float tile[64];
    const int i = static_cast<int>(threadIdx.x);
    tile[i] = values[i];
    corrected ? __syncthreads() : __syncwarp();
    values[i] = tile[63 - i];
}

// All blocks add to one number.
template <bool corrected>
__global__ void sum_without_atomics(float* values, float* output) {
    if (corrected) {
        atomicAdd(output, values[blockIdx.x]);
    } else {
        *output += values[blockIdx.x];
    }
}

// A block relies on the one before it.
template <bool corrected>
__global__ void block_reads_its_neighbour(float* values, float* output) {
    output[blockIdx.x] = values[blockIdx.x] + 1.0f;
    const float neighbour = blockIdx.x == 0 ? 0.0f
                            : corrected     ? values[blockIdx.x - 1] + 1.0f
                                            : output[blockIdx.x - 1];
    values[gridDim.x + blockIdx.x] = neighbour;
}

// The last block to finish sums what the others wrote: right only with the fence.
template <bool corrected>
__global__ void last_block_sums(float* values, float* output, unsigned* finished) {
    __shared__ bool is_last;
    if (threadIdx.x == 0) {
        output[1 + blockIdx.x] = values[blockIdx.x] * 2.0f;
        if (corrected) {
            __threadfence();
        }
        is_last = atomicAdd(finished, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 1) {
        float total = 0.0f;
        for (unsigned i = 0; i < gridDim.x; ++i) {
            total += output[1 + i];
        }
        output[0] = total;
    }
}

// Work that the caller's stream does not wait for.
template <bool corrected>
__global__ void wrong_stream(float* values) {
    values[threadIdx.x] = 5.0f;
}

}  // namespace

#define FASTGAN_PLANTED(kernel, blocks, threads, ...)                              \
    FASTGAN_HOST_ENTRY(kernel) {                                                   \
        LAUNCH_PLANTED(kernel, blocks, threads, 0, stream(request),                \
                       data<float>(request, "values") __VA_OPT__(, ) __VA_ARGS__); \
    }
FASTGAN_PLANTED(uninitialised_static_shared, 1, 64, static_cast<int>(request.integer("count")))
FASTGAN_PLANTED(uninitialised_shared_scalar, 2, 32)
FASTGAN_PLANTED(shared_memory_of_the_block_before, 2, 32)
FASTGAN_PLANTED(uninitialised_but_without_effect, 1, 64)
FASTGAN_PLANTED(uninitialised_output, 1, 64, data<float>(request, "output"))
FASTGAN_PLANTED(reduction_without_barrier, 1, 64)
FASTGAN_PLANTED(tile_overwritten_too_early, 1, 64)
FASTGAN_PLANTED(lockstep_assumed, 1, 64)
FASTGAN_PLANTED(syncwarp_for_a_block, 1, 64)
FASTGAN_PLANTED(sum_without_atomics, 8, 1, data<float>(request, "output"))
FASTGAN_PLANTED(block_reads_its_neighbour, 8, 1, data<float>(request, "output"))
FASTGAN_PLANTED(last_block_sums, 8, 2, data<float>(request, "output"),
                data<unsigned>(request, "finished"))

FASTGAN_HOST_ENTRY(uninitialised_dynamic_shared) {
    LAUNCH_PLANTED(uninitialised_dynamic_shared, 1, 64, 64 * sizeof(float), stream(request),
                   data<float>(request, "values"), static_cast<int>(request.integer("count")));
}

FASTGAN_HOST_ENTRY(wrong_stream) {
    LAUNCH_PLANTED(wrong_stream, 1, 32, 0,
                   request.integer("corrected") != 0 ? stream(request) : nullptr,
                   data<float>(request, "values"));
}
