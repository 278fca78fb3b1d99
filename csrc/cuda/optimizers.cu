// The optimisers on CUDA devices: csrc/math/optimizers.h over the chunk table.
#include "../optimizers.h"

#include "../math/float_pairs.h"
#include "multi_tensor.h"

namespace fastgan::cuda {

namespace {

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

void count_all_steps(const MultiTensor& tensors, const StepSettings& settings, void* stream) {
    for (std::size_t next = 0; next < tensors.items.size();) {
        StepList list;
        while (next < tensors.items.size() && list.size < StepList::kCapacity) {
            list.steps[list.size++] = tensors.items[next++].step;
        }
        launch("count_steps", count_steps, 1, kThreads, 0, stream, list, settings);
    }
}

// Computed by one thread for its whole block.
template <typename Rule>
struct BlockScalars {
    Rule rule;
    CommonScalars common;
};

// Thread 0's work, before the caller's barrier. For rules that read the step, count_steps has
// counted it; otherwise the tensor's first block counts it here.
template <typename Rule, typename Optimizer>
__device__ __forceinline__ void prepare(BlockScalars<Rule>& scalars, const Optimizer& optimizer,
                                        const StepSettings& settings, const ScalarReference& step,
                                        bool counts) {
    double number = 0;
    if constexpr (Optimizer::kReadsStep) {
        number = step.read();
    } else if (counts) {
        step.write(step.read() + 1);
    }
    scalars.rule = Rule::make(optimizer.scalars(settings.current_lr(), number));
    scalars.common = common_scalars(settings);
}

template <typename T, typename Rule, typename Optimizer>
__global__ void __launch_bounds__(kThreads)
    step_dense(const __grid_constant__ ChunkTable table,
               const __grid_constant__ Optimizer optimizer,
               const __grid_constant__ StepSettings settings) {
    if (settings.skipped()) {
        return;
    }
    const Chunk chunk = find_chunk(table, blockIdx.x, kChunkElements<T>);
    const ChunkTableEntry& entry = table.entries[chunk.entry];
    __shared__ BlockScalars<Rule> scalars;
    if (threadIdx.x == 0) {
        prepare(scalars, optimizer, settings, entry.step, chunk.begin == 0);
    }
    __syncthreads();
    run_chunk<T>(entry, chunk, OptimizerStep<T, Rule, Scaling::asked>(scalars.rule, scalars.common),
                 settings.shadow_type);
}

template <typename T, typename Rule, typename Optimizer>
__global__ void __launch_bounds__(kThreads)
    step_strided(const __grid_constant__ MultiTensorItem item,
                 const __grid_constant__ JointLayout layout,
                 const __grid_constant__ Optimizer optimizer,
                 const __grid_constant__ StepSettings settings) {
    if (settings.skipped()) {
        return;
    }
    __shared__ BlockScalars<Rule> scalars;
    if (threadIdx.x == 0) {
        prepare(scalars, optimizer, settings, item.step, blockIdx.x == 0);
    }
    __syncthreads();
    run_strided<T>(item, layout,
                   OptimizerStep<T, Rule, Scaling::asked>(scalars.rule, scalars.common),
                   settings.shadow_type);
}

template <typename T, typename Rule, typename Optimizer>
void launch_step(const MultiTensor& tensors, const Optimizer& optimizer,
                 const StepSettings& settings, void* stream) {
    for_each_launch(
        tensors, settings.shadow_type, kChunkElements<T>,
        [&](const ChunkTable& table) {
            launch("step_dense", step_dense<T, Rule, Optimizer>, blocks_for(table.chunks, 1),
                   kThreads, 0, stream, table, optimizer, settings);
        },
        [&](const MultiTensorItem& item, const JointLayout& layout) {
            launch("step_strided", step_strided<T, Rule, Optimizer>,
                   blocks_for(layout.numel, kThreads), kThreads, 0, stream, item, layout, optimizer,
                   settings);
        });
}

template <typename Optimizer>
void step(const MultiTensor& tensors, const Optimizer& optimizer, const StepSettings& settings,
          void* stream) {
    if constexpr (Optimizer::kReadsStep) {
        count_all_steps(tensors, settings, stream);
    }
    optimizer.for_rule([&]<typename Kind>(Kind) {
        for_float_type(tensors.type, [&]<typename T>() {
            using Rule = typename Kind::template Rule<decltype(to_arithmetic(T{}))>;
            launch_step<T, Rule>(tensors, optimizer, settings, stream);
        });
    });
}

}  // namespace

#define FASTGAN_DEFINE_STEP(name, Optimizer)                                 \
    void name##_step(const MultiTensor& tensors, const Optimizer& optimizer, \
                     const StepSettings& settings, void* stream) {           \
        const Optimizer::Kernels& kernels = optimizer;                       \
        step(tensors, kernels, settings, stream);                            \
    }
FASTGAN_OPTIMIZERS(FASTGAN_DEFINE_STEP)

}  // namespace fastgan::cuda
