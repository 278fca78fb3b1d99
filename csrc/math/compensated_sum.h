// A sum in two numbers: what it is rounded to, and what the roundings lost (Knuth's two-sum).
#pragma once

#include "macros.h"

namespace fastgan {

// Of n terms t the total is off by u |sum| + (n u)^2 sum(|t|) at most, u being half of A's epsilon
// (Ogita, Rump and Oishi 2005, "Accurate sum and dot product", (4.6)): where n u < sqrt(u), which
// is 4096 terms in float and 9e7 in double, no more than by two roundings of sum(|t|).
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

    // Where the sum is infinite, what was lost is NaN.
    FASTGAN_INLINE A total() const { return low - low == A(0) ? high + low : high; }
};

}  // namespace fastgan
