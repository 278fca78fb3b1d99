// The few operations beyond + - * / that the formulas in this folder use, for float and double.
#pragma once

#include <cstdint>

#include "float_types.h"
#include "macros.h"

#if defined(__FP_FAST_FMA) || defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FASTGAN_HAS_FMA
#endif

namespace fastgan {

// a * b + c, rounded once if the processor has FMA (nearly all do), otherwise twice.
//
// Formulas call it where torch's kernels use FMA, and -ffp-contract=off prevents the compiler from
// adding others, so results don't depend on the compiler.
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
#elif defined(FASTGAN_HAS_FMA) || defined(FASTGAN_HOST_HARNESS)
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

// a / b, on a device within 2 units in the last place: exact division contains a function call,
// which costs registers.
FASTGAN_INLINE float quick_quotient(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fdividef(a, b);
#else
    return a / b;
#endif
}

FASTGAN_INLINE double quick_quotient(double a, double b) {
    return a / b;
}

// base^exponent, for 0 <= base <= 1. On GPUs, where pow takes hundreds of instructions of double,
// whole exponents, such as a count of steps, take a few products, each with what its rounding leaves
// out: the error is a rounding and exponent u^2.
FASTGAN_INLINE double power(double base, double exponent) {
#if defined(__CUDA_ARCH__) || defined(FASTGAN_HOST_HARNESS)
    if (exponent >= 0 && exponent < 4294967296.0) {
        std::uint32_t left = static_cast<std::uint32_t>(exponent);
        if (static_cast<double>(left) == exponent) {
            double base_low = 0;
            double result = 1;
            double result_low = 0;
            for (; left != 0; left >>= 1) {
                if ((left & 1) != 0) {
                    const double product = result * base;
                    result_low = multiply_add(result, base, -product) +
                                 (result * base_low + result_low * base);
                    result = product;
                }
                const double square = base * base;
                base_low = multiply_add(base, base, -square) + 2 * base * base_low;
                base = square;
            }
            return result + result_low;
        }
    }
#endif
#if defined(__CUDA_ARCH__)
    return pow(base, exponent);
#else
    return __builtin_pow(base, exponent);
#endif
}

// The larger of two, NaN if either is NaN, as in torch.maximum.
template <typename A>
FASTGAN_INLINE A maximum(A a, A b) {
    const A larger = a > b ? a : b;  // b where either is NaN
    return a != a ? a : larger;
}

// A loop-invariant selection between two values, as a bit mask: GCC 12 doesn't vectorise a loop
// with two selections by an outer bool.
template <typename A>
class Choice;

template <>
class Choice<float> {
  public:
    FASTGAN_INLINE static Choice make(bool first) {
        Choice choice;
        choice.mask_ = first ? ~std::uint32_t{0} : 0;
        return choice;
    }

    FASTGAN_INLINE float operator()(float first, float second) const {
        return bits::as_float((bits::of_float(first) & mask_) | (bits::of_float(second) & ~mask_));
    }

  private:
    std::uint32_t mask_;
};

template <>
class Choice<double> {
  public:
    FASTGAN_INLINE static Choice make(bool first) {
        Choice choice;
        choice.mask_ = first ? ~std::uint64_t{0} : 0;
        return choice;
    }

    FASTGAN_INLINE double operator()(double first, double second) const {
        return bits::as_double((bits::of_double(first) & mask_) |
                               (bits::of_double(second) & ~mask_));
    }

  private:
    std::uint64_t mask_;
};

// lerp(start, end) = start + weight * (end - start), as torch.lerp: computed from the nearer end,
// so that weight = 1 gives end.
template <typename A>
struct Lerp {
    A coefficient;
    Choice<A> choose;

    FASTGAN_INLINE static Lerp make(A weight) {
        const bool from_start = weight < A(0.5) && weight > A(-0.5);
        return Lerp{from_start ? weight : weight - A(1), Choice<A>::make(from_start)};
    }

    FASTGAN_INLINE A operator()(A start, A end) const {
        return multiply_add(coefficient, end - start, choose(start, end));
    }
};

}  // namespace fastgan
