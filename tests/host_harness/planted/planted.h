// A planted bug: a kernel with `corrected` as its first template parameter, and an entry that
// launches the one or the other as the case asks.
#pragma once

#include "cuda/launch.h"
#include "cuda/shared_memory.h"
#include "program.h"

// In an entry: calls launch() with the broken or the corrected instance of `kernel`.
#define LAUNCH_PLANTED(kernel, ...)                                  \
    (request.integer("corrected") != 0                               \
         ? fastgan::cuda::launch(#kernel, kernel<true>, __VA_ARGS__) \
         : fastgan::cuda::launch(#kernel, kernel<false>, __VA_ARGS__))

// The same of a kernel without a bug.
#define LAUNCH(kernel, blocks, threads, ...) \
    fastgan::cuda::launch(#kernel, kernel, blocks, threads, 0, stream(request), __VA_ARGS__)

namespace planted {

template <typename T>
T* data(const fastgan_host::Request& request, const char* name) {
    return static_cast<T*>(request.tensor(name).data);
}

inline int count(const fastgan_host::Request& request, const char* name) {
    return static_cast<int>(request.tensor(name).numel);
}

inline cudaStream_t stream(const fastgan_host::Request& request) {
    return static_cast<cudaStream_t>(request.stream());
}

}  // namespace planted
