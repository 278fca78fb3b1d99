#include "winograd.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

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

// Memory that a thread keeps: what a fresh one would cost in page faults is a tenth of a small
// convolution.
class KeptMemory {
  public:
    float* at_least(std::int64_t floats) {
        if (floats > size_) {
            size_ = 0;
            memory_.reset();
            const std::size_t bytes = static_cast<std::size_t>(floats) * sizeof(float);
            memory_.reset(static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
            if (memory_ == nullptr) {
                throw std::bad_alloc();
            }
            size_ = floats;
        }
        return memory_.get();
    }

    void keep_at_most(std::int64_t floats) {
        if (size_ > floats) {
            memory_.reset();
            size_ = 0;
        }
    }

  private:
    struct Freed {
        void operator()(float* memory) const { std::free(memory); }
    };
    std::unique_ptr<float, Freed> memory_;
    std::int64_t size_ = 0;
};

float* scratch_of_thread() {
    thread_local KeptMemory memory;
    return memory.at_least(kWinogradScratch);
}

// Of the thread that asks for a convolution: 64 MiB at most outlive a call.
constexpr std::int64_t kMostKeptWeight = std::int64_t{1} << 24;

KeptMemory& memory_for_weight() {
    thread_local KeptMemory memory;
    return memory;
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
        const std::int64_t units = std::max<std::int64_t>(pieces(pieces(count, wanted), unit), 1);
        size = std::min(most, units * unit);
        parts = pieces(count, size);
    }

    Range operator[](std::int64_t part) const {
        return {part * size, std::min(size, count - part * size)};
    }
};

// Whether phases are of neighbouring taps, two each, and meet the whole wide map.
bool splits_taps(const WinogradShape& shape) {
    return shape.stride == 1 && shape.taps > kWinogradMostTaps;
}

// A phase of the weight, and of the wide map, numbered row by row.
int phase_count(const WinogradShape& shape) {
    const std::int64_t along = splits_taps(shape) ? pieces(shape.taps, 2) : shape.stride;
    return static_cast<int>(along * along);
}

WeightPhase phase_of_weight(const WinogradShape& shape, int phase) {
    const int taps = static_cast<int>(shape.taps);
    const int stride = static_cast<int>(shape.stride);
    if (splits_taps(shape)) {
        const int along = taps / 2;
        return {shape.small_channels,
                shape.wide_channels,
                shape.small_channels_last,
                taps,
                1,
                2 * (phase / along),
                2 * (phase % along),
                2,
                2};
    }
    const int row = phase / stride;
    const int column = phase % stride;
    return {shape.small_channels,
            shape.wide_channels,
            shape.small_channels_last,
            taps,
            stride,
            row,
            column,
            static_cast<int>(pieces(taps - row, stride)),
            static_cast<int>(pieces(taps - column, stride))};
}

// The places of the wide map that a phase's taps meet.
PhaseOfMap phase_of_wide(const WinogradShape& shape, const WeightPhase& phase) {
    return {{shape.wide_rows, shape.stride, phase.row - shape.row_padding},
            {shape.wide_columns, shape.stride, phase.column - shape.column_padding},
            shape.wide_channels};
}

PhaseOfMap whole_of_small(const WinogradShape& shape) {
    return {{shape.small_rows, 1, 0}, {shape.small_columns, 1, 0}, shape.small_channels};
}

TileGrid grid_of(const PhaseOfMap& whole) {
    return {pieces(whole.rows.size, 2), pieces(whole.columns.size, 2), 0, 0};
}

// The first P of a phase that lies in the map.
std::int64_t first_inside(const Phase& phase) {
    return phase.start < 0 ? pieces(-phase.start, phase.step) : 0;
}

// Tiles of two places that cover a phase.
std::int64_t tiles_inside(const Phase& phase) {
    const std::int64_t first = phase.step * first_inside(phase) + phase.start;
    return first < phase.size ? pieces(pieces(phase.size - first, phase.step), 2) : 0;
}

Split blocks_of_width(std::int64_t channels) {
    return {channels, kWinogradWidth, kWinogradChannels};
}

// A correlation's outputs by block of channels and of tiles.
struct Blocks {
    Split channels;
    Split tiles;
};

// Of one of `task_count` tasks, which together keep every thread at work.
Blocks blocks_of(const Correlation& task, std::int64_t task_count, std::int64_t batch) {
    const TileGrid& grid = task.output_tiles;
    const Split channels = blocks_of_width(task.output_phase.channels);
    return {channels,
            {batch * grid.rows * grid.columns,
             winograd_tiles(winograd_points(task.row_taps, task.column_taps)), 4,
             pieces(fewest_tasks(), task_count * channels.parts)}};
}

