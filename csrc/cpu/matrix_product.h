// Vectors and products of matrices for the loops of one instruction set: to be included in a
// `*_loops.cpp` and nowhere else, since what it holds differs from one set to the next.
#pragma once

#include <cstdint>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../math/float_types.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// --- Vectors -------------------------------------------------------------------------------------

// Of a product, kRows (or kFewRows, for what is left) by two vectors of columns stay in registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;
constexpr int kFewRows = 4;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRows = 6;
constexpr int kFewRows = 2;
#else
constexpr int kLanes = 4;
constexpr int kRows = 4;
constexpr int kFewRows = 4;
#endif
constexpr int kVectors = 2;
constexpr int kPanel = kVectors * kLanes;

typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t HalfWords __attribute__((vector_size(2 * kLanes)));

FASTGAN_INLINE Vector load(const float* from) {
    Vector vector;
    memcpy(&vector, from, sizeof(vector));
    return vector;
}

FASTGAN_INLINE Vector load(const BFloat16* from) {
    HalfWords upper;
    memcpy(&upper, from, sizeof(upper));
    return reinterpret_cast<Vector>(__builtin_convertvector(upper, Words) << 16);
}

FASTGAN_INLINE void store(float* to, Vector vector) {
    memcpy(to, &vector, sizeof(vector));
}

// Rounded to the nearest, ties to even; a NaN stays one.
FASTGAN_INLINE void store(BFloat16* to, Vector vector) {
    const Words bits = reinterpret_cast<Words>(vector);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const Words result = (is_nan & 0x7fc0u) | (~is_nan & rounded);
    const HalfWords upper = __builtin_convertvector(result, HalfWords);
    memcpy(to, &upper, sizeof(upper));
}

FASTGAN_INLINE Vector everywhere(float value) {
    return value - Vector{};
}

FASTGAN_INLINE Vector multiply_add(Vector a, Vector b, Vector c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;
#endif
}

typedef std::int32_t Lanes __attribute__((vector_size(4 * kLanes)));

// Lane l of the result: lane from[l] of a and b behind one another.
FASTGAN_INLINE Vector shuffle(Vector a, Vector b, Lanes from) {
#if defined(__clang__)
    Vector result;
    for (int l = 0; l < kLanes; ++l) {
        result[l] = from[l] < kLanes ? a[from[l]] : b[from[l] - kLanes];
    }
    return result;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// Rows become columns: blocks off the diagonal change places, half the size at each step.
FASTGAN_INLINE void transpose(Vector (&rows)[kLanes]) {
#pragma GCC unroll 4
    for (int half = kLanes / 2; half > 0; half /= 2) {
        Lanes upper;
        Lanes lower;
#pragma GCC unroll 16
        for (int l = 0; l < kLanes; ++l) {
            upper[l] = (l & half) != 0 ? kLanes + l - half : l;
            lower[l] = (l & half) != 0 ? kLanes + l : l + half;
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) {
            if ((i & half) == 0) {
                const Vector a = rows[i];
                const Vector b = rows[i + half];
                rows[i] = shuffle(a, b, upper);
                rows[i + half] = shuffle(a, b, lower);
            }
        }
    }
}

// --- Products of matrices ------------------------------------------------------------------------

// c[i][j] (+)= sum over k of a[i * kRowStride + k * kDepthStride] * panel[k][j], for kCount rows.
// The sum is taken from zero on and then added: sums of sums lose less to rounding.
template <int kCount, std::int64_t kRowStride, std::int64_t kDepthStride>
FASTGAN_INLINE void multiply_rows(const float* a, const float* panel, std::int64_t depth,
                                  bool accumulate, float* c, std::int64_t row_of_c) {
    Vector sums[kCount][kVectors];
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            sums[i][j] = Vector{};
        }
    }
    for (std::int64_t k = 0; k < depth; ++k) {
        Vector b[kVectors];
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            b[j] = load(panel + k * kPanel + j * kLanes);
        }
#pragma GCC unroll 16
        for (int i = 0; i < kCount; ++i) {
            const Vector each = everywhere(a[i * kRowStride + k * kDepthStride]);
#pragma GCC unroll 4
            for (int j = 0; j < kVectors; ++j) {
                sums[i][j] = multiply_add(each, b[j], sums[i][j]);
            }
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < kCount; ++i) {
#pragma GCC unroll 4
        for (int j = 0; j < kVectors; ++j) {
            float* const to = c + i * row_of_c + j * kLanes;
            store(to, accumulate ? load(to) + sums[i][j] : sums[i][j]);
        }
    }
}

// Rows in a multiple of kFewRows, columns in a multiple of kPanel. With kStreams panels lie behind
// one another in memory far away: each is fetched, a share with each block of rows, while the one
// before is multiplied.
template <std::int64_t kRowStride, std::int64_t kDepthStride, bool kStreams = false>
void multiply(const float* a, const float* panels, std::int64_t panel_size, std::int64_t rows,
              std::int64_t columns, std::int64_t depth, bool accumulate, float* c,
              std::int64_t row_of_c) {
    for (std::int64_t j = 0; j < columns; j += kPanel) {
        const float* const panel = panels + j / kPanel * panel_size;
        const float* next = panel + panel_size;
        const std::int64_t share = panel_size * kRows / rows;
        std::int64_t i = 0;
        for (; i + kRows <= rows; i += kRows) {
            if constexpr (kStreams) {
                for (const float* const end = next + share; next < end; next += 16) {
                    __builtin_prefetch(next);
                }
            }
            multiply_rows<kRows, kRowStride, kDepthStride>(a + i * kRowStride, panel, depth,
                                                           accumulate, c + i * row_of_c + j,
                                                           row_of_c);
        }
        for (; i < rows; i += kFewRows) {
            multiply_rows<kFewRows, kRowStride, kDepthStride>(a + i * kRowStride, panel, depth,
                                                              accumulate, c + i * row_of_c + j,
                                                              row_of_c);
        }
    }
}

FASTGAN_INLINE std::int64_t least(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}

FASTGAN_INLINE std::int64_t padded(std::int64_t rows) {
    return (rows + kFewRows - 1) / kFewRows * kFewRows;
}

}  // namespace

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
