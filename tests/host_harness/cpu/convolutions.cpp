// The convolutions of csrc/cpu on small random shapes, against loops over their formulas.
//
// Each map, weight and bias is a heap block of exactly its size, so that AddressSanitizer finds any
// access beyond it. All values are whole numbers so small that every sum of the kernels is exact:
// what is expected of float32 is equality, and of bfloat16 the exact sum rounded once. What nobody
// wrote is NaN (tests/ops/test_cpu_convolutions_under_sanitizers.py fills allocated memory with it), so
// that a result which depends on it is wrong too.
//
// Of this file itself nothing is instrumented. Run as: convolutions SEED CASES

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/instruction_sets.h"
#include "cpu/parallel.h"
#include "cpu/patches.h"
#include "cpu/winograd.h"

namespace fastgan::cpu {

// As many as a case asks for, in the place of torch's pool: each starts with fresh scratch memory.
static std::int64_t threads_of_case = 1;

std::int64_t thread_count() {
    return threads_of_case;
}

void detail::parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain,
                          RangeFunction function, void* context) {
    const std::int64_t even = (end - begin + threads_of_case - 1) / threads_of_case;
    const std::int64_t size = even > grain ? even : grain;
    std::vector<std::thread> threads;
    for (std::int64_t first = begin; first < end; first += size) {
        threads.emplace_back(function, first, first + size < end ? first + size : end, context);
    }
    for (std::thread& thread : threads) {
        thread.join();
    }
}

}  // namespace fastgan::cpu

namespace {

using fastgan::BFloat16;
using fastgan::FloatType;
using fastgan::cpu::Modulation;
using fastgan::cpu::PatchShape;
using fastgan::cpu::WinogradShape;
using Exact = std::vector<double>;

std::mt19937_64 generator;

std::int64_t drawn(std::int64_t first, std::int64_t last) {
    return std::uniform_int_distribution<std::int64_t>(first, last)(generator);
}

// A heap block of `count` values, each as `type` stores it.
class Buffer {
public:
    Buffer(FloatType type, std::int64_t count)
        : type_(type), count_(count), memory_(std::malloc(count * fastgan::bytes_of(type))) {}
    Buffer(FloatType type, const Exact& values) : Buffer(type, values.size()) {
        for (std::int64_t i = 0; i < count_; ++i) {
            const float value = static_cast<float>(values[i]);
            if (type_ == FloatType::float32) {
                static_cast<float*>(memory_.get())[i] = value;
            } else {
                static_cast<BFloat16*>(memory_.get())[i] =
                    fastgan::from_arithmetic<BFloat16>(value);
            }
        }
    }

    void* data() const { return memory_.get(); }

    float at(std::int64_t i) const {
        return type_ == FloatType::float32
                   ? static_cast<const float*>(memory_.get())[i]
                   : fastgan::to_arithmetic(static_cast<const BFloat16*>(memory_.get())[i]);
    }

private:
    struct Freed {
        void operator()(void* memory) const { std::free(memory); }
    };
    FloatType type_;
    std::int64_t count_;
    std::unique_ptr<void, Freed> memory_;
};

Exact whole_numbers(std::int64_t count) {
    Exact values(count);
    for (double& value : values) {
        value = static_cast<double>(drawn(-4, 4));
    }
    return values;
}

void require_equal(const std::string& what, FloatType type, const Buffer& found,
                   const Exact& expected) {
    for (std::size_t i = 0; i < expected.size(); ++i) {
        const float exact = static_cast<float>(expected[i]);
        const float rounded =
            type == FloatType::float32
                ? exact
                : fastgan::to_arithmetic(fastgan::from_arithmetic<BFloat16>(exact));
        if (!(found.at(i) == rounded)) {
            std::printf("%s: element %zu is %g, not %g\n", what.c_str(), i, found.at(i), rounded);
            std::exit(1);
        }
    }
}

// One dimension of a convolution: place `small * stride + tap - padding` of the wide map.
struct Dimension {
    std::int64_t small;
    std::int64_t wide;
    std::int64_t taps;
    std::int64_t stride;
    std::int64_t padding;
};

struct Convolution {
    std::int64_t batch;
    std::int64_t small_channels;
    std::int64_t wide_channels;
    Dimension rows;
    Dimension columns;

    std::int64_t small_size() const {
        return batch * rows.small * columns.small * small_channels;
    }
    std::int64_t wide_size() const { return batch * rows.wide * columns.wide * wide_channels; }
    std::int64_t weight_size() const {
        return small_channels * rows.taps * columns.taps * wide_channels;
    }

