// The activations and their gradients, from the input or from the kept tensor.
//
// fastgan/activations.py has the table of formulas, and says what each keeps: its output, or its
// input if z' can't be computed from the output. The comparisons are false for NaN, which then
// behaves as in torch: relu keeps it, and passes its gradient; leaky_relu scales both.
#pragma once

#include <cstdlib>

#include "arithmetic.h"

namespace fastgan {

// In the order of their codes. Piecewise linear ones cost a comparison, smooth ones a function
// call.
#define FASTGAN_PIECEWISE_LINEAR(X) X(none) X(relu) X(leaky_relu)
#define FASTGAN_SMOOTH(X) X(tanh) X(sigmoid) X(silu) X(gelu) X(gelu_tanh)
#define FASTGAN_ACTIVATIONS(X) FASTGAN_PIECEWISE_LINEAR(X) FASTGAN_SMOOTH(X)

enum class Activation {
#define FASTGAN_NAME(name) name,
    FASTGAN_ACTIVATIONS(FASTGAN_NAME)
#undef FASTGAN_NAME
};

#define FASTGAN_ONE(name) +1
inline constexpr int kActivations = FASTGAN_ACTIVATIONS(FASTGAN_ONE);
#undef FASTGAN_ONE

// --- exp and tanh --------------------------------------------------------------------------------

// For float on the host without branches or calls, unlike C's functions, so that compilers
// vectorise loops over them. Both are within 2 units in the last place.

#if !defined(__CUDA_ARCH__)

namespace exponential {

// x = n * ln(2) + r with a whole n and |r| <= ln(2) / 2, about.
struct Reduced {
    std::uint32_t n;  // in two's complement
    float r;
};

FASTGAN_INLINE Reduced reduce(float x) {
    constexpr float log2_of_e = 1.44269504088896341f;
    // ln(2) in two parts, the first with so few bits that its product with n is exact.
    constexpr float ln2_upper = 0.693359375f;
    constexpr float ln2_lower = -2.12194440054690582e-4f;
    // Near 1.5 * 2^23 a float's unit in the last place is 1: the addition rounds to an integer.
    constexpr float rounder = 12582912.0f;
    const float shifted = multiply_add(x, log2_of_e, rounder);
    const float n = shifted - rounder;
    const float r = multiply_add(-n, ln2_lower, multiply_add(-n, ln2_upper, x));
    return Reduced{bits::of_float(shifted) - bits::of_float(rounder), r};
}

// (exp(r) - 1 - r) / r^2, by exp's series; the remainder is below 2^-27 of exp(r).
FASTGAN_INLINE float series(float r) {
    float sum = 1.0f / 5040.0f;
    sum = multiply_add(sum, r, 1.0f / 720.0f);
    sum = multiply_add(sum, r, 1.0f / 120.0f);
    sum = multiply_add(sum, r, 1.0f / 24.0f);
    sum = multiply_add(sum, r, 1.0f / 6.0f);
    return multiply_add(sum, r, 0.5f);
}

// 2^n for -126 <= n <= 127.
FASTGAN_INLINE float power_of_two(std::uint32_t n) {
    return bits::as_float((n + 127u) << 23);
}

}  // namespace exponential

FASTGAN_INLINE float exponential_of(float x) {
    // Beyond these exp is 0 or infinite. NaN passes through these comparisons.
    const float not_below = x < -104.0f ? -104.0f : x;
    const auto [n, r] = exponential::reduce(not_below > 89.0f ? 89.0f : not_below);
    const float exp_r = multiply_add(r * r, exponential::series(r), r) + 1.0f;
    // In two factors, because 2^128 and 2^-150 aren't floats.
    const std::uint32_t half = (n >> 1) | (n & 0x80000000u);
    return exp_r * exponential::power_of_two(half) * exponential::power_of_two(n - half);
}

FASTGAN_INLINE float hyperbolic_tangent(float x) {
    // tanh|x| = -e / (2 + e), e = exp(-2|x|) - 1 = 2^n (exp(r) - 1) + (2^n - 1), which loses
    // nothing next to 0. From |x| = 9.1 on it is 1.
    const std::uint32_t sign = bits::of_float(x) & 0x80000000u;
    const float magnitude = bits::as_float(bits::of_float(x) ^ sign);
    const auto [n, r] = exponential::reduce(-2.0f * (magnitude > 10.0f ? 10.0f : magnitude));
    const float power = exponential::power_of_two(n);
    const float expm1_r = multiply_add(r * r, exponential::series(r), r);
    const float e = multiply_add(power, expm1_r, power - 1.0f);
    return bits::as_float(bits::of_float(-e / (2.0f + e)) | sign);
}

FASTGAN_INLINE double exponential_of(double x) {
    return __builtin_exp(x);
}

FASTGAN_INLINE double hyperbolic_tangent(double x) {
    return __builtin_tanh(x);
}

#else

FASTGAN_INLINE float exponential_of(float x) {
    return expf(x);
}

FASTGAN_INLINE float hyperbolic_tangent(float x) {
    return tanhf(x);
}

FASTGAN_INLINE double exponential_of(double x) {
    return exp(x);
}

FASTGAN_INLINE double hyperbolic_tangent(double x) {
    return tanh(x);
}

#endif

// --- The normal distribution ---------------------------------------------------------------------

// c + q (c1 + q (c2 + ...)).
template <typename A>
FASTGAN_INLINE A polynomial([[maybe_unused]] A q, A c) {
    return c;
}

template <typename A, typename... Rest>
FASTGAN_INLINE A polynomial(A q, A c, Rest... rest) {
    return multiply_add(polynomial(q, rest...), q, c);
}

// P on 0 <= m <= 14, to 6e-8 of its value.
FASTGAN_INLINE float normal_polynomial(float q) {
    return polynomial(
        q, 0.47205323f, -0.09670343f, 0.013998616f, 0.02859851f,
        -0.032183874f, 0.01795976f, -0.0050602183f, -0.00040180457f,
        0.0007440134f, 9.871037e-05f);
}

// P on 0 <= m <= 39, to 1e-16 of its value.
FASTGAN_INLINE double normal_polynomial(double q) {
    return polynomial(
        q, 0.47205320650984467, -0.0967034773265256, 0.01399963472443148,
        0.02860036405352718, -0.032197837428408475, 0.017936097480419664,
        -0.005002378584267332, -0.00028562310835360814, 0.0006948970305874886,
        -9.44301781652119e-05, -8.785270626823438e-05, 2.1249740404648273e-05,
        1.3624924881461717e-05, -3.4315183435070443e-06, -2.607764425830651e-06,
        4.0392731364622593e-07, 5.431778117877027e-07, 6.594361676139867e-10,
        -1.0152473254280275e-07, -1.7465185918744316e-08, 1.1849977515902403e-08,
        3.944904539399657e-09);
}

// Phi(x) and phi(x): the normal distribution's cumulative function and density.
template <typename A>
struct Normal {
    A cumulative;
    A density;

