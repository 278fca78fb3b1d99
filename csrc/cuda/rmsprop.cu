// RMSprop on CUDA devices: csrc/math/rmsprop.h over the chunk table.
#include "../math/rmsprop.h"

#include "multi_tensor.h"
#include "optimizers.h"

namespace fastgan::cuda {

namespace {

template <typename A>
using Plain = RmspropRule<A, false, false>;
template <typename A>
using Momentum = RmspropRule<A, true, false>;
template <typename A>
using Centered = RmspropRule<A, false, true>;
template <typename A>
using CenteredMomentum = RmspropRule<A, true, true>;

}  // namespace

void rmsprop_step(const MultiTensor& tensors, const RmspropSettings& rmsprop,
                  const StepSettings& settings, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    if (rmsprop.momentum > 0 && rmsprop.centered) {
        launch_step_of_type<CenteredMomentum>(tensors, rmsprop, settings, cuda_stream);
    } else if (rmsprop.momentum > 0) {
        launch_step_of_type<Momentum>(tensors, rmsprop, settings, cuda_stream);
    } else if (rmsprop.centered) {
        launch_step_of_type<Centered>(tensors, rmsprop, settings, cuda_stream);
    } else {
        launch_step_of_type<Plain>(tensors, rmsprop, settings, cuda_stream);
    }
}

}  // namespace fastgan::cuda
