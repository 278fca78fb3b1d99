// clip_ on CUDA devices.
#pragma once

#include "../math/clip.h"
#include "../tensor_view.h"

namespace fastgan::cuda {

// Clips every element of the view in place, on `stream` (a cudaStream_t), without waiting for it.
// The view's device must be the current one. Throws std::runtime_error on a CUDA error.
void clip(const TensorView& view, ClipBounds bounds, void* stream);

}  // namespace fastgan::cuda
