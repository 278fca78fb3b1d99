// Batch norm's statistics on CUDA devices: a kernel for the tiles' statistics, bound by reading the
// tensor once, and one that merges them.
#include "../math/compensated_sum.h"
#include "../batch_norm.h"
#include "channel_tiles.h"
#include "launch.h"

namespace fastgan::cuda {

namespace {

// For any number of rows, a tile's sums of terms t have an error of at most 21 u sum(|t|), u being
// half the type's epsilon: 3 roundings of each term, 7 for a vector or 3 for kRowsInFlight, 2 for a
// thread's sum (compensated_sum.h), 8 for a block's or 5 for a warp's, 1 for the result.

// Rows that a thread loads before it uses the first, to hide memory latency.
constexpr int kRowsInFlight = 4;

// mean, m2: (tiles, channels). A block owns a tile of `lanes` vectors of channels; see
// ColumnBlocks.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    column_moments(const T* input, ChannelLayout layout, std::int64_t tile_rows,
                   ColumnBlocks blocks, Arithmetic<T>* count, Arithmetic<T>* mean,
                   Arithmetic<T>* m2) {
    using A = Arithmetic<T>;
    __shared__ A shared[kTileThreads * kVector];
    const ColumnThread place = ColumnThread::of<kVector>(blocks);
    const std::int64_t channels = layout.channels;
    const std::int64_t begin = place.part * tile_rows;
    const std::int64_t left = layout.images - begin;
    const std::int64_t rows = left < tile_rows ? left : tile_rows;
    const bool active = place.channel < channels;

    A shift[kVector] = {};
    CompensatedSum<A> sums[kVector] = {};
    CompensatedSum<A> squares[kVector] = {};
    if (active) {
        const T* const tile = input + begin * channels + place.channel;
        const auto first = load<kVector>(tile);
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            shift[v] = shift_by(to_arithmetic(first.elements[v]));
        }
#pragma unroll 1
        for (std::int64_t row = place.row; row < rows; row += place.rows * kRowsInFlight) {
            Vector<T, kVector> loaded[kRowsInFlight];
#pragma unroll
            for (int r = 0; r < kRowsInFlight; ++r) {
                const std::int64_t at = row + r * place.rows;
                if (at < rows) {
                    loaded[r] = load<kVector>(tile + at * channels);
                }
            }
#pragma unroll
            for (int v = 0; v < kVector; ++v) {
                A sum = 0;
                A square = 0;
#pragma unroll
                for (int r = 0; r < kRowsInFlight; ++r) {
                    if (row + r * place.rows < rows) {
                        const A d = to_arithmetic(loaded[r].elements[v]) - shift[v];
                        sum += d;
                        square = multiply_add(d, d, square);
                    }
                }
                sums[v] += sum;
                squares[v] += square;
            }
        }
    }
    A sum[kVector];
    A square[kVector];
#pragma unroll
    for (int v = 0; v < kVector; ++v) {
        sum[v] = sums[v].total();
        square[v] = squares[v].total();
    }
    add_rows_of_block<kVector>(place, blocks.lanes, sum, shared);
    add_rows_of_block<kVector>(place, blocks.lanes, square, shared);
    if (place.row == 0 && active) {
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            const auto moments =
                TileMoments<A>::of_sums(shift[v], sum[v], square[v], static_cast<A>(rows));
            mean[place.part * channels + place.channel + v] = moments.mean;
            m2[place.part * channels + place.channel + v] = moments.m2;
        }
    }
    if (threadIdx.x == 0 && place.channel == 0) {
        count[place.part] = static_cast<A>(rows);
    }
}

// mean, m2: (tiles, channels). A warp owns a tile of one channel.
template <typename T, int kVector>
__global__ void __launch_bounds__(kTileThreads)
    channel_moments(const T* input, ChannelLayout layout, LayoutDivisors divisors,
                    std::int64_t tile_values, std::int64_t pairs, Arithmetic<T>* count,
                    Arithmetic<T>* mean, Arithmetic<T>* m2) {
    using A = Arithmetic<T>;
    const int lane = static_cast<int>(threadIdx.x) % warpSize;
    const std::int64_t pair = static_cast<std::int64_t>(blockIdx.x) * (kTileThreads / warpSize) +
                              static_cast<int>(threadIdx.x) / warpSize;
    if (pair >= pairs) {
        return;  // the whole warp
    }
    const std::int64_t tile = divisors.channels.quotient(pair);
    const std::int64_t channel = pair - tile * layout.channels;
    const std::int64_t begin = tile * tile_values;
    const std::int64_t left = layout.values_per_channel() - begin;
    const std::int64_t values = left < tile_values ? left : tile_values;
    const ChannelTile place = ChannelTile::of(divisors, begin, channel);

    // First, so that it needs no register later (sm_90a spilled one).
    const A values_of_tile = static_cast<A>(values);
    if (lane == 0 && channel == 0) {
        count[tile] = values_of_tile;
    }
    const A shift = shift_by(to_arithmetic(input[place.offset(0)]));
    CompensatedSum<A> sums{};
    CompensatedSum<A> squares{};
#pragma unroll 1
    for (std::int64_t i = lane * kVector; i < values; i += warpSize * kVector) {
        const auto loaded = load<kVector>(input + place.offset(i));
        A sum_of_vector = 0;
        A square_of_vector = 0;
#pragma unroll
        for (int v = 0; v < kVector; ++v) {
            const A d = to_arithmetic(loaded.elements[v]) - shift;
            sum_of_vector += d;
            square_of_vector = multiply_add(d, d, square_of_vector);
        }
        sums += sum_of_vector;
        squares += square_of_vector;
    }
    const A sum = sum_of_warp(sums.total());
    const A square = sum_of_warp(squares.total());
    if (lane == 0) {
        const auto moments = TileMoments<A>::of_sums(shift, sum, square, values_of_tile);
        mean[pair] = moments.mean;
        m2[pair] = moments.m2;
    }
}

