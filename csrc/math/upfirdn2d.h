// Geometry of upfirdn2d: along one axis, with z[i * up] = x[i] and zero elsewhere,
//
//     y[o] = sum_t c[t] z[o * down + t - pad],    0 <= t < taps
//
// Only every up-th tap meets a value: t = first + j * up meets x[place + j].
#pragma once

#include <cstdint>

#include "macros.h"

namespace fastgan {

struct FirAxis {
    std::int64_t in;
    std::int64_t out;
    std::int64_t up;
    std::int64_t down;
    std::int64_t pad;
    std::int64_t taps;
};

// The taps of one output: c[first + j * up] meets x[place + j], 0 <= j < count.
struct FirTaps {
    std::int64_t first;
    std::int64_t place;
    std::int64_t count;
};

FASTGAN_INLINE FirTaps taps_of(const FirAxis& axis, std::int64_t output) {
    const std::int64_t start = output * axis.down - axis.pad;
    const std::int64_t past = start % axis.up;  // of start's sign
    const std::int64_t first = past == 0 ? 0 : past > 0 ? axis.up - past : -past;
    const std::int64_t count =
        first < axis.taps ? (axis.taps - first + axis.up - 1) / axis.up : 0;
    return {first, (start + first) / axis.up, count};
}

// Excludes taps beyond the ends of x.
FASTGAN_INLINE FirTaps within(const FirAxis& axis, FirTaps taps) {
    const std::int64_t before = taps.place < 0 ? -taps.place : 0;
    const std::int64_t left = axis.in - taps.place;
    const std::int64_t end = taps.count < left ? taps.count : left;
    return {taps.first + before * axis.up, taps.place + before, end > before ? end - before : 0};
}

// Between two filters: u > 0 ? u : slope * u, times gain, at most clamp. Recorded as bits, eight
// places of a row per byte: whether u > 0 in a row's first `bytes` and, with a clamp, whether it
// was clamped in as many more.
struct FirActivation {
    double gain;
    double slope;
    double clamp;  // infinite for no bound
};

}  // namespace fastgan
