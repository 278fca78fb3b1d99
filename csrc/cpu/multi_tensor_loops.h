// The inner loops of the optimisers and of clip_tensors_, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/adam.h"
#include "../math/optimizer_step.h"
#include "../math/rmsprop.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// `data`: runs of `count` weights, their gradients and their states, each dense, without overlap.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void rmsprop_run(FloatType type, void* const* data,
                                                  std::int64_t count, const RmspropScalars& scalars,
                                                  bool with_momentum, bool centered,
                                                  const CommonScalars& common))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void adam_run(FloatType type, void* const* data,
                                               std::int64_t count, const AdamScalars& scalars,
                                               bool amsgrad, const CommonScalars& common))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void clip_run(FloatType type, void* const* data,
                                               std::int64_t count, ClipBounds bounds))

// The weights rounded to float16 or bfloat16.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void shadow_run(FloatType type, const void* params,
                                                 FloatType shadow_type, void* shadows,
                                                 std::int64_t count))

}  // namespace fastgan::cpu
