// The batch-norm ops of torch.ops.fastgan: schemas, argument checks, registration. The formulas:
// math/batch_norm.h. Like ops.cpp, only uses LibTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <tuple>
#include <vector>

#include "batch_norm.h"
#include "cpu/sample_norm.h"
#include "op_arguments.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// --- Tensors -------------------------------------------------------------------------------------

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// The layout of the dense `tensor`.
Tensor empty_as(const Tensor& tensor) {
    return empty_strided(tensor.sizes(), strides_of(tensor), dtype_code(tensor), tensor);
}

Tensor empty_matrix(std::int64_t rows, std::int64_t columns, std::int32_t dtype,
                    const Tensor& on_device_of) {
    const std::int64_t sizes[] = {rows, columns};
    const std::int64_t strides[] = {columns, 1};
    return empty_strided(Sizes(sizes, 2), Sizes(strides, 2), dtype, on_device_of);
}

bool same_strides(const Tensor& a, const Tensor& b) {
    const auto sizes = a.sizes();
    const auto left = strides_of(a);
    const auto right = strides_of(b);
    for (std::size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] > 1 && left[d] != right[d]) {
            return false;
        }
    }
    return true;
}

bool is_dense_channels_last(const Tensor& tensor) {
    const auto sizes = tensor.sizes(), strides = strides_of(tensor);
    std::int64_t expected = 1;
    for (std::size_t i = 0; i < sizes.size(); ++i) {
        // The channels, then from the last dimension down to the first.
        const std::size_t d = i == 0 ? 1 : (i + 1 == sizes.size() ? 0 : sizes.size() - i);
        if (sizes[d] > 1 && strides[d] != expected) {
            return false;
        }
        expected *= sizes[d];
    }
    return true;
}

// The tensor, or a dense copy, with its layout.
struct Image {
    Tensor tensor;
    ChannelLayout layout;
};

std::optional<ChannelLayout> channel_layout(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    const std::int64_t channels = sizes[1];
    const std::int64_t numel = tensor.numel();
    if (numel == 0) {
        return ChannelLayout{0, channels, 1};
    }
    const std::int64_t values = numel / channels;
    if (tensor.is_contiguous()) {
        // A single channel's images follow each other.
        return channels == 1 ? ChannelLayout{1, 1, values}
                             : ChannelLayout{sizes[0], channels, values / sizes[0]};
    }
    if (is_dense_channels_last(tensor)) {
        return ChannelLayout{values, channels, 1};
    }
    return std::nullopt;
}

// In the memory format that the strides suggest.
Tensor without_gaps(const Tensor& tensor) {
    using torch::headeronly::MemoryFormat;
    const std::int64_t dimensions = tensor.dim();
    const bool channels_last = (dimensions == 4 || dimensions == 5) && is_channels_last(tensor);
    return packed(tensor, !channels_last    ? MemoryFormat::Contiguous
                          : dimensions == 4 ? MemoryFormat::ChannelsLast
                                            : MemoryFormat::ChannelsLast3d);
}

Image image_argument(const char* op, const char* argument, const Tensor& tensor) {
    if (tensor.dim() < 2) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor),
             "; expected (N, C) or (N, C, ...)");
    }
    if (const auto layout = channel_layout(tensor)) {
        return Image{tensor, *layout};
    }
    Tensor copy = without_gaps(tensor);
    const auto layout = channel_layout(copy);
    return Image{std::move(copy), *layout};
}

// `tensor`, or a copy with `image`'s layout.
Tensor with_layout_of(const char* op, const char* argument, const Tensor& tensor, const char* other,
                      const Tensor& image) {
    if (dtype_code(tensor) != dtype_code(image)) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)), "; expected ",
             dtype_name(dtype_code(image)), ", as ", other);
    }
    if (!same_sizes(tensor, image)) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor), "; expected ",
             shape_text(image), ", as ", other);
    }
    if (tensor.device() != image.device()) {
        fail(op, ": ", argument, " is on another device than ", other);
    }
    if (same_strides(tensor, image)) {
        return tensor;
    }
    Tensor copy = empty_as(image);
    copy_into(copy, tensor);
    return copy;
}

Tensor without_stride(const Tensor& tensor) {
    return tensor.is_contiguous() ? tensor : packed(tensor);
}

