#include "../batch_norm.h"

#include <algorithm>
#include <vector>

#include "batch_norm_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

std::int64_t arithmetic_bytes(FloatType type) {
    return type == FloatType::float64 ? 8 : 4;
}

const char* at(const void* data, std::int64_t index, std::int64_t bytes) {
    return static_cast<const char*>(data) + index * bytes;
}

char* at(void* data, std::int64_t index, std::int64_t bytes) {
    return static_cast<char*>(data) + index * bytes;
}

// Calls body(index, begin, count) for every tile, on all threads.
template <typename Body>
void for_each_tile(const ChannelLayout& layout, const Body& body) {
    const std::int64_t values = layout.values_per_channel();
    const std::int64_t size = tile_size(values, layout.channels);
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (size * layout.channels));
    parallel_for(0, tile_count(values, layout.channels), grain,
                 [&](std::int64_t first, std::int64_t last) {
                     for (std::int64_t tile = first; tile < last; ++tile) {
                         const std::int64_t begin = tile * size;
                         body(tile, begin, std::min(size, values - begin));
                     }
                 });
}

// A NormAct's (C,) arguments as arrays of the arithmetic's type, for branch-free loops.
class Parameters {
  public:
    explicit Parameters(const NormAct& norm) : bytes_(arithmetic_bytes(norm.type)) {
        all_ = {norm.mean, norm.scale, norm.bias.data, norm.activation, norm.negative_slope};
        const FloatType arithmetic = bytes_ == 8 ? FloatType::float64 : FloatType::float32;
        if (norm.weight.present() || !norm.bias.present() || norm.bias.type != arithmetic) {
            const std::int64_t channels = norm.layout.channels;
            own_.resize(static_cast<std::size_t>(2 * channels));
            char* const scale = reinterpret_cast<char*>(own_.data());
            char* const bias = scale + channels * bytes_;
            for (std::int64_t c = 0; c < channels; ++c) {
                if (bytes_ == 8) {
                    put(norm.of_channel<double>(c), c, scale, bias);
                } else {
                    put(norm.of_channel<float>(c), c, scale, bias);
                }
            }
            all_.scale = scale;
            all_.bias = bias;
        }
    }

    const NormActParameters& all() const { return all_; }

    NormActParameters of_channel(std::int64_t c) const {
        return {at(all_.mean, c, bytes_), at(all_.scale, c, bytes_), at(all_.bias, c, bytes_),
                all_.activation, all_.negative_slope};
    }

  private:
    template <typename A>
    static void put(const Normalisation<A>& of_channel, std::int64_t c, char* scale, char* bias) {
        reinterpret_cast<A*>(scale)[c] = of_channel.scale;
        reinterpret_cast<A*>(bias)[c] = of_channel.bias;
    }

    std::int64_t bytes_;
    std::vector<double> own_;  // for either type
    NormActParameters all_;
};

// Calls columns(first, count) for parts of a channels-last tensor's rows, otherwise run(channel,
// first, count) for images of one channel. `first` is an element's offset.
//
// Backwards: the caches still have the end of the previous pass's data.
template <typename ColumnsBody, typename RunBody>
void for_each_part(const ChannelLayout& layout, const ColumnsBody& columns, const RunBody& run) {
    if (layout.is_columns()) {
        const std::int64_t rows = layout.images;
        const std::int64_t size = tile_size(rows, layout.channels);
        const std::int64_t parts = tile_count(rows, layout.channels);
        const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (size * layout.channels));
        parallel_for(0, parts, grain, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t part = end - 1; part >= begin; --part) {
                const std::int64_t row = part * size;
                columns(row * layout.channels, std::min(size, rows - row));
            }
        });
        return;
    }
    const std::int64_t size = layout.image_size;
    // One long run, as of a single channel, is distributed, too.
    const std::int64_t piece = std::min(size, kGrain);
    const std::int64_t pieces = (size + piece - 1) / piece;
    parallel_for(
        0, layout.images * layout.channels * pieces, std::max<std::int64_t>(1, kGrain / piece),
        [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t i = end - 1; i >= begin; --i) {
                const std::int64_t image = i / pieces;
                const std::int64_t within = (i - image * pieces) * piece;
                run(image % layout.channels, image * size + within, std::min(piece, size - within));
            }
        });
}

