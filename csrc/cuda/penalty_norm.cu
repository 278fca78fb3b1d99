// The norms of the gradient penalty on CUDA devices: a block owns one group of one sample, sums
// over it in a fixed order, and then writes its elements, which are still in the cache.
#include "../penalty_norm.h"

#include "../math/compensated_sum.h"
#include "../math/float_pairs.h"
#include "block_sum.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreads = 512;
// For sums by channel: adjacent channels per block, for coalesced reads.
constexpr int kChannels = 32;
constexpr int kRows = 8;

// The position in the maps and the channel of an element of this block's group.
struct Place {
    std::int64_t offset;
    std::int64_t channel;
};

// Calls body(place) for the thread's share of the block's group in memory order. Element i is
// number i % inner of line i / inner: divided once, then incremented, since a 64-bit division takes
// longer than everything else per element.
template <typename Body>
__device__ __forceinline__ void for_group(const NormShape& shape, const Body& body) {
    const std::int64_t count = shape.elements_per_group();
    const std::int64_t width = shape.channels_per_group();
    const std::int64_t inner = shape.channels_last ? width : shape.positions;
    const std::int64_t sample = blockIdx.x / shape.groups;
    const std::int64_t first_channel = (blockIdx.x - sample * shape.groups) * width;
    const std::int64_t start = sample * shape.elements_per_sample();
    std::int64_t line = threadIdx.x / inner;
    std::int64_t within = threadIdx.x - line * inner;
    const std::int64_t lines = kThreads / inner;
    const std::int64_t rest = kThreads - lines * inner;
    for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
        const std::int64_t channel = first_channel + (shape.channels_last ? within : line);
        const std::int64_t position = shape.channels_last ? line : within;
        body(Place{start + channel * shape.channel_stride() + position * shape.position_stride(),
                   channel});
        line += lines;
        within += rest;
        if (within >= inner) {
            within -= inner;
            ++line;
        }
    }
}

// The group's mean of term(place), in every thread. For any number of elements the sum of terms t
// has an error of at most 14 u sum(|t|): 3 roundings of each term, 2 for a thread's sum and 9 for
// the block's.
template <typename A, typename Term>
__device__ __forceinline__ A group_mean(const NormShape& shape, A* shared, const Term& term) {
    CompensatedSum<A> sum{};
    for_group(shape, [&](const Place& place) { sum += term(place); });
    return block_sum<kThreads>(sum.total(), shared) / static_cast<A>(shape.elements_per_group());
}

template <typename A>
__device__ __forceinline__ A or_one(const A* weight, std::int64_t channel) {
    return weight == nullptr ? A(1) : weight[channel];
}

// input, xhat, output: maps; weight, bias (channels,); invstd (samples, groups).
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    forward(const __grid_constant__ NormShape shape, const T* input, const A* weight,
            const A* bias, A eps, T* xhat, A* invstd, T* output) {
    __shared__ A shared[kThreads];
    const A mean = group_mean<A>(
        shape, shared, [&](const Place& at) { return to_arithmetic(input[at.offset]); });
    const A variance = group_mean<A>(shape, shared, [&](const Place& at) {
        const A centred = to_arithmetic(input[at.offset]) - mean;
        return centred * centred;
    });
    const A scale = A(1) / square_root(variance + eps);
    if (threadIdx.x == 0) {
        invstd[blockIdx.x] = scale;
    }
    for_group(shape, [&](const Place& at) {
        const A value = normalised(static_cast<A>(to_arithmetic(input[at.offset])), mean, scale);
        const A shift = bias == nullptr ? A(0) : bias[at.channel];
        xhat[at.offset] = from_arithmetic<T>(value);
        output[at.offset] = from_arithmetic<T>(value * or_one(weight, at.channel) + shift);
    });
}

