// Convolutions with few channels on one side on CUDA devices. The formulas: math/few_channels.h.
//
// A product of matrices, with a row for each cell, a column for each of a cell's outputs, and over
// the window's inputs, in units of four channels of one place. A block owns tiles of 8 or 16 by 16
// cells and up to 64 columns; a warp a row of 16 cells. Inputs and weights are in shared memory,
// where units have fixed distances: no index is computed in the loop of products, and no place of a
// tensor core's tile is left to the 61 of 64 channels that an image doesn't have.
#include "few_channels.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "../math/float_pairs.h"
#include "channel_tiles.h"
#include "launch.h"
#include "shared_memory.h"
#include "tensor_core.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kWidth = 16;  // of a tile, in cells: a row of products
constexpr int kUnit = 4;    // channels
// Units that tensor cores multiply at a time.
constexpr int kStep = 4;
// A block's shared memory without opting in to more.
constexpr std::int64_t kSharedBytes = 48 * 1024;
// Blocks from which on a block takes several tiles, so that its weights are read for all of them.
constexpr std::int64_t kBlocks = 512;
constexpr int kMostTiles = 8;

// kTiles: 8 columns each.
template <int kTiles>
struct Shape {
    static constexpr int kColumns = 8 * kTiles;
    static constexpr int kRows = kTiles <= 2 ? 2 : 1;  // of cells, for each warp
    static constexpr int kCells = kRows * kWarps * kWidth;
    // Of products: 16 columns by 8 cells each.
    static constexpr int kDown = (kTiles + 1) / 2;
    static constexpr int kAcross = kRows * kWidth / 8;
    // The distance of two cells' results, with fewer bank conflicts.
    static constexpr int kResultStride = kColumns + 8;
};

// A unit's distance from a window's first, in units, and its place in the window.
struct Unit {
    int offset;
    short row;
    short column;
    int channel;
};

struct Plan {
    FewChannels problem;
    int columns;  // outputs of a cell
    int column_tiles;
    int column_blocks;
    int tiles_along_x;
    int tiles_along_y;
    std::int64_t tiles;
    int tiles_per_block;
    int chunks;       // of the input channels
    int chunk_units;  // of a place
    int place_units;  // their distance from one place to the next
    int units;        // of a window
    int padded_units;
    int tile_rows;  // of places
    int tile_columns;
    int tile_bytes;
    int weight_bytes;
    bool reads_vectors;
    bool stores_vectors;
};

struct Tile {
    std::int64_t sample;
    int row;  // of cells
    int column;
};

template <typename T>
__device__ __forceinline__ void load_input(const Plan& plan, const Tile& at, int chunk,
                                           const T* input, T* tile) {
    const FewChannels& problem = plan.problem;
    const int top = at.row * problem.rows.step + problem.rows.first;
    const int left = at.column * problem.columns.step + problem.columns.first;
    const int first_channel = chunk * plan.chunk_units * kUnit;
    const T* const sample = input + at.sample * problem.input.sample;
    const int places = plan.tile_rows * plan.tile_columns;
    // Whether the map has a place of the tile, and where.
    const auto find = [&](int place, int& offset) {
        const int r = static_cast<int>(static_cast<unsigned>(place) /
                                       static_cast<unsigned>(plan.tile_columns));
        const int row = top + r, column = left + place - r * plan.tile_columns;
        const bool inside = row >= 0 && row < problem.rows.in && column >= 0 &&
                            column < problem.columns.in;
        offset = inside ? row * problem.input.row + column * problem.input.column : 0;
        return inside;
    };
    const int thread = static_cast<int>(threadIdx.x);
    if (plan.reads_vectors) {
        using Bits = Vector<std::uint32_t, 4>;
        constexpr int kVector = kFullVector<T>;
        const int vectors = plan.chunk_units * kUnit / kVector;
        const int within = thread % vectors * kVector, step = kThreads / vectors;
        const bool has_channel = first_channel + within < problem.in_channels;
        // Several loads at a time.
#pragma unroll 4
        for (int p = thread / vectors; p < places; p += step) {
            int offset;
            const bool reads = find(p, offset) && has_channel;
            const T* const from = sample + offset + first_channel + within;
            *reinterpret_cast<Bits*>(tile + p * plan.place_units * kUnit + within) =
                reads ? *reinterpret_cast<const Bits*>(from) : Bits{};
        }
        return;
    }
#pragma unroll 2
    for (int i = thread; i < places * plan.chunk_units; i += kThreads) {
        const int unit = plan.chunk_units == 1 ? 0 : i / places, p = i - unit * places;
        int offset;
        const bool inside = find(p, offset);
        const int channel = first_channel + unit * kUnit;
        Vector<T, kUnit> four{};
#pragma unroll
        for (int c = 0; c < kUnit; ++c) {
            if (inside && channel + c < problem.in_channels) {
                four.elements[c] = sample[offset + (channel + c) * problem.input.channel];
            }
        }
        store<kUnit>(tile + (p * plan.place_units + unit) * kUnit, four);
    }
}

