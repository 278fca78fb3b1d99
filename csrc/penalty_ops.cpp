// The gradient penalty's ops of torch.ops.fastgan: schemas, argument checks, registration. The
// formulas: math/penalty_points.h and math/penalty_norm.h. Like ops.cpp, only uses LibTorch's
// stable ABI. The ops write to output arguments and return nothing; an output may be the same
// tensor as an input.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "cpu/penalty_norm.h"
#include "cpu/penalty_points.h"
#include "math/float_pairs.h"
#include "op_arguments.h"

#if defined(FASTGAN_WITH_CUDA)
#include "cuda/penalty_norm.h"
#include "cuda/penalty_points.h"
#endif

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// --- Tensors -------------------------------------------------------------------------------------

void* written(const Tensor& tensor) {
    return tensor.mutable_data_ptr();
}

const void* read(const Tensor& tensor) {
    return tensor.const_data_ptr();
}

const void* read(const OptionalTensor& tensor) {
    return tensor ? tensor->const_data_ptr() : nullptr;
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

bool same_sizes(const Tensor& a, const Tensor& b) {
    const auto left = a.sizes();
    const auto right = b.sizes();
    return left.size() == right.size() && std::equal(left.begin(), left.end(), right.begin());
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
    std::int64_t expected = 1;
    const auto sizes = tensor.sizes();
    const auto strides = strides_of(tensor);
    for (int d = static_cast<int>(sizes.size()) - 1; d >= 0; --d) {
        if (sizes[d] != 1 && strides[d] != expected) {
            fail(op, ": ", argument, " is not contiguous");
        }
        expected *= sizes[d];
    }
}

// --- Points and tangents -------------------------------------------------------------------------

struct Mix {
    MixShape shape;
    FloatType from;
    FloatType to;
};

Mix mix_arguments(const Tensor& batch, const Tensor& real, const Tensor& fake, const Tensor& eps) {
    constexpr const char* op = "fastgan::penalty_mix_";
    require_dense_samples(op, "batch", batch);
    if (!same_sizes(real, fake) || real.dim() != batch.dim() || batch.size(0) != 3 * real.size(0) ||
        !std::equal(real.sizes().begin() + 1, real.sizes().end(), batch.sizes().begin() + 1)) {
        fail(op, ": batch has shape ", shape_text(batch), ", real ", shape_text(real), " and fake ",
             shape_text(fake), "; expected fake as real, and batch thrice as many");
    }
    Mix mix{{}, float_type(op, "real", real), float_type(op, "batch", batch)};
    if (float_type(op, "fake", fake) != mix.from || !is_float_pair(mix.from, mix.to)) {
        fail(op, ": real, fake and batch have dtypes ", dtype_name(dtype_code(real)), ", ",
             dtype_name(dtype_code(fake)), " and ", dtype_name(dtype_code(batch)),
             "; expected one for all, or float32 and a half");
    }
    require_numbers(op, "eps", eps, real.size(0), arithmetic(mix.from));
    MixShape& shape = mix.shape;
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
    return mix;
}

void mix_on_cpu(Tensor batch, Tensor real, Tensor fake, Tensor eps) {
    const Mix mix = mix_arguments(batch, real, fake, eps);
    std::vector<double> shares(static_cast<std::size_t>(mix.shape.samples));
    for (std::size_t n = 0; n < shares.size(); ++n) {
        shares[n] = mix.from == FloatType::float64 ? static_cast<const double*>(read(eps))[n]
                                                   : static_cast<const float*>(read(eps))[n];
    }
    cpu::mix(mix.shape, mix.from, mix.to, read(real), read(fake), shares.data(), written(batch));
}

struct TangentArguments {
    FloatType from;
    FloatType to;
    PenaltySettings settings;
};

TangentArguments tangent_arguments(const Tensor& gradient, const Tensor& tangent,
                                   const Tensor& norms, const Tensor& value, double weight,
                                   double target, bool one_sided) {
    constexpr const char* op = "fastgan::penalty_tangent_";
    const TangentArguments arguments{float_type(op, "gradient", gradient),
                                     float_type(op, "tangent", tangent),
                                     {weight, target, one_sided}};
    require_dense_samples(op, "gradient", gradient);
    require_like(op, "tangent", tangent, gradient);
    if (!is_float_pair(arguments.from, arguments.to)) {
        fail(op, ": gradient and tangent have dtypes ", dtype_name(dtype_code(gradient)), " and ",
             dtype_name(dtype_code(tangent)), "; expected the same, or float32 and a half");
    }
    if (gradient.size(0) == 0) {
        fail(op, ": gradient has no samples");
    }
    require_numbers(op, "norms", norms, gradient.size(0), arithmetic(arguments.from));
    require_numbers(op, "value", value, 1, arithmetic(arguments.from));
    return arguments;
}

void tangent_on_cpu(Tensor gradient, Tensor tangent, Tensor norms, Tensor value, double weight,
                    double target, bool one_sided) {
    const TangentArguments arguments =
        tangent_arguments(gradient, tangent, norms, value, weight, target, one_sided);
    cpu::penalty_tangent(arguments.settings, gradient.size(0), elements_per_sample(gradient),
                         arguments.from, arguments.to, read(gradient), written(tangent),
                         written(norms), written(value));
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

NormShape forward_arguments(const Tensor& input, const OptionalTensor& weight,
                            const OptionalTensor& bias, std::int64_t groups, const Tensor& xhat,
                            const Tensor& invstd, const Tensor& output) {
    constexpr const char* op = "fastgan::penalty_norm_forward_";
    const NormShape shape = norm_shape(op, "input", input, groups);
    require_vector(op, "weight", weight, shape.channels, shape);
    require_vector(op, "bias", bias, shape.channels, shape);
    require_map(op, "xhat", xhat, input, shape);
    require_map(op, "output", output, input, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    return shape;
}

NormShape project_arguments(const Tensor& grad, const Tensor& xhat, const Tensor& invstd,
                            const OptionalTensor& weight, std::int64_t groups,
                            const Tensor& output) {
    constexpr const char* op = "fastgan::penalty_norm_project_";
    const NormShape shape = norm_shape(op, "grad", grad, groups);
    require_map(op, "xhat", xhat, grad, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    require_vector(op, "weight", weight, shape.channels, shape);
    require_map(op, "output", output, grad, shape);
    return shape;
}

NormShape curvature_arguments(const Tensor& grad, const Tensor& tangent, const Tensor& xhat,
                              const Tensor& invstd, const OptionalTensor& weight,
                              std::int64_t groups, const Tensor& output) {
    constexpr const char* op = "fastgan::penalty_norm_curvature_";
    const NormShape shape = norm_shape(op, "grad", grad, groups);
    require_map(op, "tangent", tangent, grad, shape);
    require_map(op, "xhat", xhat, grad, shape);
    require_vector(op, "invstd", invstd, shape.samples * groups, shape);
    require_vector(op, "weight", weight, shape.channels, shape);
    require_map(op, "output", output, grad, shape);
    return shape;
}

NormShape gradients_arguments(const Tensor& grad, const OptionalTensor& tangent, const Tensor& xhat,
                              const Tensor& invstd, std::int64_t groups, const Tensor& weight_grad,
                              const Tensor& bias_grad, const Tensor& means) {
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
    return shape;
}

void norm_forward_on_cpu(Tensor input, OptionalTensor weight, OptionalTensor bias,
                         std::int64_t groups, double eps, Tensor xhat, Tensor invstd,
                         Tensor output) {
    const NormShape shape = forward_arguments(input, weight, bias, groups, xhat, invstd, output);
    cpu::norm_forward(shape, read(input), read(weight), read(bias), eps, written(xhat),
                      written(invstd), written(output));
}

void norm_project_on_cpu(Tensor grad, Tensor xhat, Tensor invstd, OptionalTensor weight,
                         std::int64_t groups, bool tangent, Tensor output) {
    const NormShape shape = project_arguments(grad, xhat, invstd, weight, groups, output);
    cpu::norm_project(shape, read(grad), read(xhat), read(invstd), read(weight), tangent,
                      written(output));
}

void norm_curvature_on_cpu(Tensor grad, Tensor tangent, Tensor xhat, Tensor invstd,
                           OptionalTensor weight, std::int64_t groups, Tensor output) {
    const NormShape shape =
        curvature_arguments(grad, tangent, xhat, invstd, weight, groups, output);
    cpu::norm_curvature(shape, read(grad), read(tangent), read(xhat), read(invstd), read(weight),
                        written(output));
}

void norm_gradients_on_cpu(Tensor grad, OptionalTensor tangent, Tensor xhat, Tensor invstd,
                           std::int64_t groups, Tensor weight_grad, Tensor bias_grad,
                           Tensor means) {
    const NormShape shape =
        gradients_arguments(grad, tangent, xhat, invstd, groups, weight_grad, bias_grad, means);
    cpu::norm_gradients(shape, read(grad), read(tangent), read(xhat), read(invstd),
                        written(weight_grad), written(bias_grad));
}

#if defined(FASTGAN_WITH_CUDA)

// Calls run(stream) on the tensor's device.
template <typename Run>
void on_device_of(const Tensor& tensor, const Run& run) {
    const std::int32_t device_index = tensor.get_device_index();
    const torch::stable::accelerator::DeviceGuard guard(device_index);
    run(current_cuda_stream(device_index));
}

void mix_on_cuda(Tensor batch, Tensor real, Tensor fake, Tensor eps) {
    const Mix mix = mix_arguments(batch, real, fake, eps);
    on_device_of(batch, [&](void* stream) {
        cuda::mix(mix.shape, mix.from, mix.to, read(real), read(fake), read(eps), written(batch),
                  stream);
    });
}

void tangent_on_cuda(Tensor gradient, Tensor tangent, Tensor norms, Tensor value, double weight,
                     double target, bool one_sided) {
    const TangentArguments arguments =
        tangent_arguments(gradient, tangent, norms, value, weight, target, one_sided);
    on_device_of(gradient, [&](void* stream) {
        cuda::penalty_tangent(arguments.settings, gradient.size(0), elements_per_sample(gradient),
                              arguments.from, arguments.to, read(gradient), written(tangent),
                              written(norms), written(value), stream);
    });
}

void norm_forward_on_cuda(Tensor input, OptionalTensor weight, OptionalTensor bias,
                          std::int64_t groups, double eps, Tensor xhat, Tensor invstd,
                          Tensor output) {
    const NormShape shape = forward_arguments(input, weight, bias, groups, xhat, invstd, output);
    on_device_of(input, [&](void* stream) {
        cuda::norm_forward(shape, read(input), read(weight), read(bias), eps, written(xhat),
                           written(invstd), written(output), stream);
    });
}

void norm_project_on_cuda(Tensor grad, Tensor xhat, Tensor invstd, OptionalTensor weight,
                          std::int64_t groups, bool tangent, Tensor output) {
    const NormShape shape = project_arguments(grad, xhat, invstd, weight, groups, output);
    on_device_of(grad, [&](void* stream) {
        cuda::norm_project(shape, read(grad), read(xhat), read(invstd), read(weight), tangent,
                           written(output), stream);
    });
}

void norm_curvature_on_cuda(Tensor grad, Tensor tangent, Tensor xhat, Tensor invstd,
                            OptionalTensor weight, std::int64_t groups, Tensor output) {
    const NormShape shape =
        curvature_arguments(grad, tangent, xhat, invstd, weight, groups, output);
    on_device_of(grad, [&](void* stream) {
        cuda::norm_curvature(shape, read(grad), read(tangent), read(xhat), read(invstd),
                             read(weight), written(output), stream);
    });
}

void norm_gradients_on_cuda(Tensor grad, OptionalTensor tangent, Tensor xhat, Tensor invstd,
                            std::int64_t groups, Tensor weight_grad, Tensor bias_grad,
                            Tensor means) {
    const NormShape shape =
        gradients_arguments(grad, tangent, xhat, invstd, groups, weight_grad, bias_grad, means);
    on_device_of(grad, [&](void* stream) {
        cuda::norm_gradients(shape, read(grad), read(tangent), read(xhat), read(invstd),
                             written(weight_grad), written(bias_grad), written(means), stream);
    });
}

#endif

}  // namespace

}  // namespace fastgan

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, library) {
    library.impl("penalty_mix_", TORCH_BOX(&fastgan::mix_on_cpu));
    library.impl("penalty_tangent_", TORCH_BOX(&fastgan::tangent_on_cpu));
    library.impl("penalty_norm_forward_", TORCH_BOX(&fastgan::norm_forward_on_cpu));
    library.impl("penalty_norm_project_", TORCH_BOX(&fastgan::norm_project_on_cpu));
    library.impl("penalty_norm_curvature_", TORCH_BOX(&fastgan::norm_curvature_on_cpu));
    library.impl("penalty_norm_gradients_", TORCH_BOX(&fastgan::norm_gradients_on_cpu));
}

#if defined(FASTGAN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastgan, CUDA, library) {
    library.impl("penalty_mix_", TORCH_BOX(&fastgan::mix_on_cuda));
    library.impl("penalty_tangent_", TORCH_BOX(&fastgan::tangent_on_cuda));
    library.impl("penalty_norm_forward_", TORCH_BOX(&fastgan::norm_forward_on_cuda));
    library.impl("penalty_norm_project_", TORCH_BOX(&fastgan::norm_project_on_cuda));
    library.impl("penalty_norm_curvature_", TORCH_BOX(&fastgan::norm_curvature_on_cuda));
    library.impl("penalty_norm_gradients_", TORCH_BOX(&fastgan::norm_gradients_on_cuda));
}
#endif
