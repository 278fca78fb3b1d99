// csrc/cuda/norm_act_gradient.cu, for the host harness.
#include "batch_norm.h"

#include "channel_request.h"

using fastgan_host::data_of;

// All three stages; the gradient's place is `result`, or grad itself.
FASTGAN_HOST_ENTRY(norm_act_gradient) {
    const fastgan::NormAct norm = fastgan_host::norm_of(request);
    const fastgan::ChannelLayout& layout = norm.layout;
    fastgan::cuda::norm_act_gradient_sums(norm, data_of(request, "grad"), data_of(request, "input"),
                                          data_of(request, "invstd"), data_of(request, "grad_sum"),
                                          data_of(request, "grad_xhat_sum"), request.stream());
    fastgan::cuda::norm_act_gradient_finalize(
        {norm.type == fastgan::FloatType::float64,
         fastgan::tile_count(layout.values_per_channel(), layout.channels), layout.channels,
         data_of(request, "grad_sum"), data_of(request, "grad_xhat_sum"), norm.scale, norm.weight,
         data_of(request, "invstd"), request.integer("count")},
        {data_of(request, "slope"), data_of(request, "offset"), data_of(request, "grad_weight"),
         data_of(request, "grad_bias")},
        request.stream());
    fastgan::cuda::norm_act_gradient(
        norm, data_of(request, "grad"), data_of(request, "input"), data_of(request, "slope"),
        data_of(request, "offset"),
        request.has_tensor("result") ? data_of(request, "result") : data_of(request, "grad"),
        request.stream());
}

// The second stage alone.
FASTGAN_HOST_ENTRY(norm_act_gradient_finalize) {
    fastgan::cuda::norm_act_gradient_finalize(
        {request.tensor("grad_sum").type == fastgan::FloatType::float64, request.integer("tiles"),
         request.integer("channels"), data_of(request, "grad_sum"),
         data_of(request, "grad_xhat_sum"), data_of(request, "scale"), {},
         data_of(request, "invstd"), request.integer("count")},
        {data_of(request, "slope"), data_of(request, "offset"), data_of(request, "grad_weight"),
         data_of(request, "grad_bias")},
        request.stream());
}
