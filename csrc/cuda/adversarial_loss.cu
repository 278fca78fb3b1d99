// The adversarial losses on CUDA devices: loss and means in one launch, both gradients in another.
#include "../adversarial_loss.h"

#include "../math/compensated_sum.h"
#include "../math/float_pairs.h"
#include "block_sum.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreads = 256;

// In every thread: the mean of what `of` makes of each score. A thread's sum is compensated, then
// the block's threads are added.
template <typename T, typename A, typename Of>
__device__ __forceinline__ A mean_of(const ScoreBatch& batch, A* shared, const Of& of) {
    CompensatedSum<A> sum{};
    for (std::int64_t i = threadIdx.x; i < batch.count; i += kThreads) {
        sum += of(A(to_arithmetic(static_cast<const T*>(batch.scores)[i])));
    }
    return quick_quotient(block_sum<kThreads>(sum.total(), shared), static_cast<A>(batch.count));
}

// A single block: a batch has few scores. Terms and scores are summed one after the other, since
// double's functions leave few registers.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    adversarial_means(AdversarialLoss loss, const __grid_constant__ ScoreBatch real,
                      const __grid_constant__ ScoreBatch fake, bool squash, A* shown, A* value) {
    __shared__ A shared[kThreads];
    A terms = 0;
    A means[2] = {};
    for (int side = 0; side < 2; ++side) {
        const ScoreBatch& batch = side == 0 ? real : fake;
        if (batch.count >= 0) {
            terms += mean_of<T>(batch, shared, [&](A score) {
                return score_term(loss, score, batch.as_real);
            });
            means[side] =
                mean_of<T>(batch, shared, [&](A score) { return shown_score(score, squash); });
        }
    }
    if (threadIdx.x == 0) {
        *value = terms;
        shown[0] = means[0];
        shown[1] = means[1];
        shown[2] = means[0] - means[1];
    }
}

// A thread owns one score, counting the real ones first.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    score_gradients(AdversarialLoss loss, const __grid_constant__ ScoreBatch real,
                    const __grid_constant__ ScoreBatch fake, const A* grad_output, A scale,
                    T* grad_real, T* grad_fake) {
    std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const bool is_real = index < real.count;
    index -= is_real ? 0 : real.count;
    const std::int64_t count = is_real ? real.count : fake.count;
    if (index >= count) {
        return;
    }
    const T* const scores = static_cast<const T*>(is_real ? real.scores : fake.scores);
    T* const gradient = is_real ? grad_real : grad_fake;
    const A grad = grad_output == nullptr ? A(1) : *grad_output;
    const A factor = quick_quotient(grad * scale, static_cast<A>(count));
    const bool as_real = is_real ? real.as_real : fake.as_real;
    gradient[index] = from_arithmetic<T>(
        score_gradient(loss, A(to_arithmetic(scores[index])), as_real, factor));
}

}  // namespace

void adversarial_loss(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                      const ScoreBatch& fake, bool squash, void* shown, void* value, void* stream) {
    for_float_type(type, [&]<typename T>() {
        using A = decltype(to_arithmetic(T{}));
        launch("adversarial_means", adversarial_means<T, A>, 1, kThreads, 0, stream, loss, real,
               fake, squash, shown, value);
    });
}

void adversarial_gradients(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                           const ScoreBatch& fake, const void* grad_output, double scale,
                           void* grad_real, void* grad_fake, void* stream) {
    const std::int64_t fakes = fake.count < 0 ? 0 : fake.count;
    const unsigned blocks = blocks_for(real.count + fakes, kThreads);
    for_float_type(type, [&]<typename T>() {
        using A = decltype(to_arithmetic(T{}));
        launch("score_gradients", score_gradients<T, A>, blocks, kThreads, 0, stream, loss, real,
               fake, grad_output, scale, grad_real, grad_fake);
    });
}

}  // namespace fastgan::cuda