// Results are double if `is_double`, for any type of the tiles.
void finalize(const StatisticsTiles& tiles, const FinalizeSettings& settings, bool is_double,
              const FinalizeResults& results) {
    double total = 0;
    for (std::int64_t tile = 0; tile < tiles.tiles; ++tile) {
        total += tiles.is_double ? static_cast<const double*>(tiles.count)[tile]
                                 : static_cast<const float*>(tiles.count)[tile];
    }
    const std::size_t channels = static_cast<std::size_t>(tiles.channels);
    std::vector<double> merged(2 * channels);
    double* const mean = merged.data();
    double* const m2 = mean + channels;
    FASTGAN_SELECT(merge_moments)
    (tiles.is_double, tiles.count, tiles.mean, tiles.m2, tiles.tiles, tiles.channels, mean, m2);
    for (std::int64_t c = 0; c < tiles.channels; ++c) {
        const Moments moments{total, mean[c], m2[c]};
        if (is_double) {
            finalize_channel<double>(c, moments, settings, results);
        } else {
            finalize_channel<float>(c, moments, settings, results);
        }
    }
}

}  // namespace

void batch_norm_partials(FloatType type, const ChannelLayout& layout, const void* input,
                         void* count, void* mean, void* m2) {
    const auto column_moments = FASTGAN_SELECT(column_moments);
    const auto span_moments = FASTGAN_SELECT(span_moments);
    const std::int64_t bytes = bytes_of(type);
    const std::int64_t channels = layout.channels;
    for_each_tile(layout, [&](std::int64_t tile, std::int64_t begin, std::int64_t values) {
        static_cast<double*>(count)[tile] = static_cast<double>(values);
        double* const tile_mean = static_cast<double*>(mean) + tile * channels;
        double* const tile_m2 = static_cast<double*>(m2) + tile * channels;
        if (layout.is_columns()) {
            column_moments(type, at(input, begin * channels, bytes), values, channels, tile_mean,
                           tile_m2);
            return;
        }
        const ChannelSpan span{begin, values, layout.image_size, layout.image_size * channels};
        for (std::int64_t c = 0; c < channels; ++c) {
            span_moments(type, at(input, c * layout.image_size, bytes), span, tile_mean + c,
                         tile_m2 + c);
        }
    });
}

void batch_norm_finalize(const StatisticsTiles& tiles, const FinalizeSettings& settings,
                         const FinalizeResults& results) {
    finalize(tiles, settings, tiles.is_double, results);
}

void batch_norm_statistics(FloatType type, const ChannelLayout& layout, const void* input,
                           const FinalizeSettings& settings, void* workspace,
                           const FinalizeResults& results) {
    const std::int64_t tiles = tile_count(layout.values_per_channel(), layout.channels);
    double* const count = static_cast<double*>(workspace);
    double* const mean = count + tiles;
    double* const m2 = mean + tiles * layout.channels;
    if (tiles > 0) {
        batch_norm_partials(type, layout, input, count, mean, m2);
    }
    finalize({true, tiles, layout.channels, count, mean, m2}, settings,
             type == FloatType::float64, results);
}

void norm_act(const NormAct& norm, const void* input, void* result) {
    const auto norm_act_columns = FASTGAN_SELECT(norm_act_columns);
    const auto norm_act_run = FASTGAN_SELECT(norm_act_run);
    const std::int64_t bytes = bytes_of(norm.type);
    const Parameters parameters(norm);
    for_each_part(
        norm.layout,
        [&](std::int64_t first, std::int64_t rows) {
            norm_act_columns(norm.type, at(input, first, bytes), at(result, first, bytes), rows,
                             norm.layout.channels, parameters.all());
        },
        [&](std::int64_t channel, std::int64_t first, std::int64_t count) {
            norm_act_run(norm.type, at(input, first, bytes), at(result, first, bytes), count,
                         parameters.of_channel(channel));
        });
}

