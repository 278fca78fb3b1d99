// Compiled once per instruction set: see instruction_sets.h. The formulas: winograd.h.
#include "winograd_loops.h"

#include <string.h>

#include "../math/float_types.h"
#include "fixed_point.h"
#include "matrix_product.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// --- Places of a map -----------------------------------------------------------------------------

// Stands in for places outside a map. As many as channels are transformed at a time, which in the
// weight gradient's small map may be more than kWinogradWidth.
alignas(64) const float kZeros[kWinogradMostTiles] = {};
static_assert(kWinogradMostTiles >= kWinogradWidth && kWinogradMostTiles >= kWinogradDepth);

// The offset of place P along one dimension, in places; -1 outside the map.
FASTGAN_INLINE std::int64_t place(const Phase& phase, std::int64_t p) {
    const std::int64_t at = phase.step * p + phase.start;
    return at >= 0 && at < phase.size ? at : -1;
}

struct Tile {
    std::int64_t image;
    std::int64_t row;
    std::int64_t column;
};

FASTGAN_INLINE Tile tile_at(const TileGrid& grid, std::int64_t index) {
    const std::int64_t in_column = index / grid.columns;
    return {in_column / grid.rows, in_column % grid.rows, index % grid.columns};
}

FASTGAN_INLINE void advance(const TileGrid& grid, Tile& tile) {
    if (++tile.column == grid.columns) {
        tile.column = 0;
        if (++tile.row == grid.rows) {
            tile.row = 0;
            ++tile.image;
        }
    }
}

// The offset in elements of each of kRows by kColumns places from the tile's first; -1 outside.
template <int kRowPlaces, int kColumnPlaces>
FASTGAN_INLINE void places_of(const PhaseOfMap& map, const TileGrid& grid, const Tile& tile,
                              std::int64_t (&offsets)[kRowPlaces * kColumnPlaces]) {
    const std::int64_t image = tile.image * map.rows.size;
    for (int i = 0; i < kRowPlaces; ++i) {
        const std::int64_t row = place(map.rows, grid.row_origin + 2 * tile.row + i);
        for (int j = 0; j < kColumnPlaces; ++j) {
            const std::int64_t column =
                place(map.columns, grid.column_origin + 2 * tile.column + j);
            offsets[kColumnPlaces * i + j] =
                row < 0 || column < 0 ? -1
                                      : ((image + row) * map.columns.size + column) * map.channels;
        }
    }
}

// --- Transforms ----------------------------------------------------------------------------------

// The matrices of winograd.h. Rows of B^T and G, columns of A^T: the points 0, infinity, 1 and -1.
// Phases of fewer taps have the first of them, with the same columns of A^T, so that their products
// can be added up.
template <int kTaps>
struct Matrices;

template <>
struct Matrices<1> {
    static constexpr float kPlaces[2][2] = {{1, 0}, {0, 1}};
    static constexpr float kTaps[2][1] = {{1}, {1}};
    static constexpr float kResults[2][2] = {{1, 0}, {0, 1}};
};

template <>
struct Matrices<2> {
    static constexpr float kPlaces[3][3] = {{1, -1, 0}, {0, -1, 1}, {0, 1, 0}};
    static constexpr float kTaps[3][2] = {{1, 0}, {0, 1}, {1, 1}};
    static constexpr float kResults[2][3] = {{1, 0, 1}, {0, 1, 1}};
};

template <>
struct Matrices<3> {
    static constexpr float kPlaces[4][4] = {
        {1, 0, -1, 0}, {0, -1, 0, 1}, {0, 1, 1, 0}, {0, -1, 1, 0}};
    static constexpr float kTaps[4][3] = {
        {1, 0, 0}, {0, 0, 1}, {0.5f, 0.5f, 0.5f}, {0.5f, -0.5f, 0.5f}};
    static constexpr float kResults[2][4] = {{1, 0, 1, 1}, {0, 1, 1, -1}};
};

// B^T, G, A^T; and for the weight gradient A and G^T.
enum class Matrix { places, taps, results, gradients, tap_gradients };

