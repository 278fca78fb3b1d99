#include "patches.h"

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "parallel.h"
#include "patches_loops.h"

namespace fastgan::cpu {

namespace {

std::int64_t reach(const PatchDimension& dimension) {
    return std::max((dimension.small - 1) * dimension.stride + dimension.taps,
                    dimension.wide + dimension.padding);
}

// Floats of scratch memory, with the sums of one image as far as patches reach: few places with a
// large stride and padding reach far beyond the map.
std::size_t scratch_size(const PatchShape& shape) {
    std::int64_t size = 0;
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(reach(shape.rows), reach(shape.columns), &size) ||
        __builtin_mul_overflow(size, shape.wide_channels, &size) ||
        __builtin_add_overflow(size, kPatchScratch, &size) ||
        __builtin_mul_overflow(size, std::int64_t{sizeof(float)}, &bytes)) {
        throw std::bad_alloc();
    }
    return static_cast<std::size_t>(size);
}

}  // namespace

void patch_scatter(const PatchShape& shape, FloatType type, const void* small, const void* weight,
                   const float* bias, void* wide) {
    const auto run = FASTGAN_SELECT(patch_scatter_images);
    const std::size_t size = scratch_size(shape);
    parallel_for(0, shape.batch, 1, [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> scratch(size);
        run(shape, type, small, weight, bias, wide, begin, end, scratch.data());
    });
}

}  // namespace fastgan::cpu
