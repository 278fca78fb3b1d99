// csrc/cuda/adversarial_loss.cu, for the host harness.
#include "adversarial_loss.h"

#include "program.h"

namespace {

fastgan::ScoreBatch batch(const fastgan_host::Request& request, const char* name, bool as_real) {
    if (!request.has_tensor(name)) {
        return {nullptr, -1, as_real};
    }
    const auto scores = request.tensor(name);
    return {scores.data, scores.numel, as_real};
}

fastgan::AdversarialLoss loss_of(const fastgan_host::Request& request) {
    return static_cast<fastgan::AdversarialLoss>(request.integer("loss"));
}

}  // namespace

FASTGAN_HOST_ENTRY(adversarial_loss) {
    fastgan::cuda::adversarial_loss(
        request.tensor("real").type, loss_of(request), batch(request, "real", true),
        batch(request, "fake", false), request.integer("squash") != 0,
        request.tensor("shown").data, request.tensor("value").data, request.stream());
}

FASTGAN_HOST_ENTRY(adversarial_gradients) {
    fastgan::cuda::adversarial_gradients(
        request.tensor("real").type, loss_of(request), batch(request, "real", true),
        batch(request, "fake", false), request.tensor("grad_output").data,
        request.number("scale"), request.tensor("grad_real").data,
        request.has_tensor("grad_fake") ? request.tensor("grad_fake").data : nullptr,
        request.stream());
}
