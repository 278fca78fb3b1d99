// No bugs: kernels that use all of CUDA's vocabulary, whose results a test computes by itself.
#include "planted.h"

namespace {

using namespace planted;

constexpr unsigned kAllLanes = 0xffffffffu;

// Sum of a block's values: shuffles within warps, shared memory and a barrier between them.
__global__ void block_sums(const float* values, float* output, int count) {
    __shared__ float of_warp[32];
    const int thread = static_cast<int>(threadIdx.x);
    const int i = static_cast<int>(blockIdx.x * blockDim.x) + thread;
    float sum = i < count ? __ldg(values + i) : 0.0f;
    for (int distance = warpSize / 2; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(kAllLanes, sum, distance);
    }
    if (thread % warpSize == 0) {
        of_warp[thread / warpSize] = sum;
    }
    __syncthreads();
    if (thread < warpSize) {
        sum = thread < static_cast<int>(blockDim.x) / warpSize ? of_warp[thread] : 0.0f;
        for (int distance = warpSize / 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(kAllLanes, sum, distance);
        }
        if (thread == 0) {
            output[blockIdx.x] = sum;
        }
    }
}

// One column of `results` (32 rows) for each function.
__global__ void warp_functions(const int* values, int* results) {
    const int lane = static_cast<int>(threadIdx.x);
    const int value = values[lane];
    int* const row = results + lane * 16;
    row[15] = static_cast<int>(__activemask());
    row[0] = __shfl_sync(kAllLanes, value, 5);
    row[1] = __shfl_sync(kAllLanes, value, lane + 3, 8);
    row[2] = __shfl_up_sync(kAllLanes, value, 3u);
    row[3] = __shfl_up_sync(kAllLanes, value, 3u, 8);
    row[4] = __shfl_down_sync(kAllLanes, value, 3u);
    row[5] = __shfl_down_sync(kAllLanes, value, 3u, 8);
    row[6] = __shfl_xor_sync(kAllLanes, value, 9);
    row[7] = __shfl_xor_sync(kAllLanes, value, 9, 8);
    row[8] = static_cast<int>(__ballot_sync(kAllLanes, value > 0));
    row[9] = __any_sync(kAllLanes, value == values[7]);
    row[10] = __all_sync(kAllLanes, value == values[7]);
    row[11] = static_cast<int>(__reduce_add_sync(kAllLanes, value));
    row[12] = __reduce_max_sync(kAllLanes, value);
    row[13] = lane < 8 ? __reduce_min_sync(0xffu, value) : 0;
    row[14] = static_cast<int>(__shfl_sync(kAllLanes, 0.5 * value, 31));
}

// Two-dimensional blocks and grid; the barrier's votes.
__global__ void votes(const int* values, int* results) {
    const unsigned thread = threadIdx.x + blockDim.x * threadIdx.y;
    const unsigned first = (blockIdx.y * gridDim.x + blockIdx.x) * blockDim.x * blockDim.y;
    const int value = values[first + thread];
    const int count = __syncthreads_count(value > 0);
    const int all = __syncthreads_and(value > -2);
    const int any = __syncthreads_or(value > 1);
    results[first + thread] = count + 1000 * all + 2000 * any;
}

__global__ void atomics(const int* values, int* results, float* sum) {
    const int value = values[blockIdx.x * blockDim.x + threadIdx.x];
    atomicAdd(results + 0, value);
    atomicMax(results + 1, value);
    atomicMin(results + 2, value);
    atomicOr(results + 3, value);
    for (int old = 0, assumed = 1; old != assumed;) {
        assumed = old;
        old = atomicCAS(results + 4, assumed, assumed + value);
    }
    atomicAdd(sum, static_cast<float>(value));
    __shared__ unsigned turn;
    if (threadIdx.x == 0) {
        turn = 0;
    }
    __syncthreads();
    atomicInc(&turn, blockDim.x);
    __syncthreads();
    if (threadIdx.x == 0) {
        atomicExch(results + 5, static_cast<int>(turn));
    }
}

// The counter is what the launch before left: twice, as a graph would replay it.
__global__ void count_launches(float* values) {
    values[threadIdx.x] += 1.0f;
}

__global__ void nothing() {}

}  // namespace

FASTGAN_HOST_ENTRY(block_sums) {
    LAUNCH(block_sums, fastgan::cuda::blocks_for(count(request, "values"), 256), 256,
           data<float>(request, "values"), data<float>(request, "output"),
           count(request, "values"));
}

FASTGAN_HOST_ENTRY(warp_functions) {
    LAUNCH(warp_functions, 1, 32, data<int>(request, "values"), data<int>(request, "results"));
}

FASTGAN_HOST_ENTRY(votes) {
    LAUNCH(votes, dim3(3, 2), dim3(8, 5), data<int>(request, "values"),
           data<int>(request, "results"));
}

FASTGAN_HOST_ENTRY(atomics) {
    LAUNCH(atomics, 4, 64, data<int>(request, "values"), data<int>(request, "results"),
           data<float>(request, "sum"));
}

FASTGAN_HOST_ENTRY(count_launches) {
    LAUNCH(count_launches, 1, 32, data<float>(request, "values"));
}

FASTGAN_HOST_ENTRY(launch_as_asked) {
    const auto asked = [&](const char* name) {
        return static_cast<unsigned>(request.integer(name));
    };
    fastgan::cuda::launch("nothing", nothing, dim3(asked("blocks"), asked("blocks_y")),
                          asked("threads"), static_cast<std::size_t>(request.integer("shared")),
                          stream(request));
}

FASTGAN_HOST_ENTRY(copy_and_fill) {
    fastgan::cuda::check(
        cudaMemcpyAsync(data<float>(request, "output"), data<float>(request, "values"),
                        4u * count(request, "values"), cudaMemcpyDeviceToDevice, stream(request)),
        "the copy");
    fastgan::cuda::check(cudaMemsetAsync(data<float>(request, "values"), 0, 4, stream(request)),
                         "the fill");
    LAUNCH(count_launches, 1, 32, data<float>(request, "output"));
}
