// A list of parameters with their gradients, states and shadows, for the kernels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "math/optimizer_step.h"

namespace fastgan {

// Indices of one parameter's tensors. The shadow (a low-precision copy) has its own type; the
// others have the parameter's.
inline constexpr int kParam = 0;
inline constexpr int kGrad = 1;
inline constexpr int kFirstState = 2;
inline constexpr int kMaxStates = 3;
inline constexpr int kShadow = kFirstState + kMaxStates;
inline constexpr int kPlaces = kShadow + 1;

// No tensor needs more: every remaining dimension has at least two elements, and 2^64 don't fit in
// memory.
inline constexpr int kMaxDimensions = 64;

// Several tensors of equal sizes, traversed together: the first tensor's fastest dimension (smallest
// stride) first, without dimensions of size one, adjacent dimensions merged if possible in every
// tensor. So contiguous, channels-last and transposed tensors become one dimension of stride 1.
struct JointLayout {
    std::int64_t numel = 0;
    int dimensions = 0;
    std::int64_t sizes[kMaxDimensions];
    std::int64_t strides[kPlaces][kMaxDimensions];

    // Whether all have contiguous memory with each element once, in one order.
    bool is_dense() const {
        bool steps_by_one = true;
        for (int place = 0; place < kPlaces && dimensions > 0; ++place) {
            steps_by_one = steps_by_one && strides[place][0] == 1;
        }
        return dimensions <= 1 && steps_by_one;
    }

    // Calls call(d, position) with the index-th element's position in each dimension.
    template <typename Call>
    FASTGAN_INLINE void for_each_position(std::int64_t index, const Call& call) const {
        for (int d = 0; d < dimensions; ++d) {
            const std::int64_t remaining = index / sizes[d];
            call(d, index - remaining * sizes[d]);
            index = remaining;
        }
    }

    // The index-th element's offset in the tensor at `place`, in elements.
    FASTGAN_INLINE std::int64_t offset(int place, std::int64_t index) const {
        std::int64_t result = 0;
        for_each_position(index, [&](int d, std::int64_t position) {
            result += position * strides[place][d];
        });
        return result;
    }
};

struct MultiTensorItem {
    static constexpr int kDense = -1;

    std::int64_t numel = 0;
    void* data[kPlaces] = {};  // null: not used
    ScalarReference step;
    int layout = kDense;  // or an index into MultiTensor::layouts
};

struct MultiTensor {
    FloatType type = FloatType::float32;
    std::vector<MultiTensorItem> items;
    std::vector<JointLayout> layouts;  // of non-dense items
};

// strides: one array for each place; for unused ones, which are null, kParam's stand.
inline JointLayout make_joint_layout(const std::int64_t* sizes,
                                     const std::int64_t* const (&strides)[kPlaces],
                                     int dimensions) {
    JointLayout layout;
    layout.numel = 1;
    const auto stride_of = [&](int place, int d) {
        return strides[strides[place] == nullptr ? kParam : place][d];
    };
    // Insertion sort by the parameter's stride: few dimensions, usually already in (reverse) order.
    for (int d = dimensions - 1; d >= 0; --d) {
        layout.numel *= sizes[d];
        if (sizes[d] == 1) {
            continue;
        }
        int at = layout.dimensions++;
        for (; at > 0 && layout.strides[kParam][at - 1] > strides[kParam][d]; --at) {
            layout.sizes[at] = layout.sizes[at - 1];
            for (int place = 0; place < kPlaces; ++place) {
                layout.strides[place][at] = layout.strides[place][at - 1];
            }
        }
        layout.sizes[at] = sizes[d];
        for (int place = 0; place < kPlaces; ++place) {
            layout.strides[place][at] = stride_of(place, d);
        }
    }
    int last = 0;
    for (int d = 1; d < layout.dimensions; ++d) {
        bool continues = true;
        for (int place = 0; place < kPlaces; ++place) {
            continues = continues && layout.strides[place][d] ==
                                         layout.sizes[last] * layout.strides[place][last];
        }
        if (continues) {
            layout.sizes[last] *= layout.sizes[d];
            continue;
        }
        ++last;
        layout.sizes[last] = layout.sizes[d];
        for (int place = 0; place < kPlaces; ++place) {
            layout.strides[place][last] = layout.strides[place][d];
        }
    }
    layout.dimensions = std::min(layout.dimensions, last + 1);
    return layout;
}

}  // namespace fastgan
