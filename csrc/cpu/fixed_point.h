// Matrix products of 16-bit integers for Winograd's loops. Only `*_loops.cpp` files include this.
//
// An AVX-512 VNNI instruction adds two products of 16-bit integers to each of 16 32-bit sums: twice
// float32's rate, the same as VDPBF16PS with bfloat16. Winograd's transformed maps and weights are
// sums of several values, for which bfloat16's 8 bits of precision are too few: the error would be
// more than twice a bfloat16 convolution's. So they are scaled and rounded to integers,
//
//     q = round(2^e x),  |q| <= 5792,
//
// with one exponent e per tile of a map, and one per column of the weight at each point, for blocks
// of at most 64 channels. Sums of 64 products are exact, because 64 * 5792^2 < 2^31. They are scaled
// back and added up in float32. A tile or column with an infinity or a NaN becomes NaN.
//
// Integers are stored in pairs, those of channels k and k + kLanes, in one 32-bit word.
#pragma once

#include <cstdint>
#include <string.h>

#include "matrix_product.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// Whether values stored as T are multiplied as integers.
template <typename T>
constexpr bool kFixedPoint = false;
#if defined(__AVX512VNNI__)
template <>
constexpr bool kFixedPoint<BFloat16> = true;
#endif

// Adds the products of two pairs to `sums`.
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

// As integers, magnitudes keep their order; infinity and NaN come last.
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
    // 0.7072 * 5792 is just above 2^12: the scale brings 0.7072 times the largest value below 2^12.
    const Vector shrunk = reinterpret_cast<Vector>(largest) * 0.7072f;
    const Lanes exponent = reinterpret_cast<Lanes>(shrunk) >> 23;
    // Keeps both scales normal numbers.
    const Lanes within = larger(exponent, Lanes{} + 12);
    const Lanes is_finite = exponent != 255;
    return {reinterpret_cast<Vector>((2 * 127 + 11 - within) << 23),
            reinterpret_cast<Vector>((is_finite & ((within - 11) << 23)) |
                                     (~is_finite & 0x7fc00000))};
}

// Rounds to integers: adding 3 * 2^22 leaves the nearest integer in the lower 16 bits.
FASTGAN_INLINE Vector pairs(Vector lower, Vector upper, Vector to_integers) {
    const Vector shift = everywhere(12582912.0f);
    const Lanes a = reinterpret_cast<Lanes>(multiply_add(lower, to_integers, shift));
    const Lanes b = reinterpret_cast<Lanes>(multiply_add(upper, to_integers, shift));
    return reinterpret_cast<Vector>((a & 0xffff) | (b << 16));
}

// Converts values[p * per_value + c], c < channels, p < kPoints, to pairs out[p * per_point + c / 2]
// and `scale`, the factor that scales them back.
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

// Converts a panel of `depth` rows to depth / 2 rows of pairs and a row of the columns' scales, in
// place.
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
                // Never writes behind the rows already read.
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

// Like multiply() of matrix_product.h with kStreams, for rows of pairs with scales, and panels from
// fix_panel().
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