// For each unit, its weights for each column; 0 where a column has no such tap. For tensor cores as a
// thread's registers have them, otherwise (unit, column, channel).
template <typename T, int kTiles>
__device__ __forceinline__ void load_weights(const Plan& plan, int first_column, int chunk,
                                             const Unit* units, const T* weight, T* weights) {
    using Of = Shape<kTiles>;
    const FewChannels& problem = plan.problem;
    const int own = static_cast<int>(threadIdx.x) % Of::kColumns;
    const int column = first_column + own;
    const int phase = column / problem.out_channels;
    const int out_channel = column - phase * problem.out_channels;
    const int row_phase = phase / problem.columns.phases;
    const int column_phase = phase - row_phase * problem.columns.phases;
    for (int u = static_cast<int>(threadIdx.x) / Of::kColumns; u < plan.padded_units;
         u += kThreads / Of::kColumns) {
        const Unit unit = units[u];
        const int row = problem.rows.tap(row_phase, unit.row, problem.transposed);
        const int place = problem.columns.tap(column_phase, unit.column, problem.transposed);
        const bool exists = u < plan.units && column < plan.columns && row >= 0 &&
                            row < problem.rows.taps && place >= 0 && place < problem.columns.taps;
        const T* const from = weight + out_channel * problem.weight.sample +
                              row * problem.weight.row + place * problem.weight.column;
        Vector<T, kUnit> four{};
#pragma unroll
        for (int c = 0; c < kUnit; ++c) {
            const int channel = chunk * plan.chunk_units * kUnit + unit.channel + c;
            if (exists && channel < problem.in_channels) {
                four.elements[c] = from[channel * problem.weight.channel];
            }
        }
        if constexpr (sizeof(T) == 2) {
            T* const to = weights + ((u / kStep * Of::kDown + own / 16) * 32 + own % 8 * 4 +
                                     u % kStep) * 8 + own / 8 % 2 * 2;
            store<2>(to, Vector<T, 2>{{four.elements[0], four.elements[1]}});
            store<2>(to + 4, Vector<T, 2>{{four.elements[2], four.elements[3]}});
        } else {
            store<kUnit>(weights + (u * Of::kColumns + own) * kUnit, four);
        }
    }
}

// A lane 4g + t has the results of columns g, then g + 8 of each 16, for cells 2t and 2t + 1 of each
// 8 of its warp.
template <typename A, int kTiles>
using Sums = A[Shape<kTiles>::kDown][Shape<kTiles>::kAcross][4];

// The first place of a cell's window, in units.
template <int kTiles>
__device__ __forceinline__ int place_of_cell(const Plan& plan, int n) {
    const int row = static_cast<int>(threadIdx.x) / 32 + n / kWidth * kWarps;
    return (row * plan.problem.rows.step * plan.tile_columns +
            n % kWidth * plan.problem.columns.step) *
           plan.place_units;
}

template <typename T, int kTiles>
__device__ __forceinline__ void add_products(const Plan& plan, const Unit* units, const T* tile,
                                             const T* weights,
                                             Sums<Arithmetic<T>, kTiles>& sums) {
    using Of = Shape<kTiles>;
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    if constexpr (sizeof(T) == 2) {
        const T* cells[Of::kAcross];
#pragma unroll
        for (int n = 0; n < Of::kAcross; ++n) {
            cells[n] = tile + place_of_cell<kTiles>(plan, 8 * n + g) * kUnit;
        }
        const auto* of_step = reinterpret_cast<const Vector<Pair, 4>*>(weights) + lane;
#pragma unroll 2
        for (int u = t; u < plan.padded_units; u += kStep) {
            const int offset = units[u].offset * kUnit;
            Vector<Pair, 4> a[Of::kDown];
#pragma unroll
            for (int m = 0; m < Of::kDown; ++m) {
                a[m] = of_step[m * 32];
            }
            of_step += Of::kDown * 32;
#pragma unroll
            for (int n = 0; n < Of::kAcross; ++n) {
                const auto b = *reinterpret_cast<const Vector<Pair, 2>*>(cells[n] + offset);
#pragma unroll
                for (int m = 0; m < Of::kDown; ++m) {
                    add_product<T>(sums[m][n], a[m].elements, b.elements);
                }
            }
        }
    } else {
        constexpr int kHalves = kTiles == 1 ? 1 : 2;  // of 16 columns
        const T* cells[Of::kAcross][2];
#pragma unroll
        for (int n = 0; n < Of::kAcross; ++n) {
            cells[n][0] = tile + place_of_cell<kTiles>(plan, 8 * n + 2 * t) * kUnit;
            cells[n][1] = tile + place_of_cell<kTiles>(plan, 8 * n + 2 * t + 1) * kUnit;
        }
#pragma unroll 1
        for (int u = 0; u < plan.units; ++u) {
            const int offset = units[u].offset * kUnit;
            Vector<T, kUnit> a[Of::kDown][kHalves];
#pragma unroll
            for (int m = 0; m < Of::kDown * kHalves; ++m) {
                a[m / kHalves][m % kHalves] =
                    load<kUnit>(weights + (u * Of::kColumns + 8 * m + g) * kUnit);
            }
#pragma unroll
            for (int n = 0; n < Of::kAcross; ++n) {
                const Vector<T, kUnit> b[2] = {load<kUnit>(cells[n][0] + offset),
                                               load<kUnit>(cells[n][1] + offset)};
#pragma unroll
                for (int i = 0; i < Of::kDown * kHalves * 2; ++i) {
                    const int m = i / (2 * kHalves), half = i / 2 % kHalves;
#pragma unroll
                    for (int c = 0; c < kUnit; ++c) {
                        T& sum = sums[m][n][half * 2 + i % 2];
                        sum = multiply_add(a[m][half].elements[c], b[i % 2].elements[c], sum);
                    }
                }
            }
        }
    }
}