void check_shape(const char* op, const char* argument, const Tensor& tensor,
                 std::initializer_list<std::int64_t> expected) {
    const auto sizes = tensor.sizes();
    if (sizes.size() == expected.size() &&
        std::equal(sizes.begin(), sizes.end(), expected.begin())) {
        return;
    }
    std::ostringstream shape;
    const char* separator = "(";
    for (const std::int64_t size : expected) {
        shape << separator << size;
        separator = ", ";
    }
    fail(op, ": ", argument, " has shape ", shape_text(tensor), "; expected ", shape.str(), ")");
}

void check_device(const char* op, const char* argument, const Tensor& tensor, const Tensor& other) {
    if (tensor.device() != other.device()) {
        fail(op, ": ", argument, " is not on the same device as the first argument");
    }
}

// A dense array of the arithmetic's type.
Tensor array_argument(const char* op, const char* argument, const Tensor& tensor,
                      std::initializer_list<std::int64_t> shape, std::int32_t dtype,
                      const Tensor& first) {
    if (dtype_code(tensor) != dtype) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)), "; expected ",
             dtype_name(dtype));
    }
    check_shape(op, argument, tensor, shape);
    check_device(op, argument, tensor, first);
    return without_stride(tensor);
}

// Refuses a tensor unless it has numbers of the arithmetic's type for tiles and channels.
void require_tiles(const char* op, const char* argument, const Tensor& tensor) {
    const std::int32_t dtype = dtype_code(tensor);
    if (dtype != aoti_torch_dtype_float32() && dtype != aoti_torch_dtype_float64()) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype),
             "; expected float32 or float64");
    }
    if (tensor.dim() != 2) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor), "; expected (tiles, C)");
    }
}

// A (C,) argument of any float type; written back if it isn't dense.
class VectorArgument {
  public:
    VectorArgument(const char* op, const char* argument, const OptionalTensor& tensor,
                   std::int64_t channels, const Tensor& first, bool written)
        : original_(tensor) {
        if (!tensor) {
            return;
        }
        type_ = float_type(op, argument, *tensor);
        check_shape(op, argument, *tensor, {channels});
        check_device(op, argument, *tensor, first);
        if (written) {
            refuse_expanded(op, argument, *tensor);
        }
        dense_ = without_stride(*tensor);
        written_ = written;
    }

    ChannelVector vector() const {
        if (!dense_) {
            return {};
        }
        void* const data =
            written_ ? dense_->mutable_data_ptr() : const_cast<void*>(dense_->const_data_ptr());
        return ChannelVector{data, type_};
    }

    void write_back() {
        if (written_ && dense_->get() != original_->get() && !original_->is_contiguous()) {
            copy_into(*original_, *dense_);
        }
    }

  private:
    OptionalTensor original_;
    OptionalTensor dense_;
    FloatType type_ = FloatType::float32;
    bool written_ = false;
};

// The (C,) arguments of a normalisation with its activation; owns their memory. `scale` may include
// the weight.
class NormActTensors {
  public:
    NormActTensors(const char* op, const Image& input, const Tensor& mean, const char* scale_name,
                   const Tensor& scale, const OptionalTensor& weight, const OptionalTensor& bias,
                   std::int64_t activation, double negative_slope)
        : type_(float_type(op, "input", input.tensor)),
          mean_(array_argument(op, "mean", mean, {input.layout.channels}, arithmetic_dtype(type_),
                               input.tensor)),
          scale_(array_argument(op, scale_name, scale, {input.layout.channels},
                                arithmetic_dtype(type_), input.tensor)),
          weight_(op, "weight", weight, input.layout.channels, input.tensor, false),
          bias_(op, "bias", bias, input.layout.channels, input.tensor, false),
          norm_{type_,
                input.layout,
                data_of(mean_),
                data_of(scale_),
                weight_.vector(),
                bias_.vector(),
                activation_argument(op, activation),
                negative_slope} {}

    const NormAct& norm() const { return norm_; }

  private:
    FloatType type_;
    Tensor mean_;
    Tensor scale_;
    VectorArgument weight_;
    VectorArgument bias_;
    NormAct norm_;
};

// --- The ops -------------------------------------------------------------------------------------

