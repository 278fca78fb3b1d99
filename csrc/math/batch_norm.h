// Batch norm's arithmetic (Ioffe and Szegedy 2015, arXiv 1502.03167), followed by an activation z.
// Per channel, over its n values x:
//
//   mean    = sum(x) / n,   variance = sum((x - mean)^2) / n,   invstd = 1 / sqrt(variance + eps)
//   u       = (x - mean) * scale + bias,   scale = weight * invstd,   y = z(u)
//   g       = grad_output * z'(u),   xhat = (x - mean) * invstd
//   grad_weight = sum(g * xhat),   grad_bias = sum(g)
//   grad_input  = scale * g + (x - mean) * slope + offset
//   slope   = -scale * invstd * grad_weight / n,   offset = -scale * grad_bias / n     (section 3)
//
// x is centred before scaling, because a mean much larger than the spread would cancel otherwise.
//
// Sums are computed per tile. Tile sizes depend only on the tensor, and the results are merged in a
// fixed order (in double, or on GPUs in pairs of numbers), so neither the number of threads nor their
// timing changes a bit. A tile sums d = x - x0 and d^2, x0 being the channel's first value in the
// tile:
//
//   mean = x0 + sum(d) / n,   M2 = sum((x - mean)^2) = sum(d^2) - sum(d)^2 / n
//
// Cancellation is bounded, since x0 is one of the values: (x0 - mean)^2 <= M2, so sum(d^2) is at
// most (n + 1) M2. (A non-finite x0 is replaced by 0.) CPUs merge tiles by Chan, Golub and LeVeque
// 1983, "Algorithms for computing the sample variance", (2.1).
#pragma once

#include "activation.h"
#include "float_types.h"

namespace fastgan {

// --- Tiles ---------------------------------------------------------------------------------------

// The number of a channel's values in a tile (the last may have fewer). Also in
// fastgan/ops/batch_norm.py, for the shapes of results.
//16384 values of all channels fill a CPU's L1 cache or occupy a GPU's multiprocessor; with at least
// 64 per channel, a tile's results are small compared to its reads; at most 1024 tiles keep merging
// short.
FASTGAN_INLINE std::int64_t tile_size(std::int64_t values_per_channel, std::int64_t channels) {
    std::int64_t size = 16384 / (channels > 1 ? channels : 1);
    size = size < 64 ? 64 : (size > 4096 ? 4096 : size);
    const std::int64_t least = (values_per_channel + 1023) / 1024;
    return size < least ? (least + 63) / 64 * 64 : size / 16 * 16;
}

FASTGAN_INLINE std::int64_t tile_count(std::int64_t values_per_channel, std::int64_t channels) {
    const std::int64_t size = tile_size(values_per_channel, channels);
    return (values_per_channel + size - 1) / size;
}

// --- Statistics ----------------------------------------------------------------------------------

// x0, or 0 if it is not finite, because infinity minus itself would make every d NaN.
template <typename A>
FASTGAN_INLINE A shift_by(A first) {
    return first - first == A(0) ? first : A(0);
}

// The moments of a tile's `count` values of a channel, from the sums of d and of d^2.
template <typename A>
struct TileMoments {
    A mean;
    A m2;

    FASTGAN_INLINE static TileMoments of_sums(A shift, A sum, A square, A count) {
        const A mean_of_d = quick_quotient(sum, count);
        const A m2 = square - sum * mean_of_d;
        return TileMoments{shift + mean_of_d, m2 < A(0) ? A(0) : m2};  // NaN stays
    }
};

// Running moments, with Chan's merge.
struct Moments {
    double count = 0;
    double mean = 0;
    double m2 = 0;

    FASTGAN_INLINE void merge(double other_count, double other_mean, double other_m2) {
        if (other_count == 0) {
            return;
        }
        const double total = count + other_count;
        const double share = other_count / total;
        const double difference = other_mean - mean;
        // With count = 0 the first two give the other's mean and no square, unless it is infinite:
        // share is 1 then.
        mean = count == 0 ? other_mean : mean + difference * share;
        m2 = count == 0 ? other_m2 : m2 + other_m2 + difference * difference * (count * share);
        count = total;
    }
};

struct FinalStatistics {
    double mean;
    double invstd;
};

// An empty channel has mean 0 and variance 0.
FASTGAN_INLINE FinalStatistics final_statistics(const Moments& moments, double eps) {
    const double variance = moments.count > 0 ? moments.m2 / moments.count : 0.0;
    return FinalStatistics{moments.mean, 1.0 / square_root(variance + eps)};
}

// The running statistics after a batch, the variance with n - 1, as in torch.
FASTGAN_INLINE double running_mean_after(double running, const Moments& moments, double momentum) {
    return (1.0 - momentum) * running + momentum * moments.mean;
}

FASTGAN_INLINE double running_variance_after(double running, const Moments& moments,
                                             double momentum) {
    return (1.0 - momentum) * running + momentum * (moments.m2 / (moments.count - 1.0));
}

// --- One value -----------------------------------------------------------------------------------

// A channel's u = (x - mean) * scale + bias.
template <typename A>
struct Normalisation {
    A mean;
    A scale;
    A bias;

    FASTGAN_INLINE A operator()(A x) const { return multiply_add(x - mean, scale, bias); }
};

// scale * g + (x - mean) * slope + offset. A slope of 0, as with constant statistics, ignores x: 0
// times infinity would be NaN.
template <typename A>
FASTGAN_INLINE A batch_norm_gradient(A g, A x, A mean, A scale, A slope, A offset) {
    const A through_statistics = multiply_add(x - mean, slope, offset);
    return multiply_add(scale, g, slope == A(0) ? offset : through_statistics);
}

struct GradientTerms {
    double slope;
    double offset;
};

// From a channel's two sums. With count = 0 the statistics are constants, and both are 0.
FASTGAN_INLINE GradientTerms gradient_terms(double grad, double grad_xhat, double scale,
                                            double invstd, double count) {
    if (count == 0) {
        return GradientTerms{0.0, 0.0};
    }
    return GradientTerms{-scale * invstd * grad_xhat / count, -scale * grad / count};
}

}  // namespace fastgan