// z(value + bias), or value * z' from `kept`.
template <Activation kActivation, typename T>
__device__ __forceinline__ T finished(Arithmetic<T> value, const T* bias, bool is_gradient, T kept,
                                      Arithmetic<T> slope) {
    if (is_gradient) {
        value = activation_gradient<kActivation>(value, to_arithmetic(kept), slope);
    } else {
        value += bias == nullptr ? Arithmetic<T>(0) : to_arithmetic(*bias);
        value = activate<kActivation>(value, slope);
    }
    return from_arithmetic<T>(value);
}

// Of adjacent channels; null is no bias or nothing kept.
template <int kVector, typename T>
__device__ __forceinline__ void finish_and_store(const FewChannels& problem,
                                                 const Arithmetic<T>* values, const T* bias,
                                                 const T* kept, T* output) {
    const auto slope = static_cast<Arithmetic<T>>(problem.negative_slope);
    const auto bias_of = [&](int i) { return bias == nullptr ? nullptr : bias + i; };
    if_piecewise_linear(
        problem.activation,
        [&](auto tag) {
            Vector<T, kVector> others{};
            if (kept != nullptr) {
                others = load<kVector>(kept);
            }
            Vector<T, kVector> stored;
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                stored.elements[i] = finished<tag.value, T>(values[i], bias_of(i), kept != nullptr,
                                                            others.elements[i], slope);
            }
            store<kVector>(output, stored);
        },
        [&] {
            with_smooth(problem.activation, [&](auto tag) {
        // One at a time: unrolled, its code would be long.
#pragma unroll 1
                for (int i = 0; i < kVector; ++i) {
                    output[i] =
                        finished<tag.value, T>(values[i], bias_of(i), kept != nullptr,
                                               kept == nullptr ? T{} : kept[i], slope);
                }
            });
        });
}

// results: (cells, columns), of which the first is `first_column` among all. kVector columns at a
// time are of one phase, and their channels adjacent. A thread has the same columns for all of its
// cells, or else the same cell: what is adjacent in memory is another thread's.
template <int kVector, typename T, int kTiles>
__device__ __forceinline__ void store_results(const Plan& plan, const Tile& at, int first_column,
                                              const Arithmetic<T>* results, const T* bias,
                                              const T* kept, T* output) {
    using Of = Shape<kTiles>;
    constexpr int kVectors = Of::kColumns / kVector;
    static_assert(kThreads % kVectors == 0 && kThreads % Of::kCells == 0);
    constexpr int kCellStep = kVector > 1 ? kThreads / kVectors : Of::kCells;
    constexpr int kColumnStep = kVector > 1 ? Of::kColumns : kThreads / Of::kCells;
    const int thread = static_cast<int>(threadIdx.x);
    const FewChannels& problem = plan.problem;
    const MapStrides& strides = problem.output;
    T* const sample = output + at.sample * strides.sample;
    int own = kVector > 1 ? thread % kVectors * kVector : thread / Of::kCells;
    const int phase = (first_column + own) / problem.out_channels;
    int channel = first_column + own - phase * problem.out_channels;
    int row_phase = phase / problem.columns.phases;
    int column_phase = phase - row_phase * problem.columns.phases;
    for (; own < Of::kColumns && first_column + own < plan.columns; own += kColumnStep) {
        for (; channel >= problem.out_channels; channel -= problem.out_channels) {
            if (++column_phase == problem.columns.phases) {
                column_phase = 0;
                ++row_phase;
            }
        }
        for (int cell = kVector > 1 ? thread / kVectors : thread % Of::kCells; cell < Of::kCells;
             cell += kCellStep) {
            const int row = (at.row + cell / kWidth) * problem.rows.phases + row_phase;
            const int place = (at.column + cell % kWidth) * problem.columns.phases + column_phase;
            if (row < problem.rows.out && place < problem.columns.out) {
                T* const to = sample + row * strides.row + place * strides.column +
                              channel * strides.channel;
                finish_and_store<kVector>(problem, results + cell * Of::kResultStride + own,
                                          bias == nullptr ? nullptr : bias + channel,
                                          kept == nullptr ? nullptr : kept + (to - output), to);
            }
        }
        channel += kColumnStep;
    }
}

