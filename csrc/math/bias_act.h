// bias_act: y = clamp(gain * act(x + b)), and its gradient. The table of formulas is
// fastgan/ops/bias_act.py's.
//
// NaN behaves as in torch: every activation keeps it; relu, elu and selu pass the gradient if the
// output is NaN.
#pragma once

#include "activation.h"

namespace fastgan {

// In the order of their codes.
enum class StyleActivation { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };
inline constexpr int kStyleActivations = 9;

// What the forward pass keeps for the gradient: nothing; one bit per value, whether the slope is 1;
// the output; or, for swish and if the output isn't enough, the input.
enum class Kept { nothing, bits, output, input };

struct BiasAct {
    StyleActivation act;
    double alpha;
    double gain;
    double clamp;  // infinite for no bound
};

FASTGAN_INLINE bool is_piecewise_linear(StyleActivation act) {
    return act <= StyleActivation::lrelu;
}

// --- exp(x) - 1 and log(1 + x) -------------------------------------------------------------------

#if !defined(__CUDA_ARCH__)

// Of x <= 0; see hyperbolic_tangent.
FASTGAN_INLINE float expm1_of_negative(float x) {
    const auto [n, r] = exponential::reduce(x < -87.0f ? -87.0f : x);
    const float power = exponential::power_of_two(n);
    const float expm1_r = multiply_add(r * r, exponential::series(r), r);
    return multiply_add(power, expm1_r, power - 1.0f);
}

FASTGAN_INLINE double expm1_of_negative(double x) {
    return __builtin_expm1(x);
}

// For 0 <= q <= 1: 2 artanh(s) with s = q / (2 + q); the series' remainder is below 2^-26.
FASTGAN_INLINE float log1p_of_share(float q) {
    const float s = q / (2.0f + q);
    const float square = s * s;
    const float tail =
        polynomial(square, 1.0f / 3, 1.0f / 5, 1.0f / 7, 1.0f / 9, 1.0f / 11, 1.0f / 13);
    return 2.0f * multiply_add(s * square, tail, s);
}

FASTGAN_INLINE double log1p_of_share(double q) {
    return __builtin_log1p(q);
}

#else

FASTGAN_INLINE float expm1_of_negative(float x) {
    return expm1f(x);
}

FASTGAN_INLINE double expm1_of_negative(double x) {
    return expm1(x);
}

FASTGAN_INLINE float log1p_of_share(float q) {
    return log1pf(q);
}

FASTGAN_INLINE double log1p_of_share(double q) {
    return log1p(q);
}

#endif

// --- The smooth ones -----------------------------------------------------------------------------

// value(u) = act(u); slope(z) = act' from z = act(u), for swish from u.
template <StyleActivation kAct>
struct StyleRow;

template <>
struct StyleRow<StyleActivation::tanh> {
    template <typename A>
    FASTGAN_INLINE static A value(A u) {
        return hyperbolic_tangent(u);
    }
    template <typename A>
    FASTGAN_INLINE static A slope(A z) {
        return A(1) - z * z;
    }
};

template <>
struct StyleRow<StyleActivation::sigmoid> {
    template <typename A>
    FASTGAN_INLINE static A value(A u) {
        return Row<Activation::sigmoid>::value(u, A(0));
    }
    template <typename A>
    FASTGAN_INLINE static A slope(A z) {
        return (A(1) - z) * z;
    }
};

// u > 0: lambda u, else: lambda alpha (exp(u) - 1).
template <>
struct StyleRow<StyleActivation::elu> {
    template <typename A>
    FASTGAN_INLINE static A value(A u) {
        return u > A(0) ? u : expm1_of_negative(u > A(0) ? A(0) : u);
    }
    template <typename A>
    FASTGAN_INLINE static A slope(A z) {
        return z <= A(0) ? z + A(1) : A(1);
    }
};

template <>
struct StyleRow<StyleActivation::selu> {
    static constexpr double kLambda = 1.0507009873554804934193349852946;
    static constexpr double kAlpha = 1.6732632423543772848170429916717;
    template <typename A>
    FASTGAN_INLINE static A value(A u) {
        return u > A(0) ? u * A(kLambda)
                        : expm1_of_negative(u > A(0) ? A(0) : u) * A(kLambda * kAlpha);
    }
    template <typename A>
    FASTGAN_INLINE static A slope(A z) {
        return z <= A(0) ? z + A(kLambda * kAlpha) : A(kLambda);
    }
};

// max(u, 0) + log(1 + exp(-|u|)).
template <>
struct StyleRow<StyleActivation::softplus> {
    template <typename A>
    FASTGAN_INLINE static A value(A u) {
        const A tail = log1p_of_share(exponential_of(u > A(0) ? -u : u));
        return u > A(0) ? u + tail : tail;
    }
    template <typename A>
    FASTGAN_INLINE static A slope(A z) {
        return -expm1_of_negative(-z);
    }
};

template <>
struct StyleRow<StyleActivation::swish> {
    template <typename A>
    FASTGAN_INLINE static A value(A u) {
        return Row<Activation::silu>::value(u, A(0));
    }
    template <typename A>
    FASTGAN_INLINE static A slope(A u) {
        return Row<Activation::silu>::gradient(A(1), u, A(0));
    }
};

#define FASTGAN_SMOOTH_STYLES(X) X(tanh) X(sigmoid) X(elu) X(selu) X(softplus) X(swish)

// Calls body(row) with a smooth activation's row.
template <typename Body>
FASTGAN_INLINE void with_smooth_style(StyleActivation act, const Body& body) {
    switch (act) {
#define FASTGAN_STYLE_CASE(name) \
    case StyleActivation::name:  \
        return body(StyleRow<StyleActivation::name>());
        FASTGAN_SMOOTH_STYLES(FASTGAN_STYLE_CASE)
#undef FASTGAN_STYLE_CASE
        default:
            return;
    }
}

// --- One value -----------------------------------------------------------------------------------

// -clamp <= v <= clamp; NaN stays.
template <typename A>
FASTGAN_INLINE A clamped(A value, A clamp) {
    const A not_above = value > clamp ? clamp : value;
    return not_above < -clamp ? -clamp : not_above;
}

// Whether a piecewise linear activation has slope 1.
template <typename A>
FASTGAN_INLINE bool rises(A u, bool is_relu) {
    return is_relu ? !(u <= A(0)) : u > A(0);
}

}  // namespace fastgan