// Has the terms' weights transformed, phase after phase.
void transform_weight(const WinogradShape& shape, CorrelationTerm* const* terms) {
    const int count = phase_count(shape);
    const bool scatters = terms[0]->weight.scatters;
    const std::int64_t depth = scatters ? shape.small_channels : shape.wide_channels;
    const std::int64_t width = scatters ? shape.wide_channels : shape.small_channels;
    const std::int64_t per_point = width / kWinogradChannels * winograd_strip(depth);
    std::int64_t offsets[5] = {};
    for (int i = 0; i < count; ++i) {
        const WeightPhase& phase = terms[i]->weight.phase;
        offsets[i + 1] =
            offsets[i] + winograd_points(phase.row_taps, phase.column_taps) * per_point;
    }
    float* const memory = memory_for_weight().at_least(offsets[count]);
    for (int i = 0; i < count; ++i) {
        terms[i]->weight.output = memory + offsets[i];
    }
    const auto run = terms[0]->weight.type == FloatType::bfloat16
                         ? FASTGAN_SELECT_VNNI(winograd_transform_weight)
                         : FASTGAN_SELECT(winograd_transform_weight);
    const Split by_width = blocks_of_width(width);
    const std::int64_t depth_parts = pieces(depth, kWinogradDepth);
    parallel_for(
        0, count * by_width.parts * depth_parts, 1, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = begin; i < end; ++i) {
                const std::int64_t part = i / count;
                const std::int64_t first = part % depth_parts * kWinogradDepth;
                run(terms[i % count]->weight, {first, std::min(kWinogradDepth, depth - first)},
                    by_width[part / depth_parts]);
            }
        });
}

void correlate(const WinogradShape& shape, Correlation* tasks, std::int64_t task_count,
               CorrelationTerm* const* terms) {
    std::vector<Blocks> blocks;
    std::int64_t tile_parts = 0;
    for (std::int64_t i = 0; i < task_count; ++i) {
        blocks.push_back(blocks_of(tasks[i], task_count, shape.batch));
        tile_parts = std::max(tile_parts, blocks.back().tiles.parts);
    }
    const std::int64_t channel_parts = blocks[0].channels.parts;
    // Up to two tasks that use a block of the weight make it each, sooner than it gets to memory
    // and back.
    if (tile_parts > 2) {
        transform_weight(shape, terms);
    }
    const auto run = tasks[0].type == FloatType::bfloat16 ? FASTGAN_SELECT_VNNI(winograd_correlate)
                                                          : FASTGAN_SELECT(winograd_correlate);
    // A map's phases may differ by a row or a column of tiles, and so by a part.
    parallel_for(
        0, task_count * channel_parts * tile_parts, 1, [&](std::int64_t begin, std::int64_t end) {
            float* const scratch = scratch_of_thread();
            for (std::int64_t i = begin; i < end; ++i) {
                const auto& [channels, tiles] = blocks[static_cast<std::size_t>(i % task_count)];
                const std::int64_t part = i / task_count, tile_part = part / channel_parts;
                if (tile_part < tiles.parts) {
                    run(tasks[i % task_count], tiles[tile_part], channels[part % channel_parts],
                        scratch);
                }
            }
        });
    memory_for_weight().keep_at_most(kMostKeptWeight);
}

// output = bias + the sum of a correlation for each phase; `whole` is all of the output.
template <typename Term>
void correlate_sum(const WinogradShape& shape, FloatType type, const void* input, const float* bias,
                   const Modulation& modulation, void* output, const PhaseOfMap& whole,
                   const Term& term) {
    Correlation task{};
    task.type = type;
    task.input = input;
    task.bias = bias;
    task.modulation = modulation;
    task.output = output;
    task.output_phase = whole;
    task.output_tiles = grid_of(whole);
    task.term_count = phase_count(shape);
    CorrelationTerm* terms[4] = {};
    for (int i = 0; i < task.term_count; ++i) {
        task.terms[i] = term(i);
        terms[i] = &task.terms[i];
    }
    task.row_taps = terms[0]->weight.phase.row_taps;
    task.column_taps = terms[0]->weight.phase.column_taps;
    correlate(shape, &task, 1, terms);
}

}  // namespace

