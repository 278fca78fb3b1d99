// Norms with each sample's own statistics, or own scale and shift, and the activation behind:
//
//   u = (x - mean) * invstd * scale + shift,   y = z(u)
//
// on the CPU, sample by sample, so that what a pass reads again is still in the caches. The passes
// themselves are batch_norm.h's, over one sample.
#pragma once

#include "../batch_norm.h"

namespace fastgan::cpu {

// What means and variances are over: so many groups of each sample's channels, or one of these.
inline constexpr std::int64_t kOverBatch = 0;
inline constexpr std::int64_t kConstants = -1;

// Vectors are (samples, channels), double where the tensor is and float for the other types.
struct SampleNorm {
    FloatType type;
    std::int64_t samples;
    ChannelLayout sample;  // of one of them
    std::int64_t groups;
    void* mean;
    void* invstd;
    const void* scale;
    const void* shift;
    Activation activation;
    double negative_slope;
};

// Writes mean and invstd of groups; others are given.
void sample_norm_act(const SampleNorm& norm, double eps, const void* input, void* result);

// grad_scale = sum(g * xhat), grad_shift = sum(g), g = grad * z', xhat = (x - mean) * invstd; and
// the input's gradient, with S = scale * g and M values in each mean:
// invstd * (S - sum(S) / M - xhat * sum(S * xhat) / M), sums over what the mean is over.
void sample_norm_act_gradient(const SampleNorm& norm, const void* grad, const void* input,
                              void* grad_scale, void* grad_shift, void* result);

}  // namespace fastgan::cpu
