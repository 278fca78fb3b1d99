// The ops of StyleGAN's networks in torch.ops.fastgan: schemas, checks of their arguments,
// registration. What they compute: math/bias_act.h and math/upfirdn2d.h. As ops.cpp, on LibTorch's
// stable ABI alone.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/bias_act.h"
#include "op_arguments.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

Tensor laid_out(const Tensor& tensor, bool channels_last) {
    using torch::headeronly::MemoryFormat;
    return packed(tensor, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

bool lies_channels_last(const Tensor& tensor) {
    return tensor.dim() == 4 && is_channels_last(tensor);
}

// Without gaps, in the dtype of `like`.
Tensor empty_as(const Tensor& like, bool channels_last) {
    if (channels_last) {
        return empty_map({like.size(0), like.size(1), like.size(2), like.size(3)}, like, true);
    }
    std::vector<std::int64_t> strides(like.sizes().size(), 1);
    for (std::size_t d = strides.size(); d-- > 1;) {
        const std::int64_t size = like.size(static_cast<std::int64_t>(d));
        strides[d - 1] = strides[d] * std::max<std::int64_t>(size, 1);
    }
    return empty_strided(like.sizes(), strides, dtype_code(like), like);
}

Tensor empty_vector(std::int64_t size, const Tensor& like, std::int32_t dtype) {
    return empty_strided({size}, {1}, dtype, like);
}

void require_alike(const char* op, const char* argument, const Tensor& tensor, const Tensor& x) {
    if (dtype_code(tensor) != dtype_code(x)) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)), "; expected ",
             dtype_name(dtype_code(x)));
    }
    if (tensor.device() != x.device()) {
        fail(op, ": ", argument, " is on another device than the first argument");
    }
}

// --- bias_act ------------------------------------------------------------------------------------

BiasAct bias_act_settings(const char* op, std::int64_t act, double alpha, double gain,
                          std::optional<double> clamp) {
    if (act < 0 || act >= kStyleActivations) {
        fail(op, ": act is ", act, "; expected a code from 0 to ", kStyleActivations - 1);
    }
    return {static_cast<StyleActivation>(act), alpha, gain,
            clamp && *clamp >= 0 ? *clamp : std::numeric_limits<double>::infinity()};
}

// The bias lies along `dim` of x, which lies as `channels_last` says.
cpu::BiasShape bias_shape(const char* op, const Tensor& x, const OptionalTensor& b,
                          std::int64_t dim, bool channels_last) {
    cpu::BiasShape shape{float_type(op, "x", x), x.numel(), 1, std::max<std::int64_t>(x.numel(), 1)};
    const std::int64_t along = dim < 0 ? dim + x.dim() : dim;
    if (along < 0 || along >= std::max<std::int64_t>(x.dim(), 1) || (b && x.dim() == 0)) {
        fail(op, ": dim is ", dim, ", x has ", x.dim(), " dimensions");
    }
    if (channels_last && (x.dim() != 4 || along != 1)) {
        fail(op, ": channels-last goes with dim = 1 of four dimensions");
    }
    if (x.dim() > 0) {
        shape.channels = x.size(along);
        shape.inner = 1;
        for (std::int64_t d = along + 1; d < x.dim() && !channels_last; ++d) {
            shape.inner *= x.size(d);
        }
    }
    if (b) {
        require_alike(op, "b", *b, x);
        if (b->dim() != 1 || b->size(0) != shape.channels) {
            fail(op, ": b has shape ", shape_text(*b), "; expected (", shape.channels, ")");
        }
    }
    return shape;
}

const void* data_of(const OptionalTensor& tensor) {
    return tensor ? tensor->const_data_ptr() : nullptr;
}

OptionalTensor without_gaps(const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(packed(*tensor)) : std::nullopt;
}

struct OnCpu {
    template <typename Call>
    static void run(const Tensor&, const Call& call) {
        call(OnCpu());
    }
    void bias_act(const cpu::BiasShape& shape, const BiasAct& settings, const void* bias,
                  const void* x, void* y, std::uint8_t* bits) const {
        cpu::bias_act(shape, settings, bias, x, y, bits);
    }
    void bias_act_gradient(const cpu::BiasShape& shape, const BiasAct& settings, const void* bias,
                           Kept keeps, const void* kept, const void* grad, void* grad_x,
                           void* grad_bias) const {
        cpu::bias_act_gradient(shape, settings, bias, keeps, kept, grad, grad_x, grad_bias);
    }
};

template <typename Device>
Tensor bias_act_into(const char* op, const Tensor& x, const OptionalTensor& b, std::int64_t dim,
                     const BiasAct& settings, std::uint8_t* bits) {
    const bool channels_last = lies_channels_last(x) && (dim == 1 || dim == -3);
    const cpu::BiasShape shape = bias_shape(op, x, b, dim, channels_last);
    const Tensor values = laid_out(x, channels_last);
    const OptionalTensor bias = without_gaps(b);
    Tensor y = empty_as(x, channels_last);
    if (shape.numel > 0) {
        Device::run(x, [&](const Device& device) {
            device.bias_act(shape, settings, data_of(bias), values.const_data_ptr(),
                            y.mutable_data_ptr(), bits);
        });
    }
    return y;
}