BatchCounters counters_argument(const char* op, const std::vector<Tensor>& counters,
                                const Tensor& like) {
    BatchCounters batches;
    if (counters.size() > BatchCounters::kMax) {
        fail(op, ": counters has ", counters.size(), " tensors; expected at most ",
             BatchCounters::kMax);
    }
    for (const Tensor& counter : counters) {
        if (dtype_code(counter) != aoti_torch_dtype_int64() || counter.numel() != 1 ||
            counter.device() != like.device()) {
            fail(op, ": counters has a tensor of shape ", shape_text(counter), " and dtype ",
                 dtype_name(dtype_code(counter)), "; expected one int64 on the same device");
        }
        batches.counters[batches.count++] = static_cast<std::int64_t*>(counter.mutable_data_ptr());
    }
    return batches;
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor> batch_norm_finalize(
    const Tensor& count, const Tensor& mean, const Tensor& m2, const OptionalTensor& weight,
    const OptionalTensor& running_mean, const OptionalTensor& running_var, double momentum,
    double eps, const OptionalTensor& bias, const OptionalTensor& bias_copy,
    const std::vector<Tensor>& counters) {
    constexpr const char* op = "fastgan::batch_norm_finalize";
    require_tiles(op, "mean", mean);
    const std::int32_t dtype = dtype_code(mean);
    const std::int64_t tiles = mean.sizes()[0], channels = mean.sizes()[1];
    const Tensor counts = array_argument(op, "count", count, {tiles}, dtype, mean);
    const Tensor means = without_stride(mean);
    const Tensor squares = array_argument(op, "m2", m2, {tiles, channels}, dtype, mean);
    const VectorArgument weights(op, "weight", weight, channels, mean, false);
    VectorArgument running_means(op, "running_mean", running_mean, channels, mean, true);
    VectorArgument running_vars(op, "running_var", running_var, channels, mean, true);
    const VectorArgument biases(op, "bias", bias, channels, mean, false);
    VectorArgument bias_copies(op, "bias_copy", bias_copy, channels, mean, true);
    if (bias_copy && !bias) {
        fail(op, ": bias_copy goes with a bias");
    }
    const BatchCounters batches = counters_argument(op, counters, mean);
    Tensor result_mean = empty_vector(channels, dtype, mean);
    Tensor invstd = empty_vector(channels, dtype, mean);
    Tensor scale = empty_vector(channels, dtype, mean);
    if (channels > 0) {
        on_device_of<Device>(mean, [&](Device device) {
            kernels::batch_norm_finalize(
                device,
                {dtype == aoti_torch_dtype_float64(), tiles, channels, data_of(counts),
                 data_of(means), data_of(squares)},
                {weights.vector(), running_means.vector(), running_vars.vector(), momentum, eps,
                 biases.vector(), bias_copies.vector(), batches},
                {result_mean.mutable_data_ptr(), invstd.mutable_data_ptr(),
                 scale.mutable_data_ptr()});
        });
        running_means.write_back();
        running_vars.write_back();
        bias_copies.write_back();
    }
    return {result_mean, invstd, scale};
}

template <typename Device>
Tensor normalised(const char* op, const Tensor& input, const Tensor& mean, const char* scale_name,
                  const Tensor& scale, const OptionalTensor& weight, const OptionalTensor& bias,
                  std::int64_t activation, double negative_slope) {
    const Image image = image_argument(op, "input", input);
    const NormActTensors tensors(op, image, mean, scale_name, scale, weight, bias, activation,
                                 negative_slope);
    Tensor result = empty_as(image.tensor);
    if (image.layout.numel() > 0) {
        on_device_of<Device>(input, [&](Device device) {
            kernels::norm_act(device, tensors.norm(), data_of(image.tensor),
                              result.mutable_data_ptr());
        });
    }
    return result;
}

template <typename Device>
Tensor norm_act(const Tensor& input, const Tensor& mean, const Tensor& scale,
                const OptionalTensor& bias, std::int64_t activation, double negative_slope) {
    return normalised<Device>("fastgan::norm_act", input, mean, "scale", scale, std::nullopt, bias,
                              activation, negative_slope);
}

template <typename Device>
std::tuple<Tensor, Tensor> norm_act_gradient_sums(const Tensor& grad_output, const Tensor& input,
                                                  const Tensor& mean, const Tensor& invstd,
                                                  const Tensor& scale, const OptionalTensor& bias,
                                                  std::int64_t activation, double negative_slope) {
    constexpr const char* op = "fastgan::norm_act_gradient_sums";
    const Image image = image_argument(op, "input", input);
    const NormActTensors tensors(op, image, mean, "scale", scale, std::nullopt, bias, activation,
                                 negative_slope);
    const Tensor grad = with_layout_of(op, "grad_output", grad_output, "input", image.tensor);
    const std::int64_t channels = image.layout.channels;
    const std::int32_t dtype = arithmetic_dtype(tensors.norm().type);
    const Tensor invstds = array_argument(op, "invstd", invstd, {channels}, dtype, input);
    const std::int64_t tiles = tile_count(image.layout.values_per_channel(), channels);
    Tensor grad_sum = empty_matrix(tiles, channels, dtype, input);
    Tensor grad_xhat_sum = empty_matrix(tiles, channels, dtype, input);
    if (image.layout.numel() > 0) {
        on_device_of<Device>(input, [&](Device device) {
            kernels::norm_act_gradient_sums(device, tensors.norm(), data_of(grad),
                                            data_of(image.tensor), data_of(invstds),
                                            grad_sum.mutable_data_ptr(),
                                            grad_xhat_sum.mutable_data_ptr());
        });
    }
    return {grad_sum, grad_xhat_sum};
}

template <typename Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> norm_act_gradient_finalize(const Tensor& grad,
                                                                      const Tensor& grad_xhat,
                                                                      const Tensor& scale,
                                                                      const Tensor& invstd,
                                                                      std::int64_t count) {
    constexpr const char* op = "fastgan::norm_act_gradient_finalize";
    require_tiles(op, "grad", grad);
    const std::int32_t dtype = dtype_code(grad);
    if (count < 0) {
        fail(op, ": count is ", count, "; expected at least 0");
    }
    const std::int64_t tiles = grad.sizes()[0], channels = grad.sizes()[1];
    const Tensor grads = without_stride(grad);
    const Tensor grads_xhat =
        array_argument(op, "grad_xhat", grad_xhat, {tiles, channels}, dtype, grad);
    const Tensor scales = array_argument(op, "scale", scale, {channels}, dtype, grad);
    const Tensor invstds = array_argument(op, "invstd", invstd, {channels}, dtype, grad);
    std::array<Tensor, 4> results;
    for (Tensor& result : results) {
        result = empty_vector(channels, dtype, grad);
    }
    if (channels > 0) {
        on_device_of<Device>(grad, [&](Device device) {
            kernels::norm_act_gradient_finalize(
                device,
                {dtype == aoti_torch_dtype_float64(),
                 tiles,
                 channels,
                 data_of(grads),
                 data_of(grads_xhat),
                 data_of(scales),
                 {},
                 data_of(invstds),
                 count},
                {results[0].mutable_data_ptr(), results[1].mutable_data_ptr(),
                 results[2].mutable_data_ptr(), results[3].mutable_data_ptr()});
        });
    }
    return {results[0], results[1], results[2], results[3]};
}

// norm_act_gradient and norm_act_gradient_, with the result's memory.
template <typename Device>
void norm_act_gradient_into(const char* op, const Tensor& grad, const Tensor& input,
                            const ChannelLayout& layout, const Tensor& mean, const Tensor& scale,
                            const OptionalTensor& bias, const Tensor& slope, const Tensor& offset,
                            std::int64_t activation, double negative_slope, Tensor& result) {
    const NormActTensors tensors(op, Image{input, layout}, mean, "scale", scale, std::nullopt, bias,
                                 activation, negative_slope);
    const std::int32_t dtype = arithmetic_dtype(tensors.norm().type);
    const Tensor slopes = array_argument(op, "slope", slope, {layout.channels}, dtype, input);
    const Tensor offsets = array_argument(op, "offset", offset, {layout.channels}, dtype, input);
    if (layout.numel() > 0) {
        on_device_of<Device>(input, [&](Device device) {
            kernels::norm_act_gradient(device, tensors.norm(), data_of(grad), data_of(input),
                                       data_of(slopes), data_of(offsets),
                                       result.mutable_data_ptr());
        });
    }
}

template <typename Device>
Tensor norm_act_gradient(const Tensor& grad_output, const Tensor& input, const Tensor& mean,
                         const Tensor& scale, const OptionalTensor& bias, const Tensor& slope,
                         const Tensor& offset, std::int64_t activation, double negative_slope) {
    constexpr const char* op = "fastgan::norm_act_gradient";
    const Image image = image_argument(op, "input", input);
    const Tensor grad = with_layout_of(op, "grad_output", grad_output, "input", image.tensor);
    Tensor result = empty_as(image.tensor);
    norm_act_gradient_into<Device>(op, grad, image.tensor, image.layout, mean, scale, bias, slope,
                                   offset, activation, negative_slope, result);
    return result;
}

template <typename Device>
void norm_act_gradient_in_place(Tensor grad_output, const Tensor& input, const Tensor& mean,
                                const Tensor& scale, const OptionalTensor& bias,
                                const Tensor& slope, const Tensor& offset, std::int64_t activation,
                                double negative_slope) {
    constexpr const char* op = "fastgan::norm_act_gradient_";
    refuse_expanded(op, "grad_output", grad_output);
    const Image grad = image_argument(op, "grad_output", grad_output);
    const Tensor values = with_layout_of(op, "input", input, "grad_output", grad.tensor);
    Tensor result = grad.tensor;
    norm_act_gradient_into<Device>(op, grad.tensor, values, grad.layout, mean, scale, bias, slope,
                                   offset, activation, negative_slope, result);
    if (!same_strides(grad_output, result)) {
        copy_into(grad_output, result);
    }
}

// --- Whole batch norms ----------------------------------------------------------------------

// The tiles' statistics, then batch_norm_finalize.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor> batch_norm_statistics(const Tensor& input,
                                                         const OptionalTensor& weight,
                                                         const OptionalTensor& running_mean,
                                                         const OptionalTensor& running_var,
                                                         double momentum, double eps) {
    constexpr const char* op = "fastgan::batch_norm_statistics";
    const FloatType type = float_type(op, "input", input);
    const Image image = image_argument(op, "input", input);
    const std::int64_t channels = image.layout.channels;
    const std::int64_t tiles = tile_count(image.layout.values_per_channel(), channels);
    const VectorArgument weights(op, "weight", weight, channels, input, false);
    VectorArgument running_means(op, "running_mean", running_mean, channels, input, true);
    VectorArgument running_vars(op, "running_var", running_var, channels, input, true);
    const std::int32_t dtype = arithmetic_dtype(type);
    // Count, mean and M2 of the tiles.
    Tensor workspace =
        empty_vector(tiles + 2 * tiles * channels, aoti_torch_dtype_float64(), input);
    Tensor mean = empty_vector(channels, dtype, input);
    Tensor invstd = empty_vector(channels, dtype, input);
    Tensor scale = empty_vector(channels, dtype, input);
    if (channels > 0) {
        on_device_of<Device>(input, [&](Device device) {
            kernels::batch_norm_statistics(
                device, type, image.layout, data_of(image.tensor),
                {weights.vector(), running_means.vector(), running_vars.vector(), momentum, eps},
                workspace.mutable_data_ptr(),
                {mean.mutable_data_ptr(), invstd.mutable_data_ptr(), scale.mutable_data_ptr()});
        });
        running_means.write_back();
        running_vars.write_back();
    }
    return {mean, invstd, scale};
}

