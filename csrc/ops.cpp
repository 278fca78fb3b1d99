// The ops of torch.ops.fastgan: their schemas, the checks of their arguments, and which kernel
// serves which device.
//
// On LibTorch's stable ABI alone: the headers torch/csrc/stable and torch/headeronly, and nothing
// newer than TORCH_TARGET_VERSION, so that one binary serves torch 2.10 and every later release,
// CPU and CUDA builds alike. What the stable ABI does not reach (fake kernels, autograd, version
// counters) is registered from Python, in fastgan/ops.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <limits>
#include <sstream>
#include <string>

#include "cpu/clip.h"
#include "cpu/instruction_sets.h"
#include "math/clip.h"
#include "tensor_view.h"

#if defined(FASTGAN_WITH_CUDA)
#include <dlfcn.h>

#include "cuda/clip.h"
#endif

namespace fastgan {

namespace {

using torch::stable::Tensor;

// torch turns a std::runtime_error from an op into Python's RuntimeError.
template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
    std::ostringstream message;
    message.precision(std::numeric_limits<double>::max_digits10);
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

std::int32_t dtype_code(const Tensor& tensor) {
    std::int32_t code = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
    return code;
}

// For messages; the dtypes people meet.
std::string dtype_name(std::int32_t code) {
    const std::pair<std::int32_t, const char*> names[] = {
        {aoti_torch_dtype_float64(), "torch.float64"},
        {aoti_torch_dtype_float32(), "torch.float32"},
        {aoti_torch_dtype_float16(), "torch.float16"},
        {aoti_torch_dtype_bfloat16(), "torch.bfloat16"},
        {aoti_torch_dtype_bool(), "torch.bool"},
        {aoti_torch_dtype_uint8(), "torch.uint8"},
        {aoti_torch_dtype_int8(), "torch.int8"},
        {aoti_torch_dtype_int16(), "torch.int16"},
        {aoti_torch_dtype_int32(), "torch.int32"},
        {aoti_torch_dtype_int64(), "torch.int64"},
        {aoti_torch_dtype_uint16(), "torch.uint16"},
        {aoti_torch_dtype_uint32(), "torch.uint32"},
        {aoti_torch_dtype_uint64(), "torch.uint64"},
        {aoti_torch_dtype_complex32(), "torch.complex32"},
        {aoti_torch_dtype_complex64(), "torch.complex64"},
        {aoti_torch_dtype_complex128(), "torch.complex128"},
        {aoti_torch_dtype_float8_e4m3fn(), "torch.float8_e4m3fn"},
        {aoti_torch_dtype_float8_e5m2(), "torch.float8_e5m2"},
        {aoti_torch_dtype_float8_e4m3fnuz(), "torch.float8_e4m3fnuz"},
        {aoti_torch_dtype_float8_e5m2fnuz(), "torch.float8_e5m2fnuz"},
    };
    for (const auto& [known, name] : names) {
        if (code == known) {
            return name;
        }
    }
    return "number " + std::to_string(code) + " (in torch's numbering)";
}

FloatType float_type(const char* op, const char* argument, const Tensor& tensor) {
    const std::int32_t code = dtype_code(tensor);
    if (code == aoti_torch_dtype_float32()) {
        return FloatType::float32;
    }
    if (code == aoti_torch_dtype_bfloat16()) {
        return FloatType::bfloat16;
    }
    if (code == aoti_torch_dtype_float16()) {
        return FloatType::float16;
    }
    if (code == aoti_torch_dtype_float64()) {
        return FloatType::float64;
    }
    fail(op, ": ", argument, " has dtype ", dtype_name(code),
         "; expected float64, float32, float16 or bfloat16");
}

// A tensor about to be written in place.
TensorView writable_view(const char* op, const char* argument, const Tensor& tensor) {
    TensorView view;
    view.type = float_type(op, argument, tensor);
    const auto sizes = tensor.sizes();
    const auto strides = tensor.strides();
    const int dimensions = static_cast<int>(sizes.size());
    if (tensor.numel() > 0 && is_expanded(sizes.data(), strides.data(), dimensions)) {
        fail(op, ": ", argument,
             " is expanded: more than one of its elements refers to a single memory location. "
             "Please clone() the tensor before performing the operation.");
    }
    view.layout = make_layout(sizes.data(), strides.data(), dimensions);
    view.data = tensor.mutable_data_ptr();
    return view;
}

double largest(FloatType type) {
    switch (type) {
        case FloatType::float64:
            return std::numeric_limits<double>::max();
        case FloatType::float32:
            return std::numeric_limits<float>::max();
        case FloatType::float16:
            return 65504.0;
        case FloatType::bfloat16:
            break;
    }
    return 0x1.fep127;
}

// Checked, and rounded to what the tensor's dtype holds, as torch.clamp_ does with its bounds.
ClipBounds clip_bounds(const char* op, const Tensor& tensor, FloatType type, double min,
                       double max) {
    if (std::isnan(min) || std::isnan(max)) {
        fail(op, ": min and max must be numbers, got min = ", min, ", max = ", max);
    }
    if (min > max) {
        fail(op, ": min must not exceed max, got min = ", min, ", max = ", max);
    }
    const std::pair<const char*, double> bounds[] = {{"min", min}, {"max", max}};
    for (const auto& [name, bound] : bounds) {
        if (std::isfinite(bound) && std::abs(bound) > largest(type)) {
            fail(op, ": ", name, " = ", bound, " is beyond what ", dtype_name(dtype_code(tensor)),
                 " holds; for no bound pass an infinity");
        }
    }
    return ClipBounds{round_to(type, min), round_to(type, max)};
}

void clip_on_cpu(Tensor self, double min, double max) {
    const TensorView view = writable_view("fastgan::clip_", "self", self);
    const ClipBounds bounds = clip_bounds("fastgan::clip_", self, view.type, min, max);
    cpu::clip(view, bounds);
}

#if defined(FASTGAN_WITH_CUDA)

// torch's current stream on the device, as a cudaStream_t. Looked up when first needed: builds of
// torch without CUDA lack the function, and this library must load beside them too.
void* current_cuda_stream(std::int32_t device_index) {
    using GetStream = AOTITorchError (*)(std::int32_t, void**);
    static const GetStream get_stream = [] {
        constexpr const char* symbol = "aoti_torch_get_current_cuda_stream";
        void* found = dlsym(RTLD_DEFAULT, symbol);
        if (found == nullptr) {
            // torch is loaded without RTLD_GLOBAL, so the default scope may not reach it.
            if (void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) {
                found = dlsym(library, symbol);
            }
        }
        return reinterpret_cast<GetStream>(found);
    }();
    if (get_stream == nullptr) {
        fail("fastgan: this build of torch has no CUDA streams");
    }
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(get_stream(device_index, &stream));
    return stream;
}

void clip_on_cuda(Tensor self, double min, double max) {
    const TensorView view = writable_view("fastgan::clip_", "self", self);
    const ClipBounds bounds = clip_bounds("fastgan::clip_", self, view.type, min, max);
    const std::int32_t device_index = self.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device_index);
    cuda::clip(view, bounds, current_cuda_stream(device_index));
}

#endif

}  // namespace

}  // namespace fastgan

STABLE_TORCH_LIBRARY(fastgan, library) {
    library.def("clip_(Tensor(a!) self, float min, float max) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, library) {
    library.impl("clip_", TORCH_BOX(&fastgan::clip_on_cpu));
}

#if defined(FASTGAN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastgan, CUDA, library) {
    library.impl("clip_", TORCH_BOX(&fastgan::clip_on_cuda));
}
#endif

// For fastgan.build_info(): the instruction set that the loops in csrc/cpu run with here, or null
// with the reason in *error when the environment variable that lowers it is malformed.
extern "C" __attribute__((visibility("default"))) const char* fastgan_cpu_instruction_set(
    const char** error) {
    try {
        return fastgan::cpu::name(fastgan::cpu::instruction_set());
    } catch (const std::exception& exception) {
        static std::string message;
        message = exception.what();
        *error = message.c_str();
        return nullptr;
    }
}
