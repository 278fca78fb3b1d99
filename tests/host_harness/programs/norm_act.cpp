// csrc/cuda/norm_act.cu, for the host harness.
#include "batch_norm.h"

#include "channel_request.h"

using fastgan_host::data_of;

FASTGAN_HOST_ENTRY(norm_act) {
    fastgan::cuda::norm_act(fastgan_host::norm_of(request), data_of(request, "input"),
                            data_of(request, "result"), request.stream());
}

FASTGAN_HOST_ENTRY(act_gradient) {
    const fastgan_host::Tensor grad = request.tensor("grad");
    fastgan::cuda::act_gradient(
        grad.type, grad.numel, grad.data, data_of(request, "output"),
        fastgan_host::activation_of(request), request.number("negative_slope"),
        request.has_tensor("result") ? data_of(request, "result") : grad.data, request.stream());
}
