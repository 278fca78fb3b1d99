// The optimisers' steps and clip_tensors_ on the CPU: one parallel loop over all tensors.
#pragma once

#include "../math/optimizers.h"
#include "../multi_tensor.h"

namespace fastgan::cpu {

// States from kFirstState on: those in use, in their order.
#define FASTGAN_DECLARE_STEP(name, Optimizer)                                   \
    void optimizer_step(const MultiTensor& tensors, const Optimizer& optimizer, \
                        const StepSettings& settings);
FASTGAN_OPTIMIZERS(FASTGAN_DECLARE_STEP)
#undef FASTGAN_DECLARE_STEP

// Uses only kParam and kShadow. Does nothing if found_inf is given and not zero.
void clip_tensors(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                  const ScalarReference& found_inf);

}  // namespace fastgan::cpu