// norm_act with scale = weight * invstd; the op that has a gradient.
template <typename Device>
Tensor bn_act(const Tensor& input, const OptionalTensor& weight, const OptionalTensor& bias,
              const Tensor& mean, const Tensor& invstd, bool /*batch_statistics*/,
              std::int64_t activation, double negative_slope) {
    return normalised<Device>("fastgan::bn_act", input, mean, "invstd", invstd, weight, bias,
                              activation, negative_slope);
}

// Its gradients: norm_act_gradient_sums, norm_act_gradient_finalize and norm_act_gradient.
template <typename Device>
std::tuple<Tensor, Tensor, Tensor> bn_act_gradient(const Tensor& grad_output, const Tensor& input,
                                                   const OptionalTensor& weight,
                                                   const OptionalTensor& bias, const Tensor& mean,
                                                   const Tensor& invstd, bool batch_statistics,
                                                   std::int64_t activation, double negative_slope) {
    constexpr const char* op = "fastgan::bn_act_gradient";
    const Image image = image_argument(op, "input", input);
    const std::int64_t channels = image.layout.channels;
    const NormActTensors tensors(op, image, mean, "invstd", invstd, weight, bias, activation,
                                 negative_slope);
    const Tensor grad = with_layout_of(op, "grad_output", grad_output, "input", image.tensor);
    const std::int64_t values = image.layout.values_per_channel();
    const std::int64_t tiles = tile_count(values, channels);
    const bool is_double = tensors.norm().type == FloatType::float64;
    const std::int32_t dtype = arithmetic_dtype(tensors.norm().type);
    // One allocation for the tiles' two sums, slope and offset.
    Tensor workspace = empty_vector(2 * (tiles + 1) * channels, dtype, input);
    Tensor result = empty_as(image.tensor);
    Tensor grad_weight = empty_vector(channels, dtype, input);
    Tensor grad_bias = empty_vector(channels, dtype, input);
    if (channels > 0) {
        const std::int64_t bytes = is_double ? 8 : 4;
        char* const grad_sum = static_cast<char*>(workspace.mutable_data_ptr());
        char* const grad_xhat_sum = grad_sum + tiles * channels * bytes;
        char* const slope = grad_xhat_sum + tiles * channels * bytes;
        char* const offset = slope + channels * bytes;
        const NormAct& norm = tensors.norm();
        on_device_of<Device>(input, [&](Device device) {
            if (tiles > 0) {
                kernels::norm_act_gradient_sums(device, norm, data_of(grad), data_of(image.tensor),
                                                norm.scale, grad_sum, grad_xhat_sum);
            }
            kernels::norm_act_gradient_finalize(
                device,
                {is_double, tiles, channels, grad_sum, grad_xhat_sum, norm.scale, norm.weight,
                 norm.scale, batch_statistics ? values : 0},
                {slope, offset, grad_weight.mutable_data_ptr(), grad_bias.mutable_data_ptr()});
            if (tiles > 0) {
                kernels::norm_act_gradient(device, norm, data_of(grad), data_of(image.tensor),
                                           slope, offset, result.mutable_data_ptr());
            }
        });
    }
    return {result, grad_weight, grad_bias};
}

