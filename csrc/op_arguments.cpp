#include "op_arguments.h"

#include <dlfcn.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace fastgan {

using torch::stable::Tensor;

namespace {

// For None torch passes an undefined tensor, which has no properties.
void require_defined(const Tensor& tensor) {
    if (!tensor.defined()) {
        fail("fastgan: an op was given None where it takes a tensor");
    }
}

}  // namespace

std::int32_t dtype_code(const Tensor& tensor) {
    require_defined(tensor);
    std::int32_t code = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &code));
    return code;
}

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

torch::headeronly::IntHeaderOnlyArrayRef strides_of(const Tensor& tensor) {
    require_defined(tensor);
    return tensor.strides();
}

std::string shape_text(const Tensor& tensor) {
    std::ostringstream text;
    const char* separator = "(";
    for (const auto size : tensor.sizes()) {
        text << separator << size;
        separator = ", ";
    }
    text << (tensor.dim() == 0 ? "()" : ")");
    return text.str();
}

bool same_sizes(const Tensor& a, const Tensor& b) {
    const auto left = a.sizes(), right = b.sizes();
    return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin());
}

void require_alike(const char* op, const char* argument, const Tensor& tensor,
                   const Tensor& first) {
    if (dtype_code(tensor) != dtype_code(first)) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)), "; expected ",
             dtype_name(dtype_code(first)));
    }
    if (tensor.device() != first.device()) {
        fail(op, ": ", argument, " is on another device than the first argument");
    }
}

void require_vector(const char* op, const char* argument, const Tensor& tensor,
                    std::int64_t size) {
    if (tensor.dim() != 1 || tensor.size(0) != size) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor), "; expected (", size, ")");
    }
}

void refuse_expanded(const char* op, const std::string& argument, const Tensor& tensor) {
    const auto sizes = tensor.sizes(), strides = strides_of(tensor);
    for (std::size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] > 1 && strides[d] == 0 && tensor.numel() > 0) {
            fail(op, ": ", argument,
                 " is expanded: more than one of its elements refers to a single memory location. "
                 "Please clone() the tensor before performing the operation.");
        }
    }
}

Activation activation_argument(const char* op, std::int64_t code) {
    if (code < 0 || code >= kActivations) {
        fail(op, ": activation is ", code, "; expected a code from 0 to ", kActivations - 1);
    }
    return static_cast<Activation>(code);
}

namespace {

// torch's last error on this thread, if this torch keeps it.
std::string reason_of_torch() {
    using GetWhat = const char* (*)();
    constexpr const char* symbol = "torch_exception_get_what_without_backtrace";
    static const auto get_what = reinterpret_cast<GetWhat>([] {
        void* found = dlsym(RTLD_DEFAULT, symbol);
        if (found == nullptr) {
            // torch is loaded without RTLD_GLOBAL, so the default scope may not reach it.
            if (void* library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD)) {
                found = dlsym(library, symbol);
            }
        }
        return found;
    }());
    const std::string what = get_what == nullptr ? "" : get_what();
    return what.empty() ? what : ": " + what.substr(0, what.find('\n'));
}

// glibc's malloc maps blocks of this size and more anew each time. In pages of 4 KiB the first writes
// to one fault 8192 times, which takes longer than a pass over it; in huge pages 16 times. Many
// systems use those only on request.
constexpr std::int64_t kAlwaysMapped = std::int64_t{32} << 20;

