// csrc/cuda/clip_tensors.cu, for the host harness.
#include "multi_tensor_request.h"

FASTGAN_HOST_ENTRY(clip_tensors) {
    fastgan::cuda::clip_tensors(
        fastgan_host::multi_tensor(request), {request.number("lower"), request.number("upper")},
        fastgan_host::shadow_type(request), fastgan_host::optional_scalar(request, "found_inf"),
        request.stream());
}
