// csrc/cuda/clip.cu, for the host harness.
#include "cuda/clip.h"

#include "program.h"

FASTGAN_HOST_ENTRY(clip) {
    fastgan::cuda::clip(request.tensor("values"),
                        {request.number("lower"), request.number("upper")}, request.stream());
}