// A thread adds every 32nd tile of a channel; then 32 threads add their results. In pairs of numbers
// of the tiles' own type, because most GPUs compute double at a 32nd or 64th of float's rate.
//
// First the mean, from differences to the first tile's mean m_1; then M2 around it, the sum of
// M2_i + n_i (m_i - mean)^2, whose terms don't cancel. With at most 4096 tiles a thread:
//
//   |error of mean| <= 6 u sum(n_i |m_i - m_1|) / n    3 roundings of each term, 1 for the sum, 2 for
//                                                      the quotient; none for the mean itself
//   |error of M2| <= 9 u M2 + n (u^2 mean)^2           2 roundings of m_i - mean, so 4 of its square,
//                                                      2 of the products, 3 for the sum
//
// An error e of the mean adds n e^2 to M2, the second order of u.
template <typename A>
__global__ void __launch_bounds__(kMergeChannels* kMergeThreads)
    merge_moments(StatisticsTiles tiles, FinalizeSettings settings, FinalizeResults results) {
    __shared__ MergeSums<A> shared;
    const int y = static_cast<int>(threadIdx.y);
    const std::int64_t c =
        static_cast<std::int64_t>(blockIdx.x) * kMergeChannels + static_cast<int>(threadIdx.x);
    const std::int64_t tiles_of_channel = c < tiles.channels ? tiles.tiles : 0;
    const A* const counts = static_cast<const A*>(tiles.count);
    const A* const means = static_cast<const A*>(tiles.mean);
    const A* const squares = static_cast<const A*>(tiles.m2);

    const A shift = tiles_of_channel > 0 ? shift_by(means[c]) : A(0);
    CompensatedSum<A> count{};
    CompensatedSum<A> difference{};
    for (std::int64_t tile = y; tile < tiles_of_channel; tile += kMergeThreads) {
        const A n = counts[tile];
        if (n != A(0)) {
            count += n;
            // By multiply_add, so that the compiler can't join the product and the sum.
            difference += multiply_add(n, means[tile * tiles.channels + c] - shift, A(0));
        }
    }
    count = sum_of_merge<A>(count, shared);
    difference = sum_of_merge<A>(difference, shared);
    CompensatedSum<A> mean{shift, A(0)};
    if (count.high != A(0)) {
        mean += quick_quotient(difference.total(), count.total());
    }
    const A rest = mean.low - mean.low == A(0) ? mean.low : A(0);  // NaN if the mean is infinite
    CompensatedSum<A> m2{};
    for (std::int64_t tile = y; tile < tiles_of_channel; tile += kMergeThreads) {
        const A n = counts[tile];
        if (n != A(0)) {
            const std::int64_t at = tile * tiles.channels + c;
            const A d = (means[at] - mean.high) - rest;
            m2 += multiply_add(n * d, d, squares[at]);
        }
    }
    m2 = sum_of_merge<A>(m2, shared);
    if (y == 0 && c < tiles.channels) {
        finalize_channel<A>(c, Moments{count.wide_total(), mean.wide_total(), m2.wide_total()},
                            settings, results);
    }
}

}  // namespace

void batch_norm_partials(FloatType type, const ChannelLayout& layout, const void* input,
                         void* count, void* mean, void* m2, void* stream) {
    const std::int64_t values = layout.values_per_channel();
    const std::int64_t size = tile_size(values, layout.channels);
    const std::int64_t tiles = tile_count(values, layout.channels);
    with_vectors(type, layout, is_aligned(input), [&](auto example, auto vector) {
        using T = decltype(example);
        constexpr int kVector = decltype(vector)::value;
        if (layout.is_columns()) {
            const ColumnBlocks blocks = column_blocks(layout.channels, kVector);
            launch("column_moments", column_moments<T, kVector>, blocks.count(tiles), kTileThreads,
                   0, stream, input, layout, size, blocks, count, mean, m2);
        } else {
            const std::int64_t pairs = tiles * layout.channels;
            launch("channel_moments", channel_moments<T, kVector>,
                   blocks_for(pairs, kTileThreads / 32), kTileThreads, 0, stream, input, layout,
                   LayoutDivisors::of(layout), size, pairs, count, mean, m2);
        }
    });
}

void batch_norm_finalize(const StatisticsTiles& tiles, const FinalizeSettings& settings,
                         const FinalizeResults& results, void* stream) {
    launch("merge_moments", tiles.is_double ? merge_moments<double> : merge_moments<float>,
           blocks_for(tiles.channels, kMergeChannels), dim3(kMergeChannels, kMergeThreads), 0,
           stream, tiles, settings, results);
}

void batch_norm_statistics(FloatType type, const ChannelLayout& layout, const void* input,
                           const FinalizeSettings& settings, void* workspace,
                           const FinalizeResults& results, void* stream) {
    const std::int64_t tiles = tile_count(layout.values_per_channel(), layout.channels);
    const bool is_double = type == FloatType::float64;
    const std::int64_t bytes = is_double ? 8 : 4;
    char* const count = static_cast<char*>(workspace);
    char* const mean = count + tiles * bytes;
    char* const m2 = mean + tiles * layout.channels * bytes;
    if (tiles > 0) {
        batch_norm_partials(type, layout, input, count, mean, m2, stream);
    }
    batch_norm_finalize({is_double, tiles, layout.channels, count, mean, m2}, settings, results,
                        stream);
}

}  // namespace fastgan::cuda
