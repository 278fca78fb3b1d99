#include "../upfirdn2d.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "upfirdn2d_loops.h"

namespace fastgan::cpu {

namespace {

// Maps side by side, where they are: a cache line of floats at least, and no more than keep the
// rows of a task in the second-level cache.
constexpr std::int64_t kLanes = 16;
constexpr std::int64_t kRowBytes = 192 * 1024;
// Contiguous maps of fewer places in a row are walked side by side too.
constexpr std::int64_t kShortRow = 24;

template <typename A>
class Coefficients {
  public:
    // Whether rows stay where they are: see split().
    Coefficients(const Filter& filter, bool in_place)
        : filter_{filter.x, filter.y, filter.separable || filter.f == nullptr, nullptr, nullptr} {
        if (!filter_.separable && split(filter, in_place ? 1 : 2)) {
            filter_.separable = true;
        } else {
            const std::int64_t rows = filter_.separable ? 1 : filter.y.taps;
            along_x_ = taps(filter, rows * filter.x.taps, filter_.separable ? 1.0 : filter.gain);
            along_y_ = taps(filter, filter_.separable ? filter.y.taps : 0, filter.gain);
        }
        filter_.along_x = along_x_.data();
        filter_.along_y = along_y_.data();
    }

    const FirFilter& filter() const { return filter_; }

  private:
    static std::vector<A> taps(const Filter& filter, std::int64_t count, double gain) {
        std::vector<A> result(static_cast<std::size_t>(count), static_cast<A>(gain));
        for (std::int64_t t = 0; filter.f != nullptr && t < count; ++t) {
            result[static_cast<std::size_t>(t)] = static_cast<A>(filter.tap(t, count) * gain);
        }
        return result;
    }

    // A filter of rank 1 is the product of its smallest tap's row and column, the column in units of
    // that tap. Split where that takes `times_fewer` products at least, since each row is stored and
    // loaded once more, and only if the taps stay exactly what they are: a rounding of both factors
    // may double the error of a short filter.
    bool split(const Filter& filter, std::int64_t times_fewer) {
        const FirAxis &x = filter.x, &y = filter.y;
        const std::int64_t columns = x.taps, rows = y.taps, count = rows * columns;
        const std::int64_t met_x = (columns + x.up - 1) / x.up, met_y = (rows + y.up - 1) / y.up;
        if (times_fewer * (met_y * y.up + met_x * y.down) > met_x * met_y * y.up) {
            return false;
        }
        const auto tap = [&](std::int64_t t) { return filter.tap(t, count); };
        std::int64_t at = 0;
        for (std::int64_t t = 1; t < count; ++t) {
            if (tap(at) == 0 || (tap(t) != 0 && std::fabs(tap(t)) < std::fabs(tap(at)))) {
                at = t;
            }
        }
        const std::int64_t row = at / columns, column = at % columns;
        const auto along_x = [&](std::int64_t j) { return static_cast<A>(tap(row * columns + j)); };
        const auto along_y = [&](std::int64_t i) { return tap(i * columns + column) / tap(at); };
        for (std::int64_t t = 0; t < count; ++t) {
            const A ratio = static_cast<A>(along_y(t / columns));
            // Never of NaN, as without a tap other than zero.
            if (!(double{ratio} * double{along_x(t % columns)} == tap(t))) {
                return false;
            }
        }
        for (std::int64_t j = 0; j < columns; ++j) {
            along_x_.push_back(along_x(j));
        }
        for (std::int64_t i = 0; i < rows; ++i) {
            along_y_.push_back(static_cast<A>(along_y(i) * filter.gain));
        }
        return true;
    }

