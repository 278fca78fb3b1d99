// The kernels of batch norm, and their arguments. The formulas: math/batch_norm.h.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "math/batch_norm.h"

namespace fastgan {

// A dense tensor (N, C, ...): value v of channel c in image n is at (n * channels + c) * image_size
// + v. A channels-last tensor counts as images of one value, one for each pixel.
struct ChannelLayout {
    std::int64_t images = 0;
    std::int64_t channels = 0;
    std::int64_t image_size = 0;

    FASTGAN_INLINE std::int64_t values_per_channel() const { return images * image_size; }
    FASTGAN_INLINE std::int64_t numel() const { return images * image_size * channels; }
    FASTGAN_INLINE bool is_columns() const { return image_size == 1; }
};

// A (C,) argument of any of the four types; absent where data is null.
struct ChannelVector {
    void* data = nullptr;
    FloatType type = FloatType::float32;

    FASTGAN_INLINE bool present() const { return data != nullptr; }

    FASTGAN_INLINE double read(std::int64_t c) const {
        switch (type) {
            case FloatType::float64:
                return static_cast<const double*>(data)[c];
            case FloatType::float32:
                return static_cast<double>(static_cast<const float*>(data)[c]);
            case FloatType::float16:
                return static_cast<double>(to_arithmetic(static_cast<const Half*>(data)[c]));
            case FloatType::bfloat16:
                break;
        }
        return static_cast<double>(to_arithmetic(static_cast<const BFloat16*>(data)[c]));
    }

    FASTGAN_INLINE void write(std::int64_t c, double value) const {
        switch (type) {
            case FloatType::float64:
                static_cast<double*>(data)[c] = value;
                return;
            case FloatType::float32:
                static_cast<float*>(data)[c] = static_cast<float>(value);
                return;
            case FloatType::float16:
                static_cast<Half*>(data)[c] = from_arithmetic<Half>(static_cast<float>(value));
                return;
            case FloatType::bfloat16:
                static_cast<BFloat16*>(data)[c] =
                    from_arithmetic<BFloat16>(static_cast<float>(value));
                return;
        }
    }
};

// Below, arrays with a value per channel, or per tile and channel, have elements A: double for
// double tensors, float for the other types.

// The merging of tiles. count: (tiles,); mean, m2: (tiles, channels).
struct StatisticsTiles {
    bool is_double;
    std::int64_t tiles;
    std::int64_t channels;
    const void* count;
    const void* mean;
    const void* m2;
};

// Norms' counts of batches, to be incremented.
struct BatchCounters {
    static constexpr int kMax = 16;
    int count = 0;
    std::int64_t* counters[kMax] = {};
};

struct FinalizeSettings {
    ChannelVector weight;
    ChannelVector running_mean;
    ChannelVector running_var;
    double momentum;
    double eps;
    ChannelVector bias = {};
    ChannelVector bias_copy = {};
    BatchCounters counters = {};
};

struct FinalizeResults {
    void* mean;
    void* invstd;
    void* scale;
};

// Results of one channel's merged moments, and the running statistics' next values.
template <typename A>
FASTGAN_INLINE void finalize_channel(std::int64_t c, const Moments& moments,
                                     const FinalizeSettings& settings,
                                     const FinalizeResults& results) {
    const FinalStatistics statistics = final_statistics(moments, settings.eps);
    const double weight = settings.weight.present() ? settings.weight.read(c) : 1.0;
    static_cast<A*>(results.mean)[c] = static_cast<A>(statistics.mean);
    static_cast<A*>(results.invstd)[c] = static_cast<A>(statistics.invstd);
    static_cast<A*>(results.scale)[c] = static_cast<A>(weight * statistics.invstd);
    if (settings.bias_copy.present()) {
        settings.bias_copy.write(c, settings.bias.read(c));
    }
    if (c == 0) {
        for (int i = 0; i < settings.counters.count; ++i) {
            *settings.counters.counters[i] += 1;
        }
    }
    if (moments.count == 0) {
        return;  // as torch: an empty batch leaves them
    }
    if (settings.running_mean.present()) {
        settings.running_mean.write(
            c, running_mean_after(settings.running_mean.read(c), moments, settings.momentum));
    }
    if (settings.running_var.present()) {
        settings.running_var.write(
            c, running_variance_after(settings.running_var.read(c), moments, settings.momentum));
    }
}

// A tensor's normalisation and activation: z((x - mean) * scale * weight + bias).
struct NormAct {
    FloatType type;
    ChannelLayout layout;
    const void* mean;
    const void* scale;
    ChannelVector weight;  // absent for 1: if it is part of `scale`, or there is none
    ChannelVector bias;    // absent for 0
    Activation activation;
    double negative_slope;

