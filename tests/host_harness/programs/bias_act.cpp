// csrc/cuda/bias_act.cu, for the host harness.
#include "bias_act.h"

#include "program.h"

namespace {

// x is (..., channels, inner), without gaps.
fastgan::BiasShape shape_of(const fastgan_host::Tensor& x, const fastgan_host::Request& request) {
    return {x.type, x.numel, request.integer("channels"), request.integer("inner")};
}

fastgan::BiasAct settings_of(const fastgan_host::Request& request) {
    return {static_cast<fastgan::StyleActivation>(request.integer("act")), request.number("alpha"),
            request.number("gain"), request.number("clamp")};
}

const void* optional(const fastgan_host::Request& request, const char* name) {
    return request.has_tensor(name) ? request.tensor(name).data : nullptr;
}

}  // namespace

FASTGAN_HOST_ENTRY(bias_act) {
    const auto x = request.tensor("x");
    fastgan::cuda::bias_act(
        shape_of(x, request), settings_of(request), optional(request, "b"), x.data,
        request.tensor("y").data,
        static_cast<std::uint8_t*>(const_cast<void*>(optional(request, "bits"))), request.stream());
}

FASTGAN_HOST_ENTRY(bias_act_gradient) {
    const auto grad = request.tensor("grad");
    fastgan::cuda::bias_act_gradient(
        shape_of(grad, request), settings_of(request), optional(request, "b"),
        static_cast<fastgan::Kept>(request.integer("keeps")), optional(request, "kept"), grad.data,
        request.tensor("grad_x").data, nullptr, request.stream());
}