// output = z(conv + bias), or conv * z' from `kept`.
template <typename T, int kTiles>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    gather_few(const __grid_constant__ Plan plan, const T* input, const T* weight, const T* bias,
               const T* kept, T* output) {
    using A = Arithmetic<T>;
    using Of = Shape<kTiles>;
    const FewChannels& problem = plan.problem;
    unsigned char* const memory = dynamic_shared<unsigned char>();
    T* const tile = reinterpret_cast<T*>(memory);
    A* const results = reinterpret_cast<A*>(memory);
    T* const weights = reinterpret_cast<T*>(memory + plan.tile_bytes);
    Unit* const units = reinterpret_cast<Unit*>(memory + plan.tile_bytes + plan.weight_bytes);
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32, g = lane / 4, t = lane % 4, warp = thread / 32;

    for (int u = thread; u < plan.padded_units; u += kThreads) {
        const int place = u < plan.units ? u / plan.chunk_units : 0;
        const int within = u < plan.units ? u - place * plan.chunk_units : 0;
        const int row = place / problem.columns.window;
        const int column = place - row * problem.columns.window;
        units[u] = {(row * plan.tile_columns + column) * plan.place_units + within,
                    static_cast<short>(row), static_cast<short>(column), within * kUnit};
    }
    const unsigned block = blockIdx.x;
    const unsigned group = block / static_cast<unsigned>(plan.column_blocks);
    const int first_column = static_cast<int>(block - group * plan.column_blocks) * Of::kColumns;
    for (int n = 0; n < plan.tiles_per_block; ++n) {
        const std::int64_t number = std::int64_t{group} * plan.tiles_per_block + n;
        if (number >= plan.tiles) {
            break;
        }
        const unsigned row = static_cast<unsigned>(number) / plan.tiles_along_x;
        const unsigned sample = row / plan.tiles_along_y;
        const Tile at{sample,
                      static_cast<int>(row - sample * plan.tiles_along_y) * Of::kRows * kWarps,
                      static_cast<int>(static_cast<unsigned>(number) - row * plan.tiles_along_x) *
                          kWidth};
        Sums<A, kTiles> sums = {};
        for (int chunk = 0; chunk < plan.chunks; ++chunk) {
            __syncthreads();  // what the last one left has been read, and the units are there
            load_input(plan, at, chunk, input, tile);
            if (plan.chunks > 1 || n == 0) {
                load_weights<T, kTiles>(plan, first_column, chunk, units, weight, weights);
            }
            __syncthreads();
            add_products<T, kTiles>(plan, units, tile, weights, sums);
        }
        __syncthreads();  // the results take the inputs' place
#pragma unroll
        for (int i = 0; i < Of::kDown * Of::kAcross * 4; ++i) {
            const int m = i / (4 * Of::kAcross), n = i / 4 % Of::kAcross, part = i % 4;
            const int cell = (warp + n / 2 * kWarps) * kWidth + n % 2 * 8 + 2 * t + part % 2;
            if (kTiles > 1 || part < 2) {
                results[cell * Of::kResultStride + 16 * m + part / 2 * 8 + g] = sums[m][n][part];
            }
        }
        __syncthreads();
        if (plan.stores_vectors) {
            constexpr int kVector = kFullVector<T>;
            store_results<kVector, T, kTiles>(plan, at, first_column, results, bias, kept, output);
        } else {
            store_results<1, T, kTiles>(plan, at, first_column, results, bias, kept, output);
        }
    }
}

// Completes a plan for this many tiles of columns and units of a place, if it fits in shared memory.
template <int kTiles>
void complete(Plan& plan, int chunk_units) {
    using Of = Shape<kTiles>;
    const FewChannels& problem = plan.problem;
    const std::int64_t bytes = bytes_of(problem.type);
    const std::int64_t arithmetic_bytes = bytes == 8 ? 8 : 4;
    constexpr int rows = Of::kRows * kWarps;
    const auto places = [](const GatherAxis& axis, int cells) {
        return std::int64_t{axis.step} * (cells - 1) + axis.window;
    };
    const std::int64_t tile_rows = places(problem.rows, rows);
    const std::int64_t tile_columns = places(problem.columns, kWidth);
    const std::int64_t window = std::int64_t{problem.rows.window} * problem.columns.window;
    const int place_units = chunk_units == 1 ? 1 : (chunk_units + 3) / 8 * 8 + 4;
    const std::int64_t padded_units = (window * chunk_units + kStep - 1) / kStep * kStep;
    const auto aligned = [](std::int64_t size) { return (size + 15) / 16 * 16; };
    const std::int64_t tile_bytes =
        std::max(aligned(tile_rows * tile_columns * place_units * kUnit * bytes),
                 std::int64_t{Of::kCells * Of::kResultStride} * arithmetic_bytes);
    const std::int64_t weight_bytes = aligned(padded_units * Of::kDown * (kTiles == 1 ? 8 : 16) * kUnit * bytes);
    const std::int64_t all =
        tile_bytes + weight_bytes + padded_units * static_cast<std::int64_t>(sizeof(Unit));
    if (all > kSharedBytes) {
        return;
    }
    plan.column_tiles = kTiles;
    plan.column_blocks = (plan.columns + Of::kColumns - 1) / Of::kColumns;
    plan.tiles_along_x = (problem.columns.cells() + kWidth - 1) / kWidth;
    plan.tiles_along_y = (problem.rows.cells() + rows - 1) / rows;
    plan.tiles = problem.batch * plan.tiles_along_x * plan.tiles_along_y;
    plan.tiles_per_block = static_cast<int>(std::clamp<std::int64_t>(
        plan.tiles * plan.column_blocks / kBlocks, 1, kMostTiles));
    plan.chunk_units = chunk_units;
    plan.chunks = (problem.in_channels + chunk_units * kUnit - 1) / (chunk_units * kUnit);
    plan.place_units = place_units;
    plan.units = static_cast<int>(window) * chunk_units;
    plan.padded_units = static_cast<int>(padded_units);
    plan.tile_rows = static_cast<int>(tile_rows);
    plan.tile_columns = static_cast<int>(tile_columns);
    plan.tile_bytes = static_cast<int>(tile_bytes);
    plan.weight_bytes = static_cast<int>(weight_bytes);
}

