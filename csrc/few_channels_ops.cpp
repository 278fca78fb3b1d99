// The CUDA kernels of torch.ops.fastgan.few_channels_*: argument checks, registration. The formulas:
// math/few_channels.h. Other devices run plain PyTorch. Like ops.cpp, only uses LibTorch's stable
// ABI.

#if defined(FASTGAN_WITH_CUDA)

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

#include "cuda/few_channels.h"
#include "op_arguments.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Numbers = std::vector<std::int64_t>;

// Larger sizes and settings might overflow a kernel's index.
constexpr std::int64_t kLargest = std::int64_t{1} << 30;
// Of a weight's gradient.
constexpr std::int64_t kMostFewChannels = 4;

void require_map(const char* op, const char* argument, const Tensor& map) {
    if (map.dim() != 4 || map.size(1) >= kLargest || map.size(2) >= kLargest ||
        map.size(3) >= kLargest) {
        fail(op, ": ", argument, " has shape ", shape_text(map), "; expected four dimensions");
    }
}

void require_pair(const char* op, const char* argument, const Numbers& numbers,
                  std::int64_t least) {
    if (numbers.size() != 2 || std::min(numbers[0], numbers[1]) < least ||
        std::max(numbers[0], numbers[1]) >= kLargest) {
        fail(op, ": ", argument, " should be two numbers from ", least, " on");
    }
}

MapStrides map_strides(const char* op, const Tensor& map) {
    std::int64_t reach = 0;
    for (int d = 1; d < 4; ++d) {
        reach += map.stride(d) * (map.size(d) - 1);
    }
    if (reach > std::numeric_limits<std::int32_t>::max()) {
        fail(op, ": a sample of a map of shape ", shape_text(map), " spans 2^31 elements or more");
    }
    const auto stride = [&](int d) { return map.size(d) > 1 ? static_cast<int>(map.stride(d)) : 0; };
    return {map.stride(0), stride(1), stride(2), stride(3)};
}

// Whether a convolution with these settings relates a map of `small` places to one of `wide`.
void require_fit(const char* op, std::int64_t small, std::int64_t wide, std::int64_t stride,
                 std::int64_t padding, std::int64_t taps) {
    const std::int64_t left_over = wide + 2 * padding - (small - 1) * stride - taps;
    if (small < 1 || wide < 1 || taps < 1 || left_over < 0 || left_over >= stride) {
        fail(op, ": ", small, " and ", wide, " places do not belong together at stride ", stride,
             ", padding ", padding, " and ", taps, " taps");
    }
}

GatherAxis axis_of(const char* op, const Tensor& input, const Tensor& weight, int d,
                   bool transposed, const Numbers& stride, const Numbers& padding,
                   const Numbers& size) {
    const std::int64_t in = input.size(d), taps = weight.size(d), out = size[d - 2];
    const std::int64_t step = stride[d - 2], added = padding[d - 2];
    require_fit(op, transposed ? in : out, transposed ? out : in, step, added, taps);
    const auto number = [](std::int64_t n) { return static_cast<int>(n); };
    return GatherAxis::of(number(in), number(out), number(taps), number(step), number(added),
                          transposed);
}

Tensor gather(Tensor input, Tensor weight, OptionalTensor bias, OptionalTensor kept,
              bool transposed, Numbers stride, Numbers padding, Numbers size,
              std::int64_t activation, double negative_slope, bool channels_last) {
    constexpr const char* op = "fastgan::few_channels_gather";
    require_map(op, "input", input);
    require_map(op, "weight", weight);
    require_alike(op, "weight", weight, input);
    require_pair(op, "stride", stride, 1);
    require_pair(op, "padding", padding, 0);
    require_pair(op, "size", size, 1);
    const int from = transposed ? 0 : 1;
    const std::int64_t out_channels = weight.size(1 - from);
    if (weight.size(from) != input.size(1) || std::min(input.size(1), out_channels) < 1) {
        fail(op, ": weight has shape ", shape_text(weight), " and input ", shape_text(input),
             "; expected channels to match");
    }
    FewChannels problem{
        float_type(op, "input", input),
        transposed,
        input.size(0),
        static_cast<int>(input.size(1)),
        static_cast<int>(out_channels),
        axis_of(op, input, weight, 2, transposed, stride, padding, size),
        axis_of(op, input, weight, 3, transposed, stride, padding, size),
        map_strides(op, input),
        {},
        {weight.stride(1 - from), static_cast<int>(weight.stride(from)),
         static_cast<int>(weight.stride(2)), static_cast<int>(weight.stride(3))},
        activation_argument(op, activation),
        negative_slope};
    OptionalTensor added;
    if (bias) {
        require_alike(op, "bias", *bias, input);
        require_vector(op, "bias", *bias, out_channels);
        added = packed(*bias);
    }
    Tensor output = empty_map({input.size(0), out_channels, size[0], size[1]}, input, channels_last);
    problem.output = map_strides(op, output);
    OptionalTensor values;
    if (kept) {
        require_alike(op, "kept", *kept, input);
        if (bias || !same_sizes(*kept, output)) {
            fail(op, ": kept has shape ", shape_text(*kept), "; expected ", shape_text(output),
                 ", and no bias");
        }
        values = laid_out(*kept, channels_last);
    }
    if (output.numel() > 0) {
        on_device_of<Cuda>(input, [&](Cuda device) {
            cuda::few_channels_gather(problem, input.const_data_ptr(), weight.const_data_ptr(),
                                      data_of(added), data_of(values), output.mutable_data_ptr(),
                                      device.stream);
        });
    }
    return output;
}