// --- Norms of each sample ------------------------------------------------------------------------

// The arguments of a norm with per-sample vectors; owns their memory.
class SampleNormTensors {
  public:
    SampleNormTensors(const char* op, const Tensor& input, const Tensor& scale, const Tensor& shift,
                      const Tensor& mean, const Tensor& invstd, std::int64_t groups,
                      std::int64_t activation, double negative_slope)
        : image_(image_argument(op, "input", input)) {
        const FloatType type = float_type(op, "input", input);
        const std::int64_t samples = input.sizes()[0], channels = input.sizes()[1];
        if (input.numel() == 0) {
            fail(op, ": input is empty: its shape is ", shape_text(input));
        }
        if (groups < cpu::kConstants || (groups > 0 && channels % groups != 0)) {
            fail(op, ": groups is ", groups, "; expected -1, 0 or a divisor of ", channels);
        }
        const auto vectors = [&](const char* argument, const Tensor& tensor) {
            vectors_.push_back(array_argument(op, argument, tensor, {samples, channels},
                                              arithmetic_dtype(type), input));
            return const_cast<void*>(data_of(vectors_.back()));
        };
        const std::int64_t values = input.numel() / (samples * channels);
        norm_ = {type,
                 samples,
                 image_.layout.is_columns() ? ChannelLayout{values, channels, 1}
                                            : ChannelLayout{1, channels, values},
                 groups,
                 vectors("mean", mean),
                 vectors("invstd", invstd),
                 vectors("scale", scale),
                 vectors("shift", shift),
                 activation_argument(op, activation),
                 negative_slope};
    }

