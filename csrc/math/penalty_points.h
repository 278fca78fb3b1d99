// The gradient penalty's points and its formula, for one element and for one sample:
//
//   point    eps * real + (1 - eps) * fake
//   P        weight * mean_n excess_n^2,  excess = ||g_n|| - target    (one-sided: at least 0)
//   tangent  N dP/dg_n = 2 weight * excess_n / ||g_n|| * g_n           (0 where ||g_n|| = 0)
//
// Gulrajani et al. 2017, arXiv 1704.00028, Algorithm 1. A is float or double.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace fastgan {

template <typename A>
FASTGAN_INLINE A interpolated(A real, A fake, A eps) {
    return (real - fake) * eps + fake;
}

struct PenaltySettings {
    double weight;
    double target;
    bool one_sided;
};

template <typename A>
FASTGAN_INLINE A penalty_excess(const PenaltySettings& settings, A norm) {
    const A excess = norm - static_cast<A>(settings.target);
    return settings.one_sided && excess < A(0) ? A(0) : excess;
}

// The factor from a sample's gradient to its tangent.
template <typename A>
FASTGAN_INLINE A penalty_factor(const PenaltySettings& settings, A norm) {
    const A factor = static_cast<A>(2 * settings.weight);
    if (settings.target == 0) {
        return factor;  // without the root, nothing is singular
    }
    return norm == A(0) ? A(0) : factor * (penalty_excess(settings, norm) / norm);
}

// The layout in real and in fake of a sample's elements, in the batch's memory order.
struct MixShape {
    static constexpr int kMaxDimensions = 8;
    std::int64_t samples = 0;
    std::int64_t elements = 0;
    int dimensions = 0;
    std::int64_t sizes[kMaxDimensions] = {};  // fastest first
    std::int64_t real_strides[kMaxDimensions] = {};
    std::int64_t fake_strides[kMaxDimensions] = {};
    std::int64_t real_sample_stride = 0;
    std::int64_t fake_sample_stride = 0;

    struct Offsets {
        std::int64_t real;
        std::int64_t fake;
    };

    FASTGAN_INLINE Offsets offsets(std::int64_t sample, std::int64_t element) const {
        Offsets result{sample * real_sample_stride, sample * fake_sample_stride};
        for (int d = 0; d < dimensions; ++d) {
            const std::int64_t remaining = element / sizes[d];
            const std::int64_t index = element - remaining * sizes[d];
            result.real += index * real_strides[d];
            result.fake += index * fake_strides[d];
            element = remaining;
        }
        return result;
    }
};

}  // namespace fastgan
