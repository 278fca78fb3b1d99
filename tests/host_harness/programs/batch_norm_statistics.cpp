// csrc/cuda/batch_norm_statistics.cu, for the host harness.
#include "batch_norm.h"

#include "channel_request.h"

using fastgan_host::data_of;
using fastgan_host::vector_of;

FASTGAN_HOST_ENTRY(batch_norm_statistics) {
    const fastgan_host::Tensor input = request.tensor("input");
    const fastgan::ChannelLayout layout = fastgan_host::layout_of(request);
    fastgan::cuda::batch_norm_partials(input.type, layout, input.data, data_of(request, "count"),
                                       data_of(request, "mean"), data_of(request, "m2"),
                                       request.stream());
    fastgan::cuda::batch_norm_finalize(
        {input.type == fastgan::FloatType::float64,
         fastgan::tile_count(layout.values_per_channel(), layout.channels), layout.channels,
         data_of(request, "count"), data_of(request, "mean"), data_of(request, "m2")},
        {vector_of(request, "weight"), vector_of(request, "running_mean"),
         vector_of(request, "running_var"), request.number("momentum"), request.number("eps")},
        {data_of(request, "total_mean"), data_of(request, "invstd"), data_of(request, "scale")},
        request.stream());
}

// The first stage alone, of tensors too large to have.
FASTGAN_HOST_ENTRY(batch_norm_partials) {
    const fastgan_host::Tensor input = request.tensor("input");
    fastgan::cuda::batch_norm_partials(input.type, fastgan_host::layout_of(request), input.data,
                                       data_of(request, "count"), data_of(request, "mean"),
                                       data_of(request, "m2"), request.stream());
}

// The second stage alone.
FASTGAN_HOST_ENTRY(batch_norm_finalize) {
    fastgan::BatchCounters counters;
    if (request.has_tensor("counters")) {
        for (const fastgan_host::Tensor& counter : request.tensors("counters")) {
            counters.counters[counters.count++] = static_cast<std::int64_t*>(counter.data);
        }
    }
    fastgan::cuda::batch_norm_finalize(
        {request.tensor("mean").type == fastgan::FloatType::float64, request.integer("tiles"),
         request.integer("channels"), data_of(request, "count"), data_of(request, "mean"),
         data_of(request, "m2")},
        {vector_of(request, "weight"), vector_of(request, "running_mean"),
         vector_of(request, "running_var"), request.number("momentum"), request.number("eps"),
         vector_of(request, "bias"), vector_of(request, "bias_copy"), counters},
        {data_of(request, "total_mean"), data_of(request, "invstd"), data_of(request, "scale")},
        request.stream());
}
