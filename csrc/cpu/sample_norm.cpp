#include "sample_norm.h"

#include <algorithm>
#include <vector>

#include "../batch_norm.h"
#include "batch_norm_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Calls body(sample) for all samples, in parallel. A few samples that can't be divided evenly among
// the threads run one after another, each with all threads.
template <typename Body>
void for_each_sample(const SampleNorm& norm, const Body& body) {
    const std::int64_t threads = thread_count();
    if (norm.samples % threads != 0 && norm.samples < 4 * threads) {
        for (std::int64_t n = 0; n < norm.samples; ++n) {
            body(n);
        }
        return;
    }
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / norm.sample.numel());
    parallel_for(0, norm.samples, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t n = begin; n < end; ++n) {
            body(n);
        }
    });
}

template <typename A>
class Passes {
  public:
    explicit Passes(const SampleNorm& norm)
        : norm_(norm),
          channels_(norm.sample.channels),
          values_(norm.sample.values_per_channel()),
          tiles_(tile_count(values_, channels_)),
          bytes_(norm.sample.numel() * bytes_of(norm.type)),
          scales_(size()) {}

    void forward(double eps, const void* input, void* result) {
        for_each_sample(norm_, [&](std::int64_t n) {
            if (norm_.groups > 0) {
                find_statistics(n, eps, at(input, n));
            }
            multiply_scales(n);
            norm_act(of_sample(n), at(input, n), at(result, n));
        });
    }

    void backward(const void* grad, const void* input, A* grad_scale, A* grad_shift,
                  void* result) {
        std::vector<double> sums(2 * size());  // sum(g), then sum(g * xhat)
        std::vector<A> terms(2 * size());      // slope, then offset
        double* const sum = sums.data();
        double* const dot = sum + size();
        A* const slope = terms.data();
        A* const offset = slope + size();
        const auto add = [&](std::int64_t n) {
            multiply_scales(n);
            const std::int64_t first = n * channels_;
            std::vector<A> tiles(2 * static_cast<std::size_t>(tiles_ * channels_));
            A* const dots = tiles.data() + tiles_ * channels_;
            norm_act_gradient_sums(of_sample(n), at(grad, n), at(input, n), invstd() + first,
                                   tiles.data(), dots);
            const auto add_tiles = FASTGAN_SELECT(add_tiles);
            add_tiles(sizeof(A) == 8, tiles.data(), tiles_, channels_, sum + first);
            add_tiles(sizeof(A) == 8, dots, tiles_, channels_, dot + first);
            for (std::int64_t i = first; i < first + channels_; ++i) {
                grad_scale[i] = static_cast<A>(dot[i]);
                grad_shift[i] = static_cast<A>(sum[i]);
            }
        };
        // For `count` channels that share a mean, `stride` apart, starting at `first`.
        const auto find_terms = [&](std::int64_t first, std::int64_t count, std::int64_t stride) {
            double of_sums = 0, of_dots = 0;
            const std::int64_t end = first + count * stride;
            for (std::int64_t i = first; i < end; i += stride) {
                of_sums += static_cast<double>(scales_[static_cast<std::size_t>(i)]) * sum[i];
                of_dots += static_cast<double>(scales_[static_cast<std::size_t>(i)]) * dot[i];
            }
            const double values = static_cast<double>(count * values_);
            for (std::int64_t i = first; i < end; i += stride) {
                slope[i] = static_cast<A>(-of_dots / values * static_cast<double>(invstd()[i]));
                offset[i] = static_cast<A>(-of_sums / values);
            }
        };
        const auto apply = [&](std::int64_t n) {
            const std::int64_t first = n * channels_;
            norm_act_gradient(of_sample(n), at(grad, n), at(input, n), slope + first,
                              offset + first, at(result, n));
        };
        if (norm_.groups == kOverBatch) {
            for_each_sample(norm_, add);
            for (std::int64_t c = 0; c < channels_; ++c) {
                find_terms(c, norm_.samples, channels_);
            }
            for_each_sample(norm_, apply);
            return;
        }
        for_each_sample(norm_, [&](std::int64_t n) {
            add(n);
            for (std::int64_t group = 0; group < norm_.groups; ++group) {
                const std::int64_t count = channels_ / norm_.groups;
                find_terms(n * channels_ + group * count, count, 1);
            }
            apply(n);
        });
    }

