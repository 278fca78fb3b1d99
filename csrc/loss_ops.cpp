// The adversarial losses' ops of torch.ops.fastgan: argument checks, registration. The formulas:
// math/adversarial_loss.h. Like ops.cpp, only uses LibTorch's stable ABI.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "adversarial_loss.h"
#include "op_arguments.h"

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

template <typename Device>
std::tuple<Tensor, Tensor> adversarial_loss(const Tensor& real, const OptionalTensor& fake,
                                            std::int64_t loss, bool squash) {
    const ScoreArguments given = score_arguments("fastgan::adversarial_loss", real, fake, loss);
    const std::int32_t dtype = arithmetic_dtype(given.type);
    Tensor shown = empty_strided({3}, {1}, dtype, real);
    Tensor value = empty_strided({}, {}, dtype, real);
    on_device_of<Device>(real, [&](Device device) {
        kernels::adversarial_loss(device, given.type, given.loss, given.real_batch(),
                                  given.fake_batch(), squash, shown.mutable_data_ptr(),
                                  value.mutable_data_ptr());
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
    Tensor grad_real = empty_contiguous(real);
    Tensor grad_fake =
        fake ? empty_contiguous(*fake) : empty_strided({0}, {1}, dtype_code(real), real);
    on_device_of<Device>(real, [&](Device device) {
        kernels::adversarial_gradients(device, given.type, given.loss, given.real_batch(),
                                       given.fake_batch(), data_of(grad_output), scale,
                                       grad_real.mutable_data_ptr(), grad_fake.mutable_data_ptr());
    });
    return {grad_real, grad_fake};
}

FASTGAN_IMPLEMENT(Device, library) {
    library.impl("adversarial_loss", TORCH_BOX(&adversarial_loss<Device>));
    library.impl("adversarial_loss_gradient", TORCH_BOX(&adversarial_loss_gradient<Device>));
}

}  // namespace

}  // namespace fastgan
