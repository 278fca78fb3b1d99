#include "../penalty_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"
#include "penalty_norm_loops.h"

namespace fastgan::cpu {

namespace {

// Terms added in the maps' arithmetic before a double takes their sum. For any number of terms t
// the error is at most 146 u sum(|t|), including 3 for each term and 15 for the lanes.
constexpr std::int64_t kTermsAtOnce = 128;

// One sample's maps and per-channel numbers.
template <typename A>
class Sample {
  public:
    Sample(const NormShape& shape, std::int64_t number)
        : shape_(shape), number_(number), zeros_(channels(), A(0)), ones_(channels(), A(1)) {}

    std::size_t channels() const { return static_cast<std::size_t>(shape_.channels); }

    template <typename Pointer>
    Pointer of(Pointer maps) const {
        return at(maps, number_ * shape_.elements_per_sample());
    }

    const A* statistics(const void* all) const {
        return static_cast<const A*>(all) + number_ * shape_.groups;
    }

    const A* ones() const { return ones_.data(); }
    const A* zeros() const { return zeros_.data(); }
    // A vector of per-channel numbers, or its default.
    const A* or_ones(const void* vector) const {
        return vector == nullptr ? ones() : static_cast<const A*>(vector);
    }
    const A* or_zeros(const void* vector) const {
        return vector == nullptr ? zeros() : static_cast<const A*>(vector);
    }

    // Per channel: the sums of a - shift, and of (a - shift) * b (its square if b is a).
    struct Sums {
        std::vector<double> first, second;
    };

    Sums sums(const void* a, const A* shift, const void* b) const {
        const auto add = FASTGAN_SELECT(add_norm_sums);
        Sums result{std::vector<double>(channels()), std::vector<double>(channels())};
        const std::int64_t count = shape_.channels_last ? shape_.channels : 1;
        std::vector<A> partial(2 * static_cast<std::size_t>(count));
        const std::int64_t terms = shape_.channels_last ? kTermsAtOnce : 16 * kTermsAtOnce;
        for_rows(terms, [&](const NormRows& rows, std::int64_t start, std::int64_t channel) {
            std::fill(partial.begin(), partial.end(), A(0));
            add(rows, at(of(a), start), shift + channel, b == nullptr ? nullptr : at(of(b), start),
                partial.data(), partial.data() + count);
            for (std::int64_t c = 0; c < count; ++c) {
                result.first[channel + c] += partial[c];
                result.second[channel + c] += partial[count + c];
            }
        });
        return result;
    }

    // Per channel, the mean over its group of weight * sums.
    std::vector<A> group_means(const std::vector<double>& sums, const A* weight) const {
        std::vector<A> result(channels());
        const std::int64_t width = shape_.channels_per_group();
        for (std::int64_t first = 0; first < shape_.channels; first += width) {
            double total = 0;
            for (std::int64_t c = first; c < first + width; ++c) {
                total += static_cast<double>(weight[c]) * sums[c];
            }
            const A mean = static_cast<A>(total / shape_.elements_per_group());
            std::fill_n(result.begin() + first, width, mean);
        }
        return result;
    }

    // Per channel, its group's value.
    std::vector<A> spread(const A* statistics) const {
        std::vector<A> result(channels());
        for (std::int64_t c = 0; c < shape_.channels; ++c) {
            result[c] = statistics[c / shape_.channels_per_group()];
        }
        return result;
    }

    // Calls body(rows, first element, first channel) for pieces of at most `terms` positions.
    template <typename Body>
    void for_rows(std::int64_t terms, const Body& body) const {
        const std::int64_t positions = shape_.positions;
        const std::int64_t outer = shape_.channels_last ? 1 : shape_.channels;
        for (std::int64_t channel = 0; channel < outer; ++channel) {
            for (std::int64_t start = 0; start < positions; start += terms) {
                const std::int64_t count = std::min(terms, positions - start);
                if (shape_.channels_last) {
                    body(NormRows{shape_.type, count, shape_.channels, true},
                         start * shape_.channels, channel);
                } else {
                    body(NormRows{shape_.type, 1, count, false}, channel * positions + start,
                         channel);
                }
            }
        }
    }

    template <typename Body>
    void for_rows(const Body& body) const {
        for_rows(shape_.positions, body);
    }

    void* at(void* maps, std::int64_t element) const {
        return static_cast<char*>(maps) + element * bytes_of(shape_.type);
    }
    const void* at(const void* maps, std::int64_t element) const {
        return static_cast<const char*>(maps) + element * bytes_of(shape_.type);
    }

  private:
    const NormShape& shape_;
    std::int64_t number_;
    std::vector<A> zeros_, ones_;
};

// Calls body(sample) for all samples, in parallel.
template <typename A, typename Body>
void for_samples(const NormShape& shape, const Body& body) {
    const std::int64_t elements = std::max<std::int64_t>(1, shape.elements_per_sample());
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / elements);
    parallel_for(0, shape.samples, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t number = begin; number < end; ++number) {
            body(Sample<A>(shape, number), number);
        }
    });
}

// Calls run<A>() for the arithmetic's type.
template <typename Run>
void for_arithmetic(const NormShape& shape, const Run& run) {
    if (shape.type == FloatType::float64) {
        run.template operator()<double>();
    } else {
        run.template operator()<float>();
    }
}

}  // namespace

