// The few operations beyond + - * / that the formulas in this folder use, for float and double.
#pragma once

#include "macros.h"

#if defined(__FP_FAST_FMA) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FASTGAN_HAS_FMA
#endif

namespace fastgan {

// a * b + c, rounded once where the processor can (nearly all do) and twice where it can't.
//
// torch's own kernels are compiled to do just that with every product that is added to something,
// and its results are what the optimisers here must give, bit for bit. So the formulas say where,
// while -ffp-contract=off keeps the compiler from choosing further places itself.
FASTGAN_INLINE float multiply_add(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
    return fmaf(a, b, c);
#elif defined(FASTGAN_HAS_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

FASTGAN_INLINE double multiply_add(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
    return fma(a, b, c);
#elif defined(FASTGAN_HAS_FMA)
    return __builtin_fma(a, b, c);
#else
    return a * b + c;
#endif
}

FASTGAN_INLINE float square_root(float value) {
#if defined(__CUDA_ARCH__)
    return sqrtf(value);
#else
    return __builtin_sqrtf(value);
#endif
}

FASTGAN_INLINE double square_root(double value) {
#if defined(__CUDA_ARCH__)
    return sqrt(value);
#else
    return __builtin_sqrt(value);
#endif
}

FASTGAN_INLINE double power(double base, double exponent) {
#if defined(__CUDA_ARCH__)
    return pow(base, exponent);
#else
    return __builtin_pow(base, exponent);
#endif
}

// The larger of two, NaN if either is, as torch.maximum.
template <typename A>
FASTGAN_INLINE A maximum(A a, A b) {
    const A larger = a > b ? a : b;  // b where either is NaN
    return a != a ? a : larger;
}

// start + weight * (end - start), as torch.lerp: from the nearer end, so that weight = 1 gives end.
template <typename A>
FASTGAN_INLINE A lerp(A start, A end, A weight) {
    const bool nearer_start = weight < A(0.5) && weight > A(-0.5);
    const A base = nearer_start ? start : end;
    const A coefficient = nearer_start ? weight : weight - A(1);
    return multiply_add(coefficient, end - start, base);
}

}  // namespace fastgan
