// The gradient of a normalisation and an activation on CUDA devices: the tiles' two sums, their
// merging, and the input's gradient. Both passes over the tensors are memory-bound.
#include "../math/compensated_sum.h"
#include "../batch_norm.h"
#include "channel_tiles.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

// For any number of rows, a tile's sums of terms t have an error of at most 21 u sum(|t|): see
// batch_norm_statistics.cu.

// Vectors that a thread loads of either tensor before it uses the first.
constexpr int kInFlight = 2;

// grad_sum, grad_xhat_sum: (tiles, channels). A block owns a tile of `lanes` vectors of channels.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    column_sums(const __grid_constant__ NormAct norm, std::int64_t tile_rows, ColumnBlocks blocks,
                const T* grad, const T* input, const Arithmetic<T>* invstd, Arithmetic<T>* grad_sum,
                Arithmetic<T>* grad_xhat_sum) {
    using A = Arithmetic<T>;
    __shared__ A shared[kTileThreads * kVector];
    const ColumnThread place = ColumnThread::of<kVector>(blocks);
    const std::int64_t channels = norm.layout.channels;
    const std::int64_t begin = place.part * tile_rows;
    const std::int64_t left = norm.layout.images - begin;
    const std::int64_t rows = left < tile_rows ? left : tile_rows;
    const bool active = place.channel < channels;
    const A negative_slope = static_cast<A>(norm.negative_slope);

    CompensatedSum<A> sums[kVector] = {};
    CompensatedSum<A> dots[kVector] = {};
    if (active) {
        Normalisation<A> normalise[kVector];
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            normalise[v] = norm.of_channel<A>(place.channel + v);
        }
        const std::int64_t start = begin * channels + place.channel;
        const auto add_rows = [&](auto tag, auto count) {
            constexpr int kCount = decltype(count)::value;
#pragma unroll 1
            for (std::int64_t row = place.row; row < rows; row += place.rows * kCount) {
                Vector<T, kVector> grads[kCount];
                Vector<T, kVector> values[kCount];
#pragma unroll
                for (int r = 0; r < kCount; ++r) {
                    const std::int64_t at = row + r * place.rows;
                    if (at < rows) {
                        grads[r] = load<kVector>(grad + start + at * channels);
                        values[r] = load<kVector>(input + start + at * channels);
                    }
                }
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    A sum = 0;
                    A dot = 0;
#pragma unroll
                    for (int r = 0; r < kCount; ++r) {
                        if (row + r * place.rows < rows) {
                            const A x = to_arithmetic(values[r].elements[v]);
                            const A g = gradient_by_input<decltype(tag)::value>(
                                to_arithmetic(grads[r].elements[v]), normalise[v](x),
                                negative_slope);
                            sum += g;
                            dot = multiply_add(g, x - normalise[v].mean, dot);
                        }
                    }
                    sums[v] += sum;
                    dots[v] += dot;
                }
            }
        };
        // Eight channels' sums leave no registers for more.
        constexpr int kRows = kVector == 8 ? 1 : kInFlight;
        if_piecewise_linear(
            norm.activation, [&](auto tag) { add_rows(tag, CountTag<kRows>()); },
            [&] {
                with_smooth(norm.activation, [&](auto tag) { add_rows(tag, CountTag<1>()); });
            });
    }
    A sum[kVector];
    A dot[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        sum[v] = sums[v].total();
        dot[v] = dots[v].total();
    }
    add_rows_of_block<kVector>(place, blocks.lanes, sum, shared);
    add_rows_of_block<kVector>(place, blocks.lanes, dot, shared);
    if (place.row == 0 && active) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            const std::int64_t at = place.part * channels + place.channel + v;
            grad_sum[at] = sum[v];
            grad_xhat_sum[at] = dot[v] * invstd[place.channel + v];
        }
    }
}

