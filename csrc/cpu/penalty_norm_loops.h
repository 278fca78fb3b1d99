// The inner loops of the penalty's norms, declared once per instruction set. They process `rows`
// consecutive rows of `count` elements: all channels of a position (channels-last, with arrays of
// per-channel numbers), or positions of one channel (contiguous, with single numbers). Numbers have
// the arithmetic's type, float or double. Outputs may alias inputs.
#pragma once

#include <cstdint>

#include "../math/penalty_norm.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

struct NormRows {
    FloatType type;
    std::int64_t rows;
    std::int64_t count;
    bool per_element;  // whether per-channel numbers are arrays
};

FASTGAN_FOR_EACH_INSTRUCTION_SET(
    // first += a - shift, second += (a - shift) * b; by channel. b null: only first. b == a: the
    // product is the square of a - shift.
    void add_norm_sums(const NormRows& rows, const void* a, const void* shift, const void* b,
                       void* first, void* second);
    // xhat = (x - mean) invstd, output = weight xhat + bias.
    void normalise_rows(const NormRows& rows, const void* x, const void* mean, const void* invstd,
                       const void* weight, const void* bias, void* xhat, void* output);
    // output = after * T(before * grad).
    void project_rows(const NormRows& rows, const void* grad, const void* xhat, const void* before,
                     const void* after, const void* mean, const void* along, const void* invstd,
                     void* output);
    // p = weight * grad; the six numbers of Curvature's call.
    void curve_rows(const NormRows& rows, const void* grad, const void* tangent, const void* xhat,
                   const void* weight, const void* p_mean, const void* u_mean,
                   const void* of_signal, const void* of_tangent, const void* of_xhat,
                   void* output))

}  // namespace fastgan::cpu