  private:
    std::size_t size() const { return static_cast<std::size_t>(norm_.samples * channels_); }

    A* mean() const { return static_cast<A*>(norm_.mean); }
    A* invstd() const { return static_cast<A*>(norm_.invstd); }

    const char* at(const void* data, std::int64_t n) const {
        return static_cast<const char*>(data) + n * bytes_;
    }
    char* at(void* data, std::int64_t n) const { return static_cast<char*>(data) + n * bytes_; }

    void multiply_scales(std::int64_t n) {
        const A* const scale = static_cast<const A*>(norm_.scale);
        for (std::int64_t i = n * channels_; i < (n + 1) * channels_; ++i) {
            scales_[static_cast<std::size_t>(i)] = invstd()[i] * scale[i];
        }
    }

    NormAct of_sample(std::int64_t n) const {
        const std::int64_t first = n * channels_;
        const FloatType arithmetic = sizeof(A) == 8 ? FloatType::float64 : FloatType::float32;
        void* const shift = const_cast<A*>(static_cast<const A*>(norm_.shift) + first);
        return NormAct{norm_.type,       norm_.sample,           mean() + first,
                       &scales_[static_cast<std::size_t>(first)], {},
                       {shift, arithmetic}, norm_.activation, norm_.negative_slope};
    }

    void find_statistics(std::int64_t n, double eps, const void* input) {
        const std::int64_t all = tiles_ * channels_;
        std::vector<double> buffer(static_cast<std::size_t>(tiles_ + 2 * all + 2 * channels_));
        double* const count = buffer.data();
        double* const tile_mean = count + tiles_;
        double* const tile_m2 = tile_mean + all;
        double* const of_channel = tile_m2 + all;
        double* const m2 = of_channel + channels_;
        batch_norm_partials(norm_.type, norm_.sample, input, count, tile_mean, tile_m2);
        FASTGAN_SELECT(merge_moments)
        (true, count, tile_mean, tile_m2, tiles_, channels_, of_channel, m2);
        const std::int64_t channels = channels_ / norm_.groups;
        for (std::int64_t begin = 0; begin < channels_; begin += channels) {
            Moments moments;
            for (std::int64_t c = begin; c < begin + channels; ++c) {
                moments.merge(static_cast<double>(values_), of_channel[c], m2[c]);
            }
            const FinalStatistics statistics = final_statistics(moments, eps);
            for (std::int64_t i = n * channels_ + begin; i < n * channels_ + begin + channels; ++i) {
                mean()[i] = static_cast<A>(statistics.mean);
                invstd()[i] = static_cast<A>(statistics.invstd);
            }
        }
    }

    const SampleNorm& norm_;
    std::int64_t channels_;
    std::int64_t values_;  // of one channel of a sample
    std::int64_t tiles_;
    std::int64_t bytes_;
    std::vector<A> scales_;  // invstd * scale
};

}  // namespace

void sample_norm_act(const SampleNorm& norm, double eps, const void* input, void* result) {
    if (norm.type == FloatType::float64) {
        Passes<double>(norm).forward(eps, input, result);
    } else {
        Passes<float>(norm).forward(eps, input, result);
    }
}

void sample_norm_act_gradient(const SampleNorm& norm, const void* grad, const void* input,
                              void* grad_scale, void* grad_shift, void* result) {
    if (norm.type == FloatType::float64) {
        Passes<double>(norm).backward(grad, input, static_cast<double*>(grad_scale),
                                      static_cast<double*>(grad_shift), result);
    } else {
        Passes<float>(norm).backward(grad, input, static_cast<float*>(grad_scale),
                                     static_cast<float*>(grad_shift), result);
    }
}

}  // namespace fastgan::cpu