template <Matrix kMatrix, int kTaps>
constexpr int kInputs = kMatrix == Matrix::taps        ? kTaps
                        : kMatrix == Matrix::gradients ? 2
                                                       : kTaps + 1;
template <Matrix kMatrix, int kTaps>
constexpr int kOutputs = kMatrix == Matrix::results         ? 2
                         : kMatrix == Matrix::tap_gradients ? kTaps
                                                            : kTaps + 1;

template <Matrix kMatrix, int kTaps>
constexpr float entry(int row, int column) {
    using Of = Matrices<kTaps>;
    switch (kMatrix) {
        case Matrix::places:
            return Of::kPlaces[row][column];
        case Matrix::taps:
            return Of::kTaps[row][column];
        case Matrix::results:
            return Of::kResults[row][column];
        case Matrix::gradients:
            return Of::kResults[column][row];
        case Matrix::tap_gradients:
            return Of::kTaps[column][row];
    }
}

// sum + the row's entries from kColumn on, times x[0], x[kStep], ...
template <Matrix kMatrix, int kTaps, int kRow, int kColumn, int kStep, bool kAny>
FASTGAN_INLINE Vector row_times(const Vector* x, Vector sum) {
    if constexpr (kColumn == kInputs<kMatrix, kTaps>) {
        return sum;
    } else {
        constexpr float factor = entry<kMatrix, kTaps>(kRow, kColumn);
        const Vector each = x[kColumn * kStep];
        if constexpr (factor == 0) {
            return row_times<kMatrix, kTaps, kRow, kColumn + 1, kStep, kAny>(x, sum);
        } else if constexpr (factor == 1) {
            sum = kAny ? sum + each : each;
        } else if constexpr (factor == -1) {
            sum = kAny ? sum - each : -each;
        } else {
            sum = kAny ? sum + factor * each : factor * each;
        }
        return row_times<kMatrix, kTaps, kRow, kColumn + 1, kStep, true>(x, sum);
    }
}

// y[i * kStep] = sum over j of matrix[i][j] x[j * kStep]
template <Matrix kMatrix, int kTaps, int kStep, int kRow = 0>
FASTGAN_INLINE void times(const Vector* x, Vector* y) {
    if constexpr (kRow < kOutputs<kMatrix, kTaps>) {
        y[kRow * kStep] = row_times<kMatrix, kTaps, kRow, 0, kStep, false>(x, Vector{});
        times<kMatrix, kTaps, kStep, kRow + 1>(x, y);
    }
}

template <Matrix kMatrix, int kRowTaps, int kColumnTaps>
constexpr int kAllInputs = kInputs<kMatrix, kRowTaps> * kInputs<kMatrix, kColumnTaps>;
template <Matrix kMatrix, int kRowTaps, int kColumnTaps>
constexpr int kAllOutputs = kOutputs<kMatrix, kRowTaps> * kOutputs<kMatrix, kColumnTaps>;

// Along both dimensions.
template <Matrix kMatrix, int kRowTaps, int kColumnTaps>
FASTGAN_INLINE void transform(const Vector (&x)[kAllInputs<kMatrix, kRowTaps, kColumnTaps>],
                              Vector (&y)[kAllOutputs<kMatrix, kRowTaps, kColumnTaps>]) {
    constexpr int rows = kOutputs<kMatrix, kRowTaps>;
    constexpr int columns = kInputs<kMatrix, kColumnTaps>;
    Vector half[rows * columns];
#pragma GCC unroll 4
    for (int j = 0; j < columns; ++j) {
        times<kMatrix, kRowTaps, columns>(x + j, half + j);
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
        times<kMatrix, kColumnTaps, 1>(half + i * columns, y + i * kOutputs<kMatrix, kColumnTaps>);
    }
}

// How a tile's transformed channels lie: element (point, tile, channel) at
//   point * per_point + tile * per_tile + (channel / kPanel) * per_panel + channel % kPanel.
struct Layout {
    std::int64_t per_point;
    std::int64_t per_tile;
    std::int64_t per_panel;
};

