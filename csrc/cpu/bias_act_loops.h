// The inner loops of bias_act, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/bias_act.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// Values are walked in memory's order, in blocks of so many; ranges begin at a whole block.
inline constexpr std::int64_t kBiasActBlock = 256;

// Where the bias of the value at place i stands: at values[i % period] where inner is 0, with
// kBiasActBlock values more that repeat the first; else at values[i / inner % channels]. Of the
// arithmetic's type; null for none.
struct BiasReader {
    const void* values;
    std::int64_t period;
    std::int64_t inner;
    std::int64_t channels;

    // Sums of the bias' gradient: period + kBiasActBlock or `channels` of them.
    std::int64_t slots() const { return inner == 0 ? period + kBiasActBlock : channels; }
};

FASTGAN_FOR_EACH_INSTRUCTION_SET(void bias_act_range(FloatType type, const BiasAct& settings,
                                                     const BiasReader& bias, const void* x,
                                                     std::int64_t begin, std::int64_t end, void* y,
                                                     std::uint8_t* bits))

// grad_x, and added to sums the bias' gradient, unless that is null. scratch: as many doubles.
FASTGAN_FOR_EACH_INSTRUCTION_SET(void bias_act_gradient_range(
    FloatType type, const BiasAct& settings, const BiasReader& bias, Kept keeps, const void* kept,
    const void* grad, std::int64_t begin, std::int64_t end, void* grad_x, double* sums,
    void* scratch))

}  // namespace fastgan::cpu
