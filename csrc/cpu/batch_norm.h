// The batch-norm passes on the CPU. The formulas: ../math/batch_norm.h.
#pragma once

#include "../batch_norm.h"

namespace fastgan::cpu {

// count: (tiles,); mean, m2: (tiles, channels), tiles = tile_count(...) of the layout. In double,
// because means rounded to float would cost digits of a variance that is small compared to the
// mean.
void batch_norm_partials(FloatType type, const ChannelLayout& layout, const void* input,
                         double* count, double* mean, double* m2);

// Results are double if `is_double`, for any type of the tiles.
void batch_norm_finalize(const StatisticsTiles& tiles, const FinalizeSettings& settings,
                         bool is_double, const FinalizeResults& results);

void norm_act(const NormAct& norm, const void* input, void* result);

// grad_sum, grad_xhat_sum: (tiles, channels).
void norm_act_gradient_sums(const NormAct& norm, const void* grad, const void* input,
                            const void* invstd, void* grad_sum, void* grad_xhat_sum);

void norm_act_gradient_finalize(const GradientTiles& tiles, const GradientResults& results);

// result may be grad.
void norm_act_gradient(const NormAct& norm, const void* grad, const void* input, const void* slope,
                       const void* offset, void* result);

// result may be grad.
void act_gradient(FloatType type, std::int64_t count, const void* grad, const void* kept,
                  Activation activation, double negative_slope, void* result);

}  // namespace fastgan::cpu