// Transforms the wide map's places (Matrix::places) or a gradient's (Matrix::gradients), each image's
// channels times its `factors` unless those are null; with kFixed to pairs of integers and a scale
// for each tile.
template <Matrix kMatrix, int kRowTaps, int kColumnTaps, bool kFixed = false, typename T>
void transform_map(const T* map, const PhaseOfMap& phase, const TileGrid& grid, Range tiles,
                   Range channels, const Layout& layout, float* out, float* scales = nullptr,
                   const float* factors = nullptr) {
    constexpr int inputs = kAllInputs<kMatrix, kRowTaps, kColumnTaps>;
    constexpr int outputs = kAllOutputs<kMatrix, kRowTaps, kColumnTaps>;
    Tile tile = tile_at(grid, tiles.first);
    const float* next_factors = factors;
    const auto places = [&](const T*(&from)[inputs]) {
        if (factors != nullptr) {
            next_factors = factors + tile.image * phase.channels + channels.first;
        }
        std::int64_t offsets[inputs];
        places_of<kInputs<kMatrix, kRowTaps>, kInputs<kMatrix, kColumnTaps>>(phase, grid, tile,
                                                                             offsets);
        for (int i = 0; i < inputs; ++i) {
            from[i] = offsets[i] < 0 ? reinterpret_cast<const T*>(kZeros)
                                     : map + offsets[i] + channels.first;
        }
        advance(grid, tile);
    };
    const T* next[inputs];
    places(next);
    alignas(64) float of_tile[kFixed ? outputs * kWinogradDepth : 1];
    const std::int64_t per_point = kFixed ? kWinogradDepth : layout.per_point;
    for (std::int64_t index = 0; index < tiles.count; ++index) {
        const T* from[inputs];
        for (int i = 0; i < inputs; ++i) {
            from[i] = next[i];
        }
        const float* const by = next_factors;
        if (index + 1 < tiles.count) {
            places(next);
        }
        float* const to = kFixed ? of_tile : out + index * layout.per_tile;
        for (std::int64_t c = 0; c < channels.count; c += kLanes) {
            Vector x[inputs];
            Vector y[outputs];
#pragma GCC unroll 16
            for (int i = 0; i < inputs; ++i) {
                x[i] = load(from[i] + c);
                // Places lie too far apart for the processor to foresee.
                __builtin_prefetch(next[i] + c);
            }
            if (by != nullptr) {
                const Vector factor = load(by + c);
#pragma GCC unroll 16
                for (int i = 0; i < inputs; ++i) {
                    x[i] *= factor;
                }
            }
            transform<kMatrix, kRowTaps, kColumnTaps>(x, y);
            float* const at = to + c / kPanel * layout.per_panel + c % kPanel;
#pragma GCC unroll 16
            for (int i = 0; i < outputs; ++i) {
                store(at + i * per_point, y[i]);
            }
        }
        if constexpr (kFixed) {
            fix_tile<outputs>(of_tile, kWinogradDepth, channels.count,
                              out + index * layout.per_tile, layout.per_point, scales + index);
        }
    }
}

// The noise at four places of an image; 0 outside the map.
FASTGAN_INLINE void noise_of(const Modulation& modulation, const PhaseOfMap& phase,
                             std::int64_t image, const std::int64_t (&offsets)[4],
                             float (&noise)[4]) {
    const std::int64_t first = image * phase.rows.size * phase.columns.size;
    for (int i = 0; i < 4; ++i) {
        noise[i] = offsets[i] < 0 ? 0.0f
                                  : modulation.noise[image * modulation.noise_step +
                                                     offsets[i] / phase.channels - first];
    }
}

