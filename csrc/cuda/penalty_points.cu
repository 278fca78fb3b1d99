// The gradient penalty's points, norms and tangents on CUDA devices: each byte is read once and,
// for the tangents, again from the cache.
#include "../penalty_points.h"

#include "../math/compensated_sum.h"
#include "../math/float_pairs.h"
#include "block_sum.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

// A thread's sum is compensated, then the block's threads are added: for any number of terms t the
// error is at most 12 u sum(|t|).
constexpr int kThreads = 256;

// A thread owns one element of one sample, and writes it to all three thirds of batch.
template <typename From, typename To, typename A>
__global__ void __launch_bounds__(kThreads)
    mix_elements(const __grid_constant__ MixShape shape, const From* real, const From* fake,
                 const A* eps, To* batch) {
    const std::int64_t third = shape.samples * shape.elements;
    const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index >= third) {
        return;
    }
    const std::int64_t sample = index / shape.elements;
    const MixShape::Offsets at = shape.offsets(sample, index - sample * shape.elements);
    const A r = to_arithmetic(real[at.real]);
    const A f = to_arithmetic(fake[at.fake]);
    batch[index] = from_arithmetic<To>(f);
    batch[third + index] = from_arithmetic<To>(r);
    batch[2 * third + index] = from_arithmetic<To>(interpolated(r, f, eps[sample]));
}

// A block owns one sample: gradient and tangent (samples, elements).
template <typename From, typename To, typename A>
__global__ void __launch_bounds__(kThreads)
    sample_tangents(const __grid_constant__ PenaltySettings settings, std::int64_t elements,
                    const From* gradient, To* tangent, A* norms) {
    __shared__ A shared[kThreads];
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * elements;
    CompensatedSum<A> squares{};
    for (std::int64_t i = threadIdx.x; i < elements; i += kThreads) {
        const A value = to_arithmetic(gradient[first + i]);
        squares += value * value;
    }
    const A norm = square_root(block_sum<kThreads>(squares.total(), shared));
    const A factor = penalty_factor(settings, norm);
    for (std::int64_t i = threadIdx.x; i < elements; i += kThreads) {
        tangent[first + i] = from_arithmetic<To>(to_arithmetic(gradient[first + i]) * factor);
    }
    if (threadIdx.x == 0) {
        norms[blockIdx.x] = norm;
    }
}

// A single block: value = weight * mean excess^2.
template <typename A>
__global__ void __launch_bounds__(kThreads)
    penalty_value(const __grid_constant__ PenaltySettings settings, std::int64_t samples,
                  const A* norms, A* value) {
    __shared__ A shared[kThreads];
    CompensatedSum<A> sum{};
    for (std::int64_t n = threadIdx.x; n < samples; n += kThreads) {
        const A excess = penalty_excess(settings, norms[n]);
        sum += excess * excess;
    }
    const A total = block_sum<kThreads>(sum.total(), shared);
    if (threadIdx.x == 0) {
        *value = static_cast<A>(settings.weight) * total / static_cast<A>(samples);
    }
}

}  // namespace

void mix(const MixShape& shape, FloatType from, FloatType to, const void* real, const void* fake,
         const void* eps, void* batch, void* stream) {
    const unsigned blocks = blocks_for(shape.samples * shape.elements, kThreads);
    for_float_pair(from, to, [&]<typename From, typename To>() {
        using A = decltype(to_arithmetic(From{}));
        launch("mix_elements", mix_elements<From, To, A>, blocks, kThreads, 0, stream, shape, real,
               fake, eps, batch);
    });
}

void penalty_tangent(const PenaltySettings& settings, std::int64_t samples, std::int64_t elements,
                     FloatType from, FloatType to, const void* gradient, void* tangent, void* norms,
                     void* value, void* stream) {
    for_float_pair(from, to, [&]<typename From, typename To>() {
        using A = decltype(to_arithmetic(From{}));
        launch("sample_tangents", sample_tangents<From, To, A>, blocks_for(samples, 1), kThreads, 0,
               stream, settings, elements, gradient, tangent, norms);
        launch("penalty_value", penalty_value<A>, 1, kThreads, 0, stream, settings, samples, norms,
               value);
    });
}

}  // namespace fastgan::cuda