// Tensor cores multiply 16 columns.
template <typename T>
constexpr int fewest_tiles = sizeof(T) == 2 ? 2 : 1;

// run(CountTag<kTiles>()) for each number of columns' tiles that a type's kernels have, largest first.
template <typename T, typename Run>
void for_tiles(const Run& run) {
    if constexpr (sizeof(T) == 2) {
        run(CountTag<8>());
        run(CountTag<2>());
    } else {
        if constexpr (sizeof(T) == 4) {
            run(CountTag<4>());
            run(CountTag<2>());
        }
        run(CountTag<1>());
    }
}

// The plan with the most columns for a block, and then the most channels; without column_tiles if
// none fits in shared memory.
Plan plan_of(const FewChannels& problem) {
    Plan plan{};
    plan.problem = problem;
    plan.columns = problem.rows.phases * problem.columns.phases * problem.out_channels;
    int most = 1;  // 64 bytes of a place
    while (most * kUnit < problem.in_channels && most * 2 * kUnit * bytes_of(problem.type) <= 64) {
        most *= 2;
    }
    for_float_type(problem.type, [&]<typename T>() {
        for_tiles<T>([&]<int kTiles>(CountTag<kTiles>) {
            // Not half of them in vain.
            const bool covers = kTiles == fewest_tiles<T> || plan.columns > 4 * kTiles;
            for (int units = most; covers && units >= 1 && plan.column_tiles == 0; units /= 2) {
                complete<kTiles>(plan, units);
            }
        });
    });
    return plan;
}

template <typename T>
bool lies_in_vectors(const MapStrides& strides, int channels, const void* memory) {
    return strides.channel == 1 && channels % kFullVector<T> == 0 && is_aligned(memory) &&
           strides.sample % kFullVector<T> == 0 && strides.row % kFullVector<T> == 0 &&
           strides.column % kFullVector<T> == 0;
}

// --- The weight gradient -------------------------------------------------------------------------

// Again a product of matrices: a row for each channel of `many`, a column for each tap and channel of
// `few` (four, so that a tap is a unit), over places. A block adds up tiles of 4 by 16 places, for
// 16 taps and 64 channels (32 in float64); a warp 16 channels in a part of the tile's rows.
constexpr int kSumRows = 4;
constexpr int kSumTaps = 16;
constexpr int kSumColumns = kSumTaps * kUnit;
constexpr int kSumTiles = kSumColumns / 8;
// Blocks from which on a block adds up several tiles, but so few that it needs no compensation.
constexpr int kSumBlocks = 256;
constexpr int kMostSumTiles = 16;

template <typename T>
struct SumShape {
    static constexpr int kDown = sizeof(T) == 8 ? 2 : 4;  // of 16 channels
    static constexpr int kChannels = 16 * kDown;
    static constexpr int kParts = kWarps / kDown;  // of a tile's rows
    static constexpr int kRows = kSumRows / kParts;
    // Of two places together in 16 bits, and of one else; free of bank conflicts.
    static constexpr int kStride = kChannels + 8;
};

struct SumsPlan {
    FewChannelsSums problem;
    int taps;
    int tap_blocks;
    int channel_blocks;
    int tiles_along_x;
    int tiles_along_y;
    std::int64_t tiles;
    int tiles_per_block;
    std::int64_t splits;
    int tile_rows;  // of few's places
    int tile_columns;
    int many_bytes;
    int shared_bytes;
    bool reads_vectors;

    FASTGAN_INLINE std::int64_t columns() const {
        return std::int64_t{tap_blocks} * kSumColumns;
    }
};

