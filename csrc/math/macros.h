// How the formulas in this folder are compiled: for the host, and by nvcc for the device too.
#pragma once

// Always inlined, for a reason beyond speed: csrc/cpu compiles the same loops once per instruction
// set. Were a formula emitted as an ordinary inline function, the linker would keep one copy for
// all of them, perhaps the AVX-512 one, and a processor without AVX-512 would die in it.
#if defined(__CUDACC__)
#define FASTGAN_INLINE __host__ __device__ __forceinline__
#else
#define FASTGAN_INLINE inline __attribute__((always_inline))
#endif
