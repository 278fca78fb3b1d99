// csrc/cuda/rmsprop.cu, for the host harness.
#include "multi_tensor_request.h"

FASTGAN_HOST_ENTRY(rmsprop) {
    fastgan::cuda::rmsprop_step(fastgan_host::multi_tensor(request),
                                {request.number("alpha"), request.number("eps"),
                                 request.number("momentum"), request.integer("centered") != 0},
                                fastgan_host::step_settings(request), request.stream());
}
