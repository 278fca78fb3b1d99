#include "winograd.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "parallel.h"
#include "winograd_loops.h"

namespace fastgan::cpu {

namespace {

// So many tasks keep every thread at work, as evenly as may be. What a task computes does not
// depend on how many there are.
std::int64_t fewest_tasks() {
    const std::int64_t threads = thread_count();
    return threads == 1 ? 1 : 2 * threads;
}

struct Freed {
    void operator()(float* memory) const {
        std::free(memory);
    }
};

// A thread keeps its scratch memory: what a fresh one would cost in page faults is a tenth of a
// small convolution.
float* scratch_of_thread() {
    thread_local std::unique_ptr<float, Freed> memory;
    if (memory == nullptr) {
        constexpr std::size_t bytes = kWinogradScratch * sizeof(float);
        memory.reset(static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
        if (memory == nullptr) {
            throw std::bad_alloc();
        }
    }
    return memory.get();
}

std::int64_t pieces(std::int64_t count, std::int64_t size) {
    return (count + size - 1) / size;
}

// Pieces of a range, as even as multiples of `unit` allow, each of at most `most`.
struct Split {
    std::int64_t count;
    std::int64_t size;
    std::int64_t parts;

    Split(std::int64_t count_, std::int64_t most, std::int64_t unit, std::int64_t least_parts = 1)
        : count(count_) {
        const std::int64_t wanted = std::max(pieces(count, most), least_parts);
        size = std::min(most, pieces(pieces(count, wanted), unit) * unit);
        parts = pieces(count, size);
    }

    Range operator[](std::int64_t part) const {
        return {part * size, std::min(size, count - part * size)};
    }
};

PhaseOfMap whole(std::int64_t rows, std::int64_t columns, std::int64_t channels) {
    return {{rows, 1, 0}, {columns, 1, 0}, channels};
}

PhaseOfMap phase_of_wide(const WinogradShape& shape, int row, int column) {
    return {{shape.wide_rows, 2, row - shape.row_padding},
            {shape.wide_columns, 2, column - shape.column_padding},
            shape.wide_channels};
}

WeightPhase phase_of_weight(const WinogradShape& shape, int row, int column) {
    return {shape.small_channels, shape.wide_channels, row, column};
}

TileGrid grid_of_small(const WinogradShape& shape) {
    return {pieces(shape.small_rows, 2), pieces(shape.small_columns, 2), 0, 0};
}

// The first P of a phase that lies in the map.
std::int64_t first_inside(const Phase& phase) {
    return phase.start < 0 ? pieces(-phase.start, phase.step) : 0;
}

// The tasks' outputs are of the same size, or nearly.
void correlate(const Correlation* tasks, std::int64_t task_count, std::int64_t batch,
               std::int64_t channels) {
    if (batch == 0) {
        return;
    }
    const auto run = FASTGAN_SELECT(winograd_correlate);
    const TileGrid& grid = tasks[0].output_tiles;
    const Split by_channel(channels, kWinogradWidth, kWinogradChannels);
    const Split by_tile(batch * grid.rows * grid.columns, kWinogradTiles, 4,
                        pieces(fewest_tasks(), task_count * by_channel.parts));
    parallel_for(0, task_count * by_channel.parts * by_tile.parts, 1,
                 [&](std::int64_t begin, std::int64_t end) {
                     float* const scratch = scratch_of_thread();
                     for (std::int64_t i = begin; i < end; ++i) {
                         const std::int64_t part = i / task_count;
                         run(tasks[i % task_count], by_tile[part / by_channel.parts],
                             by_channel[part % by_channel.parts], scratch);
                     }
                 });
}

}  // namespace

void winograd_gather(const WinogradShape& shape, FloatType type, const void* wide,
                     const void* weight, const float* bias, void* small) {
    Correlation task{};
    task.type = type;
    task.input = wide;
    task.weight = weight;
    task.bias = bias;
    task.output = small;
    task.scatters = false;
    task.output_phase = whole(shape.small_rows, shape.small_columns, shape.small_channels);
    task.output_tiles = grid_of_small(shape);
    task.term_count = 4;
    for (int i = 0; i < 4; ++i) {
        task.terms[i] = {phase_of_wide(shape, i / 2, i % 2), task.output_tiles,
                         phase_of_weight(shape, i / 2, i % 2)};
    }
    correlate(&task, 1, shape.batch, shape.small_channels);
}

void winograd_scatter(const WinogradShape& shape, FloatType type, const void* small,
                      const void* weight, const float* bias, void* wide) {
    Correlation tasks[4] = {};
    for (int i = 0; i < 4; ++i) {
        Correlation& task = tasks[i];
        task.type = type;
        task.input = small;
        task.weight = weight;
        task.bias = bias;
        task.output = wide;
        task.scatters = true;
        task.output_phase = phase_of_wide(shape, i / 2, i % 2);
        // As many tiles in each phase, though an odd map has a place more in some.
        task.output_tiles = {pieces(shape.wide_rows, 4), pieces(shape.wide_columns, 4),
                             first_inside(task.output_phase.rows),
                             first_inside(task.output_phase.columns)};
        TileGrid input_tiles = task.output_tiles;
        input_tiles.row_origin -= 1;
        input_tiles.column_origin -= 1;
        task.term_count = 1;
        task.terms[0] = {whole(shape.small_rows, shape.small_columns, shape.small_channels),
                         input_tiles, phase_of_weight(shape, i / 2, i % 2)};
    }
    correlate(tasks, 4, shape.batch, shape.wide_channels);
}

void winograd_weight_gradient(const WinogradShape& shape, FloatType type, const void* small,
                              const void* wide, void* gradient) {
    if (shape.batch == 0) {
        std::memset(gradient, 0, 16 * shape.small_channels * shape.wide_channels * bytes_of(type));
        return;
    }
    const auto run = FASTGAN_SELECT(winograd_weight_gradient);
    const Split by_wide(shape.wide_channels, kWinogradWidth, kWinogradChannels);
    const Split by_small(shape.small_channels, kWinogradTiles, kWinogradChannels,
                         pieces(fewest_tasks(), 4 * by_wide.parts));
    const TileGrid tiles = grid_of_small(shape);
    parallel_for(0, 4 * by_wide.parts * by_small.parts, 1,
                 [&](std::int64_t begin, std::int64_t end) {
                     float* const scratch = scratch_of_thread();
                     for (std::int64_t i = begin; i < end; ++i) {
                         const int row = static_cast<int>(i % 4 / 2);
                         const int column = static_cast<int>(i % 2);
                         const WeightGradient task{
                             type,
                             small,
                             wide,
                             gradient,
                             whole(shape.small_rows, shape.small_columns, shape.small_channels),
                             phase_of_wide(shape, row, column),
                             tiles,
                             shape.batch * tiles.rows * tiles.columns,
                             phase_of_weight(shape, row, column)};
                         run(task, by_small[i / 4 / by_wide.parts], by_wide[i / 4 % by_wide.parts],
                             scratch);
                     }
                 });
}

}  // namespace fastgan::cpu
