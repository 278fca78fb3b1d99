// The loops of upfirdn2d and filtered_lrelu, declared once per instruction set.
//
// A task is a range of output rows of `lanes` maps that are walked side by side. Rows stream: each
// input row is filtered along x once and kept in a ring as long as the filter along y needs it, or,
// of a separable filter, read where it is (FirRows in upfirdn2d_loops.cpp).
#pragma once

#include <cstdint>

#include "../upfirdn2d.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// Coefficients of the arithmetic's type; where not separable, y.taps rows of x.taps in `along_x`.
struct FirFilter {
    FirAxis x;
    FirAxis y;
    bool separable;
    const void* along_x;
    const void* along_y;
};

// In elements.
struct RowStrides {
    std::int64_t row;
    std::int64_t place;
    std::int64_t lane;
};

struct FirTask {
    FloatType type;
    FirFilter first;
    FirFilter second;  // where there is an activation
    bool has_activation;
    FirActivation activation;
    std::int64_t lanes;
    const void* x;
    RowStrides x_strides;
    void* y;
    RowStrides y_strides;
    const void* bias;  // one for each lane, of the arithmetic's type; or null
    std::int64_t row_begin;
    std::int64_t row_end;
    Signs signs;
    std::uint8_t* sign_bits;
    RowStrides sign_strides;
    std::int64_t sign_bytes;  // of a row, for one bit a value
    // The rows between the filters that this task writes the bits of.
    std::int64_t sign_begin;
    std::int64_t sign_end;
};

// Of the arithmetic's type.
FASTGAN_FOR_EACH_INSTRUCTION_SET(std::int64_t fir_scratch(const FirTask& task))
FASTGAN_FOR_EACH_INSTRUCTION_SET(void fir_rows(const FirTask& task, void* scratch))

}  // namespace fastgan::cpu
