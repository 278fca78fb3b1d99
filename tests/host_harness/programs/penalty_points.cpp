// csrc/cuda/penalty_points.cu, for the host harness.
#include "penalty_points.h"

#include "program.h"

// real and fake are (N, rows, columns), with any strides; batch is (3 N, rows * columns).
FASTGAN_HOST_ENTRY(mix) {
    const auto batch = request.tensor("batch");
    const auto real = request.tensor("real");
    const auto fake = request.tensor("fake");
    fastgan::MixShape shape;
    shape.samples = real.sizes[0];
    shape.elements = real.sizes[1] * real.sizes[2];
    shape.dimensions = 2;
    for (int d = 0; d < 2; ++d) {
        shape.sizes[d] = real.sizes[2 - d];
        shape.real_strides[d] = real.strides[2 - d];
        shape.fake_strides[d] = fake.strides[2 - d];
    }
    shape.real_sample_stride = real.strides[0];
    shape.fake_sample_stride = fake.strides[0];
    fastgan::cuda::mix(shape, real.type, batch.type, real.data, fake.data,
                       request.tensor("eps").data, batch.data, request.stream());
}

FASTGAN_HOST_ENTRY(penalty_tangent) {
    const auto gradient = request.tensor("gradient");
    const auto tangent = request.tensor("tangent");
    fastgan::cuda::penalty_tangent(
        {request.number("weight"), request.number("target"), request.integer("one_sided") != 0},
        gradient.sizes[0], gradient.sizes[1], gradient.type, tangent.type, gradient.data,
        tangent.data, request.tensor("norms").data, request.tensor("value").data,
        request.stream());
}