template <int kRowTaps, int kColumnTaps, typename T>
void transform_products(const float* products, std::int64_t per_point, const PhaseOfMap& phase,
                        const TileGrid& grid, Range tiles, Range channels, const float* bias,
                        const Modulation& modulation, T* map) {
    constexpr int points = winograd_points(kRowTaps, kColumnTaps);
    Tile tile = tile_at(grid, tiles.first);
    for (std::int64_t index = 0; index < tiles.count; ++index, advance(grid, tile)) {
        std::int64_t offsets[4];
        places_of<2, 2>(phase, grid, tile, offsets);
        float noise[4] = {};
        if (modulation.noise != nullptr) {
            noise_of(modulation, phase, tile.image, offsets, noise);
        }
        const float* const factors =
            modulation.output_scale == nullptr
                ? nullptr
                : modulation.output_scale + tile.image * phase.channels + channels.first;
        const float* const from = products + index * kWinogradWidth;
        for (std::int64_t c = 0; c < channels.count; c += kLanes) {
            Vector m[points];
            Vector y[4];
#pragma GCC unroll 16
            for (int i = 0; i < points; ++i) {
                m[i] = load(from + i * per_point + c);
            }
            transform<Matrix::results, kRowTaps, kColumnTaps>(m, y);
            const Vector b = bias == nullptr ? Vector{} : load(bias + channels.first + c);
            const Vector factor = factors == nullptr ? everywhere(1.0f) : load(factors + c);
            for (int i = 0; i < 4; ++i) {
                if (offsets[i] >= 0) {
                    store(map + offsets[i] + channels.first + c,
                          multiply_add(y[i], factor, b + everywhere(noise[i])));
                }
            }
        }
    }
}

// --- The weight ----------------------------------------------------------------------------------

struct LastChannels {
    std::int64_t slow;
    std::int64_t fast;
    std::int64_t channels;
};

// The place in memory of tap (s, t) from small channel `o` to wide channel `c`.
FASTGAN_INLINE std::int64_t tap(const WeightPhase& phase, std::int64_t o, int s, int t,
                                std::int64_t c) {
    const int row = phase.step * s + phase.row;
    const int column = phase.step * t + phase.column;
    const auto [slow, fast, channels] =
        phase.small_channels_last ? LastChannels{c, o, phase.small_channels}
                                  : LastChannels{o, c, phase.wide_channels};
    return ((slow * phase.taps + row) * phase.taps + column) * channels + fast;
}

// Where a block begins, `points` and `all_depth` being the phase's.
FASTGAN_INLINE std::int64_t block_offset(std::int64_t points, std::int64_t all_depth, Range depth,
                                         Range width) {
    return points * (width.first / kWinogradChannels * winograd_strip(all_depth) +
                     width.count / kWinogradChannels * winograd_strip(depth.first));
}

FASTGAN_INLINE std::int64_t block_size_per_point(Range depth, Range width) {
    return width.count / kWinogradChannels * winograd_strip(depth.count);
}

template <int kRowTaps, int kColumnTaps, typename T>
void transform_block_in_float(const WeightTransform& task, Range depth, Range width, float* block) {
    constexpr int taps = kRowTaps * kColumnTaps;
    constexpr int points = winograd_points(kRowTaps, kColumnTaps);
    const WeightPhase& phase = task.phase;
    const T* const weight = static_cast<const T*>(task.weight);
    const std::int64_t per_point = block_size_per_point(depth, width);
    const auto write = [&](const Vector(&w)[taps], std::int64_t k, std::int64_t column) {
        Vector u[points];
        transform<Matrix::taps, kRowTaps, kColumnTaps>(w, u);
        float* const at = block + (column / kPanel * depth.count + k) * kPanel + column % kPanel;
#pragma GCC unroll 16
        for (int i = 0; i < points; ++i) {
            store(at + i * per_point, u[i]);
        }
    };
    // Of tap i; a scatter's taps are reversed.
    const auto place_of = [&](int i, std::int64_t k, std::int64_t column) {
        const int s = i / kColumnTaps, t = i % kColumnTaps;
        return task.scatters
                   ? tap(phase, depth.first + k, kRowTaps - 1 - s, kColumnTaps - 1 - t,
                         width.first + column)
                   : tap(phase, width.first + column, s, t, depth.first + k);
    };
    if (task.scatters != phase.small_channels_last) {
        for (std::int64_t k = 0; k < depth.count; ++k) {
            for (std::int64_t column = 0; column < width.count; column += kLanes) {
                Vector w[taps];
                for (int i = 0; i < taps; ++i) {
                    w[i] = load(weight + place_of(i, k, column));
                }
                write(w, k, column);
            }
        }
        return;
    }
    // The channels that are summed over lie beside one another, so that blocks are transposed.
    const std::int64_t all_depth = task.scatters ? phase.small_channels : phase.wide_channels;
    const std::int64_t per_channel = phase.taps * phase.taps * all_depth;
    for (std::int64_t column = 0; column < width.count; column += kLanes) {
        for (std::int64_t k = 0; k < depth.count; k += kLanes) {
            Vector all[taps][kLanes];
            for (int i = 0; i < taps; ++i) {
                Vector rows[kLanes];
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    const T* const from = weight + place_of(i, k, column + l);
                    rows[l] = load(from);
                    // The taps of channels lie too far apart for the processor to foresee.
                    __builtin_prefetch(from + kLanes * per_channel);
                }
                transpose(rows);
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    all[i][l] = rows[l];
                }
            }
            for (int l = 0; l < kLanes; ++l) {
                Vector w[taps];
#pragma GCC unroll 9
                for (int i = 0; i < taps; ++i) {
                    w[i] = all[i][l];
                }
                write(w, k + l, column);
            }
        }
    }
}

