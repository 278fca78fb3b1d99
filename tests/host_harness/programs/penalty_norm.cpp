// csrc/cuda/penalty_norm.cu, for the host harness. Maps are (N, C, positions).
#include "penalty_norm.h"

#include "program.h"

namespace {

fastgan::NormShape shape_of(const fastgan_host::Request& request,
                            const fastgan_host::Tensor& maps) {
    const bool channels_last = maps.strides[1] == 1 && maps.sizes[1] > 1;
    return {maps.sizes[0], maps.sizes[1], maps.sizes[2], request.integer("groups"), channels_last,
            maps.type};
}

void* data_of(const fastgan_host::Request& request, const char* name) {
    return request.has_tensor(name) ? request.tensor(name).data : nullptr;
}

}  // namespace

FASTGAN_HOST_ENTRY(norm_forward) {
    const auto input = request.tensor("input");
    fastgan::cuda::norm_forward(shape_of(request, input), input.data, data_of(request, "weight"),
                                data_of(request, "bias"), request.number("eps"),
                                request.tensor("xhat").data, request.tensor("invstd").data,
                                request.tensor("output").data, request.stream());
}

FASTGAN_HOST_ENTRY(norm_project) {
    const auto grad = request.tensor("grad");
    fastgan::cuda::norm_project(shape_of(request, grad), grad.data, request.tensor("xhat").data,
                                request.tensor("invstd").data, data_of(request, "weight"),
                                request.integer("is_tangent") != 0, request.tensor("output").data,
                                request.stream());
}

FASTGAN_HOST_ENTRY(norm_curvature) {
    const auto grad = request.tensor("grad");
    fastgan::cuda::norm_curvature(shape_of(request, grad), grad.data,
                                  request.tensor("tangent").data, request.tensor("xhat").data,
                                  request.tensor("invstd").data, data_of(request, "weight"),
                                  request.tensor("output").data, request.stream());
}

FASTGAN_HOST_ENTRY(norm_gradients) {
    const auto grad = request.tensor("grad");
    fastgan::cuda::norm_gradients(shape_of(request, grad), grad.data, data_of(request, "tangent"),
                                  request.tensor("xhat").data, request.tensor("invstd").data,
                                  request.tensor("weight_grad").data,
                                  request.tensor("bias_grad").data, request.tensor("means").data,
                                  request.stream());
}
