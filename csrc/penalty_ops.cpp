// The gradient penalty's ops of torch.ops.fastgan: schemas, argument checks, registration. The
// formulas: math/penalty_points.h and math/penalty_norm.h. Like ops.cpp, only uses LibTorch's
// stable ABI. The ops write to output arguments and return nothing; an output may be the same
// tensor as an input.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "math/float_pairs.h"
#include "op_arguments.h"
#include "penalty_norm.h"
#include "penalty_points.h"

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// --- Tensors -------------------------------------------------------------------------------------

void* written(const Tensor& tensor) {
    return tensor.mutable_data_ptr();
}

// The dimensions after the batch with more than one element, fastest first in memory.
std::vector<int> by_stride(const Tensor& tensor) {
    const auto sizes = tensor.sizes();
    const auto strides = strides_of(tensor);
    std::vector<int> order;
    for (int d = static_cast<int>(sizes.size()) - 1; d >= 1; --d) {
        if (sizes[d] != 1) {
            order.push_back(d);
        }
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return strides[a] < strides[b]; });
    return order;
}

std::int64_t elements_per_sample(const Tensor& tensor) {
    return tensor.size(0) == 0 ? 0 : tensor.numel() / tensor.size(0);
}

// Refuses a tensor unless its samples are dense and consecutive in memory.
void require_dense_samples(const char* op, const char* argument, const Tensor& tensor) {
    if (tensor.dim() < 2) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor),
             "; expected a batch dimension and at least one more");
    }
    const auto sizes = tensor.sizes();
    const auto strides = strides_of(tensor);
    std::int64_t expected = 1;
    bool dense = true;
    for (const int d : by_stride(tensor)) {
        dense = dense && strides[d] == expected;
        expected *= sizes[d];
    }
    if (tensor.numel() > 0 && !(dense && (sizes[0] == 1 || strides[0] == expected))) {
        fail(op, ": ", argument, " has gaps in its memory; expected samples one after the other");
    }
}

// Refuses a tensor unless it has `like`'s layout after the batch dimension.
void require_like(const char* op, const char* argument, const Tensor& tensor, const Tensor& like) {
    if (!same_sizes(tensor, like)) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor), "; expected ",
             shape_text(like));
    }
    require_dense_samples(op, argument, tensor);
    const auto sizes = tensor.sizes();
    const auto left = strides_of(tensor);
    const auto right = strides_of(like);
    for (std::size_t d = 1; d < sizes.size(); ++d) {
        if (sizes[d] > 1 && left[d] != right[d]) {
            fail(op, ": ", argument, " lies in memory in another order than the first tensor");
        }
    }
}

FloatType arithmetic(FloatType type) {
    return type == FloatType::float64 ? FloatType::float64 : FloatType::float32;
}

// Contiguous numbers of the arithmetic's type.
void require_numbers(const char* op, const char* argument, const Tensor& tensor, std::int64_t count,
                     FloatType type) {
    if (tensor.numel() != count || float_type(op, argument, tensor) != type) {
        fail(op, ": ", argument, " has shape ", shape_text(tensor), " and dtype ",
             dtype_name(dtype_code(tensor)), "; expected ", count, " numbers of ",
             type == FloatType::float64 ? "float64" : "float32");
    }
    if (!tensor.is_contiguous()) {
        fail(op, ": ", argument, " is not contiguous");
    }
}

// --- Points and tangents -------------------------------------------------------------------------

