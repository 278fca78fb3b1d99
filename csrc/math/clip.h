// Clipping: clip(x; lower, upper) = lower where x < lower, upper where x > upper, else x itself.
//
// Two comparisons instead of min(max(x, lower), upper): both are false for NaN, which stays, and for
// zeros of either sign against a zero bound, which keep their sign, as in torch.clamp on a CPU.
#pragma once

#include <cstdint>

#include "float_types.h"

namespace fastgan {

// The bounds as doubles that the tensor's type holds exactly (see round_to), lower <= upper.
struct ClipBounds {
    double lower;
    double upper;
};

// value rounded to the nearest number that `type` holds, as a double again.
FASTGAN_INLINE double round_to(FloatType type, double value) {
    switch (type) {
        case FloatType::float64:
            return value;
        case FloatType::float32:
            return static_cast<float>(value);
        case FloatType::float16:
            return to_arithmetic(from_arithmetic<Half>(static_cast<float>(value)));
        case FloatType::bfloat16:
            return to_arithmetic(from_arithmetic<BFloat16>(static_cast<float>(value)));
    }
    return value;
}

// Clips one value. A value within the bounds keeps its bits: nothing is rounded.
template <typename T>
struct Clip {
    T lower;
    T upper;

    FASTGAN_INLINE explicit Clip(ClipBounds bounds)
        : lower(static_cast<T>(bounds.lower)), upper(static_cast<T>(bounds.upper)) {}

    FASTGAN_INLINE T operator()(T value) const {
        const T not_below = value < lower ? lower : value;
        return value > upper ? upper : not_below;
    }
};

// For 16-bit types: compares as float and selects bits, held in 32 bits because compilers vectorise
// a selection only among values of one width.
template <typename T>
struct Clip16 {
    float lower;
    float upper;
    std::uint32_t lower_bits;
    std::uint32_t upper_bits;

    FASTGAN_INLINE explicit Clip16(ClipBounds bounds)
        : lower(static_cast<float>(bounds.lower)),
          upper(static_cast<float>(bounds.upper)),
          lower_bits(from_arithmetic<T>(lower).bits),
          upper_bits(from_arithmetic<T>(upper).bits) {}

    FASTGAN_INLINE T operator()(T value) const {
        const float x = to_arithmetic(value);
        const std::uint32_t not_below = x < lower ? lower_bits : value.bits;
        return T{static_cast<std::uint16_t>(x > upper ? upper_bits : not_below)};
    }
};

template <>
struct Clip<Half> : Clip16<Half> {
    using Clip16::Clip16;
};

template <>
struct Clip<BFloat16> : Clip16<BFloat16> {
    using Clip16::Clip16;
};

}  // namespace fastgan
