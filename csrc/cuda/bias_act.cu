// bias_act and its gradient on CUDA devices: each byte read once. The formulas: math/bias_act.h.
#include "../bias_act.h"

#include "../math/float_pairs.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreads = 256;
// A thread's values, for one byte of bits.
constexpr int kValues = 8;

// The channel of a thread's values, one after the other.
struct Channels {
    std::int64_t channel;
    std::int64_t left;

    __device__ __forceinline__ static Channels at(const BiasShape& shape, std::int64_t place) {
        const std::int64_t run = place / shape.inner;
        return {run % shape.channels, shape.inner - (place - run * shape.inner)};
    }

    __device__ __forceinline__ void advance(const BiasShape& shape) {
        if (--left == 0) {
            left = shape.inner;
            channel = channel + 1 == shape.channels ? 0 : channel + 1;
        }
    }
};

template <typename A>
__device__ __forceinline__ A activated(const BiasAct& settings, A u) {
    const A gain = static_cast<A>(settings.gain);
    switch (settings.act) {
        case StyleActivation::linear:
            return u * gain;
        case StyleActivation::relu:
            return (u <= A(0) ? A(0) : u) * gain;
        case StyleActivation::lrelu:
            return (u > A(0) ? u : u * static_cast<A>(settings.alpha)) * gain;
        default:
            break;
    }
    A value = u;
    with_smooth_style(settings.act, [&](auto row) { value = row.value(u) * gain; });
    return value;
}

// g * act', from the argument of slope() in math/bias_act.h.
template <typename A>
__device__ __forceinline__ A by_slope(const BiasAct& settings, A z, A g) {
    switch (settings.act) {
        case StyleActivation::linear:
            return g;
        case StyleActivation::relu:
            return z <= A(0) ? A(0) : g;
        case StyleActivation::lrelu:
            return z > A(0) ? g : g * static_cast<A>(settings.alpha);
        default:
            break;
    }
    A result = g;
    with_smooth_style(settings.act, [&](auto row) { result = g * row.slope(z); });
    return result;
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    bias_act_values(const __grid_constant__ BiasShape shape,
                    const __grid_constant__ BiasAct settings, const T* bias, const T* x, T* y,
                    std::uint8_t* bits) {
    using A = decltype(to_arithmetic(T{}));
    const std::int64_t byte = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t first = byte * kValues;
    if (first >= shape.numel) {
        return;
    }
    const A clamp = static_cast<A>(settings.clamp);
    Channels channels = Channels::at(shape, first);
    unsigned packed = 0;
    for (int i = 0; i < kValues && first + i < shape.numel; ++i) {
        A u = to_arithmetic(x[first + i]);
        if (bias != nullptr) {
            u += to_arithmetic(bias[channels.channel]);
            channels.advance(shape);
        }
        packed |= static_cast<unsigned>(rises(u, settings.act == StyleActivation::relu)) << i;
        y[first + i] = from_arithmetic<T>(clamped(activated(settings, u), clamp));
    }
    if (bits != nullptr) {
        bits[byte] = static_cast<std::uint8_t>(packed);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    bias_act_gradients(const __grid_constant__ BiasShape shape,
                       const __grid_constant__ BiasAct settings, const T* bias, Kept keeps,
                       const void* kept, const T* grad, T* grad_x) {
    using A = decltype(to_arithmetic(T{}));
    const std::int64_t byte = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t first = byte * kValues;
    if (first >= shape.numel) {
        return;
    }
    const A gain = static_cast<A>(settings.gain);
    const A inverse = gain != A(0) ? A(1) / gain : A(0);
    const A clamp = static_cast<A>(settings.clamp);
    const bool is_clamped = clamp - clamp == A(0);
    Channels channels = Channels::at(shape, first);
    const unsigned packed = keeps == Kept::bits ? static_cast<const std::uint8_t*>(kept)[byte] : 0;
    for (int i = 0; i < kValues && first + i < shape.numel; ++i) {
        A g = to_arithmetic(grad[first + i]);
        if (keeps == Kept::output) {
            const A y = to_arithmetic(static_cast<const T*>(kept)[first + i]);
            const A magnitude = y < A(0) ? -y : y;
            g = is_clamped && !(magnitude < clamp) ? A(0) : g;
            g = by_slope(settings, y * inverse, g * gain);
        } else if (keeps == Kept::input) {
            A u = to_arithmetic(static_cast<const T*>(kept)[first + i]);
            if (bias != nullptr) {
                u += to_arithmetic(bias[channels.channel]);
                channels.advance(shape);
            }
            if (is_clamped) {
                const A y = activated(settings, u);
                const A magnitude = y < A(0) ? -y : y;
                g = magnitude <= clamp ? g : A(0);
            }
            g = by_slope(settings, u, g * gain);
        } else {
            g *= gain;
            if (keeps == Kept::bits && (packed >> i & 1u) == 0) {
                g = settings.act == StyleActivation::relu ? A(0)
                                                          : g * static_cast<A>(settings.alpha);
            }
        }
        grad_x[first + i] = from_arithmetic<T>(g);
    }
}

}  // namespace

void bias_act(const BiasShape& shape, const BiasAct& settings, const void* bias, const void* x,
              void* y, std::uint8_t* bits, void* stream) {
    for_float_type(shape.type, [&]<typename T>() {
        launch("bias_act_values", bias_act_values<T>, blocks_for(shape.numel, kThreads * kValues),
               kThreads, 0, stream, shape, settings, bias, x, y, bits);
    });
}

void bias_act_gradient(const BiasShape& shape, const BiasAct& settings, const void* bias,
                       Kept keeps, const void* kept, const void* grad, void* grad_x,
                       void* /*grad_bias*/, void* stream) {
    for_float_type(shape.type, [&]<typename T>() {
        launch("bias_act_gradients", bias_act_gradients<T>,
               blocks_for(shape.numel, kThreads * kValues), kThreads, 0, stream, shape, settings,
               bias, keeps, kept, grad, grad_x);
    });
}

}  // namespace fastgan::cuda
