// The convolution that makes a map of a few channels, an image, from one of many, on CPUs.
//
// With S a map of (h, w) places and many channels, V one of (H, W) places and a few, and W the
// weight as a matrix of (channels of S, taps * channels of V), at most 64 columns:
//
//     scatter           V = fold(S W) + b          ConvTranspose2d forward, Conv2d input gradient
//
// where a row of S W, a patch, holds what a place of S adds to the places of V that the kernel
// meets there, and fold adds patches up where they overlap. Patches never leave a core's cache. A
// library's convolution vectorises over the output's channels, of which there are too few here.
#pragma once

#include <cstdint>

#include "../math/float_types.h"

namespace fastgan::cpu {

// What the count of the small map's channels must be a multiple of; what a patch may hold.
inline constexpr std::int64_t kPatchChannels = 16;
inline constexpr std::int64_t kPatchSize = 64;

struct PatchDimension {
    std::int64_t small;
    std::int64_t wide;
    std::int64_t taps;
    std::int64_t stride;
    std::int64_t padding;
};

// Maps and weight without gaps, channels last; the wide map contiguous if `wide_contiguous`.
struct PatchShape {
    std::int64_t batch;
    std::int64_t small_channels;
    std::int64_t wide_channels;
    PatchDimension rows;
    PatchDimension columns;
    bool wide_contiguous = false;
};

// Maps and weight of float32 or bfloat16; bias of float32, or null.
void patch_scatter(const PatchShape& shape, FloatType type, const void* small, const void* weight,
                   const float* bias, void* wide);

}  // namespace fastgan::cpu
