// The gradient penalty's points and formula on CUDA devices, like cpu/penalty_points.h, on
// `stream`.
#pragma once

#include "../math/penalty_points.h"

namespace fastgan::cuda {

// eps (samples,): float for a `from` below float64, else double.
void mix(const MixShape& shape, FloatType from, FloatType to, const void* real, const void* fake,
         const void* eps, void* batch, void* stream);

void penalty_tangent(const PenaltySettings& settings, std::int64_t samples, std::int64_t elements,
                     FloatType from, FloatType to, const void* gradient, void* tangent,
                     void* norms, void* value, void* stream);

}  // namespace fastgan::cuda
