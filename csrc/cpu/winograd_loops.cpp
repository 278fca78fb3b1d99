// Compiled once per instruction set: see instruction_sets.h. The formulas: winograd.h.
#include "winograd_loops.h"

#include <string.h>

#include "../math/float_types.h"
#include "matrix_product.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// --- Places of a map -----------------------------------------------------------------------------

// In the place of what lies outside a map. As many as channels are transformed at a time, which in
// the weight gradient's small map are more than kWinogradWidth.
alignas(64) const float kZeros[kWinogradTiles] = {};
static_assert(kWinogradTiles >= kWinogradWidth && kWinogradTiles >= kWinogradDepth);

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

// The offset in elements of each of kSide by kSide places from the tile's first; -1 outside.
template <int kSide>
FASTGAN_INLINE void places_of(const PhaseOfMap& map, const TileGrid& grid, const Tile& tile,
                              std::int64_t (&offsets)[kSide * kSide]) {
    const std::int64_t image = tile.image * map.rows.size;
    for (int i = 0; i < kSide; ++i) {
        const std::int64_t row = place(map.rows, grid.row_origin + 2 * tile.row + i);
        for (int j = 0; j < kSide; ++j) {
            const std::int64_t column =
                place(map.columns, grid.column_origin + 2 * tile.column + j);
            offsets[kSide * i + j] =
                row < 0 || column < 0
                    ? -1
                    : ((image + row) * map.columns.size + column) * map.channels;
        }
    }
}

// --- Transforms ----------------------------------------------------------------------------------

// (d0 - d1, d1, d1 - d2) along both dimensions of 3 by 3 places.
FASTGAN_INLINE void transform_places(const Vector (&d)[9], Vector (&v)[9]) {
    Vector rows[9];
    for (int j = 0; j < 3; ++j) {
        rows[j] = d[j] - d[3 + j];
        rows[3 + j] = d[3 + j];
        rows[6 + j] = d[3 + j] - d[6 + j];
    }
    for (int i = 0; i < 3; ++i) {
        v[3 * i] = rows[3 * i] - rows[3 * i + 1];
        v[3 * i + 1] = rows[3 * i + 1];
        v[3 * i + 2] = rows[3 * i + 1] - rows[3 * i + 2];
    }
}

// (w0, w0 + w1, w1) along both dimensions of 2 by 2 taps, or values of a gradient.
FASTGAN_INLINE void transform_taps(const Vector (&w)[4], Vector (&u)[9]) {
    Vector rows[6];
    for (int j = 0; j < 2; ++j) {
        rows[j] = w[j];
        rows[2 + j] = w[j] + w[2 + j];
        rows[4 + j] = w[2 + j];
    }
    for (int i = 0; i < 3; ++i) {
        u[3 * i] = rows[2 * i];
        u[3 * i + 1] = rows[2 * i] + rows[2 * i + 1];
        u[3 * i + 2] = rows[2 * i + 1];
    }
}

// (m0 + m1, m1 - m2) along both dimensions of 3 by 3 products.
FASTGAN_INLINE void transform_products(const Vector (&m)[9], Vector (&y)[4]) {
    Vector rows[6];
    for (int j = 0; j < 3; ++j) {
        rows[j] = m[j] + m[3 + j];
        rows[3 + j] = m[3 + j] - m[6 + j];
    }
    for (int i = 0; i < 2; ++i) {
        y[2 * i] = rows[3 * i] + rows[3 * i + 1];
        y[2 * i + 1] = rows[3 * i + 1] - rows[3 * i + 2];
    }
}

// How a tile's transformed channels lie: element (point, tile, channel) at
//   point * per_point + tile * per_tile + (channel / kPanel) * per_panel + channel % kPanel.
struct Layout {
    std::int64_t per_point;
    std::int64_t per_tile;
    std::int64_t per_panel;
};

