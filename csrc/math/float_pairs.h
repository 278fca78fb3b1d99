// Dispatch from a run-time FloatType to compile-time types.
#pragma once

#include "float_types.h"

namespace fastgan {

// For the host, and always inlined: see math/macros.h.
#define FASTGAN_HOST_INLINE inline __attribute__((always_inline))

// run.operator()<T>() for the type's T.
template <typename Run>
FASTGAN_HOST_INLINE void for_float_type(FloatType type, const Run& run) {
    switch (type) {
        case FloatType::float64:
            return run.template operator()<double>();
        case FloatType::float32:
            return run.template operator()<float>();
        case FloatType::float16:
            return run.template operator()<Half>();
        case FloatType::bfloat16:
            return run.template operator()<BFloat16>();
    }
}

// Whether values of one type are ever written as the other: the same type, or float32 and a 16-bit
// one.
FASTGAN_HOST_INLINE bool is_float_pair(FloatType from, FloatType to) {
    return from == to || (from != FloatType::float64 && to != FloatType::float64 &&
                          (from == FloatType::float32 || to == FloatType::float32));
}

// run.operator()<From, To>() for such a pair; otherwise does nothing.
template <typename Run>
FASTGAN_HOST_INLINE void for_float_pair(FloatType from, FloatType to, const Run& run) {
    if (from == to) {
        for_float_type(from, [&]<typename T>() { run.template operator()<T, T>(); });
    } else if (from == FloatType::float32 && to == FloatType::float16) {
        run.template operator()<float, Half>();
    } else if (from == FloatType::float32 && to == FloatType::bfloat16) {
        run.template operator()<float, BFloat16>();
    } else if (from == FloatType::float16 && to == FloatType::float32) {
        run.template operator()<Half, float>();
    } else if (from == FloatType::bfloat16 && to == FloatType::float32) {
        run.template operator()<BFloat16, float>();
    }
}

#undef FASTGAN_HOST_INLINE

}  // namespace fastgan
