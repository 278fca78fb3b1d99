// Products of matrices of 16-bit numbers for Winograd's loops: to be included in a `*_loops.cpp`
// and nowhere else.
//
// AVX-512 VNNI adds two products of 16-bit integers to each of 16 32-bit sums at once, twice
// float32's rate, as VDPBF16PS does with bfloat16. Winograd's transformed maps and weights are sums
// of a few values each, for which bfloat16's 8 digits are too few: rounded to bfloat16, results are
// off by 2 to 15 times what bfloat16 convolutions are. So they become integers
//
//     q = round(2^e x),  |q| <= 5792,        2^e for each tile of a map, and for each column of the
//                                            weight at each point, of at most 64 channels
//
// of 13 digits with the sign. Sums of 64 products are exact, as 64 * 5792^2 < 2^31; then they are
// scaled and added up in float32. A tile or column with a value that isn't finite becomes NaN.
//
// Integers come in pairs, of channels k and k + kLanes, as the words of memory for floats.
#pragma once

#include <cstdint>
#include <string.h>

#include "matrix_product.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// Whether products of values that are T in memory are of integers here.
template <typename T>
constexpr bool kFixedPoint = false;
#if defined(__AVX512VNNI__)
template <>
constexpr bool kFixedPoint<BFloat16> = true;
#endif

// The products of two pairs, added to sums.
FASTGAN_INLINE Lanes add_products(Lanes sums, Lanes a, Lanes b) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<Lanes>(
        _mm512_dpwssd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(a),
                            reinterpret_cast<__m512i>(b)));
#else
    return sums + (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}

FASTGAN_INLINE Lanes larger(Lanes a, Lanes b) {
    const Lanes is_a = a > b;
    return (is_a & a) | (~is_a & b);
}

// As integers, magnitudes are in order, with infinity and then NaN behind all others.
FASTGAN_INLINE Lanes magnitude(Vector values) {
    return reinterpret_cast<Lanes>(values) & 0x7fffffff;
}

FASTGAN_INLINE Lanes largest_of_all(Lanes values) {
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2) {
        Lanes other;
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) {
            other[l] = l ^ half;
        }
        const Vector each = reinterpret_cast<Vector>(values);
        values = larger(values, reinterpret_cast<Lanes>(shuffle(each, each, other)));
    }
    return values;
}

struct Scales {
    Vector to_integers;
    Vector back;
};

FASTGAN_INLINE Scales scales_for(Lanes largest) {
    // What is then below 2^(e + 1) may become 2^12, which is 5792 without the factor.
    const Vector shrunk = reinterpret_cast<Vector>(largest) * 0.7072f;
    const Lanes exponent = reinterpret_cast<Lanes>(shrunk) >> 23;
    // Both scales are normal numbers.
    const Lanes within = larger(exponent, Lanes{} + 12);
    const Lanes is_finite = exponent != 255;
    return {reinterpret_cast<Vector>((2 * 127 + 11 - within) << 23),
            reinterpret_cast<Vector>((is_finite & ((within - 11) << 23)) |
                                     (~is_finite & 0x7fc00000))};
}

// Where 3 * 2^22 is added, the nearest integer is in the lower half of the bits.
FASTGAN_INLINE Vector pairs(Vector lower, Vector upper, Vector to_integers) {
    const Vector shift = everywhere(12582912.0f);
    const Lanes a = reinterpret_cast<Lanes>(multiply_add(lower, to_integers, shift));
    const Lanes b = reinterpret_cast<Lanes>(multiply_add(upper, to_integers, shift));
    return reinterpret_cast<Vector>((a & 0xffff) | (b << 16));
}

