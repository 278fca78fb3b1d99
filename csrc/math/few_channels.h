// Convolutions with few channels on one side, as gathers. Of a Conv2d's forward and a
// ConvTranspose2d's input gradient
//
//     y(o) = sum over taps t of w(t) x(o * stride - padding + t)
//
// and of a ConvTranspose2d's forward and a Conv2d's input gradient, per axis,
//
//     y(i * stride - padding + t) += w(t) x(i)     for all i and t.
//
// The second is a gather too: with o = c * stride + a, a the phase, x(i) meets w(a + padding +
// (c - i) * stride). So cell c has an output for each phase, all of one window of inputs, and a
// phase's are channels of their own (Shi et al. 2016, arXiv 1609.05158, section 3.2).
#pragma once

#include <cstdint>

#include "activation.h"
#include "float_types.h"
#include "macros.h"

namespace fastgan {

// One axis. Cell c has outputs c * phases + a for 0 <= a < phases, and meets inputs c * step +
// first + k for 0 <= k < window.
struct GatherAxis {
    int in;
    int out;
    int taps;
    int padding;
    int phases;  // 1, or a transposed convolution's stride
    int step;    // a convolution's stride, or 1
    int first;
    int window;

    FASTGAN_INLINE int cells() const { return (out + phases - 1) / phases; }

    // The tap between a cell's output of this phase and place k of its window; none if outside of
    // 0 to taps - 1.
    FASTGAN_INLINE int tap(int phase, int k, bool transposed) const {
        return transposed ? phase + padding - (first + k) * phases : k;
    }

    static GatherAxis of(int in, int out, int taps, int stride, int padding, bool transposed) {
        if (!transposed) {
            return {in, out, taps, padding, 1, stride, -padding, taps};
        }
        const auto floor_of = [stride](int n) { return n >= 0 ? n / stride : -((stride - 1 - n) / stride); };
        const int first = -floor_of(taps - 1 - padding);
        const int last = floor_of(stride - 1 + padding);
        return {in, out, taps, padding, stride, 1, first, last - first + 1};
    }
};

// In elements. A sample has fewer than 2^31, so that its offsets are cheap.
struct MapStrides {
    std::int64_t sample;
    int channel;
    int row;
    int column;
};

struct FewChannels {
    FloatType type;
    bool transposed;
    std::int64_t batch;
    int in_channels;
    int out_channels;
    GatherAxis rows;
    GatherAxis columns;
    MapStrides input;
    MapStrides output;
    // Of output channel, input channel, and taps.
    MapStrides weight;
    Activation activation;
    double negative_slope;
};

// The weight gradient, a sum over places o of the map with many channels and over samples:
//
//     dw(m, f, t) = sum of many(m, o) few(f, o * step + first + t).
struct FewChannelsSums {
    FloatType type;
    std::int64_t batch;
    int many_channels;
    int few_channels;
    GatherAxis rows;  // from many's places to few's
    GatherAxis columns;
    MapStrides many;
    MapStrides few;
    // Of many's channel, few's channel, and taps.
    MapStrides gradient;
    // Whether dw has t's place from the other end, in both axes: where few is the small map, at
    // stride 1.
    bool backwards;
};

}  // namespace fastgan
