// The activations, and their derivatives: by the input, or by the output where that suffices.
//
//   code  name         z(u)                    z'(u)                       z' from y = z(u)
//   0     none         u                       1                           1
//   1     relu         max(u, 0)               0 where u <= 0, else 1      0 where y <= 0, else 1
//   2     leaky_relu   u > 0 ? u : s * u       u > 0 ? 1 : s               y > 0 ? 1 : s  (s >= 0)
//   3     tanh         tanh(u)                 1 - tanh(u)^2               1 - y^2
//   4     sigmoid      1 / (1 + exp(-u))       z(u) * (1 - z(u))           y * (1 - y)
//
// The table is fastgan/activations.py's. The comparisons are false for NaN, so that one does what
// it does in torch: relu keeps it, and lets a gradient through where it was; leaky_relu scales
// both.
#pragma once

#include "arithmetic.h"

namespace fastgan {

enum class Activation { none = 0, relu = 1, leaky_relu = 2, tanh = 3, sigmoid = 4 };

inline constexpr int kActivations = 5;

// --- exp and tanh --------------------------------------------------------------------------------

// In float on the host without a branch or a call, so that compilers turn loops over them into
// vector code: C's functions are neither. Both are within 2 units in the last place.

#if !defined(__CUDA_ARCH__)

namespace exponential {

// x = n * ln(2) + r with a whole n and |r| <= ln(2) / 2, about.
struct Reduced {
    std::uint32_t n;  // in two's complement
    float r;
};

FASTGAN_INLINE Reduced reduce(float x) {
    constexpr float log2_of_e = 1.44269504088896341f;
    // ln(2) in two parts, the first of so few bits that n times it is exact.
    constexpr float ln2_upper = 0.693359375f;
    constexpr float ln2_lower = -2.12194440054690582e-4f;
    // Next to 1.5 * 2^23 a float's unit in the last place is 1: the addition rounds to a whole one.
    constexpr float rounder = 12582912.0f;
    const float shifted = multiply_add(x, log2_of_e, rounder);
    const float n = shifted - rounder;
    const float r = multiply_add(-n, ln2_lower, multiply_add(-n, ln2_upper, x));
    return Reduced{bits::of_float(shifted) - bits::of_float(rounder), r};
}

// (exp(r) - 1 - r) / r^2, by exp's series; what is left out is below 2^-27 of exp(r).
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
    // Beyond these exp is 0 or infinite. Comparisons that a NaN passes through.
    const float not_below = x < -104.0f ? -104.0f : x;
    const auto [n, r] = exponential::reduce(not_below > 89.0f ? 89.0f : not_below);
    const float exp_r = multiply_add(r * r, exponential::series(r), r) + 1.0f;
    // In two factors: 2^128 and 2^-150 are no floats.
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

// --- The table -----------------------------------------------------------------------------------

// An activation as a type, so that a generic function can have it as an argument.
template <Activation kActivation>
struct ActivationTag {
    static constexpr Activation value = kActivation;
};

// body(tag) with the tag of an activation that is known only now: one loop for each, and no choice
// within.
template <typename Body>
FASTGAN_INLINE void with_activation(Activation activation, const Body& body) {
    switch (activation) {
        case Activation::none:
            return body(ActivationTag<Activation::none>());
        case Activation::relu:
            return body(ActivationTag<Activation::relu>());
        case Activation::leaky_relu:
            return body(ActivationTag<Activation::leaky_relu>());
        case Activation::tanh:
            return body(ActivationTag<Activation::tanh>());
        case Activation::sigmoid:
            return body(ActivationTag<Activation::sigmoid>());
    }
}

// A: float or double.
template <Activation kActivation, typename A>
FASTGAN_INLINE A activate(A u, [[maybe_unused]] A negative_slope) {
    if constexpr (kActivation == Activation::relu) {
        return u <= A(0) ? A(0) : u;
    } else if constexpr (kActivation == Activation::leaky_relu) {
        return u > A(0) ? u : u * negative_slope;
    } else if constexpr (kActivation == Activation::tanh) {
        return hyperbolic_tangent(u);
    } else if constexpr (kActivation == Activation::sigmoid) {
        return quick_quotient(A(1), A(1) + exponential_of(-u));
    } else {
        return u;
    }
}

// grad * z', from the output y. Where z' is 0 or 1 the gradient is chosen, not multiplied: an
// infinite one times 0 would be NaN.
template <Activation kActivation, typename A>
FASTGAN_INLINE A gradient_by_output(A grad, [[maybe_unused]] A y,
                                    [[maybe_unused]] A negative_slope) {
    if constexpr (kActivation == Activation::relu) {
        return y <= A(0) ? A(0) : grad;
    } else if constexpr (kActivation == Activation::leaky_relu) {
        return y > A(0) ? grad : grad * negative_slope;
    } else if constexpr (kActivation == Activation::tanh) {
        return grad * (A(1) - y * y);
    } else if constexpr (kActivation == Activation::sigmoid) {
        return grad * ((A(1) - y) * y);
    } else {
        return grad;
    }
}

// grad * z', from the input u. Those of tanh and sigmoid by exp, without the difference from 1 that
// the outputs' formulas have: q = exp(-2|u|) or exp(-|u|), z' = 4 q / (1 + q)^2 or q / (1 + q)^2.
template <Activation kActivation, typename A>
FASTGAN_INLINE A gradient_by_input(A grad, A u, A negative_slope) {
    if constexpr (kActivation == Activation::tanh || kActivation == Activation::sigmoid) {
        constexpr bool is_tanh = kActivation == Activation::tanh;
        const A downwards = u > A(0) ? -u : u;
        const A q = exponential_of(is_tanh ? downwards + downwards : downwards);
        const A root = A(1) + q;
        return grad * quick_quotient(is_tanh ? A(4) * q : q, root * root);
    } else {
        // Their tables by input and by output are the same, for either sign of the slope.
        return gradient_by_output<kActivation>(grad, u, negative_slope);
    }
}

}  // namespace fastgan