void norm_forward(const NormShape& shape, const void* input, const void* weight, const void* bias,
                  double eps, void* xhat, void* invstd, void* output) {
    for_arithmetic(shape, [&]<typename A>() {
        const auto normalise = FASTGAN_SELECT(normalise_rows);
        for_samples<A>(shape, [&](const Sample<A>& sample, std::int64_t number) {
            const auto of_x = sample.sums(input, sample.zeros(), nullptr);
            const std::vector<A> mean = sample.group_means(of_x.first, sample.ones());
            const auto centred = sample.sums(input, mean.data(), input);
            std::vector<A> scale = sample.group_means(centred.second, sample.ones());
            for (A& value : scale) {
                value = static_cast<A>(1 / std::sqrt(static_cast<double>(value) + eps));
            }
            for (std::int64_t group = 0; group < shape.groups; ++group) {
                static_cast<A*>(invstd)[number * shape.groups + group] =
                    scale[group * shape.channels_per_group()];
            }
            const A* const weights = sample.or_ones(weight);
            const A* const biases = sample.or_zeros(bias);
            sample.for_rows([&](const NormRows& rows, std::int64_t start, std::int64_t channel) {
                normalise(rows, sample.at(sample.of(input), start), mean.data() + channel,
                          scale.data() + channel, weights + channel, biases + channel,
                          sample.at(sample.of(xhat), start), sample.at(sample.of(output), start));
            });
        });
    });
}

void norm_project(const NormShape& shape, const void* grad, const void* xhat, const void* invstd,
                  const void* weight, bool tangent, void* output) {
    for_arithmetic(shape, [&]<typename A>() {
        const auto project = FASTGAN_SELECT(project_rows);
        for_samples<A>(shape, [&](const Sample<A>& sample, std::int64_t) {
            const A* const weights = sample.or_ones(weight);
            const A* const before = tangent ? sample.ones() : weights;
            const A* const after = tangent ? weights : sample.ones();
            const auto sums = sample.sums(grad, sample.zeros(), xhat);
            const std::vector<A> mean = sample.group_means(sums.first, before);
            const std::vector<A> along = sample.group_means(sums.second, before);
            const std::vector<A> scale = sample.spread(sample.statistics(invstd));
            sample.for_rows([&](const NormRows& rows, std::int64_t start, std::int64_t channel) {
                project(rows, sample.at(sample.of(grad), start),
                        sample.at(sample.of(xhat), start), before + channel, after + channel,
                        mean.data() + channel, along.data() + channel, scale.data() + channel,
                        sample.at(sample.of(output), start));
            });
        });
    });
}

void norm_curvature(const NormShape& shape, const void* grad, const void* tangent,
                    const void* xhat, const void* invstd, const void* weight, void* output) {
    for_arithmetic(shape, [&]<typename A>() {
        const auto curve = FASTGAN_SELECT(curve_rows);
        for_samples<A>(shape, [&](const Sample<A>& sample, std::int64_t) {
            const A* const weights = sample.or_ones(weight);
            const auto signals = sample.sums(grad, sample.zeros(), xhat);
            const auto tangents = sample.sums(tangent, sample.zeros(), xhat);
            const std::vector<A> p_mean = sample.group_means(signals.first, weights);
            const std::vector<A> u_mean = sample.group_means(tangents.first, sample.ones());
            const std::vector<A> b = sample.group_means(signals.second, weights);
            const std::vector<A> c = sample.group_means(tangents.second, sample.ones());
            const auto products = sample.sums(tangent, u_mean.data(), grad);
            const std::vector<A> a = sample.group_means(products.second, weights);
            const std::vector<A> scale = sample.spread(sample.statistics(invstd));
            std::vector<A> of_signal(sample.channels());
            std::vector<A> of_tangent(sample.channels());
            std::vector<A> of_xhat(sample.channels());
            for (std::size_t channel = 0; channel < sample.channels(); ++channel) {
                const auto factors =
                    Curvature<A>::make(a[channel], b[channel], c[channel], scale[channel]);
                of_signal[channel] = factors.of_signal;
                of_tangent[channel] = factors.of_tangent;
                of_xhat[channel] = factors.of_xhat;
            }
            sample.for_rows([&](const NormRows& rows, std::int64_t start, std::int64_t channel) {
                curve(rows, sample.at(sample.of(grad), start),
                      sample.at(sample.of(tangent), start), sample.at(sample.of(xhat), start),
                      weights + channel, p_mean.data() + channel, u_mean.data() + channel,
                      of_signal.data() + channel, of_tangent.data() + channel,
                      of_xhat.data() + channel, sample.at(sample.of(output), start));
            });
        });
    });
}

void norm_gradients(const NormShape& shape, const void* grad, const void* tangent,
                    const void* xhat, const void* invstd, void* weight_grad, void* bias_grad,
                    void* /*means*/) {
    for_arithmetic(shape, [&]<typename A>() {
        for_samples<A>(shape, [&](const Sample<A>& sample, std::int64_t number) {
            const std::int64_t first = number * shape.channels;
            const auto signals = sample.sums(grad, sample.zeros(), xhat);
            std::vector<double> result = signals.second;
            if (tangent != nullptr) {
                // T(u) = r (u - mean u - xhat C), C = mean(xhat u).
                const auto tangents = sample.sums(tangent, sample.zeros(), xhat);
                const std::vector<A> mean = sample.group_means(tangents.first, sample.ones());
                const std::vector<A> along = sample.group_means(tangents.second, sample.ones());
                const auto products = sample.sums(tangent, mean.data(), grad);
                const std::vector<A> scale = sample.spread(sample.statistics(invstd));
                for (std::size_t c = 0; c < sample.channels(); ++c) {
                    result[c] = scale[c] * (products.second[c] - along[c] * signals.second[c]);
                }
            }
            for (std::int64_t c = 0; c < shape.channels; ++c) {
                static_cast<A*>(weight_grad)[first + c] = static_cast<A>(result[c]);
                if (bias_grad != nullptr) {
                    static_cast<A*>(bias_grad)[first + c] = static_cast<A>(signals.first[c]);
                }
            }
        });
    });
}

}  // namespace fastgan::cpu
