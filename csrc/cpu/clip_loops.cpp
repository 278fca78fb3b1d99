// Compiled once per instruction set: see instruction_sets.h.
#include "clip_loops.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

template <typename T>
void clip_typed_row(void* data, std::int64_t count, std::int64_t stride, ClipBounds bounds) {
    T* values = static_cast<T*>(data);
    const Clip<T> clip(bounds);
    if (stride == 1) {
        for (std::int64_t i = 0; i < count; ++i) {
            values[i] = clip(values[i]);
        }
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            values[i * stride] = clip(values[i * stride]);
        }
    }
}

}  // namespace

void clip_row(FloatType type, void* values, std::int64_t count, std::int64_t stride,
              ClipBounds bounds) {
    switch (type) {
        case FloatType::float64:
            return clip_typed_row<double>(values, count, stride, bounds);
        case FloatType::float32:
            return clip_typed_row<float>(values, count, stride, bounds);
        case FloatType::float16:
            return clip_typed_row<Half>(values, count, stride, bounds);
        case FloatType::bfloat16:
            return clip_typed_row<BFloat16>(values, count, stride, bounds);
    }
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