template <typename T>
void transform_inputs(const T* map, const PhaseOfMap& phase, const TileGrid& grid, Range tiles,
                      Range channels, const Layout& layout, float* out) {
    Tile tile = tile_at(grid, tiles.first);
    for (std::int64_t index = 0; index < tiles.count; ++index, advance(grid, tile)) {
        std::int64_t offsets[9];
        places_of<3>(phase, grid, tile, offsets);
        const T* from[9];
        for (int i = 0; i < 9; ++i) {
            from[i] = offsets[i] < 0 ? reinterpret_cast<const T*>(kZeros)
                                     : map + offsets[i] + channels.first;
        }
        float* const to = out + index * layout.per_tile;
        for (std::int64_t c = 0; c < channels.count; c += kLanes) {
            Vector d[9];
            Vector v[9];
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) {
                d[i] = load(from[i] + c);
            }
            transform_places(d, v);
            float* const at = to + c / kPanel * layout.per_panel + c % kPanel;
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) {
                store(at + i * layout.per_point, v[i]);
            }
        }
    }
}

template <typename T>
void transform_gradients(const T* map, const PhaseOfMap& phase, const TileGrid& grid, Range tiles,
                         Range channels, const Layout& layout, float* out) {
    Tile tile = tile_at(grid, tiles.first);
    for (std::int64_t index = 0; index < tiles.count; ++index, advance(grid, tile)) {
        std::int64_t offsets[4];
        places_of<2>(phase, grid, tile, offsets);
        const T* from[4];
        for (int i = 0; i < 4; ++i) {
            from[i] = offsets[i] < 0 ? reinterpret_cast<const T*>(kZeros)
                                     : map + offsets[i] + channels.first;
        }
        float* const to = out + index * layout.per_tile;
        for (std::int64_t c = 0; c < channels.count; c += kLanes) {
            const Vector g[4] = {load(from[0] + c), load(from[1] + c), load(from[2] + c),
                                 load(from[3] + c)};
            Vector v[9];
            transform_taps(g, v);
            float* const at = to + c / kPanel * layout.per_panel + c % kPanel;
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) {
                store(at + i * layout.per_point, v[i]);
            }
        }
    }
}

// The taps of small channel `o`, from wide channel `c` on.
template <typename T>
FASTGAN_INLINE const T* tap(const T* weight, const WeightPhase& phase, std::int64_t o, int s, int t,
                            std::int64_t c) {
    const int row = 2 * s + phase.row;
    const int column = 2 * t + phase.column;
    return weight + ((o * 4 + row) * 4 + column) * phase.wide_channels + c;
}

// To panels (point, width / kPanel, depth, kPanel), of kWinogradDepth a panel.
constexpr std::int64_t kPanelSize = kWinogradDepth * kPanel + kWinogradGap;
constexpr std::int64_t kPanelsSize = kWinogradWidth / kPanel * kPanelSize + kWinogradGap;

FASTGAN_INLINE float* in_panels(float* out, std::int64_t depth, std::int64_t width) {
    return out + width / kPanel * kPanelSize + depth * kPanel + width % kPanel;
}

// Depth: channels of the small map; taps reversed.
template <typename T>
void transform_scattering_weight(const T* weight, const WeightPhase& phase, Range depth,
                                 Range width, float* out) {
    for (std::int64_t o = 0; o < depth.count; ++o) {
        for (std::int64_t c = 0; c < width.count; c += kLanes) {
            Vector w[4];
            Vector u[9];
            for (int i = 0; i < 4; ++i) {
                w[i] = load(tap(weight, phase, depth.first + o, 1 - i / 2, 1 - i % 2,
                                width.first + c));
            }
            transform_taps(w, u);
            float* const at = in_panels(out, o, c);
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) {
                store(at + i * kPanelsSize, u[i]);
            }
        }
    }
}