    template <typename A>
    FASTGAN_INLINE Normalisation<A> of_channel(std::int64_t c) const {
        const double given = static_cast<double>(static_cast<const A*>(scale)[c]);
        return Normalisation<A>{static_cast<const A*>(mean)[c],
                                static_cast<A>(weight.present() ? given * weight.read(c) : given),
                                static_cast<A>(bias.present() ? bias.read(c) : 0.0)};
    }
};

// The second stage of the gradient's sums. grad, grad_xhat: (tiles, channels).
struct GradientTiles {
    bool is_double;
    std::int64_t tiles;
    std::int64_t channels;
    const void* grad;
    const void* grad_xhat;
    const void* scale;
    ChannelVector weight;  // a factor of scale; absent for 1
    const void* invstd;
    std::int64_t count;  // values per channel; 0 if the statistics are constants
};

struct GradientResults {
    void* slope;
    void* offset;
    void* grad_weight;
    void* grad_bias;
};

template <typename A>
FASTGAN_INLINE void finalize_gradient_of_channel(std::int64_t c, double grad, double grad_xhat,
                                                 const GradientTiles& tiles,
                                                 const GradientResults& results) {
    const double given = static_cast<double>(static_cast<const A*>(tiles.scale)[c]);
    const GradientTerms terms = gradient_terms(
        grad, grad_xhat, tiles.weight.present() ? given * tiles.weight.read(c) : given,
        static_cast<double>(static_cast<const A*>(tiles.invstd)[c]),
        static_cast<double>(tiles.count));
    static_cast<A*>(results.slope)[c] = static_cast<A>(terms.slope);
    static_cast<A*>(results.offset)[c] = static_cast<A>(terms.offset);
    static_cast<A*>(results.grad_weight)[c] = static_cast<A>(grad_xhat);
    static_cast<A*>(results.grad_bias)[c] = static_cast<A>(grad);
}

// count: (tiles,); mean, m2: (tiles, channels), tiles = tile_count(...) of the layout. In double on
// CPUs, because means rounded to float would cost digits of a variance that is small compared to
// the mean.
FASTGAN_KERNEL(batch_norm_partials, FloatType type, const ChannelLayout& layout, const void* input,
               void* count, void* mean, void* m2)

// Results have the tiles' type.
FASTGAN_KERNEL(batch_norm_finalize, const StatisticsTiles& tiles, const FinalizeSettings& settings,
               const FinalizeResults& results)

// Both, for results of the type's arithmetic. workspace: a double for each number of the tiles.
FASTGAN_KERNEL(batch_norm_statistics, FloatType type, const ChannelLayout& layout,
               const void* input, const FinalizeSettings& settings, void* workspace,
               const FinalizeResults& results)

FASTGAN_KERNEL(norm_act, const NormAct& norm, const void* input, void* result)

// grad_sum, grad_xhat_sum: (tiles, channels).
FASTGAN_KERNEL(norm_act_gradient_sums, const NormAct& norm, const void* grad, const void* input,
               const void* invstd, void* grad_sum, void* grad_xhat_sum)

FASTGAN_KERNEL(norm_act_gradient_finalize, const GradientTiles& tiles,
               const GradientResults& results)

// result may be grad, here and below.
FASTGAN_KERNEL(norm_act_gradient, const NormAct& norm, const void* grad, const void* input,
               const void* slope, const void* offset, void* result)

FASTGAN_KERNEL(act_gradient, FloatType type, std::int64_t count, const void* grad,
               const void* kept, Activation activation, double negative_slope, void* result)

}  // namespace fastgan