template <typename Device>
void mix(Tensor batch, Tensor real, Tensor fake, Tensor eps) {
    constexpr const char* op = "fastgan::penalty_mix_";
    require_dense_samples(op, "batch", batch);
    if (!same_sizes(real, fake) || real.dim() != batch.dim() || batch.size(0) != 3 * real.size(0) ||
        !std::equal(real.sizes().begin() + 1, real.sizes().end(), batch.sizes().begin() + 1)) {
        fail(op, ": batch has shape ", shape_text(batch), ", real ", shape_text(real), " and fake ",
             shape_text(fake), "; expected fake as real, and batch thrice as many");
    }
    const FloatType from = float_type(op, "real", real), to = float_type(op, "batch", batch);
    if (float_type(op, "fake", fake) != from || !is_float_pair(from, to)) {
        fail(op, ": real, fake and batch have dtypes ", dtype_name(dtype_code(real)), ", ",
             dtype_name(dtype_code(fake)), " and ", dtype_name(dtype_code(batch)),
             "; expected one for all, or float32 and a half");
    }
    require_numbers(op, "eps", eps, real.size(0), arithmetic(from));
    MixShape shape{};
    shape.samples = real.size(0);
    shape.elements = elements_per_sample(real);
    shape.real_sample_stride = real.stride(0);
    shape.fake_sample_stride = fake.stride(0);
    for (const int d : by_stride(batch)) {
        const std::int64_t size = batch.size(d);
        const int last = shape.dimensions - 1;
        const bool continues = last >= 0 &&
                               real.stride(d) == shape.sizes[last] * shape.real_strides[last] &&
                               fake.stride(d) == shape.sizes[last] * shape.fake_strides[last];
        if (continues) {
            shape.sizes[last] *= size;
            continue;
        }
        if (shape.dimensions == MixShape::kMaxDimensions) {
            fail(op, ": real and fake have more than ", MixShape::kMaxDimensions, " dimensions");
        }
        shape.sizes[shape.dimensions] = size;
        shape.real_strides[shape.dimensions] = real.stride(d);
        shape.fake_strides[shape.dimensions] = fake.stride(d);
        ++shape.dimensions;
    }
    on_device_of<Device>(batch, [&](Device device) {
        kernels::mix(device, shape, from, to, data_of(real), data_of(fake), data_of(eps),
                     written(batch));
    });
}

template <typename Device>
void tangent(Tensor gradient, Tensor tangent, Tensor norms, Tensor value, double weight,
             double target, bool one_sided) {
    constexpr const char* op = "fastgan::penalty_tangent_";
    const FloatType from = float_type(op, "gradient", gradient);
    const FloatType to = float_type(op, "tangent", tangent);
    require_dense_samples(op, "gradient", gradient);
    require_like(op, "tangent", tangent, gradient);
    if (!is_float_pair(from, to)) {
        fail(op, ": gradient and tangent have dtypes ", dtype_name(dtype_code(gradient)), " and ",
             dtype_name(dtype_code(tangent)), "; expected the same, or float32 and a half");
    }
    if (gradient.size(0) == 0) {
        fail(op, ": gradient has no samples");
    }
    require_numbers(op, "norms", norms, gradient.size(0), arithmetic(from));
    require_numbers(op, "value", value, 1, arithmetic(from));
    on_device_of<Device>(gradient, [&](Device device) {
        kernels::penalty_tangent(device, {weight, target, one_sided}, gradient.size(0),
                                 elements_per_sample(gradient), from, to, data_of(gradient),
                                 written(tangent), written(norms), written(value));
    });
}

// --- Norms ---------------------------------------------------------------------------------------

// The sizes of maps (N, C, ...), taken from the first.
NormShape norm_shape(const char* op, const char* argument, const Tensor& maps,
                     std::int64_t groups) {
    require_dense_samples(op, argument, maps);
    const std::int64_t channels = maps.size(1);
    // Every number divides 0, but a group needs channels.
    if (groups < 1 || channels == 0 || channels % groups != 0) {
        fail(op, ": groups is ", groups, "; expected a divisor of ", channels, " channels");
    }
    const std::int64_t elements = elements_per_sample(maps);
    const std::int64_t positions = elements / channels;
    const auto order = by_stride(maps);
    // Channels either all come first or all come last; positions keep their order.
    const bool channels_first = order.empty() || order.back() == 1 || channels == 1;
    const bool channels_last = !order.empty() && order.front() == 1;
    if (!channels_first && !channels_last) {
        fail(op, ": ", argument, " is neither contiguous nor channels-last");
    }
    return NormShape{maps.size(0), channels,      positions,
                     groups,       channels_last, float_type(op, argument, maps)};
}

void require_map(const char* op, const char* argument, const Tensor& tensor, const Tensor& like,
                 const NormShape& shape) {
    require_like(op, argument, tensor, like);
    if (float_type(op, argument, tensor) != shape.type) {
        fail(op, ": ", argument, " has dtype ", dtype_name(dtype_code(tensor)),
             "; expected that of the first tensor");
    }
}

