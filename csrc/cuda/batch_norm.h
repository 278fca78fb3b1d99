// The batch-norm passes on CUDA devices. The formulas: ../math/batch_norm.h.
//
// All run asynchronously on `stream` (a cudaStream_t) of the current device, which must own the
// memory. They throw std::runtime_error on a CUDA error.
#pragma once

#include "../batch_norm.h"

namespace fastgan::cuda {

// count: (tiles,); mean, m2: (tiles, channels), tiles = tile_count(...) of the layout.
void batch_norm_partials(FloatType type, const ChannelLayout& layout, const void* input,
                         void* count, void* mean, void* m2, void* stream);

void batch_norm_finalize(const StatisticsTiles& tiles, const FinalizeSettings& settings,
                         const FinalizeResults& results, void* stream);

void norm_act(const NormAct& norm, const void* input, void* result, void* stream);

// grad_sum, grad_xhat_sum: (tiles, channels).
void norm_act_gradient_sums(const NormAct& norm, const void* grad, const void* input,
                            const void* invstd, void* grad_sum, void* grad_xhat_sum, void* stream);

void norm_act_gradient_finalize(const GradientTiles& tiles, const GradientResults& results,
                                void* stream);

// result may be grad.
void norm_act_gradient(const NormAct& norm, const void* grad, const void* input, const void* slope,
                       const void* offset, void* result, void* stream);

// result may be grad.
void act_gradient(FloatType type, std::int64_t count, const void* grad, const void* kept,
                  Activation activation, double negative_slope, void* result, void* stream);

}  // namespace fastgan::cuda