template <int kRowTaps, int kColumnTaps, typename T>
void transform_block(const WeightTransform& task, Range depth, Range width, float* block) {
    transform_block_in_float<kRowTaps, kColumnTaps, T>(task, depth, width, block);
    if constexpr (kFixedPoint<T>) {
        for (int point = 0; point < winograd_points(kRowTaps, kColumnTaps); ++point) {
            float* const panels = block + point * block_size_per_point(depth, width);
            for (std::int64_t j = 0; j < width.count; j += kPanel) {
                fix_panel(panels + j * depth.count, depth.count);
            }
        }
    }
}

// --- Tasks ---------------------------------------------------------------------------------------

template <int kNumber>
struct Constant {
    static constexpr int value = kNumber;
};

// body(Constant<row_taps>, Constant<column_taps>). A phase of a square weight has at most a tap more
// along one dimension than along the other.
template <typename Body>
FASTGAN_INLINE void with_taps(int row_taps, int column_taps, const Body& body) {
    const auto with_columns = [&](auto rows) {
        if constexpr (rows.value < 3) {
            if (column_taps == 1) {
                return body(rows, Constant<1>{});
            }
        }
        if constexpr (rows.value > 1) {
            if (column_taps == 3) {
                return body(rows, Constant<3>{});
            }
        }
        body(rows, Constant<2>{});
    };
    if (row_taps == 1) {
        with_columns(Constant<1>{});
    } else if (row_taps == 2) {
        with_columns(Constant<2>{});
    } else {
        with_columns(Constant<3>{});
    }
}

