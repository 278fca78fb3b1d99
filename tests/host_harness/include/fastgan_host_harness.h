// CUDA's vocabulary for the host compiler, as far as csrc/cuda speaks it. csrc/cuda/launch.h
// includes this in place of cuda_runtime.h when FASTGAN_HOST_HARNESS is defined.
// docs/host-harness.md says what is checked, how, and what is not.
//
// Here are the declarations; tests/host_harness/runtime has what they do.
#pragma once

#include <math.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

// --- Keywords ------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// A shared variable is thread-local, though there is one host thread: so that all of them, and
// nothing else, lie in one segment of memory (PT_TLS), which the runtime can find, fill and watch.
// Before each goes a gap, in which nothing may be touched.
#define FASTGAN_HOST_JOIN_(a, b) a##b
#define FASTGAN_HOST_JOIN(a, b) FASTGAN_HOST_JOIN_(a, b)
#define __shared__                                                                          \
    static thread_local unsigned char FASTGAN_HOST_JOIN(fastgan_host_gap_, __COUNTER__)[64] \
        __attribute__((used));                                                              \
    static thread_local

// --- Types ---------------------------------------------------------------------------------------

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    constexpr dim3() = default;
    constexpr dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

#define FASTGAN_HOST_VECTORS(type, name, align2, align4)            \
    struct name##1 {                                                \
        type x;                                                     \
    };                                                              \
    struct alignas(align2) name##2 {                                \
        type x, y;                                                  \
    };                                                              \
    struct name##3 {                                                \
        type x, y, z;                                               \
    };                                                              \
    struct alignas(align4) name##4 {                                \
        type x, y, z, w;                                            \
    };                                                              \
    inline name##1 make_##name##1(type x) {                         \
        return {x};                                                 \
    }                                                               \
    inline name##2 make_##name##2(type x, type y) {                 \
        return {x, y};                                              \
    }                                                               \
    inline name##3 make_##name##3(type x, type y, type z) {         \
        return {x, y, z};                                           \
    }                                                               \
    inline name##4 make_##name##4(type x, type y, type z, type w) { \
        return {x, y, z, w};                                        \
    }
FASTGAN_HOST_VECTORS(signed char, char, 2, 4)
FASTGAN_HOST_VECTORS(unsigned char, uchar, 2, 4)
FASTGAN_HOST_VECTORS(short, short, 4, 8)
FASTGAN_HOST_VECTORS(unsigned short, ushort, 4, 8)
FASTGAN_HOST_VECTORS(int, int, 8, 16)
FASTGAN_HOST_VECTORS(unsigned, uint, 8, 16)
FASTGAN_HOST_VECTORS(long long, longlong, 16, 16)
FASTGAN_HOST_VECTORS(unsigned long long, ulonglong, 16, 16)
FASTGAN_HOST_VECTORS(float, float, 8, 16)
FASTGAN_HOST_VECTORS(double, double, 16, 16)
#undef FASTGAN_HOST_VECTORS

// Of the running thread: the runtime sets them when it lets a thread run.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = 32;

// --- The runtime ---------------------------------------------------------------------------------

namespace fastgan_host {

// A kernel with the arguments of one launch, copied when it was launched.
class Invocation {
  public:
    virtual ~Invocation() = default;
    virtual void run_thread() = 0;
    std::size_t size = 0;  // of this object: kernels may read their arguments, and nothing beside
};

template <typename... Parameters>
class InvocationOf final : public Invocation {
  public:
    InvocationOf(void (*kernel)(Parameters...), void** arguments)
        : InvocationOf(kernel, arguments, std::index_sequence_for<Parameters...>()) {}
    void run_thread() override { std::apply(kernel_, arguments_); }

  private:
    template <std::size_t... I>
    InvocationOf(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>)
        : kernel_(kernel), arguments_(*static_cast<Parameters*>(arguments[I])...) {
        size = sizeof(*this);
    }
    void (*kernel_)(Parameters...);
    std::tuple<Parameters...> arguments_;
};

// Where in the kernel a barrier or a warp function was called.
struct Site {
    const char* file;
    int line;
};

enum class WarpFunction { syncwarp, shfl, shfl_up, shfl_down, shfl_xor, vote, reduce };

struct Votes {
    unsigned threads;
    unsigned in_favour;
};

// What the lanes of a warp told each other.
struct Exchange {
    unsigned lanes;  // that took part
    int own_lane;
    std::uint64_t values[32];
};

Votes block_barrier(const char* name, bool vote, Site site);
Exchange warp_exchange(WarpFunction function, const char* name, unsigned mask, std::uint64_t value,
                       Site site);
std::uint64_t shuffle(WarpFunction function, const char* name, unsigned mask, std::uint64_t value,
                      int argument, int width, Site site);
unsigned running_lanes();
void atomic_access(void* address, std::size_t size);
void fence();
[[noreturn]] void trap(Site site);
void* dynamic_shared_memory();

}  // namespace fastgan_host

