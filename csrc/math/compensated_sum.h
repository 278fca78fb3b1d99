// A sum in two numbers: the rounded sum, and the roundings' error (Knuth's two-sum).
#pragma once

#include "macros.h"

namespace fastgan {

// For n terms t the error is at most u |sum| + (n u)^2 sum(|t|), u being half of A's epsilon
// (Ogita, Rump and Oishi 2005, "Accurate sum and dot product", (4.6)): at most two roundings of
// sum(|t|) if n u < sqrt(u), 4096 terms in float and 9e7 in double.
template <typename A>
struct CompensatedSum {
    A high;
    A low;

    FASTGAN_INLINE CompensatedSum& operator+=(A term) {
        const A sum = high + term;
        const A taken = sum - high;
        low += (high - (sum - taken)) + (term - taken);
        high = sum;
        return *this;
    }

    FASTGAN_INLINE CompensatedSum& operator+=(const CompensatedSum& other) {
        *this += other.high;
        low += other.low;
        return *this;
    }

    // If the sum is infinite, the error term is NaN.
    FASTGAN_INLINE A total() const { return low - low == A(0) ? high + low : high; }

    // The total before its rounding to A.
    FASTGAN_INLINE double wide_total() const {
        const double wide = static_cast<double>(high);
        return low - low == A(0) ? wide + static_cast<double>(low) : wide;
    }
};

}  // namespace fastgan
