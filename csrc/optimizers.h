// The optimisers' steps and clip_tensors_: one parallel loop, or launch, over all tensors.
#pragma once

#include "kernel.h"
#include "math/optimizers.h"
#include "multi_tensor.h"

namespace fastgan {

// optimizer_step(device, tensors, optimizer, settings). States from kFirstState on: those in use,
// in their order.
#define FASTGAN_DECLARE_STEP(name, Optimizer)                                                 \
    FASTGAN_KERNEL(name##_step, const MultiTensor& tensors, const Optimizer& optimizer,       \
                   const StepSettings& settings)                                              \
    template <typename Device>                                                                \
    void optimizer_step(Device device, const MultiTensor& tensors, const Optimizer& optimizer, \
                        const StepSettings& settings) {                                       \
        kernels::name##_step(device, tensors, optimizer, settings);                           \
    }
FASTGAN_OPTIMIZERS(FASTGAN_DECLARE_STEP)
#undef FASTGAN_DECLARE_STEP

// Uses only kParam and kShadow. Does nothing if found_inf is given and not zero.
FASTGAN_KERNEL(clip_tensors, const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
               const ScalarReference& found_inf)

}  // namespace fastgan