// --- Host functions ------------------------------------------------------------------------------

// Those that wait for the device or allocate on it are left out: all that csrc/cuda does must be
// capturable in a CUDA graph, where neither is allowed.

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorNoKernelImageForDevice = 209,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMultiProcessorCount = 16,
};
using cudaStream_t = struct FastganHostStream*;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemcpyAsync(void* target, const void* source, std::size_t size, cudaMemcpyKind kind,
                            cudaStream_t stream = nullptr);
cudaError_t cudaMemsetAsync(void* target, int value, std::size_t size,
                            cudaStream_t stream = nullptr);

namespace fastgan_host {
cudaError_t set_dynamic_shared_limit(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t enqueue(const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
                    cudaStream_t stream, Invocation* invocation);
}  // namespace fastgan_host

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute attribute,
                                 int value) {
    return fastgan_host::set_dynamic_shared_limit(reinterpret_cast<const void*>(kernel), attribute,
                                                  value);
}

// Runs nothing yet: the launch waits in its stream until that is synchronised, as it may on a GPU.
template <typename... Parameters>
cudaError_t cudaLaunchKernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, void** arguments,
                             std::size_t shared_bytes = 0, cudaStream_t stream = nullptr) {
    return fastgan_host::enqueue(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
                                 stream,
                                 new fastgan_host::InvocationOf<Parameters...>(kernel, arguments));
}

// --- Barriers and warp functions -----------------------------------------------------------------

#define FASTGAN_HOST_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(FASTGAN_HOST_SITE) {
    fastgan_host::block_barrier("__syncthreads", false, {file, line});
}
inline int __syncthreads_count(int predicate, FASTGAN_HOST_SITE) {
    return static_cast<int>(
        fastgan_host::block_barrier("__syncthreads_count", predicate != 0, {file, line}).in_favour);
}
inline int __syncthreads_and(int predicate, FASTGAN_HOST_SITE) {
    const auto votes =
        fastgan_host::block_barrier("__syncthreads_and", predicate != 0, {file, line});
    return votes.in_favour == votes.threads;
}
inline int __syncthreads_or(int predicate, FASTGAN_HOST_SITE) {
    return fastgan_host::block_barrier("__syncthreads_or", predicate != 0, {file, line}).in_favour >
           0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, FASTGAN_HOST_SITE) {
    fastgan_host::warp_exchange(fastgan_host::WarpFunction::syncwarp, "__syncwarp", mask, 0,
                                {file, line});
}

namespace fastgan_host {

template <typename T>
std::uint64_t to_bits(T value) {
    static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8),
                  "CUDA shuffles numbers of 4 or 8 bytes");
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}

template <typename T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof(T));
    return value;
}

template <typename T, typename Combine>
T reduce(const char* name, unsigned mask, T value, Combine combine, Site site) {
    const Exchange all = warp_exchange(WarpFunction::reduce, name, mask, to_bits(value), site);
    T result = value;
    for (int lane = 0; lane < warpSize; ++lane) {
        if ((all.lanes >> lane & 1u) != 0 && lane != all.own_lane) {
            result = combine(result, from_bits<T>(all.values[lane]));
        }
    }
    return result;
}

inline unsigned ballot(const char* name, unsigned mask, bool predicate, Site site) {
    const Exchange all =
        warp_exchange(WarpFunction::vote, name, mask, static_cast<std::uint64_t>(predicate), site);
    unsigned result = 0;
    for (int lane = 0; lane < warpSize; ++lane) {
        if ((all.lanes >> lane & 1u) != 0 && all.values[lane] != 0) {
            result |= 1u << lane;
        }
    }
    return result;
}

}  // namespace fastgan_host

#define FASTGAN_HOST_SHUFFLE(cuda_name, kind, argument)                                       \
    template <typename T>                                                                     \
    T cuda_name(unsigned mask, T value, argument, int width = warpSize, FASTGAN_HOST_SITE) {  \
        return fastgan_host::from_bits<T>(fastgan_host::shuffle(                              \
            fastgan_host::WarpFunction::kind, #cuda_name, mask, fastgan_host::to_bits(value), \
            static_cast<int>(which), width, {file, line}));                                   \
    }
