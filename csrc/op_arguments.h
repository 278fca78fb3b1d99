// Shared by all ops: argument errors, and calls of torch.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

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

// Calls of torch. If one fails, for example out of memory, the error has the request and torch's
// reason, if this torch reports it (2.13 does); the headers' own error only names a C function.
torch::stable::Tensor empty_strided(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                                    torch::headeronly::IntHeaderOnlyArrayRef strides,
                                    std::int32_t dtype, const torch::stable::Tensor& on_device_of);
void copy_into(torch::stable::Tensor& to, const torch::stable::Tensor& from);
torch::stable::Tensor packed(const torch::stable::Tensor& tensor,
                             torch::headeronly::MemoryFormat format =
                                 torch::headeronly::MemoryFormat::Contiguous);

// --- Maps of (N, C, H, W) ------------------------------------------------------------------------

using FourSizes = std::array<std::int64_t, 4>;

FourSizes channels_last_strides(const FourSizes& sizes);
FourSizes contiguous_strides(const FourSizes& sizes);

// On the device of `like`, and in its dtype or another.
torch::stable::Tensor empty_map(const FourSizes& sizes, const torch::stable::Tensor& like,
                                bool channels_last, std::optional<std::int32_t> dtype = {});

// Whether torch considers a map channels-last: its suggest_memory_format.
bool is_channels_last(const torch::stable::Tensor& map);

#if defined(FASTGAN_WITH_CUDA)
// torch's current stream on the device, as a cudaStream_t.
void* current_cuda_stream(std::int32_t device_index);
#endif

}  // namespace fastgan