void norm_act_gradient_sums(const NormAct& norm, const void* grad, const void* input,
                            const void* invstd, void* grad_sum, void* grad_xhat_sum) {
    const auto column_gradient_sums = FASTGAN_SELECT(column_gradient_sums);
    const auto span_gradient_sums = FASTGAN_SELECT(span_gradient_sums);
    const std::int64_t bytes = bytes_of(norm.type), sum_bytes = arithmetic_bytes(norm.type);
    const std::int64_t channels = norm.layout.channels, image_size = norm.layout.image_size;
    const Parameters parameters(norm);
    for_each_tile(norm.layout, [&](std::int64_t tile, std::int64_t begin, std::int64_t values) {
        void* const tile_grad = at(grad_sum, tile * channels, sum_bytes);
        void* const tile_grad_xhat = at(grad_xhat_sum, tile * channels, sum_bytes);
        if (norm.layout.is_columns()) {
            column_gradient_sums(norm.type, at(grad, begin * channels, bytes),
                                 at(input, begin * channels, bytes), values, channels,
                                 parameters.all(), invstd, tile_grad, tile_grad_xhat);
            return;
        }
        const ChannelSpan span{begin, values, image_size, image_size * channels};
        for (std::int64_t c = 0; c < channels; ++c) {
            span_gradient_sums(norm.type, at(grad, c * image_size, bytes),
                               at(input, c * image_size, bytes), span, parameters.of_channel(c),
                               at(invstd, c, sum_bytes), at(tile_grad, c, sum_bytes),
                               at(tile_grad_xhat, c, sum_bytes));
        }
    });
}

void norm_act_gradient_finalize(const GradientTiles& tiles, const GradientResults& results) {
    const auto add_tiles = FASTGAN_SELECT(add_tiles);
    const std::size_t channels = static_cast<std::size_t>(tiles.channels);
    std::vector<double> added(2 * channels);
    double* const grad = added.data();
    double* const grad_xhat = grad + channels;
    add_tiles(tiles.is_double, tiles.grad, tiles.tiles, tiles.channels, grad);
    add_tiles(tiles.is_double, tiles.grad_xhat, tiles.tiles, tiles.channels, grad_xhat);
    for (std::int64_t c = 0; c < tiles.channels; ++c) {
        if (tiles.is_double) {
            finalize_gradient_of_channel<double>(c, grad[c], grad_xhat[c], tiles, results);
        } else {
            finalize_gradient_of_channel<float>(c, grad[c], grad_xhat[c], tiles, results);
        }
    }
}

void norm_act_gradient(const NormAct& norm, const void* grad, const void* input, const void* slope,
                       const void* offset, void* result) {
    const auto gradient_columns = FASTGAN_SELECT(gradient_columns);
    const auto gradient_run = FASTGAN_SELECT(gradient_run);
    const std::int64_t bytes = bytes_of(norm.type), parameter_bytes = arithmetic_bytes(norm.type);
    const Parameters parameters(norm);
    for_each_part(
        norm.layout,
        [&](std::int64_t first, std::int64_t rows) {
            gradient_columns(norm.type, at(grad, first, bytes), at(input, first, bytes),
                             at(result, first, bytes), rows, norm.layout.channels, parameters.all(),
                             slope, offset);
        },
        [&](std::int64_t channel, std::int64_t first, std::int64_t count) {
            gradient_run(norm.type, at(grad, first, bytes), at(input, first, bytes),
                         at(result, first, bytes), count, parameters.of_channel(channel),
                         at(slope, channel, parameter_bytes), at(offset, channel, parameter_bytes));
        });
}

void act_gradient(FloatType type, std::int64_t count, const void* grad, const void* kept,
                  Activation activation, double negative_slope, void* result) {
    const auto act_gradient_run = FASTGAN_SELECT(act_gradient_run);
    const std::int64_t bytes = bytes_of(type);
    parallel_for(0, count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        act_gradient_run(type, at(grad, begin, bytes), at(kept, begin, bytes),
                         at(result, begin, bytes), end - begin, activation, negative_slope);
    });
}

}  // namespace fastgan::cpu