FASTGAN_HOST_SHUFFLE(__shfl_sync, shfl, int which)
FASTGAN_HOST_SHUFFLE(__shfl_up_sync, shfl_up, unsigned which)
FASTGAN_HOST_SHUFFLE(__shfl_down_sync, shfl_down, unsigned which)
FASTGAN_HOST_SHUFFLE(__shfl_xor_sync, shfl_xor, int which)
#undef FASTGAN_HOST_SHUFFLE

inline unsigned __ballot_sync(unsigned mask, int predicate, FASTGAN_HOST_SITE) {
    return fastgan_host::ballot("__ballot_sync", mask, predicate != 0, {file, line});
}
inline int __any_sync(unsigned mask, int predicate, FASTGAN_HOST_SITE) {
    return fastgan_host::ballot("__any_sync", mask, predicate != 0, {file, line}) != 0;
}
inline int __all_sync(unsigned mask, int predicate, FASTGAN_HOST_SITE) {
    return fastgan_host::ballot("__all_sync", mask, predicate == 0, {file, line}) == 0;
}
inline unsigned __activemask() {
    return fastgan_host::running_lanes();
}

#define FASTGAN_HOST_REDUCE(cuda_name, type, combination)                               \
    inline type cuda_name(unsigned mask, type value, FASTGAN_HOST_SITE) {               \
        return fastgan_host::reduce(#cuda_name, mask, value,                            \
                                    [](type a, type b) -> type { return combination; }, \
                                    {file, line});                                      \
    }
FASTGAN_HOST_REDUCE(__reduce_add_sync, unsigned, a + b)
FASTGAN_HOST_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
FASTGAN_HOST_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
FASTGAN_HOST_REDUCE(__reduce_add_sync, int, static_cast<int>(unsigned(a) + unsigned(b)))
FASTGAN_HOST_REDUCE(__reduce_min_sync, int, a < b ? a : b)
FASTGAN_HOST_REDUCE(__reduce_max_sync, int, a > b ? a : b)
FASTGAN_HOST_REDUCE(__reduce_and_sync, unsigned, a& b)
FASTGAN_HOST_REDUCE(__reduce_or_sync, unsigned, a | b)
FASTGAN_HOST_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef FASTGAN_HOST_REDUCE

inline void __threadfence() {
    fastgan_host::fence();
}
inline void __threadfence_block() {}

// --- Atomics -------------------------------------------------------------------------------------

namespace fastgan_host {

template <typename T, typename... Allowed>
inline constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

// Watched by atomic_access in place of the compiler's instrumentation, which would take it for an
// ordinary read and an ordinary write. (AddressSanitizer's instrumentation stays.)
template <typename T, typename Update>
__attribute__((noinline, no_sanitize("thread"))) T atomic_update(T* address, Update update) {
    atomic_access(address, sizeof(T));
    const T old = *address;
    *address = update(old);
    return old;
}

}  // namespace fastgan_host

#define FASTGAN_HOST_ATOMIC(cuda_name, updated, ...)                                            \
    template <typename T>                                                                       \
    T cuda_name(T* address, std::type_identity_t<T> value) {                                    \
        static_assert(fastgan_host::is_one_of<T, __VA_ARGS__>, "CUDA has no such " #cuda_name); \
        return fastgan_host::atomic_update(address, [value](T old) -> T { return updated; });   \
    }
FASTGAN_HOST_ATOMIC(atomicAdd, old + value, int, unsigned, unsigned long long, float, double)
FASTGAN_HOST_ATOMIC(atomicSub, old - value, int, unsigned)
FASTGAN_HOST_ATOMIC(atomicExch, (static_cast<void>(old), value), int, unsigned, unsigned long long,
                    float)
FASTGAN_HOST_ATOMIC(atomicMin, old < value ? old : value, int, unsigned, long long,
                    unsigned long long)
FASTGAN_HOST_ATOMIC(atomicMax, old > value ? old : value, int, unsigned, long long,
                    unsigned long long)
FASTGAN_HOST_ATOMIC(atomicInc, old >= value ? 0 : old + 1, unsigned)
FASTGAN_HOST_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1, unsigned)
FASTGAN_HOST_ATOMIC(atomicAnd, old& value, int, unsigned, unsigned long long)
FASTGAN_HOST_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
FASTGAN_HOST_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
#undef FASTGAN_HOST_ATOMIC

