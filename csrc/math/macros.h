// Attributes of this folder's formulas, for the host and, with nvcc, also for the device.
#pragma once

// Always inlined, not only for speed: csrc/cpu compiles the same loops once per instruction set. Of
// an ordinary inline function the linker would keep one copy for all, perhaps the AVX-512 one,
// which crashes on processors without AVX-512.
#if defined(__CUDACC__)
#define FASTGAN_INLINE __host__ __device__ __forceinline__
#else
#define FASTGAN_INLINE inline __attribute__((always_inline))
#endif
