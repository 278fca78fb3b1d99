// Arguments of bias_act's kernels on CPUs and GPUs.
#pragma once

#include <cstdint>

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

}  // namespace fastgan
