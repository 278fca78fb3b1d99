// The inner loops of winograd.h, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/float_types.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

// What is worked on at a time, so that it stays in a core's second-level cache: tiles, channels
// that are summed over, channels that come out. The weight gradient sums over tiles instead.
inline constexpr std::int64_t kWinogradTiles = 144;
inline constexpr std::int64_t kWinogradDepth = 64;
inline constexpr std::int64_t kWinogradWidth = 128;

// Products per phase and tile, of 3 by 3 points.
inline constexpr std::int64_t kWinogradPoints = 9;

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

// One phase of the weight (small, 4, 4, wide), as it lies in memory: taps 2 s + row, 2 t + column.
struct WeightPhase {
    std::int64_t small_channels;
    std::int64_t wide_channels;
    int row;
    int column;
};

// Between what is written at once, so that it does not fall on the same lines of a cache.
inline constexpr std::int64_t kWinogradGap = 16;

// The weight gradient adds the products of so many tiles in float, and those of all in double. So a
// sum of terms t is off by 96 u sum(|t|) at most, u = 2^-24, however many tiles there are: by 64
// roundings of adding kWinogradDepth tiles, and 32 of adding such sums.
inline constexpr std::int64_t kWinogradTilesInFloat = 32 * kWinogradDepth;

// Floats of scratch memory that the functions below need: values, weights and products, where the
// weights come in panels of at least 8 columns; and the sums in double.
inline constexpr std::int64_t kWinogradScratch =
    kWinogradPoints * (kWinogradTiles * kWinogradDepth + kWinogradDepth * kWinogradWidth +
                       3 * kWinogradTiles * kWinogradWidth +
                       (kWinogradWidth / 8 + 5) * kWinogradGap);

struct CorrelationTerm {
    PhaseOfMap input;
    TileGrid input_tiles;
    WeightPhase weight;
};

// output[tile places] = bias + sum over terms of the 2 by 2 correlation of input and weight.
struct Correlation {
    FloatType type;
    const void* input;
    const void* weight;
    const float* bias;  // of each output channel, or null
    void* output;
    CorrelationTerm terms[4];
    int term_count;
    bool scatters;  // sums over the small map's channels, taps reversed; else over the wide one's
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

FASTGAN_FOR_EACH_INSTRUCTION_SET(
    // Of at most kWinogradTiles tiles and kWinogradWidth output channels.
    void winograd_correlate(const Correlation& task, Range tiles, Range channels, float* scratch);
    // Of at most kWinogradWidth channels of the wide map and kWinogradTiles of the small one.
    void winograd_weight_gradient(const WeightGradient& task, Range small_channels,
                                  Range wide_channels, float* scratch))

}  // namespace fastgan::cpu
