// The optimisers' steps and clip_tensors_ on the CPU: one parallel loop over all tensors.
#pragma once

#include "../math/adam.h"
#include "../math/rmsprop.h"
#include "../multi_tensor.h"

namespace fastgan::cpu {

// States from kFirstState on: square_avg, momentum_buffer where momentum > 0, grad_avg where
// centered.
void rmsprop_step(const MultiTensor& tensors, const RmspropSettings& rmsprop,
                  const StepSettings& settings);

// States from kFirstState on: exp_avg, exp_avg_sq, max_exp_avg_sq where amsgrad.
void adam_step(const MultiTensor& tensors, const AdamSettings& adam, const StepSettings& settings);

// Uses only kParam and kShadow. Does nothing if found_inf is given and not zero.
void clip_tensors(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                  const ScalarReference& found_inf);

}  // namespace fastgan::cpu