    // Branch-free. Phi(-m) = exp(-m^2 / 2) P(q) / (1 + m), q = (m - 4) / (m + 4), so that neither
    // tail cancels: the form of Shepherd and Laframboise 1981, "Chebyshev approximation of (1 + 2x)
    // exp(x^2) erfc x", Mathematics of Computation 36, refitted. Beyond the fitted range Phi(-m) is
    // 0.
    FASTGAN_INLINE static Normal at(A x) {
        constexpr A last = sizeof(A) == sizeof(float) ? A(14) : A(39);
        const A magnitude = x < A(0) ? -x : x;
        const A m = magnitude > last ? last : magnitude;
        const A e = exponential_of(A(-0.5) * x * x);
        const A inverse = quick_quotient(A(1), (m + A(4)) * (m + A(1)));
        const A p = normal_polynomial((m - A(4)) * (m + A(1)) * inverse);
        const A tail = e * p * ((m + A(4)) * inverse);
        constexpr A peak = A(0.39894228040143267794);  // 1 / sqrt(2 pi)
        return Normal{x < A(0) ? tail : A(1) - tail, peak * e};
    }
};

// --- The table -----------------------------------------------------------------------------------

// An activation's row: value(u, slope) = z(u); gradient(grad, kept, slope) = grad * z', from the
// kept value; gradient_by_input(grad, u, slope) = grad * z'(u). A: float or double. If z' is 0 or 1
// the gradient is selected, not multiplied: infinity times 0 would be NaN.
//
// Defined for each activation and not in general: one without a row doesn't compile.
template <Activation kActivation>
struct Row;

// For activations with one formula for both gradients: they keep their input, or need only the sign
// of the output, which is the input's.
template <typename Self>
struct OneGradient {
    template <typename A>
    FASTGAN_INLINE static A gradient_by_input(A grad, A u, A negative_slope) {
        return Self::gradient(grad, u, negative_slope);
    }
};

template <>
struct Row<Activation::none> : OneGradient<Row<Activation::none>> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A) {
        return u;
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A, A) {
        return grad;
    }
};

template <>
struct Row<Activation::relu> : OneGradient<Row<Activation::relu>> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A) {
        return u <= A(0) ? A(0) : u;
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A y, A) {
        return y <= A(0) ? A(0) : grad;
    }
};

template <>
struct Row<Activation::leaky_relu> : OneGradient<Row<Activation::leaky_relu>> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A negative_slope) {
        return u > A(0) ? u : u * negative_slope;
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A kept, A negative_slope) {
        return kept > A(0) ? grad : grad * negative_slope;
    }
};

template <>
struct Row<Activation::tanh> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A) {
        return hyperbolic_tangent(u);
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A y, A) {
        return grad * (A(1) - y * y);
    }

    // Without a cancelling 1 - y^2: q = exp(-2|u|), z' = 4 q / (1 + q)^2.
    template <typename A>
    FASTGAN_INLINE static A gradient_by_input(A grad, A u, A) {
        const A downwards = u > A(0) ? -u : u;
        const A q = exponential_of(downwards + downwards);
        const A root = A(1) + q;
        return grad * quick_quotient(A(4) * q, root * root);
    }
};

