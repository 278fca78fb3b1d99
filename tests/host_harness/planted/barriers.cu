// Threads that don't meet where they should. (g++, not nvcc, compiles this folder.)
#include "planted.h"

namespace {

using namespace planted;

constexpr unsigned kAllLanes = 0xffffffffu;

// The threads beyond the end leave before the barrier.
template <bool corrected>
__global__ void barrier_after_return(float* values, int count) {
    __shared__ float total[64];
    const int i = static_cast<int>(threadIdx.x);
    if (!corrected && i >= count) {
        return;
    }
    total[i] = i < count ? values[i] : 0.0f;
    __syncthreads();
    if (i < count) {
        values[i] = total[count - 1 - i];
    }
}

// Both halves of the block wait, each at a barrier of its own.
template <bool corrected>
__global__ void barrier_in_both_branches(float* values) {
    if (corrected) {
        __syncthreads();
    } else if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    values[threadIdx.x] = 1.0f;
}

// In one of two dimensions: thread (2, 1, 0) is the first that waits.
template <bool corrected>
__global__ void vote_in_branch(float* values) {
    int found = 0;
    if (corrected || (threadIdx.y == 1 && threadIdx.x >= 2)) {
        found = __syncthreads_count(threadIdx.x == 3);
    }
    values[threadIdx.y * blockDim.x + threadIdx.x] = static_cast<float>(found);
}

// The mask names all lanes; the odd ones don't come.
template <bool corrected>
__global__ void syncwarp_without_some_lanes(float* values) {
    if (threadIdx.x % 2 == 0) {
        values[threadIdx.x] = 2.0f;
        __syncwarp(corrected ? 0x55555555u : kAllLanes);
    }
}

template <bool corrected>
__global__ void syncwarp_after_return(float* values, int count) {
    const int i = static_cast<int>(threadIdx.x);
    if (!corrected && i >= count) {
        return;
    }
    __syncwarp();
    if (i < count) {
        values[i] += 1.0f;
    }
}

template <bool corrected>
__global__ void mask_without_oneself(float* values) {
    __syncwarp(corrected ? kAllLanes : 0x7fffffffu);
    values[threadIdx.x] = 3.0f;
}

template <bool corrected>
__global__ void shuffle_with_different_masks(float* values) {
    const int i = static_cast<int>(threadIdx.x);
    const unsigned mask = corrected || i < 16 ? kAllLanes : 0xffff0000u;
    values[i] = __shfl_xor_sync(mask, values[i], 16);
}

// Half of the warp takes part, and asks the other half.
template <bool corrected>
__global__ void shuffle_from_absent_lane(float* values) {
    const int i = static_cast<int>(threadIdx.x);
    if (i < 16) {
        values[i] = __shfl_down_sync(0xffffu, values[i], 8, corrected ? 16 : 32);
    }
}

// A shuffle where the others vote.
template <bool corrected>
__global__ void shuffle_meets_vote(float* values) {
    const int i = static_cast<int>(threadIdx.x);
    float result = 0.0f;
    if (corrected || i != 5) {
        result = __shfl_sync(kAllLanes, values[i], 0);
    } else {
        result = __any_sync(kAllLanes, 1);
    }
    values[i] = result;
}

}  // namespace

FASTGAN_HOST_ENTRY(barrier_after_return) {
    LAUNCH_PLANTED(barrier_after_return, 1, 64, 0, stream(request), data<float>(request, "values"),
                   static_cast<int>(request.integer("count")));
}

#define FASTGAN_PLANTED_OF_ONE_BLOCK(kernel, ...)                    \
    FASTGAN_HOST_ENTRY(kernel) {                                     \
        LAUNCH_PLANTED(kernel, 1, (__VA_ARGS__), 0, stream(request), \
                       data<float>(request, "values"));              \
    }
FASTGAN_PLANTED_OF_ONE_BLOCK(barrier_in_both_branches, 64)
FASTGAN_PLANTED_OF_ONE_BLOCK(vote_in_branch, dim3(4, 2))
FASTGAN_PLANTED_OF_ONE_BLOCK(syncwarp_without_some_lanes, 64)
FASTGAN_PLANTED_OF_ONE_BLOCK(mask_without_oneself, 32)
FASTGAN_PLANTED_OF_ONE_BLOCK(shuffle_with_different_masks, 32)
FASTGAN_PLANTED_OF_ONE_BLOCK(shuffle_from_absent_lane, 32)
FASTGAN_PLANTED_OF_ONE_BLOCK(shuffle_meets_vote, 32)

FASTGAN_HOST_ENTRY(syncwarp_after_return) {
    LAUNCH_PLANTED(syncwarp_after_return, 1, 32, 0, stream(request), data<float>(request, "values"),
                   static_cast<int>(request.integer("count")));
}