// grad_sum, grad_xhat_sum: (tiles, channels). A warp owns a tile of one channel.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    channel_sums(const __grid_constant__ NormAct norm, LayoutDivisors divisors,
                 std::int64_t tile_values, std::int64_t pairs, const T* grad, const T* input,
                 const Arithmetic<T>* invstd, Arithmetic<T>* grad_sum,
                 Arithmetic<T>* grad_xhat_sum) {
    using A = Arithmetic<T>;
    const int lane = static_cast<int>(threadIdx.x) % warpSize;
    const std::int64_t pair = static_cast<std::int64_t>(blockIdx.x) * (kTileThreads / warpSize) +
                              static_cast<int>(threadIdx.x) / warpSize;
    if (pair >= pairs) {
        return;  // the whole warp
    }
    const std::int64_t tile = divisors.channels.quotient(pair);
    const std::int64_t channel = pair - tile * norm.layout.channels;
    const std::int64_t begin = tile * tile_values;
    const std::int64_t left = norm.layout.values_per_channel() - begin;
    const std::int64_t values = left < tile_values ? left : tile_values;
    const ChannelTile place = ChannelTile::of(divisors, begin, channel);
    const Normalisation<A> normalise = norm.of_channel<A>(channel);
    const A negative_slope = static_cast<A>(norm.negative_slope);

    CompensatedSum<A> sums{};
    CompensatedSum<A> dots{};
#pragma unroll 1
    for (std::int64_t i = lane * kVector; i < values; i += warpSize * kVector) {
        const std::int64_t at = place.offset(i);
        const auto grads = load<kVector>(grad + at);
        const auto inputs = load<kVector>(input + at);
        A sum_of_vector = 0;
        A dot_of_vector = 0;
        with_activation(norm.activation, [&](auto tag) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
                const A x = to_arithmetic(inputs.elements[v]);
                const A g = gradient_by_input<decltype(tag)::value>(
                    to_arithmetic(grads.elements[v]), normalise(x), negative_slope);
                sum_of_vector += g;
                dot_of_vector = multiply_add(g, x - normalise.mean, dot_of_vector);
            }
        });
        sums += sum_of_vector;
        dots += dot_of_vector;
    }
    const A sum = sum_of_warp(sums.total());
    const A dot = sum_of_warp(dots.total());
    if (lane == 0) {
        grad_sum[pair] = sum;
        grad_xhat_sum[pair] = dot * invstd[channel];
    }
}

// A thread adds every 32nd tile of a channel; then 32 threads add their results. In pairs of numbers
// of the tiles' own type, as in batch_norm_statistics.cu: with t tiles a thread the error is at most
// ((t + 5) u)^2 sum(|tile|), before the result's rounding.
template <typename A>
__global__ void __launch_bounds__(kMergeChannels* kMergeThreads)
    merge_sums(GradientTiles tiles, GradientResults results) {
    __shared__ MergeSums<A> shared;
    const int y = static_cast<int>(threadIdx.y);
    const std::int64_t c =
        static_cast<std::int64_t>(blockIdx.x) * kMergeChannels + static_cast<int>(threadIdx.x);
    CompensatedSum<A> grad{};
    CompensatedSum<A> grad_xhat{};
    if (c < tiles.channels) {
        for (std::int64_t tile = y; tile < tiles.tiles; tile += kMergeThreads) {
            const std::int64_t at = tile * tiles.channels + c;
            grad += static_cast<const A*>(tiles.grad)[at];
            grad_xhat += static_cast<const A*>(tiles.grad_xhat)[at];
        }
    }
    grad = sum_of_merge<A>(grad, shared);
    grad_xhat = sum_of_merge<A>(grad_xhat, shared);
    if (y == 0 && c < tiles.channels) {
        finalize_gradient_of_channel<A>(c, grad.wide_total(), grad_xhat.wide_total(), tiles,
                                        results);
    }
}

// One value's gradient.
template <Activation kActivation, typename T>
__device__ __forceinline__ T gradient_of(T grad, T value, const Normalisation<Arithmetic<T>>& norm,
                                         Arithmetic<T> slope, Arithmetic<T> offset,
                                         Arithmetic<T> negative_slope) {
    using A = Arithmetic<T>;
    const A x = to_arithmetic(value);
    const A g = gradient_by_input<kActivation>(to_arithmetic(grad), norm(x), negative_slope);
    return from_arithmetic<T>(batch_norm_gradient(g, x, norm.mean, norm.scale, slope, offset));
}

// A block processes kInFlight times its height in rows. result may be grad.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    gradient_columns(const __grid_constant__ NormAct norm, ColumnBlocks blocks, const T* grad,
                     const T* input, const Arithmetic<T>* slope, const Arithmetic<T>* offset,
                     T* result) {
    using A = Arithmetic<T>;
    const ColumnThread place = ColumnThread::of<kVector>(blocks);
    const std::int64_t channels = norm.layout.channels;
    if (place.channel >= channels) {
        return;
    }
    Normalisation<A> normalise[kVector];
    A slopes[kVector];
    A offsets[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        normalise[v] = norm.of_channel<A>(place.channel + v);
        slopes[v] = slope[place.channel + v];
        offsets[v] = offset[place.channel + v];
    }
    const A negative_slope = static_cast<A>(norm.negative_slope);
    const std::int64_t row = place.part * (place.rows * kInFlight) + place.row;
    for_vectors_in_flight<kInFlight>(norm.activation, [&](auto tag, auto count, int first) {
        constexpr int kCount = decltype(count)::value;
        Vector<T, kVector> grads[kCount];
        Vector<T, kVector> values[kCount];
#pragma unroll
        for (int r = 0; r < kCount; ++r) {
            const std::int64_t at = row + (first + r) * place.rows;
            if (at < norm.layout.images) {
                grads[r] = load<kVector>(grad + at * channels + place.channel);
                values[r] = load<kVector>(input + at * channels + place.channel);
            }
        }
#pragma unroll
        for (int r = 0; r < kCount; ++r) {
            const std::int64_t at = row + (first + r) * place.rows;
            if (at < norm.layout.images) {
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    grads[r].elements[v] = gradient_of<decltype(tag)::value>(
                        grads[r].elements[v], values[r].elements[v], normalise[v], slopes[v],
                        offsets[v], negative_slope);
                }
                store<kVector>(result + at * channels + place.channel, grads[r]);
            }
        }
    });
}