// Depth: channels of the wide map, which lie beside one another, so that blocks are transposed.
template <typename T>
void transform_gathering_weight(const T* weight, const WeightPhase& phase, Range depth, Range width,
                                float* out) {
    const std::int64_t per_channel = 16 * phase.wide_channels;
    for (std::int64_t o = 0; o < width.count; o += kLanes) {
        for (std::int64_t c = 0; c < depth.count; c += kLanes) {
            Vector taps[4][kLanes];
            for (int i = 0; i < 4; ++i) {
                Vector rows[kLanes];
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    const T* const from = tap(weight, phase, width.first + o + l, i / 2, i % 2,
                                              depth.first + c);
                    rows[l] = load(from);
                    // The taps of channels lie too far apart for the processor to foresee.
                    __builtin_prefetch(from + kLanes * per_channel);
                }
                transpose(rows);
#pragma GCC unroll 16
                for (int l = 0; l < kLanes; ++l) {
                    taps[i][l] = rows[l];
                }
            }
            for (int l = 0; l < kLanes; ++l) {
                const Vector w[4] = {taps[0][l], taps[1][l], taps[2][l], taps[3][l]};
                Vector u[9];
                transform_taps(w, u);
                float* const at = in_panels(out, c + l, o);
#pragma GCC unroll 9
                for (int i = 0; i < 9; ++i) {
                    store(at + i * kPanelsSize, u[i]);
                }
            }
        }
    }
}

template <typename T>
void transform_outputs(const float* products, const PhaseOfMap& phase, const TileGrid& grid,
                       Range tiles, Range channels, const float* bias, T* map) {
    constexpr std::int64_t per_point = kWinogradTiles * kWinogradWidth + kWinogradGap;
    Tile tile = tile_at(grid, tiles.first);
    for (std::int64_t index = 0; index < tiles.count; ++index, advance(grid, tile)) {
        std::int64_t offsets[4];
        places_of<2>(phase, grid, tile, offsets);
        const float* const from = products + index * kWinogradWidth;
        for (std::int64_t c = 0; c < channels.count; c += kLanes) {
            Vector m[9];
            Vector y[4];
#pragma GCC unroll 9
            for (int i = 0; i < 9; ++i) {
                m[i] = load(from + i * per_point + c);
            }
            transform_products(m, y);
            const Vector b = bias == nullptr ? Vector{} : load(bias + channels.first + c);
            for (int i = 0; i < 4; ++i) {
                if (offsets[i] >= 0) {
                    store(map + offsets[i] + channels.first + c, y[i] + b);
                }
            }
        }
    }
}

// --- Tasks ---------------------------------------------------------------------------------------

template <typename T>
void correlate(const Correlation& task, Range tiles, Range channels, float* scratch) {
    constexpr std::int64_t values_per_point = kWinogradTiles * kWinogradDepth + kWinogradGap;
    constexpr std::int64_t products_per_point = kWinogradTiles * kWinogradWidth + kWinogradGap;
    float* const values = scratch;
    float* const weights = values + kWinogradPoints * values_per_point;
    float* const products = weights + kWinogradPoints * kPanelsSize;
    const Layout layout{values_per_point, kWinogradDepth, kPanel};
    const std::int64_t rows = padded(tiles.count);
    for (std::int64_t point = 0; point < kWinogradPoints; ++point) {
        // Rows that no tile fills are multiplied too.
        for (std::int64_t row = tiles.count; row < rows; ++row) {
            memset(values + point * values_per_point + row * kWinogradDepth, 0,
                   kWinogradDepth * sizeof(float));
        }
    }
    bool accumulate = false;
    for (int t = 0; t < task.term_count; ++t) {
        const CorrelationTerm& term = task.terms[t];
        const WeightPhase& weight = term.weight;
        const std::int64_t depth = task.scatters ? weight.small_channels : weight.wide_channels;
        for (std::int64_t first = 0; first < depth; first += kWinogradDepth) {
            const Range part{first, least(kWinogradDepth, depth - first)};
            transform_inputs(static_cast<const T*>(task.input), term.input, term.input_tiles, tiles,
                             part, layout, values);
            const auto transform_weight =
                task.scatters ? transform_scattering_weight<T> : transform_gathering_weight<T>;
            transform_weight(static_cast<const T*>(task.weight), weight, part, channels, weights);
            for (std::int64_t point = 0; point < kWinogradPoints; ++point) {
                multiply<kWinogradDepth, 1>(values + point * values_per_point,
                                            weights + point * kPanelsSize, kPanelSize, rows,
                                            channels.count, part.count, accumulate,
                                            products + point * products_per_point, kWinogradWidth);
            }
            accumulate = true;
        }
    }
    transform_outputs(products, task.output_phase, task.output_tiles, tiles, channels, task.bias,
                      static_cast<T*>(task.output));
}

