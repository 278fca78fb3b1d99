// The norms of the gradient penalty on CUDA devices, like cpu/penalty_norm.h, on `stream`.
#pragma once

#include "../math/penalty_norm.h"

namespace fastgan::cuda {

void norm_forward(const NormShape& shape, const void* input, const void* weight, const void* bias,
                  double eps, void* xhat, void* invstd, void* output, void* stream);

void norm_project(const NormShape& shape, const void* grad, const void* xhat, const void* invstd,
                  const void* weight, bool tangent, void* output, void* stream);

void norm_curvature(const NormShape& shape, const void* grad, const void* tangent,
                    const void* xhat, const void* invstd, const void* weight, void* output,
                    void* stream);

// A tangent needs a workspace of (2, samples, groups) numbers: means and projections of tangents.
void norm_gradients(const NormShape& shape, const void* grad, const void* tangent,
                    const void* xhat, const void* invstd, void* weight_grad, void* bias_grad,
                    void* group_means, void* stream);

}  // namespace fastgan::cuda
