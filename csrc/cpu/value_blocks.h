// Blocks of values in the arithmetic's type, and bits of them, for the loops of one instruction set:
// to be included in a `*_loops.cpp` and nowhere else.
#pragma once

#include <cstdint>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../math/bias_act.h"
#include "../math/float_types.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

template <typename T>
using Arithmetic = decltype(to_arithmetic(T{}));

// body(T()) with the type of the values.
template <typename Body>
FASTGAN_INLINE void with_type(FloatType type, const Body& body) {
    switch (type) {
        case FloatType::float64:
            return body(double());
        case FloatType::float32:
            return body(float());
        case FloatType::float16:
            return body(Half());
        case FloatType::bfloat16:
            return body(BFloat16());
    }
}

// bits[j]: eight values, the first in the lowest bit. count is a multiple of 16.
template <typename A>
FASTGAN_INLINE void pack_rising(const A* u, std::int64_t count, bool is_relu, std::uint8_t* bits) {
    for (std::int64_t i = 0; i < count; i += 8) {
        std::uint32_t byte = 0;
#pragma GCC unroll 8
        for (int lane = 0; lane < 8; ++lane) {
            byte |= static_cast<std::uint32_t>(rises(u[i + lane], is_relu)) << lane;
        }
        bits[i / 8] = static_cast<std::uint8_t>(byte);
    }
}

#if defined(__AVX512F__)
FASTGAN_INLINE void pack_rising(const float* u, std::int64_t count, bool is_relu,
                                std::uint8_t* bits) {
    const __m512 zero = _mm512_setzero_ps();
    for (std::int64_t i = 0; i < count; i += 16) {
        const __m512 values = _mm512_loadu_ps(u + i);
        const std::uint16_t mask = is_relu ? _mm512_cmp_ps_mask(values, zero, _CMP_NLE_UQ)
                                           : _mm512_cmp_ps_mask(values, zero, _CMP_GT_OQ);
        memcpy(bits + i / 8, &mask, sizeof(mask));
    }
}
#elif defined(__AVX2__)
FASTGAN_INLINE void pack_rising(const float* u, std::int64_t count, bool is_relu,
                                std::uint8_t* bits) {
    const __m256 zero = _mm256_setzero_ps();
    for (std::int64_t i = 0; i < count; i += 8) {
        const __m256 values = _mm256_loadu_ps(u + i);
        const __m256 mask = is_relu ? _mm256_cmp_ps(values, zero, _CMP_NLE_UQ)
                                    : _mm256_cmp_ps(values, zero, _CMP_GT_OQ);
        bits[i / 8] = static_cast<std::uint8_t>(_mm256_movemask_ps(mask));
    }
}
#endif

// g = x * gain, and where the bit is not set that times `factor`, or 0 where that is null. count is
// a multiple of 16; g may be x.
template <typename A>
FASTGAN_INLINE void scale_unset(const std::uint8_t* bits, std::int64_t count, A gain,
                                const A* factor, const A* x, A* g) {
    const A by = factor != nullptr ? *factor : A(0);
    const Choice<A> scaled = Choice<A>::make(factor != nullptr);
    for (std::int64_t i = 0; i < count; i += 8) {
        const std::uint32_t byte = bits[i / 8];
#pragma GCC unroll 8
        for (int lane = 0; lane < 8; ++lane) {
            const A value = x[i + lane] * gain;
            g[i + lane] = (byte >> lane & 1u) != 0 ? value : scaled(value * by, A(0));
        }
    }
}

#if defined(__AVX512F__)
FASTGAN_INLINE void scale_unset(const std::uint8_t* bits, std::int64_t count, float gain,
                                const float* factor, const float* x, float* g) {
    const __m512 gains = _mm512_set1_ps(gain);
    const __m512 by = _mm512_set1_ps(factor != nullptr ? *factor : 0.0f);
    for (std::int64_t i = 0; i < count; i += 16) {
        std::uint16_t set;
        memcpy(&set, bits + i / 8, sizeof(set));
        const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(x + i), gains);
        const __m512 other = factor != nullptr ? _mm512_mul_ps(value, by) : _mm512_setzero_ps();
        _mm512_storeu_ps(g + i, _mm512_mask_blend_ps(set, other, value));
    }
}
#elif defined(__AVX2__)
FASTGAN_INLINE void scale_unset(const std::uint8_t* bits, std::int64_t count, float gain,
                                const float* factor, const float* x, float* g) {
    const __m256 gains = _mm256_set1_ps(gain);
    const __m256 by = _mm256_set1_ps(factor != nullptr ? *factor : 0.0f);
    const __m256i of_lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    for (std::int64_t i = 0; i < count; i += 8) {
        const __m256i byte = _mm256_set1_epi32(bits[i / 8]);
        const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(byte, of_lane), of_lane);
        const __m256 value = _mm256_mul_ps(_mm256_loadu_ps(x + i), gains);
        const __m256 other = factor != nullptr ? _mm256_mul_ps(value, by) : _mm256_setzero_ps();
        _mm256_storeu_ps(g + i, _mm256_blendv_ps(other, value, _mm256_castsi256_ps(set)));
    }
}
#endif

// act, gain and clamp of values that have their bias; in place.
template <typename A>
FASTGAN_INLINE void apply_bias_act(const BiasAct& settings, A* __restrict u, std::int64_t count) {
    const A alpha = static_cast<A>(settings.alpha);
    const A gain = static_cast<A>(settings.gain);
    const A clamp = static_cast<A>(settings.clamp);
    switch (settings.act) {
        case StyleActivation::linear:
            for (std::int64_t i = 0; i < count; ++i) {
                u[i] = clamped(u[i] * gain, clamp);
            }
            break;
        case StyleActivation::relu:
            for (std::int64_t i = 0; i < count; ++i) {
                u[i] = clamped((u[i] <= A(0) ? A(0) : u[i]) * gain, clamp);
            }
            break;
        case StyleActivation::lrelu:
            for (std::int64_t i = 0; i < count; ++i) {
                u[i] = clamped((u[i] > A(0) ? u[i] : u[i] * alpha) * gain, clamp);
            }
            break;
        default:
            with_smooth_style(settings.act, [=](auto row) {
                for (std::int64_t i = 0; i < count; ++i) {
                    u[i] = clamped(row.value(u[i]) * gain, clamp);
                }
            });
    }
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
