// Shared by all ops: argument errors, calls of torch, devices and registration.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "kernel.h"
#include "math/activation.h"
#include "math/float_types.h"

namespace fastgan {

// torch turns a std::runtime_error from an op into Python's RuntimeError.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    message.precision(std::numeric_limits<double>::max_digits10);
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

std::int32_t dtype_code(const torch::stable::Tensor& tensor);

// For messages; the common dtypes.
std::string dtype_name(std::int32_t code);

// Refuses dtypes that fastgan doesn't support.
FloatType float_type(const char* op, const char* argument, const torch::stable::Tensor& tensor);

// tensor.strides(). Like dtype_code and empty_strided it raises a readable error for None.
torch::headeronly::IntHeaderOnlyArrayRef strides_of(const torch::stable::Tensor& tensor);

// "(2, 3)", for messages.
std::string shape_text(const torch::stable::Tensor& tensor);

bool same_sizes(const torch::stable::Tensor& a, const torch::stable::Tensor& b);

// Refuses a tensor of another dtype or device than the op's first one.
void require_alike(const char* op, const char* argument, const torch::stable::Tensor& tensor,
                   const torch::stable::Tensor& first);

// Refuses a tensor unless its shape is (size,).
void require_vector(const char* op, const char* argument, const torch::stable::Tensor& tensor,
                    std::int64_t size);

// Refuses a tensor to write of which several elements share memory, as after Tensor.expand.
void refuse_expanded(const char* op, const std::string& argument,
                     const torch::stable::Tensor& tensor);

Activation activation_argument(const char* op, std::int64_t code);

inline const void* data_of(const torch::stable::Tensor& tensor) {
    return tensor.const_data_ptr();
}
inline const void* data_of(const std::optional<torch::stable::Tensor>& tensor) {
    return tensor ? tensor->const_data_ptr() : nullptr;
}

// The dtype of arithmetic on tensors of a type: double for double, else float.
inline std::int32_t arithmetic_dtype(FloatType type) {
    return type == FloatType::float64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// Calls of torch. If one fails, for example out of memory, the error has the request and torch's
// reason, if this torch reports it (2.13 does); the headers' own error only names a C function.
torch::stable::Tensor empty_strided(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                    torch::headeronly::IntHeaderOnlyArrayRef strides,
                                    std::int32_t dtype, const torch::stable::Tensor& on_device_of);
// Contiguous, of the same shape and dtype.
torch::stable::Tensor empty_contiguous(const torch::stable::Tensor& like);
torch::stable::Tensor empty_vector(std::int64_t size, std::int32_t dtype,
                                   const torch::stable::Tensor& on_device_of);
void copy_into(torch::stable::Tensor& to, const torch::stable::Tensor& from);
torch::stable::Tensor packed(const torch::stable::Tensor& tensor,
                             torch::headeronly::MemoryFormat format =
                                 torch::headeronly::MemoryFormat::Contiguous);

// A copy in that memory format, unless it has it.
torch::stable::Tensor laid_out(const torch::stable::Tensor& map, bool channels_last);

// --- Maps of (N, C, H, W) ------------------------------------------------------------------------

using FourSizes = std::array<std::int64_t, 4>;

FourSizes channels_last_strides(const FourSizes& sizes);
FourSizes contiguous_strides(const FourSizes& sizes);

// On the device of `like`, and in its dtype or another.
torch::stable::Tensor empty_map(const FourSizes& sizes, const torch::stable::Tensor& like,
                                bool channels_last, std::optional<std::int32_t> dtype = {});

// Whether torch considers a map, perhaps of more dimensions, channels-last: its
// suggest_memory_format.
bool is_channels_last(const torch::stable::Tensor& map);

void require_four_dimensions(const char* op, const char* argument,
                             const torch::stable::Tensor& map);


// --- Devices -------------------------------------------------------------------------------------

// torch's current stream on the device, as a cudaStream_t; only in builds with CUDA.
void* current_cuda_stream(std::int32_t device_index);

// Calls run(device) with the tensor's Device, Cpu or Cuda.
template <typename Device, typename Run>
void on_device_of(const torch::stable::Tensor& tensor, const Run& run) {
    if constexpr (std::is_same_v<Device, Cuda>) {
        const std::int32_t device_index = tensor.get_device_index();
        const torch::stable::accelerator::DeviceGuard guard(device_index);
        run(Cuda{current_cuda_stream(device_index)});
    } else {
        run(Cpu{});
    }
}

}  // namespace fastgan

// Registers ops for each device of the build:
//
//     FASTGAN_IMPLEMENT(Device, library) {
//         library.impl("norm_act", TORCH_BOX(&norm_act<Device>));
//     }
#if defined(FASTGAN_WITH_CUDA)
#define FASTGAN_IMPLEMENT_ON_CUDA \
    STABLE_TORCH_LIBRARY_IMPL(fastgan, CUDA, library) { implement<Cuda>(library); }
#else
#define FASTGAN_IMPLEMENT_ON_CUDA
#endif
#define FASTGAN_IMPLEMENT(Device, library)                                             \
    template <typename Device>                                                         \
    void implement(torch::stable::detail::StableLibrary& library);                     \
    STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, library) { implement<Cpu>(library); }      \
    FASTGAN_IMPLEMENT_ON_CUDA                                                          \
    template <typename Device>                                                         \
    void implement(torch::stable::detail::StableLibrary& library)
