// The ops of StyleGAN's networks in torch.ops.fastgan: schemas, argument checks, registration. The
// formulas: math/bias_act.h and math/upfirdn2d.h. Like ops.cpp, only uses LibTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "bias_act.h"
#include "op_arguments.h"
#include "upfirdn2d.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

bool lies_channels_last(const Tensor& tensor) {
    return tensor.dim() == 4 && is_channels_last(tensor);
}

// Dense, in `like`'s dtype.
Tensor empty_as(const Tensor& like, bool channels_last) {
    if (channels_last) {
        return empty_map({like.size(0), like.size(1), like.size(2), like.size(3)}, like, true);
    }
    return empty_contiguous(like);
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

// The bias is along `dim` of x, which has the layout `channels_last`.
BiasShape bias_shape(const char* op, const Tensor& x, const OptionalTensor& b, std::int64_t dim,
                     bool channels_last) {
    BiasShape shape{float_type(op, "x", x), x.numel(), 1, std::max<std::int64_t>(x.numel(), 1)};
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
        require_vector(op, "b", *b, shape.channels);
    }
    return shape;
}

OptionalTensor without_gaps(const OptionalTensor& tensor) {
    return tensor ? OptionalTensor(packed(*tensor)) : std::nullopt;
}

// Over all dimensions but one; torch's sum, which uses no atomics.
Tensor sum_over_others(const Tensor& tensor, std::int64_t dim) {
    std::vector<std::int64_t> others;
    const std::int64_t kept = dim < 0 ? dim + tensor.dim() : dim;
    for (std::int64_t d = 0; d < tensor.dim(); ++d) {
        if (d != kept) {
            others.push_back(d);
        }
    }
    if (others.empty()) {
        Tensor copy = empty_contiguous(tensor);
        copy_into(copy, tensor);
        return copy;
    }
    return torch::stable::sum(tensor, torch::headeronly::IntHeaderOnlyArrayRef(others));
}

