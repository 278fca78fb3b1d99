// The convolution ops of torch.ops.fastgan for CPUs: schemas, argument checks, registration. The
// formulas: cpu/winograd.h and cpu/patches.h. Like ops.cpp, only uses LibTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <utility>

#include "cpu/layout.h"
#include "cpu/patches.h"
#include "cpu/winograd.h"
#include "op_arguments.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
Tensor empty_channels_last(const FourSizes& sizes, const Tensor& like) {
    return empty_map(sizes, like, true);
}

// Whether torch's convolution of the two is channels-last: fastgan/ops/memory_format.py.
bool gives_channels_last(const Tensor& map, const Tensor& weight) {
    return is_channels_last(map) || is_channels_last(weight);
}

// The channels-last `map` in the layout of torch's convolution of `argument` and `weight`.
Tensor as_convolved(const Tensor& map, const Tensor& argument, const Tensor& weight) {
    if (gives_channels_last(argument, weight)) {
        return map;
    }
    Tensor copy = empty_map({map.size(0), map.size(1), map.size(2), map.size(3)}, map, false);
    const std::int64_t pixels = map.size(2) * map.size(3);
    if (map.numel() > 0) {
        cpu::transpose(map.size(0), pixels, map.size(1), map.element_size(), map.const_data_ptr(),
                       copy.mutable_data_ptr());
    }
    return copy;
}

// The tensor, or a channels-last copy.
Tensor channels_last(const Tensor& tensor) {
    const FourSizes sizes{tensor.size(0), tensor.size(1), tensor.size(2), tensor.size(3)};
    const FourSizes strides = channels_last_strides(sizes);
    bool lies_so = true;
    for (int d = 0; d < 4; ++d) {
        lies_so = lies_so && (sizes[d] <= 1 || tensor.stride(d) == strides[d]);
    }
    if (lies_so || tensor.numel() == 0) {
        return tensor;
    }
    Tensor copy = empty_channels_last(sizes, tensor);
    if (tensor.is_contiguous() && (tensor.element_size() == 2 || tensor.element_size() == 4)) {
        cpu::transpose(sizes[0], sizes[1], sizes[2] * sizes[3], tensor.element_size(),
                       tensor.const_data_ptr(), copy.mutable_data_ptr());
    } else {
        copy_into(copy, tensor);
    }
    return copy;
}

// Whether a weight (small, wide, taps, taps) lies as that of a transposed convolution: channels-last
// with its first two dimensions exchanged.
bool small_channels_are_last(const Tensor& weight) {
    const std::int64_t channels = weight.size(0), taps = weight.size(3);
    return channels > 1 && weight.stride(0) == 1 && weight.stride(3) == channels &&
           weight.stride(2) == taps * channels &&
           weight.stride(1) == weight.size(2) * taps * channels;
}

FloatType map_type(const char* op, const char* argument, const Tensor& tensor) {
    const FloatType type = float_type(op, argument, tensor);
    if (type != FloatType::float32 && type != FloatType::bfloat16) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)),
             "; expected float32 or bfloat16");
    }
    return type;
}

void require_channels(const char* op, const char* argument, std::int64_t channels,
                      std::int64_t unit = cpu::kWinogradChannels) {
    if (channels < 1 || channels % unit != 0) {
        fail(op, ": ", argument, " has ", channels, " channels; expected a multiple of ", unit);
    }
}

void require_kernel(const char* op, std::int64_t taps, std::int64_t stride) {
    if (!cpu::winograd_can(taps, stride)) {
        fail(op, ": ", taps, " by ", taps, " taps and stride ", stride,
             "; expected 3 or 4 and 1 or 2, or 5 and 2");
    }
}

// Checks a map and a weight (small channels, wide channels, taps, taps).
void require_map_and_weight(const char* op, const char* argument, const Tensor& map,
                            const Tensor& weight, int channels_of_weight) {
    require_four_dimensions(op, argument, map);
    require_four_dimensions(op, "weight", weight);
    require_alike(op, "weight", weight, map);
    if (weight.size(2) != weight.size(3) || weight.size(channels_of_weight) != map.size(1)) {
        fail(op, ": weight has shape ", shape_text(weight), " and ", argument, " ", shape_text(map),
             "; expected as many rows of taps as columns, and channels to match");
    }
    require_channels(op, "weight", weight.size(0));
    require_channels(op, "weight", weight.size(1));
}

// Whether a convolution with these settings relates maps of these sizes.
bool fit(const cpu::PatchDimension& along) {
    // Larger settings are mistakes, and offsets would overflow.
    constexpr std::int64_t largest = std::int64_t{1} << 31;
    if (along.small < 1 || along.wide < 1 || along.padding < 0 || along.padding > largest ||
        along.stride < 1 || along.stride > largest) {
        return false;
    }
    const auto padded = static_cast<__int128>(along.wide) + 2 * along.padding;
    const auto reached = static_cast<__int128>(along.stride) * (along.small - 1) + along.taps;
    return padded >= reached && padded - reached < along.stride;
}