void require_vector(const char* op, const char* argument, const OptionalTensor& vector,
                    std::int64_t count, const NormShape& shape) {
    if (vector) {
        require_numbers(op, argument, *vector, count, arithmetic(shape.type));
    }
}

template <typename Device>
void norm_forward(Tensor input, OptionalTensor weight, OptionalTensor bias, std::int64_t groups,
                  double eps, Tensor xhat, Tensor invstd, Tensor output) {
    constexpr const char* op = "fastgan::penalty_norm_forward_";
    const NormShape shape = norm_shape(op, "input", input, groups);
    require_vector(op, "weight", weight, shape.channels, shape);
    require_vector(op, "bias", bias, shape.channels, shape);
    require_map(op, "xhat", xhat, input, shape);
    require_map(op, "output", output, input, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    on_device_of<Device>(input, [&](Device device) {
        kernels::norm_forward(device, shape, data_of(input), data_of(weight), data_of(bias), eps,
                              written(xhat), written(invstd), written(output));
    });
}

template <typename Device>
void norm_project(Tensor grad, Tensor xhat, Tensor invstd, OptionalTensor weight,
                  std::int64_t groups, bool tangent, Tensor output) {
    constexpr const char* op = "fastgan::penalty_norm_project_";
    const NormShape shape = norm_shape(op, "grad", grad, groups);
    require_map(op, "xhat", xhat, grad, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    require_vector(op, "weight", weight, shape.channels, shape);
    require_map(op, "output", output, grad, shape);
    on_device_of<Device>(grad, [&](Device device) {
        kernels::norm_project(device, shape, data_of(grad), data_of(xhat), data_of(invstd),
                              data_of(weight), tangent, written(output));
    });
}

template <typename Device>
void norm_curvature(Tensor grad, Tensor tangent, Tensor xhat, Tensor invstd,
                    OptionalTensor weight, std::int64_t groups, Tensor output) {
    constexpr const char* op = "fastgan::penalty_norm_curvature_";
    const NormShape shape = norm_shape(op, "grad", grad, groups);
    require_map(op, "tangent", tangent, grad, shape);
    require_map(op, "xhat", xhat, grad, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    require_vector(op, "weight", weight, shape.channels, shape);
    require_map(op, "output", output, grad, shape);
    on_device_of<Device>(grad, [&](Device device) {
        kernels::norm_curvature(device, shape, data_of(grad), data_of(tangent), data_of(xhat),
                                data_of(invstd), data_of(weight), written(output));
    });
}

template <typename Device>
void norm_gradients(Tensor grad, OptionalTensor tangent, Tensor xhat, Tensor invstd,
                    std::int64_t groups, Tensor weight_grad, Tensor bias_grad, Tensor means) {
    constexpr const char* op = "fastgan::penalty_norm_gradients_";
    const NormShape shape = norm_shape(op, "grad", grad, groups);
    if (tangent) {
        require_map(op, "tangent", *tangent, grad, shape);
    }
    require_map(op, "xhat", xhat, grad, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    require_vector(op, "weight_grad", weight_grad, shape.samples * shape.channels, shape);
    require_vector(op, "bias_grad", bias_grad, shape.samples * shape.channels, shape);
    require_vector(op, "means", means, 2 * shape.samples * groups, shape);
    on_device_of<Device>(grad, [&](Device device) {
        kernels::norm_gradients(device, shape, data_of(grad), data_of(tangent), data_of(xhat),
                                data_of(invstd), written(weight_grad), written(bias_grad),
                                written(means));
    });
}

FASTGAN_IMPLEMENT(Device, library) {
    library.impl("penalty_mix_", TORCH_BOX(&mix<Device>));
    library.impl("penalty_tangent_", TORCH_BOX(&tangent<Device>));
    library.impl("penalty_norm_forward_", TORCH_BOX(&norm_forward<Device>));
    library.impl("penalty_norm_project_", TORCH_BOX(&norm_project<Device>));
    library.impl("penalty_norm_curvature_", TORCH_BOX(&norm_curvature<Device>));
    library.impl("penalty_norm_gradients_", TORCH_BOX(&norm_gradients<Device>));
}

}  // namespace

}  // namespace fastgan