void request_huge_pages([[maybe_unused]] const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    const std::int64_t bytes = tensor.numel() * tensor.element_size();
    if (bytes < kAlwaysMapped) {
        return;
    }
    const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto memory = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
    const std::uintptr_t begin = (memory + page - 1) / page * page;
    const std::uintptr_t end = (memory + static_cast<std::uintptr_t>(bytes)) / page * page;
    // Kernels without huge pages refuse, which changes nothing.
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

Tensor empty_strided(torch::headeronly::IntHeaderOnlyArrayRef sizes,
                     torch::headeronly::IntHeaderOnlyArrayRef strides, std::int32_t dtype,
                     const Tensor& on_device_of) {
    require_defined(on_device_of);
    AtenTensorHandle handle = nullptr;
    std::int32_t device_type = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(on_device_of.get(), &device_type));
    if (aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(),
                                 strides.data(), dtype, device_type,
                                 on_device_of.get_device_index(), &handle) != TORCH_SUCCESS) {
        std::int64_t elements = 1;
        for (const std::int64_t size : sizes) {
            elements *= size;
        }
        fail("fastgan: torch can't allocate ", elements, " elements of ", dtype_name(dtype),
             reason_of_torch());
    }
    Tensor tensor(handle);
    if (device_type == aoti_torch_device_type_cpu()) {
        request_huge_pages(tensor);
    }
    return tensor;
}

Tensor empty_contiguous(const Tensor& like) {
    std::vector<std::int64_t> strides(like.sizes().size(), 1);
    for (std::size_t d = strides.size(); d-- > 1;) {
        const std::int64_t size = like.size(static_cast<std::int64_t>(d));
        strides[d - 1] = strides[d] * std::max<std::int64_t>(size, 1);
    }
    return empty_strided(like.sizes(), strides, dtype_code(like), like);
}

Tensor empty_vector(std::int64_t size, std::int32_t dtype, const Tensor& on_device_of) {
    return empty_strided({size}, {1}, dtype, on_device_of);
}

void copy_into(Tensor& to, const Tensor& from) {
    try {
        torch::stable::copy_(to, from);
    } catch (const std::exception&) {
        fail("fastgan: torch can't copy a tensor of shape ", shape_text(from), reason_of_torch());
    }
}

Tensor packed(const Tensor& tensor, torch::headeronly::MemoryFormat format) {
    try {
        return torch::stable::contiguous(tensor, format);
    } catch (const std::exception&) {
        fail("fastgan: torch can't lay out a tensor of shape ", shape_text(tensor),
             " anew", reason_of_torch());
    }
}

Tensor laid_out(const Tensor& map, bool channels_last) {
    using torch::headeronly::MemoryFormat;
    return packed(map, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

FourSizes channels_last_strides(const FourSizes& sizes) {
    const auto [n, channels, rows, columns] = sizes;
    return {channels * rows * columns, 1, channels * columns, channels};
}

FourSizes contiguous_strides(const FourSizes& sizes) {
    const auto [n, channels, rows, columns] = sizes;
    return {channels * rows * columns, rows * columns, columns, 1};
}

Tensor empty_map(const FourSizes& sizes, const Tensor& like, bool channels_last,
                 std::optional<std::int32_t> dtype) {
    const FourSizes strides =
        channels_last ? channels_last_strides(sizes) : contiguous_strides(sizes);
    return empty_strided(sizes, strides, dtype.value_or(dtype_code(like)), like);
}

void require_four_dimensions(const char* op, const char* argument, const Tensor& map) {
    if (map.dim() != 4) {
        fail(op, ": ", argument, " has shape ", shape_text(map), "; expected four dimensions");
    }
}

bool is_channels_last(const Tensor& map) {
    const auto sizes = map.sizes(), strides = strides_of(map);
    if (strides[1] == 0) {
        return false;
    }
    std::int64_t least = 0;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        // The channels, then from the last dimension down to the first.
        const std::size_t d = i == 0 ? 1 : (i + 1 == sizes.size() ? 0 : sizes.size() - i);
        if (sizes[d] == 0 || strides[d] < least || (d == 0 && least == strides[1])) {
            return false;
        }
        least = strides[d] * sizes[d];
    }
    return true;
}

#if defined(FASTGAN_WITH_CUDA)

// Looked up on first use: builds of torch without CUDA lack the function, and this library must
// load with them, too.
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
    if (get_stream(device_index, &stream) != TORCH_SUCCESS) {
        fail("fastgan: torch gives no stream of CUDA device ", device_index, reason_of_torch());
    }
    return stream;
}

#endif

}  // namespace fastgan
