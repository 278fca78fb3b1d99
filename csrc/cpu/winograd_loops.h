// The inner loops of winograd.h, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/float_types.h"
#include "instruction_sets.h"
#include "winograd.h"

namespace fastgan::cpu {

// Blocks are so large that they stay in a core's second-level cache: channels that are summed over,
// channels that come out, and tiles. The weight gradient sums over tiles instead.
inline constexpr std::int64_t kWinogradDepth = 64;
inline constexpr std::int64_t kWinogradWidth = 128;
inline constexpr std::int64_t kWinogradMostTiles = 144;

// A phase has 1 to 3 taps along a dimension, which take a product more.
inline constexpr int kWinogradMostTaps = 3;

constexpr std::int64_t winograd_points(std::int64_t row_taps, std::int64_t column_taps) {
    return (row_taps + 1) * (column_taps + 1);
}

// In multiples of the rows that any instruction set multiplies at once.
constexpr std::int64_t winograd_tiles(std::int64_t points) {
    const std::int64_t tiles = 1536 / points / 12 * 12;
    return tiles < kWinogradMostTiles ? tiles : kWinogradMostTiles;
}

// The places step * P + start, P = 0, 1, ..., along one dimension of a map of `size` places.
struct Phase {
    std::int64_t size;
    std::int64_t step;
    std::int64_t start;
};

// A channels-last map (N, rows, columns, channels), its places in one phase.
struct PhaseOfMap {
    Phase rows;
    Phase columns;
    std::int64_t channels;
};

// Tiles of 2 by 2 places: `rows` times `columns` of them an image, the first at P = origin.
struct TileGrid {
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t row_origin;
    std::int64_t column_origin;
};

struct Range {
    std::int64_t first;
    std::int64_t count;
};

// One phase of the weight, as it lies in memory: `row_taps` by `column_taps` taps, at (step s + row,
// step t + column).
struct WeightPhase {
    std::int64_t small_channels;
    std::int64_t wide_channels;
    bool small_channels_last;
    int taps;
    int step;
    int row;
    int column;
    int row_taps;
    int column_taps;
};

// Between what is written at once, so that it does not fall on the same lines of a cache.
inline constexpr std::int64_t kWinogradGap = 16;

// The weight gradient adds the products of so many tiles in float, and those of all in double. So a
// sum of terms t is off by 96 u sum(|t|) at most, u = 2^-24, however many tiles there are: by 64
// roundings of adding kWinogradDepth tiles, and 32 of adding such sums.
inline constexpr std::int64_t kWinogradTilesInFloat = 32 * kWinogradDepth;

// Floats of scratch memory for so many points: values of both maps or of a map and the weight,
// products, and their sums in double. Values that are multiplied by columns come in panels of at
// least 8.
constexpr std::int64_t winograd_scratch(std::int64_t points) {
    const std::int64_t tiles = winograd_tiles(points);
    return points * (tiles * kWinogradDepth + kWinogradDepth * kWinogradWidth +
                     3 * tiles * kWinogradWidth + (kWinogradWidth / 8 + 5) * kWinogradGap);
}
inline constexpr std::int64_t kWinogradScratch =
    winograd_scratch(winograd_points(kWinogradMostTaps, kWinogradMostTaps));
static_assert(kWinogradScratch >= winograd_scratch(winograd_points(2, 2)) &&
              kWinogradScratch >= winograd_scratch(winograd_points(2, 3)));

// The transformed weight lies as the products read it: blocks of at most kWinogradWidth output
// channels by kWinogradDepth channels that are summed over, each (point, panel, depth, column of
// the panel). So many floats a point take kWinogradChannels output channels.
FASTGAN_INLINE constexpr std::int64_t winograd_strip(std::int64_t depth) {
    const std::int64_t blocks = (depth + kWinogradDepth - 1) / kWinogradDepth;
    return kWinogradChannels * depth + blocks * kWinogradGap;
}

// Writes a phase of the weight, transformed, to `output`.
struct WeightTransform {
    FloatType type;
    const void* weight;
    WeightPhase phase;
    bool scatters;  // sums over the small map's channels, taps reversed; else over the wide one's
    float* output;  // null: each block is made where it is used
};

struct CorrelationTerm {
    PhaseOfMap input;
    TileGrid input_tiles;
    WeightTransform weight;
};

// output[tile places] = bias + sum over terms of the correlation of input and weight, modulated.
struct Correlation {
    FloatType type;
    const void* input;
    const float* bias;  // of each output channel, or null
    Modulation modulation;
    void* output;
    CorrelationTerm terms[4];
    int term_count;
    int row_taps;  // of the largest term
    int column_taps;
    PhaseOfMap output_phase;
    TileGrid output_tiles;
};

struct WeightGradient {
    FloatType type;
    const void* small;
    const void* wide;
    void* gradient;
    PhaseOfMap small_phase;
    PhaseOfMap wide_phase;
    TileGrid tiles;
    std::int64_t tile_count;
    WeightPhase weight;
};

// avx512_vnni has the functions of bfloat16 only.
FASTGAN_FOR_EACH_INSTRUCTION_SET_AND_VNNI(
    // A block.
    void winograd_transform_weight(const WeightTransform& task, Range depth, Range width);
    // Of at most winograd_tiles() tiles and the output channels of a block.
    void winograd_correlate(const Correlation& task, Range tiles, Range channels, float* scratch))
FASTGAN_FOR_EACH_INSTRUCTION_SET(
    // Of at most kWinogradWidth channels of the wide map and winograd_tiles() of the small one.
    void winograd_weight_gradient(const WeightGradient& task, Range small_channels,
                                  Range wide_channels, float* scratch))

}  // namespace fastgan::cpu
