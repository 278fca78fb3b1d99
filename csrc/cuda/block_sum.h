// Sums over a block's threads in a fixed order.
#pragma once

#include "launch.h"

namespace fastgan::cuda {

// In every thread: the sum over the block's kThreads threads (a power of two), added in a tree.
// `shared` holds kThreads numbers, and is free again when this returns.
template <int kThreads, typename A>
__device__ __forceinline__ A block_sum(A value, A* shared) {
    const int thread = static_cast<int>(threadIdx.x);
    shared[thread] = value;
    __syncthreads();
    for (int width = kThreads / 2; width > 0; width /= 2) {
        if (thread < width) {
            shared[thread] += shared[thread + width];
        }
        __syncthreads();
    }
    const A total = shared[0];
    __syncthreads();
    return total;
}

}  // namespace fastgan::cuda