// grad, xhat, output: maps.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    project(const __grid_constant__ NormShape shape, const T* grad, const T* xhat,
            const A* invstd, const A* weight, bool tangent, T* output) {
    __shared__ A shared[kThreads];
    const auto weighted = [&](const Place& at) {
        return to_arithmetic(grad[at.offset]) * (tangent ? A(1) : or_one(weight, at.channel));
    };
    const A mean = group_mean<A>(shape, shared, weighted);
    const A along = group_mean<A>(shape, shared, [&](const Place& at) {
        return weighted(at) * to_arithmetic(xhat[at.offset]);
    });
    const A scale = invstd[blockIdx.x];
    for_group(shape, [&](const Place& at) {
        const A result = projected(static_cast<A>(weighted(at)), mean, along,
                                   static_cast<A>(to_arithmetic(xhat[at.offset])), scale);
        output[at.offset] =
            from_arithmetic<T>(result * (tangent ? or_one(weight, at.channel) : A(1)));
    });
}

// grad, tangent, xhat, output: maps.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    curvature(const __grid_constant__ NormShape shape, const T* grad, const T* tangent,
              const T* xhat, const A* invstd, const A* weight, T* output) {
    __shared__ A shared[kThreads];
    const auto p = [&](const Place& at) {
        return to_arithmetic(grad[at.offset]) * or_one(weight, at.channel);
    };
    const auto u = [&](const Place& at) { return to_arithmetic(tangent[at.offset]); };
    const auto direction = [&](const Place& at) { return to_arithmetic(xhat[at.offset]); };
    const A p_mean = group_mean<A>(shape, shared, p);
    const A u_mean = group_mean<A>(shape, shared, u);
    const A p_along = group_mean<A>(
        shape, shared, [&](const Place& at) { return p(at) * direction(at); });
    const A u_along = group_mean<A>(
        shape, shared, [&](const Place& at) { return u(at) * direction(at); });
    const A product = group_mean<A>(
        shape, shared, [&](const Place& at) { return p(at) * (u(at) - u_mean); });
    const auto curve = Curvature<A>::make(product, p_along, u_along, invstd[blockIdx.x]);
    for_group(shape, [&](const Place& at) {
        output[at.offset] =
            from_arithmetic<T>(curve(p(at), p_mean, u(at), u_mean, direction(at)));
    });
}

// means (2, samples, groups): of the tangent, and of tangent * xhat.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    tangent_means(const __grid_constant__ NormShape shape, const T* tangent, const T* xhat,
                  A* means) {
    __shared__ A shared[kThreads];
    const A mean = group_mean<A>(
        shape, shared, [&](const Place& at) { return to_arithmetic(tangent[at.offset]); });
    const A along = group_mean<A>(shape, shared, [&](const Place& at) {
        return to_arithmetic(tangent[at.offset]) * to_arithmetic(xhat[at.offset]);
    });
    if (threadIdx.x == 0) {
        means[blockIdx.x] = mean;
        means[shape.samples * shape.groups + blockIdx.x] = along;
    }
}