// A thread owns kInFlight vectors, kTileThreads apart, each of values of one channel.
// result may be grad.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    gradient_runs(const __grid_constant__ NormAct norm, LayoutDivisors divisors, const T* grad,
                  const T* input, const Arithmetic<T>* slope, const Arithmetic<T>* offset,
                  T* result) {
    using A = Arithmetic<T>;
    const A negative_slope = static_cast<A>(norm.negative_slope);
    const std::int64_t vectors = norm.layout.numel() / kVector;
    const std::int64_t start =
        static_cast<std::int64_t>(blockIdx.x) * (kTileThreads * kInFlight) + threadIdx.x;
    for_vectors_in_flight<kInFlight>(norm.activation, [&](auto tag, auto count, int first) {
        constexpr int kCount = decltype(count)::value;
        Vector<T, kVector> grads[kCount];
        Vector<T, kVector> values[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const std::int64_t vector = start + (first + i) * kTileThreads;
            if (vector < vectors) {
                grads[i] = load<kVector>(grad + vector * kVector);
                values[i] = load<kVector>(input + vector * kVector);
            }
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const std::int64_t vector = start + (first + i) * kTileThreads;
            if (vector < vectors) {
                const std::int64_t run = divisors.image_size.quotient(vector * kVector);
                const std::int64_t channel =
                    run - divisors.channels.quotient(run) * norm.layout.channels;
                const Normalisation<A> normalise = norm.of_channel<A>(channel);
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    grads[i].elements[v] = gradient_of<decltype(tag)::value>(
                        grads[i].elements[v], values[i].elements[v], normalise, slope[channel],
                        offset[channel], negative_slope);
                }
                store<kVector>(result + vector * kVector, grads[i]);
            }
        }
    });
}

}  // namespace

void norm_act_gradient_sums(const NormAct& norm, const void* grad, const void* input,
                            const void* invstd, void* grad_sum, void* grad_xhat_sum, void* stream) {
    const ChannelLayout& layout = norm.layout;
    const std::int64_t values = layout.values_per_channel();
    const std::int64_t size = tile_size(values, layout.channels);
    const std::int64_t tiles = tile_count(values, layout.channels);
    const bool aligned = is_aligned(grad) && is_aligned(input);
    with_vectors(norm.type, layout, aligned, [&](auto example, auto vector) {
        using T = decltype(example);
        constexpr int kVector = decltype(vector)::value;
        if (layout.is_columns()) {
            const ColumnBlocks blocks = column_blocks(layout.channels, kVector);
            launch("column_sums", column_sums<T, kVector>, blocks.count(tiles), kTileThreads, 0,
                   stream, norm, size, blocks, grad, input, invstd, grad_sum, grad_xhat_sum);
        } else {
            const std::int64_t pairs = tiles * layout.channels;
            launch("channel_sums", channel_sums<T, kVector>, blocks_for(pairs, kTileThreads / 32),
                   kTileThreads, 0, stream, norm, LayoutDivisors::of(layout), size, pairs, grad,
                   input, invstd, grad_sum, grad_xhat_sum);
        }
    });
}

void norm_act_gradient_finalize(const GradientTiles& tiles, const GradientResults& results,
                                void* stream) {
    launch("merge_sums", tiles.is_double ? merge_sums<double> : merge_sums<float>,
           blocks_for(tiles.channels, kMergeChannels), dim3(kMergeChannels, kMergeThreads), 0,
           stream, tiles, results);
}

void norm_act_gradient(const NormAct& norm, const void* grad, const void* input, const void* slope,
                       const void* offset, void* result, void* stream) {
    const ChannelLayout& layout = norm.layout;
    const bool aligned = is_aligned(grad) && is_aligned(input) && is_aligned(result);
    with_vectors(norm.type, layout, aligned, [&](auto example, auto vector) {
        using T = decltype(example);
        constexpr int kVector = decltype(vector)::value;
        if (layout.is_columns()) {
            const ColumnBlocks blocks = column_blocks(layout.channels, kVector);
            const std::int64_t rows = kTileThreads / blocks.lanes * kInFlight;
            launch("gradient_columns", gradient_columns<T, kVector>,
                   blocks.count((layout.images + rows - 1) / rows), kTileThreads, 0, stream, norm,
                   blocks, grad, input, slope, offset, result);
        } else {
            launch("gradient_runs", gradient_runs<T, kVector>,
                   blocks_for(layout.numel() / kVector, kTileThreads * kInFlight), kTileThreads, 0,
                   stream, norm, LayoutDivisors::of(layout), grad, input, slope, offset, result);
        }
    });
}

}  // namespace fastgan::cuda
