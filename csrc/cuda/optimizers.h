// The optimisers' steps and clip_tensors_ on CUDA devices: one launch for all dense tensors.
#pragma once

#include "../math/optimizers.h"
#include "../multi_tensor.h"

namespace fastgan::cuda {

// All run asynchronously on `stream` (a cudaStream_t); the tensors' device must be the current one.
// They throw std::runtime_error on a CUDA error.

// States from kFirstState on: those in use, in their order.
#define FASTGAN_DECLARE_STEP(name, Optimizer)                                   \
    void optimizer_step(const MultiTensor& tensors, const Optimizer& optimizer, \
                        const StepSettings& settings, void* stream);
FASTGAN_OPTIMIZERS(FASTGAN_DECLARE_STEP)
#undef FASTGAN_DECLARE_STEP

// Uses only kParam and kShadow. Does nothing if found_inf is given and not zero.
void clip_tensors(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                  const ScalarReference& found_inf, void* stream);

}  // namespace fastgan::cuda
