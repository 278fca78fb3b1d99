// A normalisation with an activation, and an activation's gradient, on CUDA devices: memory-bound,
// each byte read or written once.
#include "../batch_norm.h"
#include "channel_tiles.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

// Vectors that a thread loads before it uses the first, to hide memory latency. Fewer for doubles,
// whose activations need more registers.
template <typename T>
constexpr int kInFlight = sizeof(T) == 8 ? 1 : 4;

// A block processes kInFlight<T> times its height in rows; see ColumnBlocks.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    norm_act_columns(const __grid_constant__ NormAct norm, ColumnBlocks blocks, const T* input,
                     T* result) {
    using A = Arithmetic<T>;
    const ColumnThread place = ColumnThread::of<kVector>(blocks);
    const std::int64_t channels = norm.layout.channels;
    if (place.channel >= channels) {
        return;
    }
    Normalisation<A> normalise[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        normalise[v] = norm.of_channel<A>(place.channel + v);
    }
    const A negative_slope = static_cast<A>(norm.negative_slope);
    const std::int64_t row = place.part * (place.rows * kInFlight<T>)+place.row;
    for_vectors_in_flight<kInFlight<T>>(norm.activation, [&](auto tag, auto count, int first) {
        constexpr int kCount = decltype(count)::value;
        Vector<T, kVector> values[kCount];
#pragma unroll
        for (int r = 0; r < kCount; ++r) {
            const std::int64_t at = row + (first + r) * place.rows;
            if (at < norm.layout.images) {
                values[r] = load<kVector>(input + at * channels + place.channel);
            }
        }
#pragma unroll
        for (int r = 0; r < kCount; ++r) {
            const std::int64_t at = row + (first + r) * place.rows;
            if (at < norm.layout.images) {
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    const A u = normalise[v](to_arithmetic(values[r].elements[v]));
                    values[r].elements[v] =
                        from_arithmetic<T>(activate<decltype(tag)::value>(u, negative_slope));
                }
                store<kVector>(result + at * channels + place.channel, values[r]);
            }
        }
    });
}

// A thread owns kInFlight<T> vectors, kTileThreads apart, each of values of one channel.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    norm_act_runs(const __grid_constant__ NormAct norm, LayoutDivisors divisors, const T* input,
                  T* result) {
    using A = Arithmetic<T>;
    const A negative_slope = static_cast<A>(norm.negative_slope);
    const std::int64_t vectors = norm.layout.numel() / kVector;
    const std::int64_t start =
        static_cast<std::int64_t>(blockIdx.x) * (kTileThreads * kInFlight<T>)+threadIdx.x;
    for_vectors_in_flight<kInFlight<T>>(norm.activation, [&](auto tag, auto count, int first) {
        constexpr int kCount = decltype(count)::value;
        Vector<T, kVector> values[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const std::int64_t vector = start + (first + i) * kTileThreads;
            if (vector < vectors) {
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
                    const A u = normalise(to_arithmetic(values[i].elements[v]));
                    values[i].elements[v] =
                        from_arithmetic<T>(activate<decltype(tag)::value>(u, negative_slope));
                }
                store<kVector>(result + vector * kVector, values[i]);
            }
        }
    });
}

// A thread owns kInFlight<T> vectors, kTileThreads apart; threads of the first block also own one
// element each of the remainder. result may be grad.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    act_gradient_dense(const T* grad, const T* kept, T* result, std::int64_t numel,
                       Activation activation, Arithmetic<T> negative_slope) {
    const std::int64_t vectors = numel / kVector;
    const std::int64_t start =
        static_cast<std::int64_t>(blockIdx.x) * (kTileThreads * kInFlight<T>)+threadIdx.x;
    for_vectors_in_flight<kInFlight<T>>(activation, [&](auto tag, auto count, int first) {
        constexpr Activation kActivation = decltype(tag)::value;
        constexpr int kCount = decltype(count)::value;
        Vector<T, kVector> grads[kCount];
        Vector<T, kVector> kept_values[kCount];
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const std::int64_t vector = start + (first + i) * kTileThreads;
            if (vector < vectors) {
                grads[i] = load<kVector>(grad + vector * kVector);
                kept_values[i] = load<kVector>(kept + vector * kVector);
            }
        }
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            const std::int64_t vector = start + (first + i) * kTileThreads;
            if (vector < vectors) {
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    grads[i].elements[v] = from_arithmetic<T>(activation_gradient<kActivation>(
                        to_arithmetic(grads[i].elements[v]),
                        to_arithmetic(kept_values[i].elements[v]), negative_slope));
                }
                store<kVector>(result + vector * kVector, grads[i]);
            }
        }
        const std::int64_t rest = vectors * kVector + threadIdx.x;
        if (first == 0 && blockIdx.x == 0 && rest < numel) {
            result[rest] = from_arithmetic<T>(activation_gradient<kActivation>(
                to_arithmetic(grad[rest]), to_arithmetic(kept[rest]), negative_slope));
        }
    });
}

}  // namespace

void norm_act(const NormAct& norm, const void* input, void* result, void* stream) {
    const ChannelLayout& layout = norm.layout;
    with_vectors(
        norm.type, layout, is_aligned(input) && is_aligned(result), [&](auto example, auto vector) {
            using T = decltype(example);
            constexpr int kVector = decltype(vector)::value;
            if (layout.is_columns()) {
                const ColumnBlocks blocks = column_blocks(layout.channels, kVector);
                const std::int64_t rows = kTileThreads / blocks.lanes * kInFlight<T>;
                launch("norm_act_columns", norm_act_columns<T, kVector>,
                       blocks.count((layout.images + rows - 1) / rows), kTileThreads, 0, stream,
                       norm, blocks, input, result);
            } else {
                launch("norm_act_runs", norm_act_runs<T, kVector>,
                       blocks_for(layout.numel() / kVector, kTileThreads * kInFlight<T>),
                       kTileThreads, 0, stream, norm, LayoutDivisors::of(layout), input, result);
            }
        });
}

void act_gradient(FloatType type, std::int64_t count, const void* grad, const void* kept,
                  Activation activation, double negative_slope, void* result, void* stream) {
    // As one image without channels: only alignment decides about vectors.
    const ChannelLayout layout{count, kVectorBytes, 1};
    const bool aligned = is_aligned(grad) && is_aligned(kept) && is_aligned(result);
    with_vectors(type, layout, aligned, [&](auto example, auto vector) {
        using T = decltype(example);
        constexpr int kVector = decltype(vector)::value;
        const std::int64_t vectors = count / kVector;
        // At least one block, for a remainder without vectors.
        const unsigned blocks = vectors == 0 ? 1 : blocks_for(vectors, kTileThreads * kInFlight<T>);
        launch("act_gradient_dense", act_gradient_dense<T, kVector>, blocks, kTileThreads, 0,
               stream, grad, kept, result, count, activation, negative_slope);
    });
}

}  // namespace fastgan::cuda
