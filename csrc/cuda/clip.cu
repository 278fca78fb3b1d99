// clip_ on CUDA devices: bound by memory, so all that counts is reading and writing each byte once,
// sixteen at a time.
#include "clip.h"

#include "launch.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kVectorBytes = 16;
// Loads in flight per thread before the first store: hides the memory's latency.
constexpr int kVectorsPerThread = 4;

template <typename T>
struct alignas(kVectorBytes) Vector {
    static constexpr int kSize = kVectorBytes / sizeof(T);
    T elements[kSize];
};

// values: (count,), dense. The first `head` elements come before the first 16-byte boundary, then
// `vectors` whole vectors, then the rest.
// A thread owns kVectorsPerThread vectors, kThreads apart so that neighbours read neighbours; the
// first block's threads also own one element each of the head and of the tail.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    clip_dense(T* values, std::int64_t count, int head, std::int64_t vectors, ClipBounds bounds) {
    const Clip<T> clip(bounds);
    Vector<T>* const body = reinterpret_cast<Vector<T>*>(values + head);
    const std::int64_t first =
        static_cast<std::int64_t>(blockIdx.x) * (kThreads * kVectorsPerThread) + threadIdx.x;

    Vector<T> loaded[kVectorsPerThread];
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
        const std::int64_t index = first + v * kThreads;
        if (index < vectors) {
            loaded[v] = body[index];
        }
    }
#pragma unroll
    for (int v = 0; v < kVectorsPerThread; ++v) {
        const std::int64_t index = first + v * kThreads;
        if (index < vectors) {
#pragma unroll
            for (int e = 0; e < Vector<T>::kSize; ++e) {
                loaded[v].elements[e] = clip(loaded[v].elements[e]);
            }
            body[index] = loaded[v];
        }
    }

    if (blockIdx.x == 0) {
        const int thread = static_cast<int>(threadIdx.x);
        const std::int64_t tail_start = head + vectors * Vector<T>::kSize;
        if (thread < head) {
            values[thread] = clip(values[thread]);
        }
        if (tail_start + thread < count) {
            values[tail_start + thread] = clip(values[tail_start + thread]);
        }
    }
}

// A thread owns one element of a tensor that is not dense.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    clip_strided(T* values, const __grid_constant__ Layout layout, ClipBounds bounds) {
    const std::int64_t index = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    if (index < layout.numel) {
        T& value = values[layout.offset(index)];
        value = Clip<T>(bounds)(value);
    }
}

template <typename T>
void clip_typed(const TensorView& view, ClipBounds bounds, cudaStream_t stream) {
    T* const values = static_cast<T*>(view.data);
    const std::int64_t count = view.layout.numel;
    if (count == 0) {
        return;
    }
    if (!view.layout.is_dense()) {
        launch("clip_strided", clip_strided<T>, blocks_for(count, kThreads), kThreads, 0, stream,
               values, view.layout, bounds);
        return;
    }
    // A tensor starts at a multiple of its element's size, but a view can start within a vector.
    const std::int64_t misaligned = reinterpret_cast<std::uintptr_t>(values) % kVectorBytes;
    const std::int64_t before_boundary =
        misaligned == 0 ? 0 : (kVectorBytes - misaligned) / static_cast<std::int64_t>(sizeof(T));
    const int head = static_cast<int>(before_boundary < count ? before_boundary : count);
    const std::int64_t vectors = (count - head) / Vector<T>::kSize;
    // At least one block, for a head and a tail without a body between them.
    const unsigned blocks = vectors == 0 ? 1 : blocks_for(vectors, kThreads * kVectorsPerThread);
    launch("clip_dense", clip_dense<T>, blocks, kThreads, 0, stream, values, count, head, vectors,
           bounds);
}

}  // namespace

void clip(const TensorView& view, ClipBounds bounds, void* stream) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    switch (view.type) {
        case FloatType::float64:
            return clip_typed<double>(view, bounds, cuda_stream);
        case FloatType::float32:
            return clip_typed<float>(view, bounds, cuda_stream);
        case FloatType::float16:
            return clip_typed<Half>(view, bounds, cuda_stream);
        case FloatType::bfloat16:
            return clip_typed<BFloat16>(view, bounds, cuda_stream);
    }
}

}  // namespace fastgan::cuda
