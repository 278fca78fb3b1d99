// csrc/cuda/adam.cu, for the host harness.
#include "multi_tensor_request.h"

FASTGAN_HOST_ENTRY(adam) {
    fastgan::cuda::adam_step(fastgan_host::multi_tensor(request),
                             {request.number("beta1"), request.number("beta2"),
                              request.number("eps"), request.integer("amsgrad") != 0},
                             fastgan_host::step_settings(request), request.stream());
}
