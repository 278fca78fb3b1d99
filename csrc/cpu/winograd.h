// Convolutions of 4 by 4 taps and stride 2, a DCGAN's every inner layer, with 9 products in place
// of 16, on CPUs.
//
// A convolution relates a small map S of (h, w) places to a wide one V of (H, W) places, with p the
// padding and W[o][k][l][c] the weight, o a channel of S and c one of V:
//
//     gather            S[i,j,o] = b[o] + sum over k, l, c of W[o][k][l][c] V[2i+k-p, 2j+l-p, c]
//     scatter           V[r,q,c] = b[c] + sum over i, j, o of W[o][r+p-2i][q+p-2j][c] S[i,j,o]
//     weight gradient   W'[o][k][l][c] = sum over n, i, j of S[i,j,o] V[2i+k-p, 2j+l-p, c]
//
// Of even and odd taps apart (k = 2s + a, the "phases" of V) each is a correlation of 2 by 2 taps
// with stride 1: gather sums four of them, scatter makes four. Along one dimension two results of a
// two-tap correlation take three products where the formula has four (Winograd 1980, F(2, 2); in
// two dimensions, as here, Lavin and Gray 2016, arXiv 1509.09308, section 4):
//
//     y0 = d0 w0 + d1 w1 = m0 + m1        m0 = (d0 - d1) w0
//     y1 = d1 w0 + d2 w1 = m1 - m2        m1 = d1 (w0 + w1),    m2 = (d1 - d2) w1
//
// and of the weight gradient, w the results and y the second factors, w0 = m0 + m1 and w1 = m1 - m2
// with m0 = (d0 - d1) y0, m1 = d1 (y0 + y1), m2 = (d1 - d2) y1. No factor but 1 and -1 occurs, so
// that little is lost to rounding. The products, 9 for each phase and tile of 2 by 2 places, are
// products of matrices over channels (over tiles, for the weight gradient), summed in float32.
// Transformed values never leave a core's cache.
#pragma once

#include <cstdint>

#include "../math/float_types.h"

namespace fastgan::cpu {

// What counts of channels must be multiples of.
inline constexpr std::int64_t kWinogradChannels = 32;

// Maps and weights without gaps, channels last.
struct WinogradShape {
    std::int64_t batch;
    std::int64_t small_rows;
    std::int64_t small_columns;
    std::int64_t small_channels;
    std::int64_t wide_rows;
    std::int64_t wide_columns;
    std::int64_t wide_channels;
    std::int64_t row_padding;
    std::int64_t column_padding;
};

// Maps and weight of float32 or bfloat16; bias of float32, or null.
void winograd_gather(const WinogradShape& shape, FloatType type, const void* wide,
                     const void* weight, const float* bias, void* small);
void winograd_scatter(const WinogradShape& shape, FloatType type, const void* small,
                      const void* weight, const float* bias, void* wide);
void winograd_weight_gradient(const WinogradShape& shape, FloatType type, const void* small,
                              const void* wide, void* gradient);

}  // namespace fastgan::cpu
