// The kernels of the gradient penalty's norms; formulas and shapes: math/penalty_norm.h. Maps have
// shape.type; weight, bias (channels,) and statistics (samples, groups) have the arithmetic's type:
// double for float64, else float. A null weight is 1, a null bias 0. Outputs may alias inputs.
#pragma once

#include "kernel.h"
#include "math/penalty_norm.h"

namespace fastgan {

// xhat, 1 / deviation and the output of `input`.
FASTGAN_KERNEL(norm_forward, const NormShape& shape, const void* input, const void* weight,
               const void* bias, double eps, void* xhat, void* invstd, void* output)

// The tangent weight * T(grad), or the gradient T(weight * grad).
FASTGAN_KERNEL(norm_project, const NormShape& shape, const void* grad, const void* xhat,
               const void* invstd, const void* weight, bool tangent, void* output)

FASTGAN_KERNEL(norm_curvature, const NormShape& shape, const void* grad, const void* tangent,
               const void* xhat, const void* invstd, const void* weight, void* output)

// For each sample and channel, sums over positions: weight_grad (samples, channels) of grad * xhat
// or, with a tangent, of grad * T(tangent); bias_grad, if not null, of grad. With a tangent, CUDA
// devices use `means`, (2, samples, groups) numbers, for means and projections of tangents.
FASTGAN_KERNEL(norm_gradients, const NormShape& shape, const void* grad, const void* tangent,
               const void* xhat, const void* invstd, void* weight_grad, void* bias_grad,
               void* means)

}  // namespace fastgan
