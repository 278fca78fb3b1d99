// The kernels of upfirdn2d and filtered_lrelu, and their arguments. The formulas: math/upfirdn2d.h.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "math/float_types.h"
#include "math/upfirdn2d.h"

namespace fastgan {

// f: taps of a convolution unless `flip`, in double or float; rows of x.taps, or one for both axes
// if separable. Null for a single tap of 1.
struct Filter {
    FirAxis x;
    FirAxis y;
    bool separable;
    const void* f;
    bool is_double;
    bool flip;
    double gain;

    FASTGAN_INLINE double tap(std::int64_t t, std::int64_t count) const {
        const std::int64_t at = flip ? t : count - 1 - t;
        return is_double ? static_cast<const double*>(f)[at]
                         : static_cast<double>(static_cast<const float*>(f)[at]);
    }
};

enum class Signs { none, written, read };

// Dense maps, all channels-last or all contiguous; `signs` has (channels, rows between the filters,
// bytes) for each sample.
struct FirMaps {
    FloatType type;
    std::int64_t batch;
    std::int64_t channels;
    bool channels_last;
    const void* x;
    void* y;
};

// Between the filters: bias in the maps' type, or null, added before the first.
struct FirBetween {
    const void* bias;
    FirActivation activation;
    Signs signs;
    std::uint8_t* bits;
};

FASTGAN_KERNEL(upfirdn2d, const FirMaps& maps, const Filter& filter)

FASTGAN_KERNEL(filtered_lrelu, const FirMaps& maps, const Filter& first, const FirBetween& between,
               const Filter& second)

}  // namespace fastgan