template <typename Device>
Tensor bias_act_into(const char* op, const Tensor& x, const OptionalTensor& b, std::int64_t dim,
                     const BiasAct& settings, std::uint8_t* bits) {
    const bool channels_last = lies_channels_last(x) && (dim == 1 || dim == -3);
    const BiasShape shape = bias_shape(op, x, b, dim, channels_last);
    const Tensor values = laid_out(x, channels_last);
    const OptionalTensor bias = without_gaps(b);
    Tensor y = empty_as(x, channels_last);
    if (shape.numel > 0) {
        on_device_of<Device>(x, [&](Device device) {
            kernels::bias_act(device, shape, settings, data_of(bias), values.const_data_ptr(),
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
    Tensor bits = empty_vector((x.numel() + 7) / 8, aoti_torch_dtype_uint8(), x);
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
    const BiasShape shape = bias_shape(op, grad_output, b, dim, channels_last);
    const auto keep = static_cast<Kept>(keeps);
    const bool is_swish = settings.act == StyleActivation::swish;
    if (keeps < 0 || keeps > 3 || (keep == Kept::nothing) != !kept ||
        (!is_piecewise_linear(settings.act) && keep != (is_swish ? Kept::input : Kept::output)) ||
        (std::isfinite(settings.clamp) && keep != Kept::input && keep != Kept::output)) {
        fail(op, ": from what keeps = ", keeps, " names, this gradient can't be computed");
    }
    Tensor values = kept ? *kept : grad_output;  // not read if nothing is kept
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
        if (!same_sizes(*kept, grad_output)) {
            fail(op, ": kept has shape ", shape_text(*kept), "; expected ",
                 shape_text(grad_output));
        }
        values = laid_out(*kept, channels_last);
    }
    const Tensor grad = laid_out(grad_output, channels_last);
    const OptionalTensor bias = without_gaps(b);
    Tensor grad_x = empty_as(grad_output, channels_last);
    const bool adds_up = with_bias && std::is_same_v<Device, Cpu>;
    Tensor grad_bias =
        empty_vector(adds_up ? shape.channels : 0, dtype_code(grad_output), grad_output);
    if (shape.numel > 0) {
        on_device_of<Device>(grad_output, [&](Device device) {
            kernels::bias_act_gradient(device, shape, settings, data_of(bias), keep,
                                       values.const_data_ptr(), grad.const_data_ptr(),
                                       grad_x.mutable_data_ptr(),
                                       adds_up ? grad_bias.mutable_data_ptr() : nullptr);
        });
    } else {
        torch::stable::zero_(grad_bias);
    }
    if (with_bias && !adds_up) {
        return {grad_x, sum_over_others(grad_x, dim)};
    }
    return {grad_x, grad_bias};
}

// --- upfirdn2d and filtered_lrelu ----------------------------------------------------------------

using Numbers = std::vector<std::int64_t>;

// Larger factors, paddings and sizes are mistakes, and might overflow.
constexpr std::int64_t kLargest = std::int64_t{1} << 31;

void require_numbers(const char* op, const char* argument, const Numbers& numbers,
                     std::size_t count, std::int64_t least) {
    bool fits = numbers.size() == count;
    for (const std::int64_t number : numbers) {
        fits = fits && number >= least && number < kLargest;
    }
    if (!fits) {
        fail(op, ": ", argument, " should be ", count, " numbers from ", least, " on");
    }
}

// A dense filter; owns its memory.
struct FilterArgument {
    OptionalTensor values;
    Filter filter;
};

// `paddings` begins with x's and y's before their first values.
FilterArgument filter_argument(const char* op, const char* argument, const OptionalTensor& f,
                               const Tensor& x, std::int64_t rows, std::int64_t columns,
                               const Numbers& up, const Numbers& down, const Numbers& paddings,
                               bool flip, double gain) {
    FilterArgument result{without_gaps(f), {}};
    std::int64_t taps_x = 1, taps_y = 1;
    if (f) {
        const std::int32_t dtype = dtype_code(*f);
        if (f->dim() < 1 || f->dim() > 2 || f->numel() == 0) {
            fail(op, ": ", argument, " has shape ", shape_text(*f),
                 "; expected (taps,) or (rows, columns)");
        }
        if (dtype != aoti_torch_dtype_float32() && dtype != aoti_torch_dtype_float64()) {
            fail(op, ": ", argument, " has dtype ", dtype_name(dtype),
                 "; expected float32 or float64");
        }
        if (f->device() != x.device()) {
            fail(op, ": ", argument, " is on another device than x");
        }
        taps_x = f->size(f->dim() - 1);
        taps_y = f->size(0);
    }
    result.filter = {{columns, 0, up[0], down[0], paddings[0], taps_x},
                     {rows, 0, up[1], down[1], paddings[1], taps_y},
                     !f || f->dim() == 1,
                     result.values ? result.values->const_data_ptr() : nullptr,
                     f && dtype_code(*f) == aoti_torch_dtype_float64(),
                     flip,
                     gain};
    return result;
}

std::int64_t output_size(const char* op, const FirAxis& axis, std::int64_t padding_behind) {
    const std::int64_t padded = axis.in * axis.up + axis.pad + padding_behind;
    if (padded < axis.taps) {
        fail(op, ": a filter of ", axis.taps, " taps is longer than ", axis.in, " * ", axis.up,
             " + ", axis.pad, " + ", padding_behind, " values");
    }
    return (padded - axis.taps) / axis.down + 1;
}

FirMaps maps_of(const char* op, const Tensor& x, const Tensor& y, bool channels_last) {
    return {float_type(op, "x", x), x.size(0),          x.size(1),
            channels_last,          x.const_data_ptr(), const_cast<void*>(y.const_data_ptr())};
}

template <typename Device>
Tensor upfirdn2d(const Tensor& x, const OptionalTensor& f, const Numbers& up, const Numbers& down,
                 const Numbers& padding, bool flip_filter, double gain) {
    constexpr const char* op = "fastgan::upfirdn2d";
    require_four_dimensions(op, "x", x);
    float_type(op, "x", x);
    require_numbers(op, "up", up, 2, 1);
    require_numbers(op, "down", down, 2, 1);
    require_numbers(op, "padding", padding, 4, -kLargest);
    FilterArgument fir = filter_argument(op, "f", f, x, x.size(2), x.size(3), up, down,
                                         {padding[0], padding[2]}, flip_filter, gain);
    Filter& filter = fir.filter;
    filter.x.out = output_size(op, filter.x, padding[1]);
    filter.y.out = output_size(op, filter.y, padding[3]);
    const bool channels_last = is_channels_last(x);
    const Tensor values = laid_out(x, channels_last);
    Tensor y = empty_map({x.size(0), x.size(1), filter.y.out, filter.x.out}, x, channels_last);
    if (y.numel() > 0) {
        on_device_of<Device>(x, [&](Device device) {
            kernels::upfirdn2d(device, maps_of(op, values, y, channels_last), filter);
        });
    }
    return y;
}

// With the activations' signs where kSigns, for the gradient.
template <typename Device, bool kSigns>
std::conditional_t<kSigns, std::tuple<Tensor, Tensor>, Tensor> filtered_lrelu(
    const Tensor& x, const OptionalTensor& fu, const OptionalTensor& fd, const OptionalTensor& b,
    std::int64_t up, std::int64_t down, const Numbers& padding, double gain, double slope,
    std::optional<double> clamp, bool flip_filter) {
    constexpr const char* op = kSigns ? "fastgan::filtered_lrelu_signs" : "fastgan::filtered_lrelu";
    require_four_dimensions(op, "x", x);
    float_type(op, "x", x);
    require_numbers(op, "up and down", {up, down}, 2, 1);
    require_numbers(op, "padding", padding, 4, -kLargest);
    if (b) {
        require_alike(op, "b", *b, x);
        require_vector(op, "b", *b, x.size(1));
    }
    const double up_gain = static_cast<double>(up) * static_cast<double>(up);
    FilterArgument first = filter_argument(op, "fu", fu, x, x.size(2), x.size(3), {up, up}, {1, 1},
                                           {padding[0], padding[2]}, flip_filter, up_gain);
    first.filter.x.out = output_size(op, first.filter.x, padding[1]);
    first.filter.y.out = output_size(op, first.filter.y, padding[3]);
    FilterArgument second = filter_argument(op, "fd", fd, x, first.filter.y.out, first.filter.x.out,
                                            {1, 1}, {down, down}, {0, 0}, flip_filter, 1.0);
    second.filter.x.out = output_size(op, second.filter.x, 0);
    second.filter.y.out = output_size(op, second.filter.y, 0);
    const double bound = clamp && *clamp >= 0 ? *clamp : std::numeric_limits<double>::infinity();
    const bool channels_last = is_channels_last(x);
    const Tensor values = laid_out(x, channels_last);
    const OptionalTensor bias = without_gaps(b);
    const std::int64_t bytes = (std::isfinite(bound) ? 2 : 1) * ((first.filter.x.out + 7) / 8);
    Tensor y = empty_map({x.size(0), x.size(1), second.filter.y.out, second.filter.x.out}, x,
                         channels_last);
    OptionalTensor signs;
    if constexpr (kSigns) {
        signs.emplace(empty_map({x.size(0), x.size(1), first.filter.y.out, bytes}, x, channels_last,
                                aoti_torch_dtype_uint8()));
    }
    if (y.numel() > 0) {
        on_device_of<Device>(x, [&](Device device) {
            const FirBetween between{
                data_of(bias),
                {gain, slope, bound},
                kSigns ? Signs::written : Signs::none,
                kSigns ? static_cast<std::uint8_t*>(signs->mutable_data_ptr()) : nullptr};
            kernels::filtered_lrelu(device, maps_of(op, values, y, channels_last), first.filter,
                                    between, second.filter);
        });
    }
    if constexpr (kSigns) {
        return {y, *signs};
    } else {
        return y;
    }
}

// The same with given signs, linear in x.
template <typename Device>
Tensor filtered_lrelu_masked(const Tensor& x, const Tensor& signs, const OptionalTensor& fu,
                             const OptionalTensor& fd, std::int64_t up, std::int64_t down,
                             const Numbers& padding, const Numbers& sizes, double gain,
                             double slope, bool clamped, bool flip_filter) {
    constexpr const char* op = "fastgan::filtered_lrelu_masked";
    require_four_dimensions(op, "x", x);
    require_four_dimensions(op, "signs", signs);
    require_numbers(op, "up and down", {up, down}, 2, 1);
    require_numbers(op, "padding", padding, 4, -kLargest);
    require_numbers(op, "sizes", sizes, 4, 0);
    FilterArgument first = filter_argument(op, "fu", fu, x, x.size(2), x.size(3), {up, up}, {1, 1},
                                           {padding[0], padding[1]}, flip_filter, 1.0);
    first.filter.y.out = sizes[0];
    first.filter.x.out = sizes[1];
    FilterArgument second =
        filter_argument(op, "fd", fd, x, sizes[0], sizes[1], {1, 1}, {down, down},
                        {padding[2], padding[3]}, flip_filter, 1.0);
    second.filter.y.out = sizes[2];
    second.filter.x.out = sizes[3];
    const std::int64_t bytes = (clamped ? 2 : 1) * ((sizes[1] + 7) / 8);
    if (dtype_code(signs) != aoti_torch_dtype_uint8() || signs.device() != x.device() ||
        signs.size(0) != x.size(0) || signs.size(1) != x.size(1) || signs.size(2) != sizes[0] ||
        signs.size(3) != bytes) {
        fail(op, ": signs has shape ", shape_text(signs), " and dtype ",
             dtype_name(dtype_code(signs)), "; expected (", x.size(0), ", ", x.size(1), ", ",
             sizes[0], ", ", bytes, ") of torch.uint8");
    }
    const bool channels_last = is_channels_last(x);
    const Tensor values = laid_out(x, channels_last);
    const Tensor bits = laid_out(signs, channels_last);
    Tensor y = empty_map({x.size(0), x.size(1), sizes[2], sizes[3]}, x, channels_last);
    if (y.numel() > 0) {
        on_device_of<Device>(x, [&](Device device) {
            const double bound = clamped ? 0.0 : std::numeric_limits<double>::infinity();
            const FirBetween between{
                nullptr,
                {gain, slope, bound},
                Signs::read,
                const_cast<std::uint8_t*>(static_cast<const std::uint8_t*>(bits.const_data_ptr()))};
            kernels::filtered_lrelu(device, maps_of(op, values, y, channels_last), first.filter,
                                    between, second.filter);
        });
    }
    return y;
}

FASTGAN_IMPLEMENT(Device, library) {
    library.impl("bias_act", TORCH_BOX(&bias_act<Device>));
    library.impl("bias_act_bits", TORCH_BOX(&bias_act_bits<Device>));
    library.impl("bias_act_gradient", TORCH_BOX(&bias_act_gradient<Device>));
    library.impl("upfirdn2d", TORCH_BOX(&upfirdn2d<Device>));
    library.impl("filtered_lrelu", TORCH_BOX((&filtered_lrelu<Device, false>)));
    library.impl("filtered_lrelu_signs", TORCH_BOX((&filtered_lrelu<Device, true>)));
    library.impl("filtered_lrelu_masked", TORCH_BOX(&filtered_lrelu_masked<Device>));
}

}  // namespace

}  // namespace fastgan
