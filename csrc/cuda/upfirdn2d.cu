// upfirdn2d and filtered_lrelu on CUDA devices. A block owns an output tile of one map, or of
// adjacent channels if these are innermost; intermediate values are in shared memory. The formulas:
// math/upfirdn2d.h.
#include "../upfirdn2d.h"

#include <stdexcept>

#include "../math/bias_act.h"
#include "../math/float_pairs.h"
#include "launch.h"
#include "shared_memory.h"

namespace fastgan::cuda {

namespace {

constexpr int kThreads = 256;
// A block's shared memory without opting in to more.
constexpr std::int64_t kSharedBytes = 48 * 1024;

// A tile's sizes (rows, places) of the input, between the filters, and of the output.
struct Tile {
    int lanes;
    int in_rows;
    int in_places;
    int middle_rows;
    int middle_places;
    int out_rows;
    int out_places;

    FASTGAN_INLINE std::int64_t values(bool has_activation) const {
        const std::int64_t rows = std::int64_t{in_rows} * (in_places + middle_places) +
                                  std::int64_t{middle_rows} * middle_places;
        return lanes * (rows + (has_activation ? std::int64_t{middle_rows} * out_places : 0));
    }
};

struct FirProblem {
    FirMaps maps;
    Filter first;
    Filter second;
    bool has_activation;
    FirBetween between;
    Tile tile;
    std::int64_t tiles_along_x;
    std::int64_t tiles;
    std::int64_t groups;  // of lanes, in a sample
};

FASTGAN_INLINE std::int64_t taps_in(const Filter& filter) {
    return filter.separable ? filter.x.taps + filter.y.taps : filter.x.taps * filter.y.taps;
}

// The position of a lane's (row, place) in a map.
FASTGAN_INLINE std::int64_t offset_in(const FirMaps& maps, std::int64_t rows, std::int64_t places,
                                      std::int64_t sample, std::int64_t channel, std::int64_t row,
                                      std::int64_t place) {
    return maps.channels_last ? ((sample * rows + row) * places + place) * maps.channels + channel
                              : ((sample * maps.channels + channel) * rows + row) * places + place;
}

template <typename A>
__device__ __forceinline__ void load_taps(const Filter& filter, A* taps) {
    const std::int64_t x = filter.x.taps, count = taps_in(filter);
    for (std::int64_t t = threadIdx.x; t < count; t += kThreads) {
        double tap = 1;
        if (filter.f != nullptr) {
            tap = !filter.separable ? filter.tap(t, count)
                  : t < x           ? filter.tap(t, x)
                                    : filter.tap(t - x, count - x);
        }
        const bool takes_gain = !filter.separable || t >= x;
        taps[t] = static_cast<A>(takes_gain ? tap * filter.gain : tap);
    }
}

// Filters `from`, which begins at (row, place) of its input, to `to`: `rows` by `places` outputs
// from (first_row, first_place) on. between: as many rows as `from`.
//
// A separate function, compiled once for all types with arithmetic in A.
template <typename A>
__device__ __attribute__((noinline)) void filter_tile(const Filter& filter, const A* taps,
                                                      int lanes, const A* from, int from_rows,
                                                      int from_places, std::int64_t row,
                                                      std::int64_t place, A* between, A* to,
                                                      int rows, int places, std::int64_t first_row,
                                                      std::int64_t first_place) {
    if (filter.separable) {
        const int count = from_rows * places * lanes;
        for (int i = threadIdx.x; i < count; i += kThreads) {
            const int lane = i % lanes, o = i / lanes % places, r = i / lanes / places;
            const FirTaps along = taps_of(filter.x, first_place + o);
            const A* const source =
                from + (r * from_places + static_cast<int>(along.place - place)) * lanes + lane;
            A sum = A(0);
            for (int j = 0; j < along.count; ++j) {
                sum = multiply_add(taps[along.first + j * filter.x.up], source[j * lanes], sum);
            }
            between[i] = sum;
        }
        __syncthreads();
    }
    const int count = rows * places * lanes;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const int lane = i % lanes, o = i / lanes % places, r = i / lanes / places;
        const FirTaps down = taps_of(filter.y, first_row + r);
        const int top = static_cast<int>(down.place - row);
        A sum = A(0);
        if (filter.separable) {
            const A* const along_y = taps + filter.x.taps;
            for (int j = 0; j < down.count; ++j) {
                sum = multiply_add(along_y[down.first + j * filter.y.up],
                                   between[((top + j) * places + o) * lanes + lane], sum);
            }
        } else {
            const FirTaps along = taps_of(filter.x, first_place + o);
            const int left = static_cast<int>(along.place - place);
            for (int j = 0; j < down.count; ++j) {
                const A* const of_row = taps + (down.first + j * filter.y.up) * filter.x.taps;
                A row_sum = A(0);
                for (int l = 0; l < along.count; ++l) {
                    row_sum = multiply_add(
                        of_row[along.first + l * filter.x.up],
                        from[((top + j) * from_places + left + l) * lanes + lane], row_sum);
                }
                sum += row_sum;
            }
        }
        to[i] = sum;
    }
    __syncthreads();
}

template <typename A>
__device__ __forceinline__ A leaky(const FirActivation& activation, A u) {
    return (u > A(0) ? u : u * static_cast<A>(activation.slope)) * static_cast<A>(activation.gain);
}

// The in-place step between the filters; writes or reads the bits.
template <typename A>
__device__ __attribute__((noinline)) void activate_tile(
    const FirProblem& problem, std::int64_t sample, std::int64_t channel, std::int64_t out_row,
    std::int64_t out_place, std::int64_t middle_row, std::int64_t middle_place, A* middle) {
    const Tile& tile = problem.tile;
    const FirMaps& maps = problem.maps;
    const Filter &first = problem.first, &second = problem.second;
    const int lanes = tile.lanes;
    const FirActivation& activation = problem.between.activation;
    const A clamp = static_cast<A>(activation.clamp);
    const bool is_clamped = clamp - clamp == A(0);
    const std::int64_t bytes = (first.x.out + 7) / 8, row_bytes = is_clamped ? 2 * bytes : bytes;
    std::uint8_t* const bits = problem.between.bits;
    if (problem.between.signs == Signs::written) {
        // The part that only this tile writes: up to the next tile's beginning.
        const bool last_row = out_row + tile.out_rows >= second.y.out;
        const bool last_place = out_place + tile.out_places >= second.x.out;
        const std::int64_t end_row =
            last_row ? first.y.out : middle_row + tile.out_rows * second.y.down;
        const std::int64_t end_byte =
            last_place ? bytes : (middle_place + tile.out_places * second.x.down) / 8;
        const int rows = static_cast<int>(end_row - middle_row);
        const int count = static_cast<int>(end_byte - middle_place / 8);
        for (int i = threadIdx.x; i < rows * count * lanes; i += kThreads) {
            const int lane = i % lanes, b = i / lanes % count, r = i / lanes / count;
            if (channel + lane >= maps.channels) {
                continue;
            }
            unsigned above = 0, clipped = 0;
            for (int p = 0; p < 8 && middle_place + 8 * b + p < first.x.out; ++p) {
                const A u = middle[(r * tile.middle_places + 8 * b + p) * lanes + lane];
                const A v = leaky(activation, u);
                above |= static_cast<unsigned>(u > A(0)) << p;
                clipped |= static_cast<unsigned>(!((v < A(0) ? -v : v) <= clamp)) << p;
            }
            const std::int64_t byte = middle_place / 8 + b;
            bits[offset_in(maps, first.y.out, row_bytes, sample, channel + lane, middle_row + r,
                           byte)] = static_cast<std::uint8_t>(above);
            if (is_clamped) {
                bits[offset_in(maps, first.y.out, row_bytes, sample, channel + lane, middle_row + r,
                               bytes + byte)] = static_cast<std::uint8_t>(clipped);
            }
        }
        __syncthreads();
    }
    for (int i = threadIdx.x; i < tile.middle_rows * tile.middle_places * lanes; i += kThreads) {
        const int lane = i % lanes, p = i / lanes % tile.middle_places;
        const std::int64_t row = middle_row + i / lanes / tile.middle_places;
        const std::int64_t place = middle_place + p;
        const A u = middle[i];
        A value = A(0);  // beyond the ends there is nothing
        if (row >= 0 && row < first.y.out && place >= 0 && place < first.x.out &&
            channel + lane < maps.channels) {
            if (problem.between.signs == Signs::read) {
                const auto bit = [&](std::int64_t plane) {
                    const std::uint8_t byte =
                        bits[offset_in(maps, first.y.out, row_bytes, sample, channel + lane, row,
                                       plane * bytes + place / 8)];
                    return (byte >> (place % 8) & 1) != 0;
                };
                value = u * static_cast<A>(activation.gain);
                value = bit(0) ? value : value * static_cast<A>(activation.slope);
                value = is_clamped && bit(1) ? A(0) : value;
            } else {
                value = clamped(leaky(activation, u), clamp);
            }
        }
        middle[i] = value;
    }
    __syncthreads();
}

template <typename T>
__global__ void __launch_bounds__(kThreads) fir_tiles(const __grid_constant__ FirProblem problem) {
    using A = decltype(to_arithmetic(T{}));
    const Tile& tile = problem.tile;
    const FirMaps& maps = problem.maps;
    const Filter &first = problem.first, &second = problem.second;
    const int lanes = tile.lanes;
    A* const input = dynamic_shared<A>();
    A* const input_along_x = input + tile.in_rows * tile.in_places * lanes;
    A* const middle = input_along_x + tile.in_rows * tile.middle_places * lanes;
    A* const middle_along_x = middle + tile.middle_rows * tile.middle_places * lanes;
    A* const taps = input + tile.values(problem.has_activation);
    A* const second_taps = taps + taps_in(first);

    const std::int64_t block = blockIdx.x;
    const std::int64_t of_map = block % problem.tiles, map = block / problem.tiles;
    const std::int64_t channel = map % problem.groups * lanes, sample = map / problem.groups;
    const std::int64_t out_row = of_map / problem.tiles_along_x * tile.out_rows;
    const std::int64_t out_place = of_map % problem.tiles_along_x * tile.out_places;
    const FirAxis &last_x = problem.has_activation ? second.x : first.x,
                  &last_y = problem.has_activation ? second.y : first.y;
    const std::int64_t middle_row =
        problem.has_activation ? out_row * second.y.down - second.y.pad : out_row;
    const std::int64_t middle_place =
        problem.has_activation ? out_place * second.x.down - second.x.pad : out_place;
    const std::int64_t in_row = taps_of(first.y, middle_row).place;
    const std::int64_t in_place = taps_of(first.x, middle_place).place;

    load_taps(first, taps);
    if (problem.has_activation) {
        load_taps(second, second_taps);
    }
    for (int i = threadIdx.x; i < tile.in_rows * tile.in_places * lanes; i += kThreads) {
        const int lane = i % lanes, p = i / lanes % tile.in_places, r = i / lanes / tile.in_places;
        const std::int64_t row = in_row + r, place = in_place + p;
        A value = A(0);
        if (row >= 0 && row < first.y.in && place >= 0 && place < first.x.in &&
            channel + lane < maps.channels) {
            value = to_arithmetic(static_cast<const T*>(maps.x)[offset_in(
                maps, first.y.in, first.x.in, sample, channel + lane, row, place)]);
            if (problem.has_activation && problem.between.bias != nullptr) {
                value += to_arithmetic(static_cast<const T*>(problem.between.bias)[channel + lane]);
            }
        }
        input[i] = value;
    }
    __syncthreads();
    filter_tile(first, taps, lanes, input, tile.in_rows, tile.in_places, in_row, in_place,
                input_along_x, middle, tile.middle_rows, tile.middle_places, middle_row,
                middle_place);

    const A* result = middle;
    if (problem.has_activation) {
        activate_tile(problem, sample, channel, out_row, out_place, middle_row, middle_place,
                      middle);
        // The input is no longer needed; its memory is large enough for the result.
        filter_tile(second, second_taps, lanes, middle, tile.middle_rows, tile.middle_places,
                    middle_row, middle_place, middle_along_x, input, tile.out_rows, tile.out_places,
                    out_row, out_place);
        result = input;
    }
    for (int i = threadIdx.x; i < tile.out_rows * tile.out_places * lanes; i += kThreads) {
        const int lane = i % lanes, p = i / lanes % tile.out_places,
                  r = i / lanes / tile.out_places;
        const std::int64_t row = out_row + r, place = out_place + p;
        if (row < last_y.out && place < last_x.out && channel + lane < maps.channels) {
            static_cast<T*>(maps.y)[offset_in(maps, last_y.out, last_x.out, sample, channel + lane,
                                              row, place)] = from_arithmetic<T>(result[i]);
        }
    }
}

// The most input places needed for this many outputs.
std::int64_t places_for(const FirAxis& axis, std::int64_t outputs) {
    return ((outputs - 1) * axis.down + axis.taps) / axis.up + 2;
}

Tile tile_of(const FirProblem& problem, int lanes, int rows, int places) {
    Tile tile{lanes, 0, 0, rows, places, rows, places};
    if (problem.has_activation) {
        const auto middle = [](const FirAxis& axis, int outputs) {
            return static_cast<int>(outputs * axis.down + axis.taps);
        };
        tile.middle_rows = middle(problem.second.y, rows);
        tile.middle_places = middle(problem.second.x, places);
    }
    tile.in_rows = static_cast<int>(places_for(problem.first.y, tile.middle_rows));
    tile.in_places = static_cast<int>(places_for(problem.first.x, tile.middle_places));
    // The output values' final position.
    if (problem.has_activation && tile.in_rows * tile.in_places < rows * places) {
        tile.in_rows = (rows * places + tile.in_places - 1) / tile.in_places;
    }
    return tile;
}

void run(FirProblem problem, void* stream) {
    const std::int64_t value_bytes = problem.maps.type == FloatType::float64 ? 8 : 4;
    const std::int64_t all_taps =
        taps_in(problem.first) + (problem.has_activation ? taps_in(problem.second) : 0);
    const auto bytes = [&](const Tile& tile) {
        return value_bytes * (tile.values(problem.has_activation) + all_taps);
    };
    for (const FirAxis* axis :
         {&problem.first.x, &problem.first.y, &problem.second.x, &problem.second.y}) {
        if (axis->taps > 1024 || axis->down > 1024) {
            throw std::runtime_error(
                "fastgan: filters on CUDA have at most 1024 taps, and keep one"
                " of 1024 values");
        }
    }
    // A line of adjacent channels, or one map; the largest tile that fits. Written bits fill whole
    // bytes per tile.
    int lanes = problem.maps.channels_last && problem.maps.channels >= 8 ? 32 : 1;
    int rows = lanes > 1 ? 8 : 32, places = rows;
    while (bytes(tile_of(problem, lanes, rows, places)) > kSharedBytes) {
        if (rows > 1 && rows >= places) {
            rows /= 2;
        } else if (places > 8) {
            places /= 2;
        } else if (lanes > 1) {
            lanes /= 2;
        } else if (rows > 1) {
            rows /= 2;
        } else {
            throw std::runtime_error(
                "fastgan: the filter's taps and factors need more than a "
                "block's shared memory");
        }
    }
    problem.tile = tile_of(problem, lanes, rows, places);
    const Filter& last = problem.has_activation ? problem.second : problem.first;
    problem.tiles_along_x = (last.x.out + places - 1) / places;
    problem.tiles = problem.tiles_along_x * ((last.y.out + rows - 1) / rows);
    problem.groups = (problem.maps.channels + lanes - 1) / lanes;
    const unsigned blocks = blocks_for(problem.maps.batch * problem.groups * problem.tiles, 1);
    for_float_type(problem.maps.type, [&]<typename T>() {
        launch("fir_tiles", fir_tiles<T>, blocks, kThreads,
               static_cast<std::size_t>(bytes(problem.tile)), stream, problem);
    });
}

}  // namespace

void upfirdn2d(const FirMaps& maps, const Filter& filter, void* stream) {
    run({maps, filter, filter, false, {}, {}, 0, 0, 0}, stream);
}

void filtered_lrelu(const FirMaps& maps, const Filter& first, const FirBetween& between,
                    const Filter& second, void* stream) {
    run({maps, first, second, true, between, {}, 0, 0, 0}, stream);
}

}  // namespace fastgan::cuda
