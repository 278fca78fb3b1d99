// Products of 16x16 and 16x8 matrices of 16-bit numbers by a warp, in float32.
#pragma once

#include <type_traits>

#include "../math/arithmetic.h"
#include "launch.h"

namespace fastgan::cuda {

// Two 16-bit numbers, the first in the lower half.
using Pair = std::uint32_t;

// sums += a b, as mma.m16n8k16 distributes them (PTX ISA, "Matrix Fragments for mma.m16n8k16"):
// with g = lane / 4 and t = lane % 4 a thread has
//
//     a     rows g, g + 8, g, g + 8 of columns 2t and 2t + 1, the last two of 2t + 8 and 2t + 9
//     b     rows 2t and 2t + 1, then 2t + 8 and 2t + 9, of column g
//     sums  columns 2t and 2t + 1 of row g, then of row g + 8
//
// Without tensor cores, before compute capability 8.0, lanes hand one another their numbers.
template <typename T>
__device__ __forceinline__ void add_product(float (&sums)[4], const Pair (&a)[4],
                                            const Pair (&b)[2]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    if constexpr (std::is_same_v<T, Half>) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
#else
    using Four = unsigned long long;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int row = lane / 4;
    const int column = lane % 4 * 2;
    const auto four = [](Pair low, Pair high) { return static_cast<Four>(high) << 32 | low; };
    const auto number = [](Four of, int which) {
        return to_arithmetic(T{static_cast<std::uint16_t>(of >> (16 * which))});
    };
    // Unrolled, it would keep all products' numbers in registers.
#pragma unroll 1
    for (int from = 0; from < 4; ++from) {
        const Four rows[2] = {__shfl_sync(~0u, four(a[0], a[2]), row * 4 + from),
                              __shfl_sync(~0u, four(a[1], a[3]), row * 4 + from)};
        const Four columns[2] = {__shfl_sync(~0u, four(b[0], b[1]), column * 4 + from),
                                 __shfl_sync(~0u, four(b[0], b[1]), column * 4 + 4 + from)};
        for (int k = 0; k < 4; ++k) {
            for (int i = 0; i < 4; ++i) {
                sums[i] = multiply_add(number(rows[i / 2], k), number(columns[i % 2], k), sums[i]);
            }
        }
    }
#endif
}

}  // namespace fastgan::cuda