    const Tensor& input() const { return image_.tensor; }
    const cpu::SampleNorm& norm() const { return norm_; }

  private:
    Image image_;
    std::vector<Tensor> vectors_;
    cpu::SampleNorm norm_{};
};

Tensor sample_norm_act(const Tensor& input, const Tensor& scale, const Tensor& shift, Tensor mean,
                       Tensor invstd, std::int64_t groups, double eps, std::int64_t activation,
                       double negative_slope) {
    constexpr const char* op = "fastgan::sample_norm_act";
    if (!mean.is_contiguous() || !invstd.is_contiguous()) {
        fail(op, ": mean and invstd aren't contiguous");
    }
    const SampleNormTensors tensors(op, input, scale, shift, mean, invstd, groups, activation,
                                    negative_slope);
    Tensor result = empty_as(tensors.input());
    cpu::sample_norm_act(tensors.norm(), eps, data_of(tensors.input()), result.mutable_data_ptr());
    return result;
}

std::tuple<Tensor, Tensor, Tensor> sample_norm_act_gradient(
    const Tensor& grad_output, const Tensor& input, const Tensor& scale, const Tensor& shift,
    const Tensor& mean, const Tensor& invstd, std::int64_t groups, std::int64_t activation,
    double negative_slope) {
    constexpr const char* op = "fastgan::sample_norm_act_gradient";
    const SampleNormTensors tensors(op, input, scale, shift, mean, invstd, groups, activation,
                                    negative_slope);
    const Tensor grad = with_layout_of(op, "grad_output", grad_output, "input", tensors.input());
    const std::int64_t samples = input.sizes()[0], channels = input.sizes()[1];
    Tensor grad_scale = empty_matrix(samples, channels, dtype_code(mean), input);
    Tensor grad_shift = empty_matrix(samples, channels, dtype_code(mean), input);
    Tensor result = empty_as(tensors.input());
    cpu::sample_norm_act_gradient(tensors.norm(), data_of(grad), data_of(tensors.input()),
                                  grad_scale.mutable_data_ptr(), grad_shift.mutable_data_ptr(),
                                  result.mutable_data_ptr());
    return {result, grad_scale, grad_shift};
}