// The tile's places of `many`, of two neighbours together in 16 bits: (pair, channel), otherwise
// (place, channel).
template <typename T>
__device__ __forceinline__ void load_many(const SumsPlan& plan, const Tile& at, int first_channel,
                                          const T* many, T* tile) {
    using Of = SumShape<T>;
    const FewChannelsSums& problem = plan.problem;
    constexpr int kTogether = sizeof(T) == 2 ? 2 : 1;
    constexpr int kVector = kFullVector<T>;
    constexpr int kPlaces = kSumRows * kWidth / kTogether;
    const int thread = static_cast<int>(threadIdx.x);
    const int own = plan.reads_vectors ? kVector : 1;
    const int vectors = Of::kChannels / own;
    const T* const sample = many + at.sample * problem.many.sample;
    for (int i = thread; i < kPlaces * vectors; i += kThreads) {
        // The faster index along memory.
        const int vector = plan.reads_vectors ? i % vectors : i / kPlaces;
        const int place = plan.reads_vectors ? i / vectors : i % kPlaces;
        const int channel = first_channel + vector * own;
        Vector<T, kVector> values[kTogether] = {};
#pragma unroll
        for (int k = 0; k < kTogether; ++k) {
            const int row = at.row + (place * kTogether + k) / kWidth;
            const int column = at.column + (place * kTogether + k) % kWidth;
            if (row >= problem.rows.out || column >= problem.columns.out ||
                channel >= problem.many_channels) {
                continue;
            }
            const T* const from = sample + row * problem.many.row + column * problem.many.column +
                                  channel * problem.many.channel;
            if (plan.reads_vectors) {
                values[k] = load<kVector>(from);
            } else {
                values[k].elements[0] = *from;
            }
        }
        T* const to = tile + (place * Of::kStride + vector * own) * kTogether;
        if (plan.reads_vectors) {
#pragma unroll
            for (int part = 0; part < kTogether; ++part) {
                Vector<T, kVector> woven;
#pragma unroll
                for (int v = 0; v < kVector; ++v) {
                    const int n = part * kVector + v;
                    woven.elements[v] = values[n % kTogether].elements[n / kTogether];
                }
                store<kVector>(to + part * kVector, woven);
            }
        } else {
#pragma unroll
            for (int k = 0; k < kTogether; ++k) {
                to[k] = values[k].elements[0];
            }
        }
    }
}

// The places of `few` that the tile's meet, a unit each.
template <typename T>
__device__ __forceinline__ void load_few(const SumsPlan& plan, const Tile& at, const T* few,
                                         T* tile) {
    const FewChannelsSums& problem = plan.problem;
    const T* const sample = few + at.sample * problem.few.sample;
    const int top = at.row * problem.rows.step + problem.rows.first;
    const int left = at.column * problem.columns.step + problem.columns.first;
#pragma unroll 2
    for (int p = static_cast<int>(threadIdx.x); p < plan.tile_rows * plan.tile_columns;
         p += kThreads) {
        const int r = static_cast<int>(static_cast<unsigned>(p) /
                                       static_cast<unsigned>(plan.tile_columns));
        const int row = top + r, column = left + p - r * plan.tile_columns;
        const bool inside = row >= 0 && row < problem.rows.in && column >= 0 &&
                            column < problem.columns.in;
        const int offset = inside ? row * problem.few.row + column * problem.few.column : 0;
        Vector<T, kUnit> four{};
#pragma unroll
        for (int c = 0; c < kUnit; ++c) {
            if (inside && c < problem.few_channels) {
                four.elements[c] = sample[offset + c * problem.few.channel];
            }
        }
        store<kUnit>(tile + p * kUnit, four);
    }
}

// sums: a lane 4g + t has rows g, then g + 8, of columns 2t and 2t + 1 of each 8. offsets: of each 8
// the first of a lane's columns, from a window's first place.
template <typename T>
__device__ __forceinline__ void add_places(const SumsPlan& plan, const T* many, const T* few,
                                           const int (&offsets)[kSumTiles],
                                           Arithmetic<T> (&sums)[kSumTiles][4]) {
    using Of = SumShape<T>;
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32, g = lane / 4, t = lane % 4;
    const int down = thread / 32 % Of::kDown, part = thread / 32 / Of::kDown;
    const int step = plan.problem.columns.step * kUnit;
    for (int r = 0; r < Of::kRows; ++r) {
        const int row = part * Of::kRows + r;
        const T* const of_row =
            few + row * plan.problem.rows.step * plan.tile_columns * kUnit;
        if constexpr (sizeof(T) == 2) {
            const Pair* const pairs = reinterpret_cast<const Pair*>(many) +
                                      (row * kWidth / 2 + t) * Of::kStride + down * 16 + g;
            const Pair a[4] = {pairs[0], pairs[8], pairs[4 * Of::kStride],
                               pairs[4 * Of::kStride + 8]};
            const auto pair_of = [](const T* first, const T* second) {
                return first->bits | static_cast<Pair>(second->bits) << 16;
            };
#pragma unroll
            for (int j = 0; j < kSumTiles; ++j) {
                const T* const from = of_row + 2 * t * step + offsets[j];
                const Pair b[2] = {pair_of(from, from + step),
                                   pair_of(from + 8 * step, from + 9 * step)};
                add_product<T>(sums[j], a, b);
            }
        } else {
#pragma unroll 2
            for (int k = 0; k < kWidth; ++k) {
                const T* const values =
                    many + (row * kWidth + k) * Of::kStride + down * 16 + g;
                const T a[2] = {values[0], values[8]};
#pragma unroll
                for (int j = 0; j < kSumTiles; ++j) {
                    const auto b = load<2>(of_row + k * step + offsets[j]);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        sums[j][i] = multiply_add(a[i / 2], b.elements[i % 2], sums[j][i]);
                    }
                }
            }
        }
    }
}