template <typename T>
void correlate(const Correlation& task, Range tiles, Range channels, float* scratch) {
    const std::int64_t rows = padded(tiles.count);
    const std::int64_t values_per_point = rows * kWinogradDepth + kWinogradGap;
    const std::int64_t products_per_point = rows * kWinogradWidth + kWinogradGap;
    const int row_points = task.row_taps + 1;
    const int column_points = task.column_taps + 1;
    float* const values = scratch;
    float* const products = values + row_points * column_points * values_per_point;
    // Pairs take half of the memory; the tiles' scales are stored after them.
    constexpr std::int64_t row_stride = kFixedPoint<T> ? kWinogradDepth / 2 : kWinogradDepth;
    const Layout layout{values_per_point, row_stride, kPanel};
    float* const scales = values + rows * row_stride;
    // Rows that no tile fills are multiplied too.
    for (std::int64_t row = tiles.count; row < rows; ++row) {
        for (int point = 0; point < row_points * column_points; ++point) {
            memset(values + point * values_per_point + row * row_stride, 0,
                   row_stride * sizeof(float));
        }
        if constexpr (kFixedPoint<T>) {
            scales[row] = 0;
        }
    }
    float* const own_block = products + row_points * column_points * products_per_point;
    // The first term has all points.
    for (int t = 0; t < task.term_count; ++t) {
        const CorrelationTerm& term = task.terms[t];
        const std::int64_t depth = term.input.channels;
        const WeightPhase& phase = term.weight.phase;
        const int points = (phase.row_taps + 1) * (phase.column_taps + 1);
        for (std::int64_t first = 0; first < depth; first += kWinogradDepth) {
            const Range part{first, least(kWinogradDepth, depth - first)};
            float* const weight =
                term.weight.output == nullptr
                    ? own_block
                    : term.weight.output + block_offset(points, depth, part, channels);
            with_taps(phase.row_taps, phase.column_taps, [&](auto row_taps, auto column_taps) {
                if (term.weight.output == nullptr) {
                    transform_block<row_taps.value, column_taps.value, T>(term.weight, part,
                                                                          channels, weight);
                }
                transform_map<Matrix::places, row_taps.value, column_taps.value, kFixedPoint<T>>(
                    static_cast<const T*>(task.input), term.input, term.input_tiles, tiles, part,
                    layout, values, scales, task.modulation.input_scale);
            });
            const std::int64_t weight_per_point = block_size_per_point(part, channels);
            int point = 0;
            for (int i = 0; i <= phase.row_taps; ++i) {
                for (int j = 0; j <= phase.column_taps; ++j, ++point) {
                    const float* const a = values + point * values_per_point;
                    const float* const b = weight + point * weight_per_point;
                    float* const c = products + (i * column_points + j) * products_per_point;
                    const bool accumulate = t > 0 || first > 0;
                    if constexpr (kFixedPoint<T>) {
                        multiply_fixed<row_stride>(a, scales, b, part.count * kPanel, rows,
                                                   channels.count, part.count / 2, accumulate, c,
                                                   kWinogradWidth);
                    } else {
                        multiply<row_stride, 1, true>(a, b, part.count * kPanel, rows,
                                                      channels.count, part.count, accumulate, c,
                                                      kWinogradWidth);
                    }
                }
            }
        }
    }
    with_taps(task.row_taps, task.column_taps, [&](auto row_taps, auto column_taps) {
        transform_products<row_taps.value, column_taps.value>(
            products, products_per_point, task.output_phase, task.output_tiles, tiles, channels,
            task.bias, task.modulation, static_cast<T*>(task.output));
    });
}

// body(a value of that type). VNNI is for bfloat16's products: winograd.cpp takes float32's from
// AVX-512.
template <typename Body>
FASTGAN_INLINE void with_type(FloatType type, const Body& body) {
    if constexpr (!kFixedPoint<BFloat16>) {
        if (type == FloatType::float32) {
            body(float{});
            return;
        }
    }
    body(BFloat16{});
}

}  // namespace

void winograd_transform_weight(const WeightTransform& task, Range depth, Range width) {
    const WeightPhase& phase = task.phase;
    const std::int64_t all_depth = task.scatters ? phase.small_channels : phase.wide_channels;
    with_type(task.type, [&](auto example) {
        with_taps(phase.row_taps, phase.column_taps, [&](auto row_taps, auto column_taps) {
            constexpr int points = winograd_points(row_taps.value, column_taps.value);
            transform_block<row_taps.value, column_taps.value, decltype(example)>(
                task, depth, width, task.output + block_offset(points, all_depth, depth, width));
        });
    });
}

void winograd_correlate(const Correlation& task, Range tiles, Range channels, float* scratch) {
    with_type(task.type, [&](auto example) {
        correlate<decltype(example)>(task, tiles, channels, scratch);
    });
}

#if !defined(__AVX512VNNI__)

namespace {

// totals[i] (+)= products[i]
void add_in_double(const float* products, std::int64_t count, bool accumulate, double* totals) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        const double product = static_cast<double>(products[i]);
        totals[i] = accumulate ? totals[i] + product : product;
    }
}

