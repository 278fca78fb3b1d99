// The inner loops of batch norm and its activation, declared once per instruction set.
//
// Channels-last tensors are processed in columns: `rows` rows with a value for each of `channels`
// channels. Contiguous ones are processed in runs of one channel. (C,) arguments are float, double
// for double data.
#pragma once

#include <cstdint>

#include "../math/batch_norm.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// Values [begin, begin + count) of one channel of a contiguous tensor; image n begins n *
// image_stride elements after the first and has `image_size` values.
struct ChannelSpan {
    std::int64_t begin;
    std::int64_t count;
    std::int64_t image_size;
    std::int64_t image_stride;
};

// Arguments of a normalisation with its activation; see math/batch_norm.h. One channel's for runs.
struct NormActParameters {
    const void* mean;
    const void* scale;
    const void* bias;
    Activation activation;
    double negative_slope;
};

// Mean and M2 of each column, or of the span, into mean[0...] and m2[0...].
FASTGAN_FOR_EACH_INSTRUCTION_SET(void column_moments(FloatType type, const void* values,
                                                     std::int64_t rows, std::int64_t channels,
                                                     double* mean, double* m2))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void span_moments(FloatType type, const void* values,
                                                   ChannelSpan span, double* mean, double* m2))

// z((x - mean) * scale + bias). result may be input.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void norm_act_columns(FloatType type, const void* input,
                                                       void* result, std::int64_t rows,
                                                       std::int64_t channels,
                                                       const NormActParameters& parameters))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void norm_act_run(FloatType type, const void* input, void* result,
                                                   std::int64_t count,
                                                   const NormActParameters& parameters))

// sum(g) and sum(g * xhat), g = grad * z', of each column, or of the span.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void column_gradient_sums(
    FloatType type, const void* grad, const void* input, std::int64_t rows, std::int64_t channels,
    const NormActParameters& parameters, const void* invstd, void* grad_sum, void* grad_xhat_sum))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void span_gradient_sums(
    FloatType type, const void* grad, const void* input, ChannelSpan span,
    const NormActParameters& parameters, const void* invstd, void* grad_sum, void* grad_xhat_sum))

// scale * g + (x - mean) * slope + offset, g = grad * z'. result may be grad.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void gradient_columns(FloatType type, const void* grad,
                                                       const void* input, void* result,
                                                       std::int64_t rows, std::int64_t channels,
                                                       const NormActParameters& parameters,
                                                       const void* slope, const void* offset))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void gradient_run(
    FloatType type, const void* grad, const void* input, void* result, std::int64_t count,
    const NormActParameters& parameters, const void* slope, const void* offset))

// grad * z', z' from the activation's kept value. result may be grad.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void act_gradient_run(FloatType type, const void* grad,
                                                       const void* kept, void* result,
                                                       std::int64_t count, Activation activation,
                                                       double negative_slope))

// The tiles' moments, merged in order: totals[c] for each channel. mean and m2: (tiles, channels);
// count: (tiles,). All float, or all double if is_double.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void merge_moments(bool is_double, const void* count,
                                                    const void* mean, const void* m2,
                                                    std::int64_t tiles, std::int64_t channels,
                                                    double* total_mean, double* total_m2))

// The tiles' sums, added in order.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void add_tiles(bool is_double, const void* sums,
                                                std::int64_t tiles, std::int64_t channels,
                                                double* total))

}  // namespace fastgan::cpu