// partial: (splits, channels of all blocks, columns of all blocks).
template <typename T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 1 : 2)
    sum_few(const __grid_constant__ SumsPlan plan, const T* many, const T* few,
            Arithmetic<T>* partial) {
    using A = Arithmetic<T>;
    using Of = SumShape<T>;
    unsigned char* const memory = dynamic_shared<unsigned char>();
    T* const many_tile = reinterpret_cast<T*>(memory);
    T* const few_tile = reinterpret_cast<T*>(memory + plan.many_bytes);
    A* const parts = reinterpret_cast<A*>(memory);
    const int thread = static_cast<int>(threadIdx.x);
    const int lane = thread % 32, g = lane / 4, t = lane % 4;
    const int down = thread / 32 % Of::kDown, part = thread / 32 / Of::kDown;
    const unsigned block = blockIdx.x;
    const unsigned of_taps = block / static_cast<unsigned>(plan.tap_blocks);
    const int tap_block = static_cast<int>(block - of_taps * plan.tap_blocks);
    const std::int64_t split = of_taps / static_cast<unsigned>(plan.channel_blocks);
    const int channel_block = static_cast<int>(of_taps - split * plan.channel_blocks);

    int offsets[kSumTiles];
#pragma unroll
    for (int j = 0; j < kSumTiles; ++j) {
        // Tensor cores take column g of a lane, and other products columns 2t and 2t + 1.
        const int column = j * 8 + (sizeof(T) == 2 ? g : 2 * t);
        const int tap = min(tap_block * kSumTaps + column / kUnit, plan.taps - 1);
        const int row = tap / plan.problem.columns.taps;
        offsets[j] = (row * plan.tile_columns + tap - row * plan.problem.columns.taps) * kUnit +
                     column % kUnit;
    }
    A sums[kSumTiles][4] = {};
    for (int n = 0; n < plan.tiles_per_block; ++n) {
        const std::int64_t number = split * plan.tiles_per_block + n;
        if (number >= plan.tiles) {
            break;
        }
        const unsigned row = static_cast<unsigned>(number) / plan.tiles_along_x;
        const unsigned sample = row / plan.tiles_along_y;
        const Tile at{sample, static_cast<int>(row - sample * plan.tiles_along_y) * kSumRows,
                      static_cast<int>(static_cast<unsigned>(number) - row * plan.tiles_along_x) *
                          kWidth};
        __syncthreads();  // the last ones have been read
        load_many(plan, at, channel_block * Of::kChannels, many, many_tile);
        load_few(plan, at, few, few_tile);
        __syncthreads();
        add_places(plan, many_tile, few_tile, offsets, sums);
    }
    for (int other = 1; other < Of::kParts; ++other) {
        A* const own = parts + down * 32 * kSumTiles * 4 + lane;
        __syncthreads();
        if (part == other) {
#pragma unroll
            for (int i = 0; i < kSumTiles * 4; ++i) {
                own[i * 32] = sums[i / 4][i % 4];
            }
        }
        __syncthreads();
        if (part == 0) {
#pragma unroll
            for (int i = 0; i < kSumTiles * 4; ++i) {
                sums[i / 4][i % 4] += own[i * 32];
            }
        }
    }
    if (part != 0) {
        return;
    }
    const std::int64_t channels = std::int64_t{plan.channel_blocks} * Of::kChannels;
    A* const to = partial +
                  (split * channels + channel_block * Of::kChannels + down * 16 + g) *
                      plan.columns() +
                  tap_block * kSumColumns + 2 * t;
#pragma unroll
    for (int j = 0; j < kSumTiles; ++j) {
        store<2>(to + j * 8, Vector<A, 2>{{sums[j][0], sums[j][1]}});
        store<2>(to + 8 * plan.columns() + j * 8, Vector<A, 2>{{sums[j][2], sums[j][3]}});
    }
}

// A block has 32 adjacent columns of one channel, and 32 threads for each that share the splits.
template <typename T>
__global__ void __launch_bounds__(kMergeChannels* kMergeThreads)
    merge_few(const __grid_constant__ SumsPlan plan, const Arithmetic<T>* partial, T* gradient) {
    using A = Arithmetic<T>;
    __shared__ MergeSums<A> shared;
    const FewChannelsSums& problem = plan.problem;
    const int blocks = static_cast<int>(plan.columns() / kMergeChannels);
    const int channel = static_cast<int>(blockIdx.x) / blocks;
    const int column = (static_cast<int>(blockIdx.x) - channel * blocks) * kMergeChannels +
                       static_cast<int>(threadIdx.x);
    const std::int64_t channels = std::int64_t{plan.channel_blocks} * SumShape<T>::kChannels;
    CompensatedSum<A> sum{};
    for (std::int64_t split = threadIdx.y; split < plan.splits; split += kMergeThreads) {
        sum += partial[(split * channels + channel) * plan.columns() + column];
    }
    sum = sum_of_merge(sum, shared);
    const int tap = column / kUnit, few = column % kUnit;
    if (threadIdx.y == 0 && tap < plan.taps && few < problem.few_channels) {
        const int to = problem.backwards ? plan.taps - 1 - tap : tap;
        const int row = to / problem.columns.taps;
        gradient[channel * problem.gradient.sample + few * problem.gradient.channel +
                 row * problem.gradient.row +
                 (to - row * problem.columns.taps) * problem.gradient.column] =
            from_arithmetic<T>(sum.total());
    }
}

