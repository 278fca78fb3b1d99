// bias_act's kernels, and their arguments. The formulas: math/bias_act.h.
#pragma once

#include <cstdint>

#include "kernel.h"
#include "math/bias_act.h"
#include "math/float_types.h"

namespace fastgan {

// Dense values in memory order: number i belongs to channel i / inner % channels.
struct BiasShape {
    FloatType type;
    std::int64_t numel;
    std::int64_t channels;
    std::int64_t inner;
};

// bias: `channels` values of shape.type, or null. bits: one for each value, or null.
FASTGAN_KERNEL(bias_act, const BiasShape& shape, const BiasAct& settings, const void* bias,
               const void* x, void* y, std::uint8_t* bits)

// grad_bias: null if it isn't wanted; not computed on CUDA devices.
FASTGAN_KERNEL(bias_act_gradient, const BiasShape& shape, const BiasAct& settings,
               const void* bias, Kept keeps, const void* kept, const void* grad, void* grad_x,
               void* grad_bias)

}  // namespace fastgan
