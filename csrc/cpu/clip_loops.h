// The inner loop of clip_, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/clip.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// values[0], values[stride], ..., `count` of them, clipped in place. stride in elements.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void clip_row(FloatType type, void* values, std::int64_t count,
                                               std::int64_t stride, ClipBounds bounds))

}  // namespace fastgan::cpu