template <typename T>
SumsPlan sums_plan_of(const FewChannelsSums& problem) {
    using Of = SumShape<T>;
    SumsPlan plan{};
    plan.problem = problem;
    plan.taps = problem.rows.taps * problem.columns.taps;
    plan.tap_blocks = (plan.taps + kSumTaps - 1) / kSumTaps;
    plan.channel_blocks = (problem.many_channels + Of::kChannels - 1) / Of::kChannels;
    plan.tiles_along_x = (problem.columns.out + kWidth - 1) / kWidth;
    plan.tiles_along_y = (problem.rows.out + kSumRows - 1) / kSumRows;
    plan.tiles = problem.batch * plan.tiles_along_x * plan.tiles_along_y;
    const std::int64_t blocks = std::int64_t{plan.tap_blocks} * plan.channel_blocks;
    plan.tiles_per_block =
        static_cast<int>(std::clamp<std::int64_t>(plan.tiles * blocks / kSumBlocks, 1, kMostSumTiles));
    plan.splits = (plan.tiles + plan.tiles_per_block - 1) / plan.tiles_per_block;
    plan.tile_rows = (kSumRows - 1) * problem.rows.step + problem.rows.taps;
    plan.tile_columns = (kWidth - 1) * problem.columns.step + problem.columns.taps;
    plan.many_bytes = kSumRows * kWidth * Of::kStride * static_cast<int>(sizeof(T));
    const std::int64_t few_bytes =
        std::int64_t{plan.tile_rows} * plan.tile_columns * kUnit * sizeof(T);
    const std::int64_t parts_bytes =
        std::int64_t{Of::kDown} * 32 * kSumTiles * 4 * sizeof(Arithmetic<T>);
    const std::int64_t bytes = std::max(plan.many_bytes + few_bytes, parts_bytes);
    if (bytes > kSharedBytes) {
        throw std::runtime_error(
            "fastgan: the taps of a weight's gradient need more than a block's shared memory");
    }
    if (plan.tiles * blocks > std::numeric_limits<std::int32_t>::max()) {
        throw std::runtime_error("fastgan: the map has more tiles than a CUDA grid has blocks");
    }
    plan.shared_bytes = static_cast<int>(bytes);
    return plan;
}

}  // namespace

const char* few_channels_obstacle(const FewChannels& problem) {
    return plan_of(problem).column_tiles == 0
               ? "its window of inputs needs more than a block's shared memory"
               : nullptr;
}

void few_channels_gather(const FewChannels& problem, const void* input, const void* weight,
                         const void* bias, const void* kept, void* output, void* stream) {
    Plan plan = plan_of(problem);
    if (const char* obstacle = few_channels_obstacle(problem)) {
        throw std::runtime_error(std::string("fastgan: ") + obstacle);
    }
    if (plan.tiles > std::numeric_limits<std::int32_t>::max()) {
        throw std::runtime_error("fastgan: the map has more tiles than a CUDA grid has blocks");
    }
    const std::int64_t groups = (plan.tiles + plan.tiles_per_block - 1) / plan.tiles_per_block;
    const unsigned blocks = blocks_for(groups * plan.column_blocks, 1);
    const std::size_t bytes = static_cast<std::size_t>(plan.tile_bytes) + plan.weight_bytes +
                              plan.padded_units * sizeof(Unit);
    for_float_type(problem.type, [&]<typename T>() {
        plan.reads_vectors = plan.chunk_units * kUnit % kFullVector<T> == 0 &&
                             lies_in_vectors<T>(problem.input, problem.in_channels, input);
        plan.stores_vectors = lies_in_vectors<T>(problem.output, problem.out_channels, output) &&
                              (kept == nullptr || is_aligned(kept));
        for_tiles<T>([&]<int kTiles>(CountTag<kTiles>) {
            if (plan.column_tiles == kTiles) {
                launch("gather_few", gather_few<T, kTiles>, blocks, kThreads, bytes, stream, plan,
                       input, weight, bias, kept, output);
            }
        });
    });
}

std::int64_t few_channels_workspace(const FewChannelsSums& problem) {
    std::int64_t numbers = 0;
    for_float_type(problem.type, [&]<typename T>() {
        const SumsPlan plan = sums_plan_of<T>(problem);
        numbers = plan.splits * plan.channel_blocks * SumShape<T>::kChannels * plan.columns();
    });
    return numbers;
}

void few_channels_sums(const FewChannelsSums& problem, const void* many, const void* few,
                       void* workspace, void* gradient, void* stream) {
    for_float_type(problem.type, [&]<typename T>() {
        using A = Arithmetic<T>;
        SumsPlan plan = sums_plan_of<T>(problem);
        plan.reads_vectors = lies_in_vectors<T>(problem.many, problem.many_channels, many);
        const unsigned blocks = blocks_for(plan.splits * plan.channel_blocks * plan.tap_blocks, 1);
        launch("sum_few", sum_few<T>, blocks, kThreads, static_cast<std::size_t>(plan.shared_bytes),
               stream, plan, many, few, workspace);
        launch("merge_few", merge_few<T>,
               blocks_for(problem.many_channels * (plan.columns() / kMergeChannels), 1),
               dim3(kMergeChannels, kMergeThreads), 0, stream, plan, workspace, gradient);
    });
}

}  // namespace fastgan::cuda
