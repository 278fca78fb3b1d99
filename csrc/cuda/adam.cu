// Adam on CUDA devices: csrc/math/adam.h over the chunk table.
#include "../math/adam.h"

#include "multi_tensor.h"
#include "optimizers.h"

namespace fastgan::cuda {

namespace {

template <typename A>
using Plain = AdamRule<A, false>;
template <typename A>
using Amsgrad = AdamRule<A, true>;

// Pointers only, 4 KiB of them.
struct StepList {
    static constexpr int kCapacity = 240;

    int size = 0;
    ScalarReference steps[kCapacity];
};

// A thread owns one tensor's step count. A separate launch before the others, because all of their
// blocks read the count.
__global__ void __launch_bounds__(kThreads)
    count_steps(const __grid_constant__ StepList list,
                const __grid_constant__ StepSettings settings) {
    const int index = static_cast<int>(threadIdx.x);
    if (index < list.size && !settings.skipped()) {
        const ScalarReference& step = list.steps[index];
        step.write(step.read() + 1);
    }
}

}  // namespace

void adam_step(const MultiTensor& tensors, const AdamSettings& adam, const StepSettings& settings,
               void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    for (std::size_t next = 0; next < tensors.items.size();) {
        StepList list;
        while (next < tensors.items.size() && list.size < StepList::kCapacity) {
            list.steps[list.size++] = tensors.items[next++].step;
        }
        launch("count_steps", count_steps, 1, kThreads, 0, cuda_stream, list, settings);
    }
    if (adam.amsgrad) {
        launch_step_of_type<Amsgrad>(tensors, adam, settings, cuda_stream);
    } else {
        launch_step_of_type<Plain>(tensors, adam, settings, cuda_stream);
    }
}

}  // namespace fastgan::cuda
