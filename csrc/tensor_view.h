// A tensor for the kernels: a pointer, a type and a simplified layout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "math/float_types.h"

namespace fastgan {

// No tensor needs more: every remaining dimension has at least two elements, and 2^64 don't fit in
// memory.
inline constexpr int kMaxDimensions = 64;

// Sizes and strides in elements, fastest dimension (smallest stride) first. Dimensions of size one
// are dropped and adjacent ones merged if possible, so that contiguous, channels-last and
// transposed tensors all become one dimension of stride 1.
struct Layout {
    std::int64_t numel = 0;
    int dimensions = 0;
    std::int64_t sizes[kMaxDimensions] = {};
    std::int64_t strides[kMaxDimensions] = {};

    // Dense: contiguous memory with each element once.
    FASTGAN_INLINE bool is_dense() const {
        return dimensions == 0 || (dimensions == 1 && strides[0] == 1);
    }

    // The index-th element's offset in elements, counting the fastest dimension first.
    FASTGAN_INLINE std::int64_t offset(std::int64_t index) const {
        std::int64_t result = 0;
        for (int d = 0; d < dimensions; ++d) {
            const std::int64_t remaining = index / sizes[d];
            result += (index - remaining * sizes[d]) * strides[d];
            index = remaining;
        }
        return result;
    }
};

struct TensorView {
    void* data = nullptr;
    FloatType type = FloatType::float32;
    Layout layout;
};

// Whether a stride of zero makes several indices share an element, as after Tensor.expand.
inline bool is_expanded(const std::int64_t* sizes, const std::int64_t* strides, int dimensions) {
    for (int d = 0; d < dimensions; ++d) {
        if (sizes[d] > 1 && strides[d] == 0) {
            return true;
        }
    }
    return false;
}

// Needs: no expanded dimension, strides not negative (torch has none), and at most kMaxDimensions
// dimensions of two or more elements.
inline Layout make_layout(const std::int64_t* sizes, const std::int64_t* strides, int dimensions) {
    Layout layout;
    layout.numel = 1;
    for (int d = 0; d < dimensions; ++d) {
        layout.numel *= sizes[d];
    }
    if (layout.numel == 0) {
        return layout;
    }
    // Insertion sort by stride: few dimensions, usually already in (reverse) order.
    for (int d = dimensions - 1; d >= 0; --d) {
        if (sizes[d] == 1) {
            continue;
        }
        int place = layout.dimensions++;
        for (; place > 0 && layout.strides[place - 1] > strides[d]; --place) {
            layout.sizes[place] = layout.sizes[place - 1];
            layout.strides[place] = layout.strides[place - 1];
        }
        layout.sizes[place] = sizes[d];
        layout.strides[place] = strides[d];
    }
    int last = 0;
    for (int d = 1; d < layout.dimensions; ++d) {
        if (layout.strides[d] == layout.sizes[last] * layout.strides[last]) {
            layout.sizes[last] *= layout.sizes[d];
        } else {
            ++last;
            layout.sizes[last] = layout.sizes[d];
            layout.strides[last] = layout.strides[d];
        }
    }
    layout.dimensions = std::min(layout.dimensions, last + 1);
    return layout;
}

}  // namespace fastgan