void require_places(const char* op, const cpu::WinogradShape& shape) {
    const auto [taps, stride] = std::pair(shape.taps, shape.stride);
    if (!fit({shape.small_rows, shape.wide_rows, taps, stride, shape.row_padding}) ||
        !fit({shape.small_columns, shape.wide_columns, taps, stride, shape.column_padding})) {
        fail(op, ": a map of (", shape.small_rows, ", ", shape.small_columns,
             ") places and one of (", shape.wide_rows, ", ", shape.wide_columns,
             ") do not belong together at padding (", shape.row_padding, ", ", shape.column_padding,
             "), ", taps, " by ", taps, " taps and stride ", stride);
    }
}

// A float32 bias, added before the output is rounded.
struct Bias {
    OptionalTensor tensor;

    const float* data() const {
        return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
    }
};

Bias bias_argument(const char* op, const OptionalTensor& bias, std::int64_t channels) {
    if (!bias) {
        return {};
    }
    require_vector(op, "bias", *bias, channels);
    map_type(op, "bias", *bias);
    Tensor copy = empty_strided({channels}, {1}, aoti_torch_dtype_float32(), *bias);
    copy_into(copy, *bias);
    return {copy};
}

// The arguments of cpu::Modulation, float32 and contiguous.
struct Scales {
    OptionalTensor input_scale;
    OptionalTensor output_scale;
    OptionalTensor noise;

    cpu::Modulation data() const {
        const auto of = [](const OptionalTensor& tensor) {
            return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
        };
        const bool is_shared = noise && noise->size(0) == 1;
        return {of(input_scale), of(output_scale), of(noise),
                noise && !is_shared ? noise->size(2) * noise->size(3) : 0};
    }
};

void require_float(const char* op, const char* argument, const Tensor& tensor) {
    if (float_type(op, argument, tensor) != FloatType::float32) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)),
             "; expected float32");
    }
}

OptionalTensor scale_argument(const char* op, const char* argument, const OptionalTensor& scale,
                              std::int64_t batch, std::int64_t channels) {
    if (!scale) {
        return {};
    }
    if (scale->dim() != 2 || scale->size(0) != batch || scale->size(1) != channels) {
        fail(op, ": ", argument, " has shape ", shape_text(*scale), "; expected (", batch, ", ",
             channels, ")");
    }
    require_float(op, argument, *scale);
    return packed(*scale);
}

OptionalTensor noise_argument(const char* op, const OptionalTensor& noise, const FourSizes& sizes) {
    if (!noise) {
        return {};
    }
    if (noise->dim() != 4 || (noise->size(0) != 1 && noise->size(0) != sizes[0]) ||
        noise->size(1) != 1 || noise->size(2) != sizes[2] || noise->size(3) != sizes[3]) {
        fail(op, ": noise has shape ", shape_text(*noise), "; expected (", sizes[0], " or 1, 1, ",
             sizes[2], ", ", sizes[3], ")");
    }
    require_float(op, "noise", *noise);
    return packed(*noise);
}

// Gathers the small map from the wide one, or scatters the small one to the wide one.
template <bool kScatter>
Tensor convolve(Tensor input, Tensor weight, OptionalTensor bias, std::int64_t stride,
                std::int64_t row_padding, std::int64_t column_padding, std::int64_t rows,
                std::int64_t columns, OptionalTensor input_scale, OptionalTensor output_scale,
                OptionalTensor noise) {
    constexpr const char* op = kScatter ? "fastgan::winograd_scatter" : "fastgan::winograd_gather";
    constexpr const char* argument = kScatter ? "small" : "wide";
    const FloatType type = map_type(op, argument, input);
    require_map_and_weight(op, argument, input, weight, kScatter ? 0 : 1);
    require_kernel(op, weight.size(2), stride);
    const FourSizes sizes{input.size(0), weight.size(kScatter ? 1 : 0), rows, columns};
    const std::int64_t input_rows = input.size(2), input_columns = input.size(3);
    const cpu::WinogradShape shape{sizes[0],
                                   kScatter ? input_rows : rows,
                                   kScatter ? input_columns : columns,
                                   weight.size(0),
                                   kScatter ? rows : input_rows,
                                   kScatter ? columns : input_columns,
                                   weight.size(1),
                                   weight.size(2),
                                   stride,
                                   row_padding,
                                   column_padding,
                                   small_channels_are_last(weight)};
    require_places(op, shape);
    const Bias added = bias_argument(op, bias, sizes[1]);
    const Scales scales{
        scale_argument(op, "input_scale", input_scale, input.size(0), input.size(1)),
        scale_argument(op, "output_scale", output_scale, sizes[0], sizes[1]),
        noise_argument(op, noise, sizes)};
    Tensor output = empty_channels_last(sizes, input);
    const Tensor values = channels_last(input);
    const Tensor taps = shape.small_channels_last ? weight : channels_last(weight);
    const auto run = kScatter ? cpu::winograd_scatter : cpu::winograd_gather;
    run(shape, type, values.const_data_ptr(), taps.const_data_ptr(), added.data(), scales.data(),
        output.mutable_data_ptr());
    return as_convolved(output, input, weight);
}