    // visit(small, weight, wide): the offsets of any three elements that belong together.
    template <typename Visit>
    void each(const Visit& visit) const {
        for (std::int64_t n = 0; n < batch; ++n) {
            for (std::int64_t i = 0; i < rows.small; ++i) {
                for (std::int64_t j = 0; j < columns.small; ++j) {
                    for (std::int64_t k = 0; k < rows.taps; ++k) {
                        for (std::int64_t l = 0; l < columns.taps; ++l) {
                            const std::int64_t row = i * rows.stride + k - rows.padding;
                            const std::int64_t column =
                                j * columns.stride + l - columns.padding;
                            if (row < 0 || row >= rows.wide || column < 0 ||
                                column >= columns.wide) {
                                continue;
                            }
                            const std::int64_t small =
                                ((n * rows.small + i) * columns.small + j) * small_channels;
                            const std::int64_t wide =
                                ((n * rows.wide + row) * columns.wide + column) * wide_channels;
                            const std::int64_t taps = rows.taps * columns.taps;
                            for (std::int64_t o = 0; o < small_channels; ++o) {
                                const std::int64_t weight =
                                    (o * taps + k * columns.taps + l) * wide_channels;
                                for (std::int64_t c = 0; c < wide_channels; ++c) {
                                    visit(small + o, weight + c, wide + c);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    std::string text(FloatType type, bool with_bias) const {
        std::string text = "batch " + std::to_string(batch) + ", channels " +
                           std::to_string(small_channels) + " and " +
                           std::to_string(wide_channels);
        for (const Dimension& d : {rows, columns}) {
            text += "; places " + std::to_string(d.small) + " and " + std::to_string(d.wide) +
                    ", taps " + std::to_string(d.taps) + ", stride " + std::to_string(d.stride) +
                    ", padding " + std::to_string(d.padding);
        }
        return text + (type == FloatType::float32 ? "; float32" : "; bfloat16") +
               (with_bias ? ", bias" : "");
    }
};

// Places that begin as the bias of their channel, or 0.
Exact of_bias(std::int64_t size, const Exact& bias, bool with_bias) {
    Exact values(size, 0.0);
    for (std::int64_t i = 0; with_bias && i < size; ++i) {
        values[i] = bias[i % bias.size()];
    }
    return values;
}

struct Operands {
    FloatType type;
    bool with_bias;
    Exact small_values, wide_values, weight_values, small_bias_values, wide_bias_values;
    Buffer small, wide, weight, small_bias, wide_bias;

    Operands(const Convolution& of, FloatType type_, bool with_bias_)
        : type(type_),
          with_bias(with_bias_),
          small_values(whole_numbers(of.small_size())),
          wide_values(whole_numbers(of.wide_size())),
          weight_values(whole_numbers(of.weight_size())),
          small_bias_values(whole_numbers(of.small_channels)),
          wide_bias_values(whole_numbers(of.wide_channels)),
          small(type, small_values),
          wide(type, wide_values),
          weight(type, weight_values),
          small_bias(FloatType::float32, small_bias_values),
          wide_bias(FloatType::float32, wide_bias_values) {}

    const float* bias(const Buffer& of) const {
        return with_bias ? static_cast<const float*>(of.data()) : nullptr;
    }

    Exact scattered(const Convolution& of) const {
        Exact sums = of_bias(of.wide_size(), wide_bias_values, with_bias);
        of.each([&](std::int64_t s, std::int64_t w, std::int64_t v) {
            sums[v] += small_values[s] * weight_values[w];
        });
        return sums;
    }
};

// What a modulated convolution multiplies its input and output with, and adds; or nothing of it. Scales
// are (batch, channels), noise is of all images or of each.
struct Factors {
    std::int64_t input_places, input_channels, output_places, output_channels, noise_images;
    bool any;
    Exact input_values, output_values, noise_values;
    Buffer input, output, noise;

    Factors(std::int64_t batch, std::int64_t input_places_, std::int64_t input_channels_,
            std::int64_t output_places_, std::int64_t output_channels_)
        : input_places(input_places_),
          input_channels(input_channels_),
          output_places(output_places_),
          output_channels(output_channels_),
          noise_images(drawn(0, 1) == 0 ? 1 : batch),
          any(drawn(0, 1) == 0),
          input_values(whole_numbers(batch * input_channels)),
          output_values(whole_numbers(batch * output_channels)),
          noise_values(whole_numbers(noise_images * output_places)),
          input(FloatType::float32, input_values),
          output(FloatType::float32, output_values),
          noise(FloatType::float32, noise_values) {}

    Modulation data() const {
        const auto of = [](const Buffer& buffer) {
            return static_cast<const float*>(buffer.data());
        };
        const std::int64_t step = noise_images == 1 ? 0 : output_places;
        return any ? Modulation{of(input), of(output), of(noise), step} : Modulation{};
    }

    double of_input(std::int64_t i) const {
        const std::int64_t channel = i % input_channels;
        const std::int64_t image = i / (input_places * input_channels);
        return any ? input_values[image * input_channels + channel] : 1.0;
    }

    // Of sums without their bias, which comes after.
    void apply(Exact& sums, const Exact& bias, bool with_bias) const {
        for (std::size_t i = 0; i < sums.size(); ++i) {
            const std::int64_t channel = i % output_channels;
            const std::int64_t image = i / (output_places * output_channels);
            if (any) {
                sums[i] *= output_values[image * output_channels + channel];
                sums[i] += noise_values[i / output_channels % noise_values.size()];
            }
            sums[i] += with_bias ? bias[channel] : 0.0;
        }
    }
};

// A weight (small, taps, wide) as (wide, taps, small).
Exact turned(const Exact& weight, std::int64_t small_channels, std::int64_t wide_channels) {
    Exact result(weight.size());
    const std::int64_t taps = weight.size() / (small_channels * wide_channels);
    for (std::int64_t o = 0; o < small_channels; ++o) {
        for (std::int64_t k = 0; k < taps; ++k) {
            for (std::int64_t c = 0; c < wide_channels; ++c) {
                result[(c * taps + k) * small_channels + o] =
                    weight[(o * taps + k) * wide_channels + c];
            }
        }
    }
    return result;
}

void check_winograd(const Convolution& of, FloatType type, bool with_bias) {
    const std::string text = of.text(type, with_bias);
    const Operands operands(of, type, with_bias);
    const bool is_turned = drawn(0, 1) == 0;
    const WinogradShape shape{of.batch,          of.rows.small,      of.columns.small,
                              of.small_channels, of.rows.wide,       of.columns.wide,
                              of.wide_channels,  of.rows.taps,       of.rows.stride,
                              of.rows.padding,   of.columns.padding, is_turned};
    const Buffer weight(type, is_turned ? turned(operands.weight_values, of.small_channels,
                                                 of.wide_channels)
                                        : operands.weight_values);

    const Buffer gathered(type, of.small_size());
    const std::int64_t small_places = of.rows.small * of.columns.small;
    const std::int64_t wide_places = of.rows.wide * of.columns.wide;
    const Factors gathers(of.batch, wide_places, of.wide_channels, small_places,
                          of.small_channels);
    winograd_gather(shape, type, operands.wide.data(), weight.data(),
                    operands.bias(operands.small_bias), gathers.data(), gathered.data());
    Exact sums(of.small_size(), 0.0);
    of.each([&](std::int64_t s, std::int64_t w, std::int64_t v) {
        sums[s] += gathers.of_input(v) * operands.wide_values[v] * operands.weight_values[w];
    });
    gathers.apply(sums, operands.small_bias_values, with_bias);
    require_equal("winograd_gather, " + text, type, gathered, sums);

    const Buffer scattered(type, of.wide_size());
    const Factors scatters(of.batch, small_places, of.small_channels, wide_places,
                           of.wide_channels);
    winograd_scatter(shape, type, operands.small.data(), weight.data(),
                     operands.bias(operands.wide_bias), scatters.data(), scattered.data());
    sums.assign(of.wide_size(), 0.0);
    of.each([&](std::int64_t s, std::int64_t w, std::int64_t v) {
        sums[v] += scatters.of_input(s) * operands.small_values[s] * operands.weight_values[w];
    });
    scatters.apply(sums, operands.wide_bias_values, with_bias);
    require_equal("winograd_scatter, " + text, type, scattered, sums);

    const Buffer gradient(type, of.weight_size());
    winograd_weight_gradient(shape, type, operands.small.data(), operands.wide.data(),
                             gradient.data());
    Exact products(of.weight_size(), 0.0);
    of.each([&](std::int64_t s, std::int64_t w, std::int64_t v) {
        products[w] += operands.small_values[s] * operands.wide_values[v];
    });
    require_equal("winograd_weight_gradient, " + text, type, gradient, products);
}

void check_patches(const Convolution& of, FloatType type, bool with_bias) {
    const Operands operands(of, type, with_bias);
    const auto dimension = [](const Dimension& d) {
        return fastgan::cpu::PatchDimension{d.small, d.wide, d.taps, d.stride, d.padding};
    };
    const Exact channels_last = operands.scattered(of);
    Exact contiguous(channels_last.size());
    const std::int64_t places = of.rows.wide * of.columns.wide;
    for (std::int64_t i = 0; i < of.wide_size(); ++i) {
        const std::int64_t channel = i % of.wide_channels;
        const std::int64_t place = i / of.wide_channels % places;
        const std::int64_t image = i / of.wide_channels / places;
        contiguous[(image * of.wide_channels + channel) * places + place] = channels_last[i];
    }
    for (const bool wide_contiguous : {false, true}) {
        const PatchShape shape{of.batch,           of.small_channels,     of.wide_channels,
                               dimension(of.rows), dimension(of.columns), wide_contiguous};
        const Buffer scattered(type, of.wide_size());
        patch_scatter(shape, type, operands.small.data(), operands.weight.data(),
                      operands.bias(operands.wide_bias), scattered.data());
        require_equal("patch_scatter, " + of.text(type, with_bias), type, scattered,
                      wide_contiguous ? contiguous : channels_last);
    }
}

// Of `small` places, one with a wide map of at least one place.
Dimension drawn_dimension(std::int64_t small, std::int64_t taps, std::int64_t stride,
                          std::int64_t most_padding) {
    const std::int64_t whole = (small - 1) * stride + taps + drawn(0, stride - 1);
    const std::int64_t most = (whole - 1) / 2;
    const std::int64_t padding = drawn(0, most < most_padding ? most : most_padding);
    return {small, whole - 2 * padding, taps, stride, padding};
}

Convolution drawn_winograd() {
    const std::int64_t taps = drawn(3, 5);
    const std::int64_t stride = taps == 5 ? 2 : drawn(1, 2);
    return {drawn(0, 3), 32 * drawn(1, 3), 32 * drawn(1, 3),
            drawn_dimension(drawn(1, 6), taps, stride, 3),
            drawn_dimension(drawn(1, 6), taps, stride, 3)};
}

Convolution drawn_patches() {
    const std::int64_t channels = drawn(0, 5) == 0 ? drawn(5, 16) : drawn(1, 4);
    const std::int64_t rows = drawn(1, channels > 4 ? 2 : 4);
    const std::int64_t columns = drawn(1, channels > 4 ? 2 : 4);
    return {drawn(0, 3), 16 * drawn(1, 9), channels,
            drawn_dimension(drawn(1, 12), rows, drawn(1, 5), 6),
            drawn_dimension(drawn(1, 12), columns, drawn(1, 5), 6)};
}

// Counts of channels and tiles that split in each way there is, on maps with odd sides.
const Convolution kSplits[] = {
    {1, 288, 32, {1, 2, 4, 2, 1}, {3, 7, 4, 2, 1}},
    {1, 32, 288, {3, 6, 4, 2, 1}, {1, 1, 4, 2, 2}},
    {1, 160, 160, {2, 4, 4, 2, 1}, {1, 4, 4, 2, 0}},
    {3, 32, 32, {15, 31, 4, 2, 1}, {13, 26, 4, 2, 1}},
    {1, 288, 160, {3, 3, 3, 1, 1}, {2, 4, 3, 1, 0}},
    {2, 32, 96, {15, 15, 3, 1, 1}, {14, 12, 3, 1, 2}},
    {3, 64, 32, {21, 21, 3, 1, 1}, {20, 20, 3, 1, 1}},
    {1, 160, 288, {2, 4, 5, 2, 2}, {3, 6, 5, 2, 2}},
    {2, 96, 32, {11, 22, 5, 2, 2}, {13, 27, 5, 2, 1}},
};

}  // namespace

int main(int count, char** arguments) {
    if (count != 3) {
        std::printf("usage: convolutions SEED CASES\n");
        return 2;
    }
    generator.seed(std::strtoull(arguments[1], nullptr, 10));
    const std::int64_t cases = std::strtoll(arguments[2], nullptr, 10);
    for (const FloatType type : {FloatType::float32, FloatType::bfloat16}) {
        for (const Convolution& split : kSplits) {
            fastgan::cpu::threads_of_case = 1;
            check_winograd(split, type, true);
        }
        for (std::int64_t i = 0; i < cases; ++i) {
            fastgan::cpu::threads_of_case = drawn(1, 3);
            check_winograd(drawn_winograd(), type, drawn(0, 1) == 1);
            check_patches(drawn_patches(), type, drawn(0, 1) == 1);
        }
    }
    std::printf("%s\n", name(fastgan::cpu::instruction_set()));
}
