// The inner loops of patches.h, declared once per instruction set.
#pragma once

#include <cstdint>

#include "instruction_sets.h"
#include "patches.h"

namespace fastgan::cpu {

// Places of the small map that are worked on at a time, and its channels.
inline constexpr std::int64_t kPatchPlaces = 96;
inline constexpr std::int64_t kPatchDepth = 64;

// Floats of scratch memory: two factors and a product.
inline constexpr std::int64_t kPatchScratch =
    kPatchPlaces * kPatchDepth + kPatchDepth * kPatchSize + kPatchPlaces * kPatchSize;

FASTGAN_FOR_EACH_INSTRUCTION_SET(
    // Of images [first, end). Behind the scratch memory there is room for the sums of one image, as
    // far as patches reach.
    void patch_scatter_images(const PatchShape& shape, FloatType type, const void* small,
                              const void* weight, const float* bias, void* wide,
                              std::int64_t first, std::int64_t end, float* scratch))

}  // namespace fastgan::cpu
