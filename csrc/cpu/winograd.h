// Convolutions with fewer products, on CPUs: of 3 by 3 taps and stride 1 (16 products in place of
// 36) or 2 (25 for 36), 4 by 4 and stride 1 or 2 (36 for 64), 5 by 5 and stride 2 (49 for 100).
//
// A convolution relates a small map S of (h, w) places to a wide one V of (H, W) places, with s the
// stride, p the padding and W[o][k][l][c] the weight, o a channel of S and c one of V:
//
//     gather            S[i,j,o] = b[o] + sum over k, l, c of W[o][k][l][c] V[si+k-p, sj+l-p, c]
//     scatter           V[r,q,c] = b[c] + sum over i, j, o of W[o][r+p-si][q+p-sj][c] S[i,j,o]
//     weight gradient   W'[o][k][l][c] = sum over n, i, j of S[i,j,o] V[si+k-p, sj+l-p, c]
//
// The taps k = s t + a of one `a` meet every s-th place, a "phase" of V. Phase by phase these are
// correlations of 1 to 3 taps along a dimension, with stride 1: gather sums them, scatter makes one
// for each phase of V. Four taps with stride 1 are two phases of neighbours, k = t + 2 a, which meet
// all of V, so that scatter sums them too. Two results of a correlation of r taps take r + 1
// products where the formula has 2 r (Winograd 1980, F(2, r); in two dimensions, as here, Lavin and
// Gray 2016, arXiv 1509.09308, section 4):
//
//     y = A^T [(G w) * (B^T d)]        w: r taps,  d: r + 1 places,  y: 2 results
//
//     r = 1    m0 = d0 w0                         y0 = m0
//              m1 = d1 w0                         y1 = m1
//     r = 2    m0 = (d0 - d1) w0                  y0 = m0 + m2
//              m1 = (d2 - d1) w1                  y1 = m1 + m2
//              m2 = d1 (w0 + w1)
//     r = 3    m0 = (d0 - d2) w0                  y0 = m0 + m2 + m3
//              m1 = (d3 - d1) w2                  y1 = m1 + m2 - m3
//              m2 = (d1 + d2) (w0 + w1 + w2) / 2
//              m3 = (d2 - d1) (w0 - w1 + w2) / 2
//
// and the weight's gradient is G^T [(B^T d) * (A y)], y being the gradient of the results. No
// factors but 1, -1 and 1/2 occur, so that little is lost to rounding. (Four results from six
// products, F(4, 3), lose three to four times as much as a convolution by its formula.) The
// products of a phase and a tile of 2 by 2 places are products of matrices over channels (over
// tiles, for the weight gradient), summed in float32; those of bfloat16 maps may be of integers
// (fixed_point.h). Transformed maps never leave a core's cache; the transformed weight, 16/9 or 25/9
// of one of 3 by 3 taps, 9/4 and 49/25 of others, is made once a call.
#pragma once

#include <cstdint>

#include "../math/float_types.h"

namespace fastgan::cpu {

// What counts of channels must be multiples of.
inline constexpr std::int64_t kWinogradChannels = 32;

constexpr bool winograd_can(std::int64_t taps, std::int64_t stride) {
    return ((taps == 3 || taps == 4) && (stride == 1 || stride == 2)) || (taps == 5 && stride == 2);
}

// Maps and weights without gaps, channels last: a weight (small, taps, taps, wide), as is its gradient,
// or (wide, taps, taps, small), as that of the convolution lies whose transpose this is.
struct WinogradShape {
    std::int64_t batch;
    std::int64_t small_rows;
    std::int64_t small_columns;
    std::int64_t small_channels;
    std::int64_t wide_rows;
    std::int64_t wide_columns;
    std::int64_t wide_channels;
    std::int64_t taps;
    std::int64_t stride;
    std::int64_t row_padding;
    std::int64_t column_padding;
    bool small_channels_last;
};

// What a modulated convolution does while it loads and stores, all of it optional (null):
//
//     output = output_scale * convolution(input_scale * input) + bias + noise
//
// Scales (batch, channels), noise (batch, rows, columns) or, with a `noise_step` of 0, (rows, columns).
struct Modulation {
    const float* input_scale;
    const float* output_scale;
    const float* noise;
    std::int64_t noise_step;
};

// Maps and weight of float32 or bfloat16; bias of float32, or null.
void winograd_gather(const WinogradShape& shape, FloatType type, const void* wide,
                     const void* weight, const float* bias, const Modulation& modulation,
                     void* small);
void winograd_scatter(const WinogradShape& shape, FloatType type, const void* small,
                      const void* weight, const float* bias, const Modulation& modulation,
                      void* wide);
void winograd_weight_gradient(const WinogradShape& shape, FloatType type, const void* small,
                              const void* wide, void* gradient);

}  // namespace fastgan::cpu
