// The inner loops of the penalty's points, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/penalty_points.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

struct MixRow {
    FloatType from;
    FloatType to;
    std::int64_t count;
    std::int64_t real_stride;
    std::int64_t fake_stride;
};

FASTGAN_FOR_EACH_INSTRUCTION_SET(
    // fake_out = fake, real_out = real, points = eps real + (1 - eps) fake, all three dense.
    void mix_row(const MixRow& row, const void* real, const void* fake, double eps, void* fake_out,
                 void* real_out, void* points);
    // The sum of squares of `count` dense values.
    double sum_of_squares(FloatType type, const void* values, std::int64_t count);
    // output = factor * input, dense; output may be input if the types are equal.
    void scale_row(FloatType from, FloatType to, const void* input, double factor, void* output,
                   std::int64_t count))

}  // namespace fastgan::cpu
