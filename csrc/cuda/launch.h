// Launches CUDA kernels, and turns CUDA errors into exceptions.
//
// Kernels are launched by launch(), never by <<<>>>, so that CUDA's syntax stays in this header. A
// .cu file is then plain C++ except for threadIdx, blockIdx, blockDim and gridDim, and a test
// harness can compile it for the host by defining FASTGAN_HOST_HARNESS and providing its own
// header.
#pragma once

#if defined(FASTGAN_HOST_HARNESS)
#include "fastgan_host_harness.h"
#else
#include <cuda_runtime.h>
#endif

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace fastgan::cuda {

// Throws std::runtime_error with the attempted action unless status is success.
inline void check(cudaError_t status, const char* attempted) {
    if (status == cudaSuccess) {
        return;
    }
    // Clear the thread's error, so that the next call doesn't report it.
    static_cast<void>(cudaGetLastError());
    std::string message = std::string("fastgan: ") + attempted +
                          " failed: " + cudaGetErrorName(status) + " (" +
                          cudaGetErrorString(status) + ")";
    if (status == cudaErrorNoKernelImageForDevice) {
        message +=
            "; this build has no code for this GPU: rebuild with FASTGAN_CUDA_ARCHS naming its "
            "compute capability";
    }
    throw std::runtime_error(message);
}

// The number of blocks, with `per_block` items each, for `items`: a grid's x dimension.
inline unsigned blocks_for(std::int64_t items, std::int64_t per_block) {
    const std::int64_t blocks = (items + per_block - 1) / per_block;
    if (blocks > std::numeric_limits<std::int32_t>::max()) {
        throw std::runtime_error("fastgan: the tensor needs more blocks than a CUDA grid has");
    }
    return static_cast<unsigned>(blocks);
}

// A kernel's argument: an untyped pointer or a number becomes the parameter's type.
template <typename Parameter>
struct Argument {
    Parameter value;

    template <typename Given>
    Argument(const Given& given) : value(static_cast<Parameter>(given)) {}
};

// Runs kernel(arguments...) asynchronously on `stream`, a cudaStream_t of the current device.
// `name` is for messages. Without blocks nothing is launched.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 blocks, dim3 threads,
            std::size_t shared_bytes, void* stream,
            std::type_identity_t<Argument<Parameters>>... arguments) {
    // Larger ones need CUDA 12.1's driver.
    static_assert((std::size_t{0} + ... + sizeof(Parameters)) <= 4096);
    if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) {
        return;
    }
    // One more than needed: a kernel without parameters would give an array of size zero.
    void* addresses[sizeof...(Parameters) + 1] = {static_cast<void*>(&arguments.value)..., nullptr};
    check(cudaLaunchKernel(kernel, blocks, threads, addresses, shared_bytes,
                           static_cast<cudaStream_t>(stream)),
          name);
}

}  // namespace fastgan::cuda