Tensor weight_gradient(Tensor small, Tensor wide, Numbers taps, Numbers stride, Numbers padding,
                       bool channels_last) {
    constexpr const char* op = "fastgan::few_channels_weight_gradient";
    require_map(op, "small", small);
    require_map(op, "wide", wide);
    require_alike(op, "wide", wide, small);
    require_pair(op, "taps", taps, 1);
    require_pair(op, "stride", stride, 1);
    require_pair(op, "padding", padding, 0);
    if (small.size(0) != wide.size(0) || std::min(small.size(1), wide.size(1)) < 1) {
        fail(op, ": maps of shapes ", shape_text(small), " and ", shape_text(wide),
             "; expected as many samples, and channels");
    }
    // With a stride of 1 either map may be the one with few channels: for the small one the sum is
    // over the other's places, from which taps run backwards.
    const bool few_is_wide = wide.size(1) <= kMostFewChannels;
    if (!few_is_wide && (small.size(1) > kMostFewChannels || stride[0] != 1 || stride[1] != 1)) {
        fail(op, ": small has ", small.size(1), " channels and wide ", wide.size(1),
             "; expected at most ", kMostFewChannels, " of wide's, or of small's at stride 1");
    }
    const Tensor& many = few_is_wide ? small : wide;
    const Tensor& few = few_is_wide ? wide : small;
    Tensor gradient =
        empty_map({small.size(1), wide.size(1), taps[0], taps[1]}, small, channels_last);
    const auto axis = [&](int d) {
        const std::int64_t added = padding[d - 2], count = taps[d - 2];
        require_fit(op, small.size(d), wide.size(d), stride[d - 2], added, count);
        const auto number = [](std::int64_t n) { return static_cast<int>(n); };
        return GatherAxis::of(number(few.size(d)), number(many.size(d)), number(count),
                              number(stride[d - 2]),
                              number(few_is_wide ? added : count - 1 - added), false);
    };
    const FewChannelsSums problem{
        float_type(op, "small", small),
        small.size(0),
        static_cast<int>(many.size(1)),
        static_cast<int>(few.size(1)),
        axis(2),
        axis(3),
        map_strides(op, many),
        map_strides(op, few),
        {gradient.stride(few_is_wide ? 0 : 1),
         static_cast<int>(gradient.stride(few_is_wide ? 1 : 0)),
         static_cast<int>(gradient.stride(2)), static_cast<int>(gradient.stride(3))},
        !few_is_wide};
    if (small.numel() == 0) {
        return torch::stable::zero_(gradient);
    }
    Tensor sums = empty_vector(cuda::few_channels_workspace(problem),
                               arithmetic_dtype(problem.type), small);
    on_device_of<Cuda>(small, [&](Cuda device) {
        cuda::few_channels_sums(problem, many.const_data_ptr(), few.const_data_ptr(),
                                sums.mutable_data_ptr(), gradient.mutable_data_ptr(),
                                device.stream);
    });
    return gradient;
}

}  // namespace

}  // namespace fastgan

STABLE_TORCH_LIBRARY_IMPL(fastgan, CUDA, library) {
    library.impl("few_channels_gather", TORCH_BOX(&fastgan::gather));
    library.impl("few_channels_weight_gradient", TORCH_BOX(&fastgan::weight_gradient));
}

#endif