// A block owns kChannels channels (blockIdx.y) of one sample (blockIdx.x), with threads (kChannels,
// kRows); a row of threads takes every kRows-th position. Outputs (samples, channels).
template <typename T, typename A>
__global__ void __launch_bounds__(kChannels* kRows)
    channel_sums(const __grid_constant__ NormShape shape, const T* grad, const T* tangent,
                 const T* xhat, const A* invstd, const A* means, A* weight_grad, A* bias_grad) {
    __shared__ A of_weight[kRows][kChannels];
    __shared__ A of_bias[kRows][kChannels];
    const int lane = static_cast<int>(threadIdx.x);
    const int row = static_cast<int>(threadIdx.y);
    const std::int64_t sample = blockIdx.x;
    const std::int64_t channel = static_cast<std::int64_t>(blockIdx.y) * kChannels + lane;
    CompensatedSum<A> weight_terms{};
    CompensatedSum<A> bias_terms{};
    if (channel < shape.channels) {
        const std::int64_t group =
            sample * shape.groups + channel / shape.channels_per_group();
        const A scale = invstd[group];
        const A mean = tangent == nullptr ? A(0) : means[group];
        const A along = tangent == nullptr ? A(0) : means[shape.samples * shape.groups + group];
        for (std::int64_t position = row; position < shape.positions; position += kRows) {
            const std::int64_t offset = sample * shape.elements_per_sample() +
                                        channel * shape.channel_stride() +
                                        position * shape.position_stride();
            const A signal = to_arithmetic(grad[offset]);
            const A direction = to_arithmetic(xhat[offset]);
            const A value = tangent == nullptr
                                ? direction
                                : projected(static_cast<A>(to_arithmetic(tangent[offset])), mean,
                                            along, direction, scale);
            weight_terms += signal * value;
            bias_terms += signal;
        }
    }
    A weight_sum = weight_terms.total();
    A bias_sum = bias_terms.total();
    of_weight[row][lane] = weight_sum;
    of_bias[row][lane] = bias_sum;
    __syncthreads();
    if (row == 0 && channel < shape.channels) {
        for (int other = 1; other < kRows; ++other) {
            weight_sum += of_weight[other][lane];
            bias_sum += of_bias[other][lane];
        }
        weight_grad[sample * shape.channels + channel] = weight_sum;
        if (bias_grad != nullptr) {
            bias_grad[sample * shape.channels + channel] = bias_sum;
        }
    }
}

// run.operator()<T, A>() for the maps' type and the arithmetic's.
template <typename Run>
void for_maps(const NormShape& shape, const Run& run) {
    for_float_type(shape.type, [&]<typename T>() {
        run.template operator()<T, decltype(to_arithmetic(T{}))>();
    });
}

unsigned group_blocks(const NormShape& shape) {
    return shape.elements_per_group() == 0 ? 0 : blocks_for(shape.samples * shape.groups, 1);
}

}  // namespace

void norm_forward(const NormShape& shape, const void* input, const void* weight, const void* bias,
                  double eps, void* xhat, void* invstd, void* output, void* stream) {
    for_maps(shape, [&]<typename T, typename A>() {
        launch("norm_forward", forward<T, A>, group_blocks(shape), kThreads, 0, stream, shape,
               input, weight, bias, eps, xhat, invstd, output);
    });
}

void norm_project(const NormShape& shape, const void* grad, const void* xhat, const void* invstd,
                  const void* weight, bool tangent, void* output, void* stream) {
    for_maps(shape, [&]<typename T, typename A>() {
        launch("norm_project", project<T, A>, group_blocks(shape), kThreads, 0, stream, shape, grad,
               xhat, invstd, weight, tangent, output);
    });
}

void norm_curvature(const NormShape& shape, const void* grad, const void* tangent, const void* xhat,
                    const void* invstd, const void* weight, void* output, void* stream) {
    for_maps(shape, [&]<typename T, typename A>() {
        launch("norm_curvature", curvature<T, A>, group_blocks(shape), kThreads, 0, stream, shape,
               grad, tangent, xhat, invstd, weight, output);
    });
}

void norm_gradients(const NormShape& shape, const void* grad, const void* tangent, const void* xhat,
                    const void* invstd, void* weight_grad, void* bias_grad, void* means,
                    void* stream) {
    for_maps(shape, [&]<typename T, typename A>() {
        if (tangent != nullptr) {
            launch("tangent_means", tangent_means<T, A>, group_blocks(shape), kThreads, 0, stream,
                   shape, tangent, xhat, means);
        }
        const dim3 blocks(blocks_for(shape.samples, 1), blocks_for(shape.channels, kChannels));
        launch("channel_sums", channel_sums<T, A>, blocks, dim3(kChannels, kRows), 0, stream, shape,
               grad, tangent, xhat, invstd, means, weight_grad, bias_grad);
    });
}

}  // namespace fastgan::cuda
