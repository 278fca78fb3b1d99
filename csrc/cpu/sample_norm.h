// Norms with per-sample statistics, or per-sample scale and shift, followed by an activation:
//
//   u = (x - mean) * invstd * scale + shift,   y = z(u)
//
// on the CPU, one sample at a time, so that the second pass reads from the caches. The passes are
// batch_norm.h's, applied to one sample.
#pragma once

#include "../batch_norm.h"

namespace fastgan::cpu {

// Values of SampleNorm::groups other than a number of channel groups per sample: statistics of the
// whole batch, and constant ones.
inline constexpr std::int64_t kOverBatch = 0;
inline constexpr std::int64_t kConstants = -1;

// Vectors are (samples, channels), double for double tensors and float for the others.
struct SampleNorm {
    FloatType type;
    std::int64_t samples;
    ChannelLayout sample;  // the layout of one sample
    std::int64_t groups;
    void* mean;
    void* invstd;
    const void* scale;
    const void* shift;
    Activation activation;
    double negative_slope;
};

// Computes mean and invstd if they are per group; otherwise they are inputs.
void sample_norm_act(const SampleNorm& norm, double eps, const void* input, void* result);

// grad_scale = sum(g * xhat), grad_shift = sum(g), g = grad * z', xhat = (x - mean) * invstd; and
// the input's gradient, with S = scale * g and M values in each mean:
// invstd * (S - sum(S) / M - xhat * sum(S * xhat) / M), sums over what the mean is over.
void sample_norm_act_gradient(const SampleNorm& norm, const void* grad, const void* input,
                              void* grad_scale, void* grad_shift, void* result);

}  // namespace fastgan::cpu