Tensor weight_gradient(Tensor small, Tensor wide, std::int64_t taps, std::int64_t stride,
                       std::int64_t row_padding, std::int64_t column_padding) {
    constexpr const char* op = "fastgan::winograd_weight_gradient";
    const FloatType type = map_type(op, "small", small);
    require_four_dimensions(op, "small", small);
    require_four_dimensions(op, "wide", wide);
    require_kernel(op, taps, stride);
    require_alike(op, "wide", wide, small);
    require_channels(op, "small", small.size(1));
    require_channels(op, "wide", wide.size(1));
    if (small.size(0) != wide.size(0)) {
        fail(op, ": small has shape ", shape_text(small), " and wide ", shape_text(wide),
             "; expected as many samples");
    }
    const cpu::WinogradShape shape{small.size(0), small.size(2), small.size(3), small.size(1),
                                   wide.size(2),  wide.size(3),  wide.size(1),  taps,
                                   stride,        row_padding,   column_padding, false};
    require_places(op, shape);
    Tensor gradient =
        empty_channels_last({shape.small_channels, shape.wide_channels, taps, taps}, small);
    const Tensor factors = channels_last(small);
    const Tensor values = channels_last(wide);
    cpu::winograd_weight_gradient(shape, type, factors.const_data_ptr(), values.const_data_ptr(),
                                  gradient.mutable_data_ptr());
    return gradient;
}

void require_places(const char* op, const cpu::PatchDimension& along) {
    if (!fit(along)) {
        fail(op, ": ", along.small, " places and ", along.wide,
             " do not belong together at padding ", along.padding, ", stride ", along.stride,
             " and ", along.taps, " taps");
    }
}

Tensor scatter_patches(Tensor small, Tensor weight, OptionalTensor bias, std::int64_t row_stride,
                       std::int64_t column_stride, std::int64_t row_padding,
                       std::int64_t column_padding, std::int64_t rows, std::int64_t columns,
                       std::optional<bool> wanted_channels_last) {
    constexpr const char* op = "fastgan::patch_scatter";
    const FloatType type = map_type(op, "small", small);
    require_four_dimensions(op, "small", small);
    require_four_dimensions(op, "weight", weight);
    require_alike(op, "weight", weight, small);
    require_channels(op, "small", small.size(1), cpu::kPatchChannels);
    const bool lies_channels_last =
        wanted_channels_last.value_or(gives_channels_last(small, weight));
    const cpu::PatchShape shape{
        small.size(0),
        small.size(1),
        weight.size(1),
        {small.size(2), rows, weight.size(2), row_stride, row_padding},
        {small.size(3), columns, weight.size(3), column_stride, column_padding},
        !lies_channels_last};
    const std::int64_t patch = weight.size(1) * weight.size(2) * weight.size(3);
    if (weight.size(0) != shape.small_channels || patch < 1 || patch > cpu::kPatchSize) {
        fail(op, ": weight has shape ", shape_text(weight), "; expected (", shape.small_channels,
             ", C, kH, kW) with C * kH * kW at most ", cpu::kPatchSize);
    }
    require_places(op, shape.rows);
    require_places(op, shape.columns);
    const Bias added = bias_argument(op, bias, shape.wide_channels);
    Tensor wide =
        empty_map({shape.batch, shape.wide_channels, rows, columns}, small, lies_channels_last);
    const Tensor values = channels_last(small);
    const Tensor taps = channels_last(weight);
    cpu::patch_scatter(shape, type, values.const_data_ptr(), taps.const_data_ptr(), added.data(),
                       wide.mutable_data_ptr());
    return wide;
}

}  // namespace

}  // namespace fastgan

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, library) {
    library.impl("winograd_gather", TORCH_BOX(&fastgan::convolve<false>));
    library.impl("winograd_scatter", TORCH_BOX(&fastgan::convolve<true>));
    library.impl("winograd_weight_gradient", TORCH_BOX(&fastgan::weight_gradient));
    library.impl("patch_scatter", TORCH_BOX(&fastgan::scatter_patches));
}
