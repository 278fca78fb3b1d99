// The kernels of the gradient penalty's points and formula: math/penalty_points.h.
#pragma once

#include "kernel.h"
#include "math/penalty_points.h"

namespace fastgan {

// batch (3 samples, elements), dense, of type `to`: fakes, reals, points. eps (samples,), of
// `from`'s arithmetic.
FASTGAN_KERNEL(mix, const MixShape& shape, FloatType from, FloatType to, const void* real,
               const void* fake, const void* eps, void* batch)

// gradient (samples, elements) of type `from` and tangent of type `to`, both dense, perhaps in the
// same memory; norms (samples,) and value (1,) of the arithmetic's type.
FASTGAN_KERNEL(penalty_tangent, const PenaltySettings& settings, std::int64_t samples,
               std::int64_t elements, FloatType from, FloatType to, const void* gradient,
               void* tangent, void* norms, void* value)

}  // namespace fastgan
