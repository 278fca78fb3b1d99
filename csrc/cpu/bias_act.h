// bias_act on a CPU: math/bias_act.h says what it computes.
#pragma once

#include "../bias_act.h"

namespace fastgan::cpu {

// bias: `channels` values of shape.type, or null. bits: one for each value, or null.
void bias_act(const BiasShape& shape, const BiasAct& settings, const void* bias, const void* x,
              void* y, std::uint8_t* bits);

// grad_bias: null if it isn't wanted.
void bias_act_gradient(const BiasShape& shape, const BiasAct& settings, const void* bias,
                       Kept keeps, const void* kept, const void* grad, void* grad_x,
                       void* grad_bias);

}  // namespace fastgan::cpu