template <>
struct Row<Activation::sigmoid> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A) {
        return quick_quotient(A(1), A(1) + exponential_of(-u));
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A y, A) {
        return grad * ((A(1) - y) * y);
    }

    // As for tanh: q = exp(-|u|), z' = q / (1 + q)^2.
    template <typename A>
    FASTGAN_INLINE static A gradient_by_input(A grad, A u, A) {
        const A q = exponential_of(u > A(0) ? -u : u);
        const A root = A(1) + q;
        return grad * quick_quotient(q, root * root);
    }
};

template <>
struct Row<Activation::silu> : OneGradient<Row<Activation::silu>> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A slope) {
        return u * Row<Activation::sigmoid>::value(u, slope);
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A u, A slope) {
        const A sigmoid = Row<Activation::sigmoid>::value(u, slope);
        return grad * (sigmoid * multiply_add(u, A(1) - sigmoid, A(1)));
    }
};

template <>
struct Row<Activation::gelu> : OneGradient<Row<Activation::gelu>> {
    template <typename A>
    FASTGAN_INLINE static A value(A u, A) {
        return u * Normal<A>::at(u).cumulative;
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A u, A) {
        const Normal<A> normal = Normal<A>::at(u);
        return grad * multiply_add(u, normal.density, normal.cumulative);
    }
};

// (1 + tanh(i)) / 2 = sigmoid(2 i), which doesn't cancel below 0; i(u) = sqrt(2 / pi) (u + 0.044715
// u^3).
template <>
struct Row<Activation::gelu_tanh> : OneGradient<Row<Activation::gelu_tanh>> {
    using Sigmoid = Row<Activation::sigmoid>;

    template <typename A>
    FASTGAN_INLINE static A twice_inner(A u) {
        return A(kTwoBeta) * multiply_add(A(kKappa) * u * u, u, u);
    }

    template <typename A>
    FASTGAN_INLINE static A value(A u, A slope) {
        return u * Sigmoid::value(twice_inner(u), slope);
    }

    template <typename A>
    FASTGAN_INLINE static A gradient(A grad, A u, A slope) {
        const A inner = twice_inner(u);
        const A inner_slope = A(kTwoBeta) * multiply_add(A(3 * kKappa) * u, u, A(1));
        const A bend = u * Sigmoid::gradient_by_input(inner_slope, inner, slope);
        return grad * (Sigmoid::value(inner, slope) + bend);
    }

  private:
    static constexpr double kTwoBeta = 1.59576912160573071176;  // 2 sqrt(2 / pi)
    static constexpr double kKappa = 0.044715;
};

// --- By its number -------------------------------------------------------------------------------

// An activation as a type, to pass it to a generic function.
template <Activation kActivation>
struct ActivationTag {
    static constexpr Activation value = kActivation;
};

#define FASTGAN_CASE(name)       \
    case Activation::name:       \
        return body(ActivationTag<Activation::name>());

// Calls body(tag) with a smooth activation's tag, so that each gets its own loop without branches.
// The ops refuse invalid codes; one that gets here ends the process (on a device, the kernel),
// without an exception because each instruction set's loops must define nothing else.
template <typename Body>
FASTGAN_INLINE void with_smooth(Activation activation, const Body& body) {
    switch (activation) {
        FASTGAN_SMOOTH(FASTGAN_CASE)
        default:
#if defined(__CUDA_ARCH__)
            __trap();
#else
            std::abort();
#endif
    }
}

// Calls body(tag) if the activation is piecewise linear, otherwise smooth().
template <typename Body, typename Smooth>
FASTGAN_INLINE void if_piecewise_linear(Activation activation, const Body& body,
                                        const Smooth& smooth) {
    switch (activation) {
        FASTGAN_PIECEWISE_LINEAR(FASTGAN_CASE)
        default:
            return smooth();
    }
}

#undef FASTGAN_CASE

// Calls body(tag) for any activation.
template <typename Body>
FASTGAN_INLINE void with_activation(Activation activation, const Body& body) {
    if_piecewise_linear(activation, body, [&] { with_smooth(activation, body); });
}

template <Activation kActivation, typename A>
FASTGAN_INLINE A activate(A u, A negative_slope) {
    return Row<kActivation>::value(u, negative_slope);
}

// grad * z', from the kept value.
template <Activation kActivation, typename A>
FASTGAN_INLINE A activation_gradient(A grad, A kept, A negative_slope) {
    return Row<kActivation>::gradient(grad, kept, negative_slope);
}

// grad * z'(u).
template <Activation kActivation, typename A>
FASTGAN_INLINE A gradient_by_input(A grad, A u, A negative_slope) {
    return Row<kActivation>::gradient_by_input(grad, u, negative_slope);
}

}  // namespace fastgan