    FirFilter filter_;
    std::vector<A> along_x_;
    std::vector<A> along_y_;
};

std::int64_t rows_kept(const FirFilter& filter) {
    const std::int64_t rows = (filter.y.taps + filter.y.up - 1) / filter.y.up;
    const std::int64_t least = std::min(filter.x.in, filter.x.out);
    return rows * (filter.separable ? least : filter.x.in + filter.x.taps);
}

template <typename A, typename T>
void convert_biases(const void* bias, std::int64_t channels, std::vector<A>& to) {
    for (std::int64_t c = 0; bias != nullptr && c < channels; ++c) {
        to.push_back(to_arithmetic(static_cast<const T*>(bias)[c]));
    }
}

std::vector<double> biases(FloatType, const void* bias, std::int64_t channels, double) {
    std::vector<double> result;
    convert_biases<double, double>(bias, channels, result);
    return result;
}

std::vector<float> biases(FloatType type, const void* bias, std::int64_t channels, float) {
    std::vector<float> result;
    if (type == FloatType::float32) {
        convert_biases<float, float>(bias, channels, result);
    } else if (type == FloatType::float16) {
        convert_biases<float, Half>(bias, channels, result);
    } else {
        convert_biases<float, BFloat16>(bias, channels, result);
    }
    return result;
}

RowStrides strides_of(bool channels_last, std::int64_t channels, std::int64_t rows,
                      std::int64_t places) {
    return channels_last ? RowStrides{places * channels, channels, 1}
                         : RowStrides{places, 1, rows * places};
}

template <typename A>
void run(const FirMaps& maps, const Filter& first_filter, const FirBetween* between,
         const Filter* second_filter) {
    const std::int64_t longest =
        std::max({first_filter.x.in, first_filter.x.out,
                  second_filter != nullptr ? second_filter->x.out : 0});
    const bool in_place = between == nullptr && sizeof(A) == bytes_of(maps.type) &&
                          (maps.channels_last ||
                           (longest > kShortRow && first_filter.x.down % first_filter.x.up == 0));
    const Coefficients<A> first(first_filter, in_place);
    const Coefficients<A> second(second_filter != nullptr ? *second_filter : first_filter, false);
    FirTask whole{};
    whole.type = maps.type;
    whole.first = first.filter();
    whole.second = second.filter();
    whole.has_activation = between != nullptr;
    const FirFilter& last = between != nullptr ? whole.second : whole.first;
    const FirAxis &in_x = whole.first.x, &in_y = whole.first.y;
    const std::int64_t channels = maps.channels;
    whole.x_strides = strides_of(maps.channels_last, channels, in_y.in, in_x.in);
    whole.y_strides = strides_of(maps.channels_last, channels, last.y.out, last.x.out);
    std::vector<A> bias;
    std::int64_t planes = 1;  // of bits
    if (between != nullptr) {
        bias = biases(maps.type, between->bias, channels, A());
        whole.activation = between->activation;
        whole.signs = between->signs;
        whole.sign_bytes = (whole.first.x.out + 7) / 8;
        planes = std::isfinite(between->activation.clamp) ? 2 : 1;
        whole.sign_strides = strides_of(maps.channels_last, channels, whole.first.y.out,
                                        planes * whole.sign_bytes);
    }

    // Groups of maps side by side: channels of a sample, or maps of the batch.
    const std::int64_t row = rows_kept(whole.first) +
                             (between != nullptr ? rows_kept(whole.second) + whole.first.x.out : 0);
    const std::int64_t fitting =
        kRowBytes / std::max<std::int64_t>(row * sizeof(A), 1) / kLanes * kLanes;
    const std::int64_t side_by_side = maps.channels_last ? channels : maps.batch * channels;
    // Long filters save more than putting maps side by side takes.
    const bool in_lanes =
        side_by_side >= kLanes && (maps.channels_last || longest <= kShortRow ||
                                   (between != nullptr && fitting >= kLanes));
    const std::int64_t lanes =
        !in_lanes ? 1 : std::min(std::max(fitting, kLanes), side_by_side);
    // A last group of fewer than kLanes goes with the one before.
    const std::int64_t groups =
        std::max<std::int64_t>(1, in_lanes ? (side_by_side + lanes - kLanes) / lanes : side_by_side);
    const std::int64_t samples = maps.channels_last ? maps.batch : 1;
    const std::int64_t tasks = samples * groups;
    const std::int64_t parts = std::clamp<std::int64_t>(4 * thread_count() / std::max<std::int64_t>(tasks, 1), 1,
                                          std::max<std::int64_t>(last.y.out / 8, 1));
    const std::int64_t bytes = bytes_of(maps.type);
    const auto fir_rows = FASTGAN_SELECT(fir_rows);
    const auto fir_scratch = FASTGAN_SELECT(fir_scratch);

    parallel_for(0, tasks * parts, 1, [&](std::int64_t begin, std::int64_t end) {
        std::vector<A> scratch, lane_bias;
        for (std::int64_t index = begin; index < end; ++index) {
            const std::int64_t part = index % parts, group = index / parts % groups;
            const std::int64_t sample = index / parts / groups, lane = group * lanes;
            FirTask task = whole;
            task.lanes = group + 1 == groups ? side_by_side - lane : lanes;
            const auto offset = [&](const RowStrides& strides, std::int64_t sample_size) {
                return sample * sample_size + lane * strides.lane;
            };
            task.x = static_cast<const char*>(maps.x) +
                     bytes * offset(task.x_strides, channels * in_y.in * in_x.in);
            task.y = static_cast<char*>(maps.y) +
                     bytes * offset(task.y_strides, channels * last.y.out * last.x.out);
            task.row_begin = part * last.y.out / parts;
            task.row_end = (part + 1) * last.y.out / parts;
            if (between != nullptr) {
                const auto first_row = [&](std::int64_t output) {
                    return std::clamp<std::int64_t>(taps_of(last.y, output).place, 0,
                                                    whole.first.y.out);
                };
                task.sign_begin = part == 0 ? 0 : first_row(task.row_begin);
                task.sign_end = part + 1 == parts ? whole.first.y.out : first_row(task.row_end);
                if (between->bits != nullptr) {
                    task.sign_bits =
                        between->bits + offset(task.sign_strides, channels * whole.first.y.out *
                                                                      planes * task.sign_bytes);
                }
                if (!bias.empty()) {
                    lane_bias.resize(static_cast<std::size_t>(task.lanes));
                    for (std::int64_t i = 0; i < task.lanes; ++i) {
                        lane_bias[static_cast<std::size_t>(i)] =
                            bias[static_cast<std::size_t>((lane + i) % channels)];
                    }
                    task.bias = lane_bias.data();
                }
            }
            scratch.resize(static_cast<std::size_t>(fir_scratch(task)));
            fir_rows(task, scratch.data());
        }
    });
}

}  // namespace

void upfirdn2d(const FirMaps& maps, const Filter& filter) {
    if (maps.type == FloatType::float64) {
        run<double>(maps, filter, nullptr, nullptr);
    } else {
        run<float>(maps, filter, nullptr, nullptr);
    }
}

void filtered_lrelu(const FirMaps& maps, const Filter& first, const FirBetween& between,
                    const Filter& second) {
    if (maps.type == FloatType::float64) {
        run<double>(maps, first, &between, &second);
    } else {
        run<float>(maps, first, &between, &second);
    }
}

}  // namespace fastgan::cpu