// values[p * per_value + c], c < channels, p < kPoints, become pairs out[p * per_point + c / 2] and
// a scale that takes them back.
template <int kPoints>
void fix_tile(const float* values, std::int64_t per_value, std::int64_t channels, float* out,
              std::int64_t per_point, float* scale) {
    Lanes largest{};
    for (int point = 0; point < kPoints; ++point) {
        for (std::int64_t c = 0; c < channels; c += kLanes) {
            largest = larger(largest, magnitude(load(values + point * per_value + c)));
        }
    }
    const Scales scales = scales_for(largest_of_all(largest));
    *scale = scales.back[0];
    for (int point = 0; point < kPoints; ++point) {
        const float* const from = values + point * per_value;
        float* const to = out + point * per_point;
        for (std::int64_t c = 0; c < channels; c += 2 * kLanes) {
            store(to + c / 2, pairs(load(from + c), load(from + c + kLanes), scales.to_integers));
        }
    }
}

// A panel of `depth` rows becomes depth / 2 rows of pairs and one of the columns' scales.
FASTGAN_INLINE void fix_panel(float* panel, std::int64_t depth) {
    for (std::int64_t j = 0; j < kPanel; j += kLanes) {
        float* const column = panel + j;
        Lanes largest{};
        for (std::int64_t k = 0; k < depth; ++k) {
            largest = larger(largest, magnitude(load(column + k * kPanel)));
        }
        const Scales scales = scales_for(largest);
        for (std::int64_t k = 0; k < depth; k += 2 * kLanes) {
            for (std::int64_t l = 0; l < kLanes; ++l) {
                // Written no further down than what was read.
                const float* const from = column + (k + l) * kPanel;
                store(column + (k / 2 + l) * kPanel,
                      pairs(load(from), load(from + kLanes * kPanel), scales.to_integers));
            }
        }
        store(column + depth / 2 * kPanel, scales.back);
    }
}

// c[i][j] (+)= scale of row i * scale of column j * sum over pairs k, for kCount rows.
template <int kCount, std::int64_t kRowStride>
FASTGAN_INLINE void multiply_fixed_rows(const float* a, const float* scales, const float* panel,
                                        std::int64_t pair_count, bool accumulate, float* c,
                                        std::int64_t row_of_c) {
    Lanes sums[kCount][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            sums[i][j] = Lanes{};
        }
    }
    for (std::int64_t k = 0; k < pair_count; ++k) {
        Lanes b[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            b[j] = reinterpret_cast<Lanes>(load(panel + k * kPanel + j * kLanes));
        }
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) {
            std::int32_t pair;
            memcpy(&pair, a + i * kRowStride + k, sizeof(pair));
            const Lanes each = pair - Lanes{};
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
                sums[i][j] = add_products(sums[i][j], each, b[j]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
        const Vector of_row = everywhere(scales[i]);
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            const Vector of_column = load(panel + pair_count * kPanel + j * kLanes);
            const Vector sum = __builtin_convertvector(sums[i][j], Vector) * of_column;
            float* const to = c + i * row_of_c + j * kLanes;
            store(to, accumulate ? multiply_add(sum, of_row, load(to)) : sum * of_row);
        }
    }
}

// As multiply() of matrix_product.h with kStreams, of rows of pairs, their scales, and panels made
// by fix_panel().
template <std::int64_t kRowStride>
void multiply_fixed(const float* a, const float* scales, const float* panels,
                    std::int64_t panel_size, std::int64_t rows, std::int64_t columns,
                    std::int64_t pair_count, bool accumulate, float* c, std::int64_t row_of_c) {
    const std::int64_t share = (pair_count + 1) * kPanel * kRows / rows;
    for (std::int64_t j = 0; j < columns; j += kPanel) {
        const float* const panel = panels + j / kPanel * panel_size;
        const float* next = panel + panel_size;
        std::int64_t i = 0;
        for (; i + kRows <= rows; i += kRows) {
            for (const float* const end = next + share; next < end; next += 16) {
                __builtin_prefetch(next);
            }
            multiply_fixed_rows<kRows, kRowStride>(a + i * kRowStride, scales + i, panel,
                                                   pair_count, accumulate, c + i * row_of_c + j,
                                                   row_of_c);
        }
        for (; i < rows; i += kFewRows) {
            multiply_fixed_rows<kFewRows, kRowStride>(a + i * kRowStride, scales + i, panel,
                                                      pair_count, accumulate, c + i * row_of_c + j,
                                                      row_of_c);
        }
    }
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
