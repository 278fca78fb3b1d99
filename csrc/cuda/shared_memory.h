// Dynamic shared memory, of a size given to launch().
//
// CUDA's `extern __shared__ T values[];` can't be declared with two types by a template, so kernels
// here call dynamic_shared<T>() instead. For shared memory of fixed size, `__shared__ T
// values[256];` works.
#pragma once

#include "launch.h"

namespace fastgan::cuda {

// The block's shared_bytes (an argument of launch()), aligned to 16 bytes. Every call returns the
// same memory; a kernel with several arrays places them itself.
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
