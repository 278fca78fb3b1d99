// What the kernels of bias_act are called with, on CPUs and GPUs.
#pragma once

#include <cstdint>

#include "math/bias_act.h"
#include "math/float_types.h"

namespace fastgan {

// Values without gaps, in memory's order: the one at place i is of channel i / inner % channels.
struct BiasShape {
    FloatType type;
    std::int64_t numel;
    std::int64_t channels;
    std::int64_t inner;
};

}  // namespace fastgan
