// The optimisers' steps and clip_tensors_ on CUDA devices: one launch for all dense tensors.
#pragma once

#include "../math/adam.h"
#include "../math/rmsprop.h"
#include "../multi_tensor.h"

namespace fastgan::cuda {

// All run asynchronously on `stream` (a cudaStream_t); the tensors' device must be the current one.
// They throw std::runtime_error on a CUDA error.

// States from kFirstState on: square_avg, momentum_buffer where momentum > 0, grad_avg where
// centered.
void rmsprop_step(const MultiTensor& tensors, const RmspropSettings& rmsprop,
                  const StepSettings& settings, void* stream);

// States from kFirstState on: exp_avg, exp_avg_sq, max_exp_avg_sq where amsgrad.
void adam_step(const MultiTensor& tensors, const AdamSettings& adam, const StepSettings& settings,
               void* stream);

// Uses only kParam and kShadow. Does nothing if found_inf is given and not zero.
void clip_tensors(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                  const ScalarReference& found_inf, void* stream);

}  // namespace fastgan::cuda