void winograd_gather(const WinogradShape& shape, FloatType type, const void* wide,
                     const void* weight, const float* bias, const Modulation& modulation,
                     void* small) {
    if (shape.batch == 0) {
        return;
    }
    const PhaseOfMap whole = whole_of_small(shape);
    const auto term = [&](int i) -> CorrelationTerm {
        const WeightPhase phase = phase_of_weight(shape, i);
        return {phase_of_wide(shape, phase), grid_of(whole), {type, weight, phase, false, nullptr}};
    };
    correlate_sum(shape, type, wide, bias, modulation, small, whole, term);
}

void winograd_scatter(const WinogradShape& shape, FloatType type, const void* small,
                      const void* weight, const float* bias, const Modulation& modulation,
                      void* wide) {
    if (shape.batch == 0) {
        return;
    }
    if (splits_taps(shape)) {
        const PhaseOfMap whole{
            {shape.wide_rows, 1, 0}, {shape.wide_columns, 1, 0}, shape.wide_channels};
        const auto term = [&](int i) -> CorrelationTerm {
            const WeightPhase phase = phase_of_weight(shape, i);
            // Place r of the wide map meets, by tap t of a phase, place r + p - (row + t).
            PhaseOfMap met = whole_of_small(shape);
            met.rows.start = shape.row_padding - phase.row - (phase.row_taps - 1);
            met.columns.start = shape.column_padding - phase.column - (phase.column_taps - 1);
            return {met, grid_of(whole), {type, weight, phase, true, nullptr}};
        };
        correlate_sum(shape, type, small, bias, modulation, wide, whole, term);
        return;
    }
    Correlation tasks[4] = {};
    CorrelationTerm* terms[4] = {};
    for (int i = 0; i < phase_count(shape); ++i) {
        const WeightPhase phase = phase_of_weight(shape, i);
        Correlation& task = tasks[i];
        task.type = type;
        task.input = small;
        task.bias = bias;
        task.modulation = modulation;
        task.output = wide;
        task.output_phase = phase_of_wide(shape, phase);
        const Phase &rows = task.output_phase.rows, &columns = task.output_phase.columns;
        task.output_tiles = {tiles_inside(rows), tiles_inside(columns), first_inside(rows),
                             first_inside(columns)};
        task.row_taps = phase.row_taps;
        task.column_taps = phase.column_taps;
        TileGrid input_tiles = task.output_tiles;
        input_tiles.row_origin -= phase.row_taps - 1;
        input_tiles.column_origin -= phase.column_taps - 1;
        task.term_count = 1;
        task.terms[0] = {whole_of_small(shape), input_tiles, {type, weight, phase, true, nullptr}};
        terms[i] = &task.terms[0];
    }
    correlate(shape, tasks, phase_count(shape), terms);
}

void winograd_weight_gradient(const WinogradShape& shape, FloatType type, const void* small,
                              const void* wide, void* gradient) {
    if (shape.batch == 0) {
        std::memset(
            gradient, 0,
            shape.taps * shape.taps * shape.small_channels * shape.wide_channels * bytes_of(type));
        return;
    }
    const auto run = FASTGAN_SELECT(winograd_weight_gradient);
    const int phases = phase_count(shape);
    const WeightPhase largest = phase_of_weight(shape, 0);
    const Split by_wide(shape.wide_channels, kWinogradWidth, kWinogradChannels);
    const Split by_small(shape.small_channels,
                         winograd_tiles(winograd_points(largest.row_taps, largest.column_taps)),
                         kWinogradChannels, pieces(fewest_tasks(), phases * by_wide.parts));
    const TileGrid tiles = grid_of(whole_of_small(shape));
    parallel_for(
        0, phases * by_wide.parts * by_small.parts, 1, [&](std::int64_t begin, std::int64_t end) {
            float* const scratch = scratch_of_thread();
            for (std::int64_t i = begin; i < end; ++i) {
                WeightPhase phase = phase_of_weight(shape, static_cast<int>(i % phases));
                phase.small_channels_last = false;
                const WeightGradient task{type,
                                          small,
                                          wide,
                                          gradient,
                                          whole_of_small(shape),
                                          phase_of_wide(shape, phase),
                                          tiles,
                                          shape.batch * tiles.rows * tiles.columns,
                                          phase};
                const std::int64_t part = i / phases;
                run(task, by_small[part / by_wide.parts], by_wide[part % by_wide.parts], scratch);
            }
        });
}

}  // namespace fastgan::cpu