// totals[i] (+)= products[i]
void add_in_double(const float* products, std::int64_t count, bool accumulate, double* totals) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        const double product = static_cast<double>(products[i]);
        totals[i] = accumulate ? totals[i] + product : product;
    }
}

template <typename T>
void weight_gradient(const WeightGradient& task, Range small, Range wide, float* scratch) {
    // Depth is tiles here, rows channels of the small map.
    constexpr std::int64_t gradients_per_point = kWinogradDepth * kWinogradTiles + kWinogradGap;
    constexpr std::int64_t products_per_point = kWinogradTiles * kWinogradWidth + kWinogradGap;
    float* const gradients = scratch;
    float* const values = gradients + kWinogradPoints * gradients_per_point;
    float* const products = values + kWinogradPoints * kPanelsSize;
    constexpr std::int64_t product_count = kWinogradPoints * products_per_point;
    double* const totals = reinterpret_cast<double*>(products + product_count);
    const Layout of_gradients{gradients_per_point, kWinogradTiles, kPanel};
    const Layout of_values{kPanelsSize, kPanel, kPanelSize};
    for (std::int64_t first = 0; first < task.tile_count; first += kWinogradDepth) {
        const Range tiles{first, least(kWinogradDepth, task.tile_count - first)};
        transform_gradients(static_cast<const T*>(task.small), task.small_phase, task.tiles, tiles,
                            small, of_gradients, gradients);
        transform_inputs(static_cast<const T*>(task.wide), task.wide_phase, task.tiles, tiles, wide,
                         of_values, values);
        for (std::int64_t point = 0; point < kWinogradPoints; ++point) {
            multiply<1, kWinogradTiles>(gradients + point * gradients_per_point,
                                        values + point * kPanelsSize, kPanelSize, small.count,
                                        wide.count, tiles.count, first % kWinogradTilesInFloat > 0,
                                        products + point * products_per_point, kWinogradWidth);
        }
        const std::int64_t end = first + tiles.count;
        if (task.tile_count > kWinogradTilesInFloat &&
            (end % kWinogradTilesInFloat == 0 || end == task.tile_count)) {
            for (std::int64_t point = 0; point < kWinogradPoints; ++point) {
                const std::int64_t at = point * products_per_point;
                add_in_double(products + at, small.count * kWinogradWidth,
                              first >= kWinogradTilesInFloat, totals + at);
            }
        }
    }
    if (task.tile_count > kWinogradTilesInFloat) {
        for (std::int64_t point = 0; point < kWinogradPoints; ++point) {
            const std::int64_t at = point * products_per_point;
            for (std::int64_t i = 0; i < small.count * kWinogradWidth; ++i) {
                products[at + i] = static_cast<float>(totals[at + i]);
            }
        }
    }
    const WeightPhase& phase = task.weight;
    T* const gradient = static_cast<T*>(task.gradient);
    for (std::int64_t o = 0; o < small.count; ++o) {
        for (std::int64_t c = 0; c < wide.count; c += kLanes) {
            Vector m[9];
            Vector y[4];
            for (int i = 0; i < 9; ++i) {
                m[i] = load(products + i * products_per_point + o * kWinogradWidth + c);
            }
            transform_products(m, y);
            for (int i = 0; i < 4; ++i) {
                store(const_cast<T*>(tap<T>(gradient, phase, small.first + o, i / 2, i % 2,
                                            wide.first + c)),
                      y[i]);
            }
        }
    }
}

}  // namespace

void winograd_correlate(const Correlation& task, Range tiles, Range channels, float* scratch) {
    const auto run = task.type == FloatType::float32 ? correlate<float> : correlate<BFloat16>;
    run(task, tiles, channels, scratch);
}

void winograd_weight_gradient(const WeightGradient& task, Range small_channels, Range wide_channels,
                              float* scratch) {
    const auto run =
        task.type == FloatType::float32 ? weight_gradient<float> : weight_gradient<BFloat16>;
    run(task, small_channels, wide_channels, scratch);
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
