// Dynamic shared memory: the shared bytes of a block whose number is chosen by launch().
//
// CUDA spells it `extern __shared__ T values[];`, a variable without a size that belongs to no
// file, and which a template can't declare with two types. Kernels of this project call
// dynamic_shared<T>() instead. Shared memory of fixed size needs nothing of the kind: `__shared__ T
// values[256];`.
#pragma once

#include "launch.h"

namespace fastgan::cuda {

// The first of the block's shared_bytes (an argument of launch()), aligned to 16 bytes. Every call
// returns the same memory, so a kernel that keeps several arrays there lays them out itself.
template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
    static_assert(alignof(T) <= 16, "dynamic shared memory is aligned to 16 bytes");
#if defined(FASTGAN_HOST_HARNESS)
    return static_cast<T*>(fastgan_host::dynamic_shared_memory());
#else
    extern __shared__ __align__(16) unsigned char fastgan_dynamic_shared[];
    return reinterpret_cast<T*>(fastgan_dynamic_shared);
#endif
}

}  // namespace fastgan::cuda
