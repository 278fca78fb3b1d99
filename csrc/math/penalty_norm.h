// Layer, group and instance norm in the gradient penalty's fused pass, for each element of a group
// of M elements. With xhat = (x - mean) r, r = (var + eps)^(-1/2),
//
//   output       y = weight * xhat + bias
//   projection   T(p) = r (p - mean p - xhat B),        B = mean(xhat p)
//   tangent      J t = weight * T(t)
//   signal       J^T d = T(weight * d)
//   curvature    d/dx <p, T(u)> = -r^2 (C (p - mean p) + B (u - mean u) + (A - 3 B C) xhat),
//                A = mean(p (u - mean u)),  C = mean(xhat u)
//
// T is the derivative of xhat and symmetric; <p, T(u)> = M r (A - B C), d xhat = T(dx) and
// dr = -r^2 mean(xhat dx) give the last line. A is float or double.
#pragma once

#include <cstdint>

#include "arithmetic.h"

namespace fastgan {

// Maps (samples, channels, positions), each sample dense; `groups` divides the channels.
struct NormShape {
    std::int64_t samples;
    std::int64_t channels;
    std::int64_t positions;
    std::int64_t groups;
    bool channels_last;
    FloatType type;

    FASTGAN_INLINE std::int64_t channels_per_group() const { return channels / groups; }
    FASTGAN_INLINE std::int64_t elements_per_group() const {
        return channels_per_group() * positions;
    }
    FASTGAN_INLINE std::int64_t elements_per_sample() const { return channels * positions; }
    FASTGAN_INLINE std::int64_t channel_stride() const { return channels_last ? 1 : positions; }
    FASTGAN_INLINE std::int64_t position_stride() const { return channels_last ? channels : 1; }
};

template <typename A>
FASTGAN_INLINE A normalised(A x, A mean, A invstd) {
    return (x - mean) * invstd;
}

template <typename A>
FASTGAN_INLINE A projected(A p, A mean, A along, A xhat, A invstd) {
    return invstd * ((p - mean) - xhat * along);
}

// A group's constants in the curvature.
template <typename A>
struct Curvature {
    A of_signal;   // factor of p - mean p
    A of_tangent;  // of u - mean u
    A of_xhat;

    // product = A, signal_along = B, tangent_along = C above.
    FASTGAN_INLINE static Curvature make(A product, A signal_along, A tangent_along, A invstd) {
        const A scale = -(invstd * invstd);
        return Curvature{scale * tangent_along, scale * signal_along,
                         scale * (product - A(3) * signal_along * tangent_along)};
    }

    FASTGAN_INLINE A operator()(A p, A p_mean, A u, A u_mean, A xhat) const {
        return of_signal * (p - p_mean) + of_tangent * (u - u_mean) + of_xhat * xhat;
    }
};

}  // namespace fastgan
