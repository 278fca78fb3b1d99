// The adversarial losses' ops of torch.ops.fastgan: argument checks, registration. The formulas:
// math/adversarial_loss.h. Like ops.cpp, only uses LibTorch's stable ABI.

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/adversarial_loss.h"
#include "op_arguments.h"

#if defined(FASTGAN_WITH_CUDA)
#include "cuda/adversarial_loss.h"
#endif

namespace fastgan {

namespace {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

struct ScoreArguments {
    FloatType type;
    AdversarialLoss loss;
    Tensor real;  // dense
    OptionalTensor fake;

    ScoreBatch real_batch() const { return {real.const_data_ptr(), real.numel(), true}; }
    ScoreBatch fake_batch() const {
        return fake ? ScoreBatch{fake->const_data_ptr(), fake->numel(), false}
                    : ScoreBatch{nullptr, -1, false};
    }
};

ScoreArguments score_arguments(const char* op, const Tensor& real, const OptionalTensor& fake,
                               std::int64_t loss) {
    if (loss < 0 || loss >= kAdversarialLosses) {
        fail(op, ": loss is ", loss, "; expected 0 to ", kAdversarialLosses - 1);
    }
    const FloatType type = float_type(op, "real", real);
    if (fake && (dtype_code(*fake) != dtype_code(real) || fake->device() != real.device())) {
        fail(op, ": real and fake have dtypes ", dtype_name(dtype_code(real)), " and ",
             dtype_name(dtype_code(*fake)), "; expected one dtype, on one device");
    }
    return {type, static_cast<AdversarialLoss>(loss), packed(real),
            fake ? OptionalTensor(packed(*fake)) : std::nullopt};
}

std::int32_t arithmetic_dtype(FloatType type) {
    return type == FloatType::float64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// Contiguous, of the same shape and dtype.
Tensor empty_like_scores(const Tensor& scores) {
    std::vector<std::int64_t> strides(scores.sizes().size(), 1);
    for (std::size_t d = strides.size(); d-- > 1;) {
        const std::int64_t size = scores.size(static_cast<std::int64_t>(d));
        strides[d - 1] = strides[d] * std::max<std::int64_t>(size, 1);
    }
    return empty_strided(scores.sizes(), strides, dtype_code(scores), scores);
}

struct OnCpu {
    template <typename Call>
    static void run(const Tensor&, const Call& call) {
        call(OnCpu());
    }
    void loss(const ScoreArguments& given, bool squash, void* shown, void* value) const {
        cpu::adversarial_loss(given.type, given.loss, given.real_batch(), given.fake_batch(),
                              squash, shown, value);
    }
    void gradients(const ScoreArguments& given, const void* grad_output, double scale,
                   void* grad_real, void* grad_fake) const {
        cpu::adversarial_gradient(given.type, given.loss, given.real_batch(), grad_output, scale,
                                  grad_real);
        if (given.fake) {
            cpu::adversarial_gradient(given.type, given.loss, given.fake_batch(), grad_output,
                                      scale, grad_fake);
        }
    }
};

#if defined(FASTGAN_WITH_CUDA)
struct OnCuda {
    template <typename Call>
    static void run(const Tensor& first, const Call& call) {
        const std::int32_t device_index = first.get_device_index();
        const torch::stable::accelerator::DeviceGuard guard(device_index);
        call(OnCuda{current_cuda_stream(device_index)});
    }
    void loss(const ScoreArguments& given, bool squash, void* shown, void* value) const {
        cuda::adversarial_loss(given.type, given.loss, given.real_batch(), given.fake_batch(),
                               squash, shown, value, stream);
    }
    void gradients(const ScoreArguments& given, const void* grad_output, double scale,
                   void* grad_real, void* grad_fake) const {
        cuda::adversarial_gradients(given.type, given.loss, given.real_batch(), given.fake_batch(),
                                    grad_output, scale, grad_real, grad_fake, stream);
    }
    void* stream;
};
#endif

template <typename Device>
std::tuple<Tensor, Tensor> adversarial_loss(const Tensor& real, const OptionalTensor& fake,
                                            std::int64_t loss, bool squash) {
    const ScoreArguments given = score_arguments("fastgan::adversarial_loss", real, fake, loss);
    const std::int32_t dtype = arithmetic_dtype(given.type);
    Tensor shown = empty_strided({3}, {1}, dtype, real);
    Tensor value = empty_strided({}, {}, dtype, real);
    Device::run(real, [&](const Device& device) {
        device.loss(given, squash, shown.mutable_data_ptr(), value.mutable_data_ptr());
    });
    return {shown, value};
}

template <typename Device>
std::tuple<Tensor, Tensor> adversarial_loss_gradient(const Tensor& real, const OptionalTensor& fake,
                                                     const OptionalTensor& grad_output,
                                                     std::int64_t loss, double scale) {
    constexpr const char* op = "fastgan::adversarial_loss_gradient";
    const ScoreArguments given = score_arguments(op, real, fake, loss);
    if (grad_output && (grad_output->numel() != 1 ||
                        dtype_code(*grad_output) != arithmetic_dtype(given.type) ||
                        grad_output->device() != real.device())) {
        fail(op, ": grad_output has shape ", shape_text(*grad_output), " and dtype ",
             dtype_name(dtype_code(*grad_output)), "; expected one number of the loss's dtype");
    }
    const void* const factor = grad_output ? grad_output->const_data_ptr() : nullptr;
    Tensor grad_real = empty_like_scores(real);
    Tensor grad_fake =
        fake ? empty_like_scores(*fake) : empty_strided({0}, {1}, dtype_code(real), real);
    Device::run(real, [&](const Device& device) {
        device.gradients(given, factor, scale, grad_real.mutable_data_ptr(),
                         grad_fake.mutable_data_ptr());
    });
    return {grad_real, grad_fake};
}

}  // namespace

}  // namespace fastgan

STABLE_TORCH_LIBRARY_IMPL(fastgan, CPU, library) {
    library.impl("adversarial_loss", TORCH_BOX(&fastgan::adversarial_loss<fastgan::OnCpu>));
    library.impl("adversarial_loss_gradient",
                 TORCH_BOX(&fastgan::adversarial_loss_gradient<fastgan::OnCpu>));
}

#if defined(FASTGAN_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(fastgan, CUDA, library) {
    library.impl("adversarial_loss", TORCH_BOX(&fastgan::adversarial_loss<fastgan::OnCuda>));
    library.impl("adversarial_loss_gradient",
                 TORCH_BOX(&fastgan::adversarial_loss_gradient<fastgan::OnCuda>));
}
#endif
