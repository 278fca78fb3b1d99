// Kernels that CPUs and CUDA devices both have.
//
// FASTGAN_KERNEL(name, parameters...) declares cpu::name(parameters...) and
// cuda::name(parameters..., stream), which runs asynchronously on a cudaStream_t of the current
// device and throws std::runtime_error on a CUDA error. Ops are templates of their device, and call
// kernels::name(device, arguments...).
#pragma once

namespace fastgan {

struct Cpu {};

struct Cuda {
    void* stream;
};

template <typename Signature>
struct Kernel;

template <typename... Arguments>
struct Kernel<void(Arguments...)> {
    void (*on_cpu)(Arguments...);
    void (*on_cuda)(Arguments..., void*);

    void operator()(Cpu, Arguments... arguments) const { on_cpu(arguments...); }
    void operator()(Cuda device, Arguments... arguments) const {
        on_cuda(arguments..., device.stream);
    }
};

}  // namespace fastgan

#if defined(FASTGAN_WITH_CUDA)
#define FASTGAN_ADDRESS_ON_CUDA(name) &cuda::name
#else
#define FASTGAN_ADDRESS_ON_CUDA(name) nullptr
#endif

#define FASTGAN_KERNEL(name, ...)                                                        \
    namespace cpu {                                                                      \
    void name(__VA_ARGS__);                                                              \
    }                                                                                    \
    namespace cuda {                                                                     \
    void name(__VA_ARGS__, void* stream);                                                \
    }                                                                                    \
    namespace kernels {                                                                  \
    constexpr Kernel<void(__VA_ARGS__)> name{&cpu::name, FASTGAN_ADDRESS_ON_CUDA(name)}; \
    }
