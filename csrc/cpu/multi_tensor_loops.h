// The inner loops of the optimisers and of clip_tensors_, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/optimizer_step.h"
#include "../math/optimizers.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// `data`: runs of `count` weights, their gradients and their states, each dense, without overlap.
#define FASTGAN_DECLARE_RUN(name, Optimizer)                                               \
    FASTGAN_FOR_EACH_INSTRUCTION_SET(void name##_run(                                      \
        FloatType type, void* const* data, std::int64_t count, const Optimizer& optimizer, \
        const Optimizer::Scalars& scalars, const CommonScalars& common))
FASTGAN_OPTIMIZERS(FASTGAN_DECLARE_RUN)
#undef FASTGAN_DECLARE_RUN

FASTGAN_FOR_EACH_INSTRUCTION_SET(void clip_run(FloatType type, void* const* data,
                                               std::int64_t count, ClipBounds bounds))

// The weights rounded to float16 or bfloat16.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void shadow_run(FloatType type, const void* params,
                                                 FloatType shadow_type, void* shadows,
                                                 std::int64_t count))

}  // namespace fastgan::cpu