template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
    static_assert(fastgan_host::is_one_of<T, int, unsigned, unsigned long long, unsigned short>,
                  "CUDA has no such atomicCAS");
    return fastgan_host::atomic_update(
        address, [compare, value](T old) -> T { return old == compare ? value : old; });
}

// --- Loads, stores and arithmetic ----------------------------------------------------------------

#define FASTGAN_HOST_LOAD(cuda_name) \
    template <typename T>            \
    T cuda_name(const T* address) {  \
        return *address;             \
    }
FASTGAN_HOST_LOAD(__ldg)
FASTGAN_HOST_LOAD(__ldca)
FASTGAN_HOST_LOAD(__ldcg)
FASTGAN_HOST_LOAD(__ldcs)
FASTGAN_HOST_LOAD(__ldlu)
FASTGAN_HOST_LOAD(__ldcv)
#undef FASTGAN_HOST_LOAD

#define FASTGAN_HOST_STORE(cuda_name)                           \
    template <typename T>                                       \
    void cuda_name(T* address, std::type_identity_t<T> value) { \
        *address = value;                                       \
    }
FASTGAN_HOST_STORE(__stwb)
FASTGAN_HOST_STORE(__stcg)
FASTGAN_HOST_STORE(__stcs)
FASTGAN_HOST_STORE(__stwt)
#undef FASTGAN_HOST_STORE

#define FASTGAN_HOST_MIN_MAX(type)    \
    inline type min(type a, type b) { \
        return b < a ? b : a;         \
    }                                 \
    inline type max(type a, type b) { \
        return a < b ? b : a;         \
    }
FASTGAN_HOST_MIN_MAX(int)
FASTGAN_HOST_MIN_MAX(unsigned)
FASTGAN_HOST_MIN_MAX(long)
FASTGAN_HOST_MIN_MAX(unsigned long)
FASTGAN_HOST_MIN_MAX(long long)
FASTGAN_HOST_MIN_MAX(unsigned long long)
#undef FASTGAN_HOST_MIN_MAX
// Of floats, CUDA's return the other argument where one is NaN; so do these.
inline float min(float a, float b) {
    return fminf(a, b);
}
inline float max(float a, float b) {
    return fmaxf(a, b);
}
inline double min(double a, double b) {
    return fmin(a, b);
}
inline double max(double a, double b) {
    return fmax(a, b);
}

inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline double rsqrt(double x) {
    return 1.0 / sqrt(x);
}
// The programs are compiled with -ffp-contract=off: every operation rounds by itself.
inline float __fadd_rn(float a, float b) {
    return a + b;
}
inline float __fsub_rn(float a, float b) {
    return a - b;
}
inline float __fmul_rn(float a, float b) {
    return a * b;
}
inline float __fdiv_rn(float a, float b) {
    return a / b;
}
inline float __fsqrt_rn(float a) {
    return sqrtf(a);
}
inline float __fmaf_rn(float a, float b, float c) {
    return fmaf(a, b, c);
}
inline double __dadd_rn(double a, double b) {
    return a + b;
}
inline double __dsub_rn(double a, double b) {
    return a - b;
}
inline double __dmul_rn(double a, double b) {
    return a * b;
}
inline double __ddiv_rn(double a, double b) {
    return a / b;
}
inline double __dsqrt_rn(double a) {
    return sqrt(a);
}
inline double __fma_rn(double a, double b, double c) {
    return fma(a, b, c);
}

inline int __float_as_int(float x) {
    return std::bit_cast<int>(x);
}
inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
inline float __int_as_float(int x) {
    return std::bit_cast<float>(x);
}
inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}
inline long long __double_as_longlong(double x) {
    return std::bit_cast<long long>(x);
}
inline double __longlong_as_double(long long x) {
    return std::bit_cast<double>(x);
}
inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
    return std::popcount(x);
}
inline int __clz(int x) {
    return std::countl_zero(static_cast<unsigned>(x));
}
inline int __clzll(long long x) {
    return std::countl_zero(static_cast<unsigned long long>(x));
}
inline int __ffs(int x) {
    return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1;
}
inline int __ffsll(long long x) {
    return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1;
}
[[noreturn]] inline void __trap(FASTGAN_HOST_SITE) {
    fastgan_host::trap({file, line});
}
