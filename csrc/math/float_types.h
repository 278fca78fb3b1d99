// Fastgan's floating-point types: storage and arithmetic.
//
//   storage     arithmetic   bits of significand (with the hidden one)
//   double      double       53
//   float       float        24
//   Half        float        11      IEEE 754 binary16
//   BFloat16    float         8      the upper half of a binary32
//
// The conversions are branch-free, so that compilers vectorise loops over them on every instruction
// set, and never use a binary32 subnormal, so that flush-to-zero mode (torch.set_flush_denormal)
// doesn't change results.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace fastgan {

enum class FloatType { float64, float32, float16, bfloat16 };

FASTGAN_INLINE std::int64_t bytes_of(FloatType type) {
    switch (type) {
        case FloatType::float64:
            return 8;
        case FloatType::float32:
            return 4;
        case FloatType::float16:
        case FloatType::bfloat16:
            break;
    }
    return 2;
}

struct Half {
    std::uint16_t bits;
};

struct BFloat16 {
    std::uint16_t bits;
};

namespace bits {

FASTGAN_INLINE float as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

FASTGAN_INLINE std::uint32_t of_float(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

FASTGAN_INLINE double as_double(std::uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

FASTGAN_INLINE std::uint64_t of_double(double value) {
    std::uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

}  // namespace bits

FASTGAN_INLINE double to_arithmetic(double value) {
    return value;
}

FASTGAN_INLINE float to_arithmetic(float value) {
    return value;
}

FASTGAN_INLINE float to_arithmetic(BFloat16 value) {
    return bits::as_float(static_cast<std::uint32_t>(value.bits) << 16);
}

FASTGAN_INLINE float to_arithmetic(Half value) {
#if defined(__CUDA_ARCH__)
    float converted;
    asm("cvt.f32.f16 %0, %1;" : "=f"(converted) : "h"(value.bits));
    return converted;
#else
    constexpr std::uint32_t exponent_gap = (127u - 15u) << 23;  // between the two types' biases
    constexpr float two_to_minus_14 = 6.103515625e-05f;         // the smallest normal Half
    const std::uint32_t sign = (value.bits & 0x8000u) << 16;
    const std::uint32_t shifted = (value.bits & 0x7fffu) << 13;
    const std::uint32_t normal = shifted + exponent_gap;
    const std::uint32_t infinite_or_nan = shifted | 0x7f800000u;
    // A subnormal m * 2^-24 is (2^-14 + m * 2^-24) - 2^-14: two normal numbers, an exact
    // difference.
    const std::uint32_t subnormal =
        bits::of_float(bits::as_float(shifted + exponent_gap + (1u << 23)) - two_to_minus_14);
    const std::uint32_t finite = shifted < (1u << 23) ? subnormal : normal;
    const std::uint32_t magnitude = shifted < (31u << 23) ? finite : infinite_or_nan;
    return bits::as_float(sign | magnitude);
#endif
}

// from_arithmetic<T>(value): to the nearest T, ties to even; beyond the largest T, infinity.
template <typename T>
FASTGAN_INLINE T from_arithmetic(decltype(to_arithmetic(T{})) value) {
    return value;
}

template <>
FASTGAN_INLINE BFloat16 from_arithmetic<BFloat16>(float value) {
    const std::uint32_t wide = bits::of_float(value);
    // Adding just under half a unit, plus the lowest kept bit, carries exactly when rounding up.
    const std::uint32_t rounded = (wide + 0x7fffu + ((wide >> 16) & 1u)) >> 16;
    const std::uint32_t quiet_nan = (wide >> 16) | 0x0040u;
    const bool is_nan = (wide & 0x7fffffffu) > 0x7f800000u;
    return BFloat16{static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded)};
}

template <>
FASTGAN_INLINE Half from_arithmetic<Half>(float value) {
#if defined(__CUDA_ARCH__)
    Half converted;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(converted.bits) : "f"(value));
    return converted;
#else
    const std::uint32_t wide = bits::of_float(value);
    const std::uint32_t sign = (wide >> 16) & 0x8000u;
    const std::uint32_t magnitude = wide & 0x7fffffffu;
    constexpr std::uint32_t exponent_gap = (127u - 15u) << 23;
    const std::uint32_t normal =
        (magnitude - exponent_gap + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Near 0.5 a float's unit in the last place is 2^-24, the spacing of Half's subnormals: the
    // addition rounds to it.
    const std::uint32_t subnormal =
        bits::of_float(bits::as_float(magnitude) + 0.5f) - bits::of_float(0.5f);
    const std::uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
    const std::uint32_t infinite_or_nan =
        magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u;
    // 65520 is the first value that rounds up to infinity.
    const std::uint32_t result = magnitude < 0x477ff000u ? finite : infinite_or_nan;
    return Half{static_cast<std::uint16_t>(sign | result)};
#endif
}

}  // namespace fastgan
