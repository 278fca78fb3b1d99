// clip_tensors_ on CUDA devices: many tensors and their shadows in one launch.
#include "../math/float_pairs.h"
#include "multi_tensor.h"
#include "../optimizers.h"

namespace fastgan::cuda {

namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    clip_dense_tensors(const __grid_constant__ ChunkTable table, ClipBounds bounds,
                       FloatType shadow_type, ScalarReference found_inf) {
    if (found_inf.present() && found_inf.read() != 0) {
        return;
    }
    const Chunk chunk = find_chunk(table, blockIdx.x, kChunkElements<T>);
    run_chunk<T>(table.entries[chunk.entry], chunk, ClipStep<T>(bounds), shadow_type);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    clip_strided_tensors(const __grid_constant__ MultiTensorItem item,
                         const __grid_constant__ JointLayout layout, ClipBounds bounds,
                         FloatType shadow_type, ScalarReference found_inf) {
    if (found_inf.present() && found_inf.read() != 0) {
        return;
    }
    run_strided<T>(item, layout, ClipStep<T>(bounds), shadow_type);
}

template <typename T>
void clip_typed(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                const ScalarReference& found_inf, void* stream) {
    for_each_launch(
        tensors, shadow_type, kChunkElements<T>,
        [&](const ChunkTable& table) {
            launch("clip_dense_tensors", clip_dense_tensors<T>, blocks_for(table.chunks, 1),
                   kThreads, 0, stream, table, bounds, shadow_type, found_inf);
        },
        [&](const MultiTensorItem& item, const JointLayout& layout) {
            launch("clip_strided_tensors", clip_strided_tensors<T>,
                   blocks_for(layout.numel, kThreads), kThreads, 0, stream, item, layout, bounds,
                   shadow_type, found_inf);
        });
}

}  // namespace

void clip_tensors(const MultiTensor& tensors, ClipBounds bounds, FloatType shadow_type,
                  const ScalarReference& found_inf, void* stream) {
    for_float_type(tensors.type, [&]<typename T>() {
        clip_typed<T>(tensors, bounds, shadow_type, found_inf, stream);
    });
}

}  // namespace fastgan::cuda
