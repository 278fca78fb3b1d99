// bias_act on CUDA devices, like cpu/bias_act.h, on `stream`.
#pragma once

#include "../bias_act.h"

namespace fastgan::cuda {

void bias_act(const BiasShape& shape, const BiasAct& settings, const void* bias, const void* x,
              void* y, std::uint8_t* bits, void* stream);

void bias_act_gradient(const BiasShape& shape, const BiasAct& settings, const void* bias,
                       Kept keeps, const void* kept, const void* grad, void* grad_x, void* stream);

}  // namespace fastgan::cuda