// Panels (point, wide channels / kPanel, tile, kPanel) of kWinogradDepth tiles.
constexpr std::int64_t kPanelSize = kWinogradDepth * kPanel + kWinogradGap;
constexpr std::int64_t kPanelsSize = kWinogradWidth / kPanel * kPanelSize + kWinogradGap;

template <int kRowTaps, int kColumnTaps, typename T>
void weight_gradient(const WeightGradient& task, Range small, Range wide, float* scratch) {
    constexpr int points = winograd_points(kRowTaps, kColumnTaps);
    // Depth is tiles here, rows channels of the small map.
    constexpr std::int64_t most = winograd_tiles(points);
    constexpr std::int64_t gradients_per_point = kWinogradDepth * most + kWinogradGap;
    constexpr std::int64_t products_per_point = most * kWinogradWidth + kWinogradGap;
    float* const gradients = scratch;
    float* const values = gradients + points * gradients_per_point;
    float* const products = values + points * kPanelsSize;
    double* const totals = reinterpret_cast<double*>(products + points * products_per_point);
    const Layout of_gradients{gradients_per_point, most, kPanel};
    const Layout of_values{kPanelsSize, kPanel, kPanelSize};
    for (std::int64_t first = 0; first < task.tile_count; first += kWinogradDepth) {
        const Range tiles{first, least(kWinogradDepth, task.tile_count - first)};
        transform_map<Matrix::gradients, kRowTaps, kColumnTaps>(static_cast<const T*>(task.small),
                                                                task.small_phase, task.tiles, tiles,
                                                                small, of_gradients, gradients);
        transform_map<Matrix::places, kRowTaps, kColumnTaps>(static_cast<const T*>(task.wide),
                                                             task.wide_phase, task.tiles, tiles,
                                                             wide, of_values, values);
        for (int point = 0; point < points; ++point) {
            multiply<1, most>(gradients + point * gradients_per_point, values + point * kPanelsSize,
                              kPanelSize, small.count, wide.count, tiles.count,
                              first % kWinogradTilesInFloat > 0,
                              products + point * products_per_point, kWinogradWidth);
        }
        const std::int64_t end = first + tiles.count;
        if (task.tile_count > kWinogradTilesInFloat &&
            (end % kWinogradTilesInFloat == 0 || end == task.tile_count)) {
            for (int point = 0; point < points; ++point) {
                const std::int64_t at = point * products_per_point;
                add_in_double(products + at, small.count * kWinogradWidth,
                              first >= kWinogradTilesInFloat, totals + at);
            }
        }
    }
    if (task.tile_count > kWinogradTilesInFloat) {
        for (int point = 0; point < points; ++point) {
            const std::int64_t at = point * products_per_point;
            for (std::int64_t i = 0; i < small.count * kWinogradWidth; ++i) {
                products[at + i] = static_cast<float>(totals[at + i]);
            }
        }
    }
    T* const gradient = static_cast<T*>(task.gradient);
    for (std::int64_t o = 0; o < small.count; ++o) {
        for (std::int64_t c = 0; c < wide.count; c += kLanes) {
            Vector m[points];
            Vector y[kRowTaps * kColumnTaps];
#pragma GCC unroll 16
            for (int i = 0; i < points; ++i) {
                m[i] = load(products + i * products_per_point + o * kWinogradWidth + c);
            }
            transform<Matrix::tap_gradients, kRowTaps, kColumnTaps>(m, y);
            for (int i = 0; i < kRowTaps * kColumnTaps; ++i) {
                store(gradient + tap(task.weight, small.first + o, i / kColumnTaps, i % kColumnTaps,
                                     wide.first + c),
                      y[i]);
            }
        }
    }
}

}  // namespace

void winograd_weight_gradient(const WeightGradient& task, Range small_channels, Range wide_channels,
                              float* scratch) {
    with_type(task.type, [&](auto example) {
        with_taps(task.weight.row_taps, task.weight.column_taps,
                  [&](auto row_taps, auto column_taps) {
                      weight_gradient<row_taps.value, column_taps.value, decltype(example)>(
                          task, small_channels, wide_channels, scratch);
                  });
    });
}

#endif

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
