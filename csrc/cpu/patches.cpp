#include "patches.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "patches_loops.h"

namespace fastgan::cpu {

namespace {

std::int64_t reach(const PatchDimension& dimension) {
    return std::max((dimension.small - 1) * dimension.stride + dimension.taps,
                    dimension.wide + dimension.padding);
}

}  // namespace

void patch_scatter(const PatchShape& shape, FloatType type, const void* small, const void* weight,
                   const float* bias, void* wide) {
    const auto run = FASTGAN_SELECT(patch_scatter_images);
    const std::int64_t sums = reach(shape.rows) * reach(shape.columns) * shape.wide_channels;
    parallel_for(0, shape.batch, 1, [&](std::int64_t begin, std::int64_t end) {
        std::vector<float> scratch(kPatchScratch + sums);
        run(shape, type, small, weight, bias, wide, begin, end, scratch.data());
    });
}

}  // namespace fastgan::cpu
