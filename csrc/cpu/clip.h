// clip_ on the CPU.
#pragma once

#include "../math/clip.h"
#include "../tensor_view.h"

namespace fastgan::cpu {

// Clips every element of the view in place.
void clip(const TensorView& view, ClipBounds bounds);

}  // namespace fastgan::cpu