// --- The activation alone ------------------------------------------------------------------------

// Any number of dimensions. Results have the gradient's layout.
template <typename Device>
void act_gradient_into(const char* op, const Tensor& grad, const Tensor& kept,
                       std::int64_t activation, double negative_slope, Tensor& result) {
    const FloatType type = float_type(op, "grad_output", grad);
    const Activation known = activation_argument(op, activation);
    if (grad.numel() > 0) {
        on_device_of<Device>(grad, [&](Device device) {
            kernels::act_gradient(device, type, grad.numel(), data_of(grad), data_of(kept), known,
                                  negative_slope, result.mutable_data_ptr());
        });
    }
}

// The tensor, or a dense copy.
Tensor dense(const Tensor& tensor) {
    if (tensor.dim() < 2) {
        return without_stride(tensor);
    }
    const bool is_dense =
        tensor.is_contiguous() || (tensor.dim() > 2 && is_dense_channels_last(tensor));
    return is_dense ? tensor : without_gaps(tensor);
}

template <typename Device>
Tensor act_gradient(const Tensor& grad_output, const Tensor& kept, std::int64_t activation,
                    double negative_slope) {
    constexpr const char* op = "fastgan::act_gradient";
    const Tensor values = dense(kept);
    const Tensor grad = with_layout_of(op, "grad_output", grad_output, "kept", values);
    Tensor result = empty_as(values);
    act_gradient_into<Device>(op, grad, values, activation, negative_slope, result);
    return result;
}

template <typename Device>
void act_gradient_in_place(Tensor grad_output, const Tensor& kept, std::int64_t activation,
                           double negative_slope) {
    constexpr const char* op = "fastgan::act_gradient_";
    refuse_expanded(op, "grad_output", grad_output);
    Tensor grad = dense(grad_output);
    const Tensor values = with_layout_of(op, "kept", kept, "grad_output", grad);
    act_gradient_into<Device>(op, grad, values, activation, negative_slope, grad);
    if (!same_strides(grad_output, grad)) {
        copy_into(grad_output, grad);
    }
}

FASTGAN_IMPLEMENT(Device, library) {
    library.impl("batch_norm_finalize", TORCH_BOX(&batch_norm_finalize<Device>));
    library.impl("norm_act", TORCH_BOX(&norm_act<Device>));
    library.impl("norm_act_gradient_sums", TORCH_BOX(&norm_act_gradient_sums<Device>));
    library.impl("norm_act_gradient_finalize", TORCH_BOX(&norm_act_gradient_finalize<Device>));
    library.impl("norm_act_gradient", TORCH_BOX(&norm_act_gradient<Device>));
    library.impl("norm_act_gradient_", TORCH_BOX(&norm_act_gradient_in_place<Device>));
    library.impl("batch_norm_statistics", TORCH_BOX(&batch_norm_statistics<Device>));
    library.impl("bn_act", TORCH_BOX(&bn_act<Device>));
    library.impl("bn_act_gradient", TORCH_BOX(&bn_act_gradient<Device>));
    library.impl("act_gradient", TORCH_BOX(&act_gradient<Device>));
    library.impl("act_gradient_", TORCH_BOX(&act_gradient_in_place<Device>));
    if constexpr (std::is_same_v<Device, Cpu>) {
        library.impl("sample_norm_act", TORCH_BOX(&sample_norm_act));
        library.impl("sample_norm_act_gradient", TORCH_BOX(&sample_norm_act_gradient));
    }
}

}  // namespace

}  // namespace fastgan
