// csrc/cuda/few_channels.cu, for the host harness.
#include "cuda/few_channels.h"

#include <stdexcept>
#include <string>

#include "program.h"

namespace {

fastgan::MapStrides strides_of(const fastgan_host::Tensor& map) {
    const auto stride = [&](int d) { return static_cast<int>(map.strides[d]); };
    return {map.strides[0], stride(1), stride(2), stride(3)};
}

fastgan::FewChannels problem_of(const fastgan_host::Request& request) {
    const auto input = request.tensor("input");
    const auto weight = request.tensor("weight");
    const auto output = request.tensor("output");
    const bool transposed = request.integer("transposed") != 0;
    const auto axis = [&](int d, const char* stride, const char* padding) {
        return fastgan::GatherAxis::of(
            static_cast<int>(input.sizes[d]), static_cast<int>(output.sizes[d]),
            static_cast<int>(weight.sizes[d]), static_cast<int>(request.integer(stride)),
            static_cast<int>(request.integer(padding)), transposed);
    };
    const auto of_weight = [&](int d) { return static_cast<int>(weight.strides[d]); };
    const int from = transposed ? 0 : 1;
    return {
        input.type,
        transposed,
        input.sizes[0],
        static_cast<int>(input.sizes[1]),
        static_cast<int>(output.sizes[1]),
        axis(2, "row_stride", "row_padding"),
        axis(3, "column_stride", "column_padding"),
        strides_of(input),
        strides_of(output),
        {of_weight(1 - from), of_weight(from), of_weight(2), of_weight(3)},
        static_cast<fastgan::Activation>(request.integer("activation")),
        request.number("negative_slope")};
}

}  // namespace

FASTGAN_HOST_ENTRY(obstacle) {
    if (const char* obstacle = fastgan::cuda::few_channels_obstacle(problem_of(request))) {
        throw std::runtime_error(obstacle);
    }
}

FASTGAN_HOST_ENTRY(gather) {
    const auto data = [&](const char* name) {
        return request.has_tensor(name) ? request.tensor(name).data : nullptr;
    };
    fastgan::cuda::few_channels_gather(problem_of(request), data("input"), data("weight"),
                                       data("bias"), data("kept"), data("output"),
                                       request.stream());
}

FASTGAN_HOST_ENTRY(sums) {
    const auto many = request.tensor("many");
    const auto few = request.tensor("few");
    const auto gradient = request.tensor("gradient");
    const auto number = [](std::int64_t n) { return static_cast<int>(n); };
    const auto axis = [&](int d, const char* stride, const char* padding) {
        return fastgan::GatherAxis::of(number(few.sizes[d]), number(many.sizes[d]),
                                       number(gradient.sizes[d]), number(request.integer(stride)),
                                       number(request.integer(padding)), false);
    };
    const fastgan::FewChannelsSums problem{many.type,
                                           many.sizes[0],
                                           number(many.sizes[1]),
                                           number(few.sizes[1]),
                                           axis(2, "row_stride", "row_padding"),
                                           axis(3, "column_stride", "column_padding"),
                                           strides_of(many),
                                           strides_of(few),
                                           strides_of(gradient),
                                           request.integer("backwards") != 0};
    const auto workspace = request.tensor("workspace");
    if (fastgan::cuda::few_channels_workspace(problem) != workspace.sizes[0]) {
        throw std::runtime_error(
            "workspace: " + std::to_string(fastgan::cuda::few_channels_workspace(problem)));
    }
    fastgan::cuda::few_channels_sums(problem, many.data, few.data, workspace.data, gradient.data,
                                     request.stream());
}