template <typename Device>
Tensor bias_act(const Tensor& x, const OptionalTensor& b, std::int64_t dim, std::int64_t act,
                double alpha, double gain, std::optional<double> clamp) {
    constexpr const char* op = "fastgan::bias_act";
    return bias_act_into<Device>(op, x, b, dim, bias_act_settings(op, act, alpha, gain, clamp),
                                 nullptr);
}

template <typename Device>
std::tuple<Tensor, Tensor> bias_act_bits(const Tensor& x, const OptionalTensor& b, std::int64_t dim,
                                         std::int64_t act, double alpha, double gain) {
    constexpr const char* op = "fastgan::bias_act_bits";
    const BiasAct settings = bias_act_settings(op, act, alpha, gain, std::nullopt);
    if (settings.act != StyleActivation::relu && settings.act != StyleActivation::lrelu) {
        fail(op, ": act is ", act, "; expected 1 or 2: one bit tells nothing of others");
    }
    Tensor bits = empty_vector((x.numel() + 7) / 8, x, aoti_torch_dtype_uint8());
    Tensor y = bias_act_into<Device>(op, x, b, dim, settings,
                                     static_cast<std::uint8_t*>(bits.mutable_data_ptr()));
    return {y, bits};
}

template <typename Device>
std::tuple<Tensor, Tensor> bias_act_gradient(const Tensor& grad_output, const OptionalTensor& kept,
                                             const OptionalTensor& b, std::int64_t dim,
                                             std::int64_t act, double alpha, double gain,
                                             std::optional<double> clamp, std::int64_t keeps,
                                             bool channels_last, bool with_bias) {
    constexpr const char* op = "fastgan::bias_act_gradient";
    const BiasAct settings = bias_act_settings(op, act, alpha, gain, clamp);
    const cpu::BiasShape shape = bias_shape(op, grad_output, b, dim, channels_last);
    const auto keep = static_cast<Kept>(keeps);
    const bool is_swish = settings.act == StyleActivation::swish;
    if (keeps < 0 || keeps > 3 || (keep == Kept::nothing) != !kept ||
        (!is_piecewise_linear(settings.act) && keep != (is_swish ? Kept::input : Kept::output)) ||
        (std::isfinite(settings.clamp) && keep != Kept::input && keep != Kept::output)) {
        fail(op, ": from what keeps = ", keeps, " names, this gradient can't be computed");
    }
    Tensor values = kept ? *kept : grad_output;  // which is not read where nothing is kept
    if (keep == Kept::bits) {
        if (dtype_code(*kept) != aoti_torch_dtype_uint8() || kept->dim() != 1 ||
            kept->size(0) != (shape.numel + 7) / 8 || kept->device() != grad_output.device()) {
            fail(op, ": kept has shape ", shape_text(*kept), " and dtype ",
                 dtype_name(dtype_code(*kept)), "; expected ", (shape.numel + 7) / 8,
                 " of torch.uint8");
        }
        values = packed(*kept);
    } else if (kept) {
        require_alike(op, "kept", *kept, grad_output);
        const auto sizes = kept->sizes(), expected = grad_output.sizes();
        if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) {
            fail(op, ": kept has shape ", shape_text(*kept), "; expected ",
                 shape_text(grad_output));
        }
        values = laid_out(*kept, channels_last);
    }
    const Tensor grad = laid_out(grad_output, channels_last);
    const OptionalTensor bias = without_gaps(b);
    Tensor grad_x = empty_as(grad_output, channels_last);
    Tensor grad_bias =
        empty_vector(with_bias ? shape.channels : 0, grad_output, dtype_code(grad_output));
    if (shape.numel > 0) {
        Device::run(grad_output, [&](const Device& device) {
            device.bias_act_gradient(shape, settings, data_of(bias), keep,
                                     values.const_data_ptr(), grad.const_data_ptr(), grad_x.mutable_data_ptr(),
                                     with_bias ? grad_bias.mutable_data_ptr() : nullptr);
        });
    } else {
        torch::stable::zero_(grad_bias);
    }
    return {grad_x, grad_bias};
}

}  // namespace

}  // namespace fastgan

STABLE_TORCH_LIBRARY_FRAGMENT(fastgan, library) {
    library.def(
        "bias_act(Tensor x, Tensor? b, int dim, int act, float alpha, float gain, float? clamp) -> "
        "Tensor");
    library.def(
        "bias_act_bits(Tensor x, Tensor? b, int dim, int act, float alpha, float gain) -> (Tensor, "
        "Tensor)");
    library.def(
        "bias_act_gradient(Tensor grad_output, Tensor? kept, Tensor? b, int dim, int act, "
        "float alpha, float gain, float? clamp, int keeps, bool channels_last, bool with_bias) -> "
        "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, library) {
    library.impl("bias_act", TORCH_BOX(&fastgan::bias_act<fastgan::OnCpu>));
    library.impl("bias_act_bits", TORCH_BOX(&fastgan::bias_act_bits<fastgan::OnCpu>));
    library.impl("bias_act_gradient", TORCH_BOX(&fastgan::bias_act_gradient<fastgan::OnCpu>));
}
