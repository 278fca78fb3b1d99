#include "../bias_act.h"

#include <algorithm>
#include <vector>

#include "../math/compensated_sum.h"
#include "bias_act_loops.h"
#include "parallel.h"

namespace fastgan::cpu {

namespace {

// Values of one task, at least: the same however many threads there are, and so is each sum.
constexpr std::int64_t kTile = 32768;
// From so long a run on, blocks are filled run by run.
constexpr std::int64_t kLongRun = kBiasActBlock;

template <typename A, typename T>
std::vector<A> converted(const void* values, std::int64_t count) {
    std::vector<A> result(static_cast<std::size_t>(count));
    std::transform(static_cast<const T*>(values), static_cast<const T*>(values) + count,
                   result.begin(), [](T value) { return to_arithmetic(value); });
    return result;
}

std::vector<float> as_float(FloatType type, const void* values, std::int64_t count) {
    switch (type) {
        case FloatType::float16:
            return converted<float, Half>(values, count);
        case FloatType::bfloat16:
            return converted<float, BFloat16>(values, count);
        default:
            return converted<float, float>(values, count);
    }
}

// What a BiasReader points to.
template <typename A>
class Biases {
  public:
    Biases(const BiasShape& shape, std::vector<A> values) : values_(std::move(values)) {
        const bool in_runs = shape.inner >= kLongRun;
        reader_ = {nullptr, in_runs ? 0 : shape.channels * shape.inner, in_runs ? shape.inner : 0,
                   shape.channels};
        if (!values_.empty() && !in_runs) {
            std::vector<A> repeated(static_cast<std::size_t>(reader_.slots()));
            for (std::size_t i = 0; i < repeated.size(); ++i) {
                repeated[i] = values_[i / static_cast<std::size_t>(shape.inner) % values_.size()];
            }
            values_ = std::move(repeated);
        }
        reader_.values = values_.empty() ? nullptr : values_.data();
    }

    const BiasReader& reader() const { return reader_; }

  private:
    std::vector<A> values_;
    BiasReader reader_;
};

// body(reader).
template <typename Body>
void with_biases(const BiasShape& shape, const void* bias, const Body& body) {
    const std::int64_t count = bias == nullptr ? 0 : shape.channels;
    if (shape.type == FloatType::float64) {
        body(Biases<double>(shape, converted<double, double>(bias, count)).reader());
    } else {
        body(Biases<float>(shape, as_float(shape.type, bias, count)).reader());
    }
}

template <typename T>
void store_sums(const BiasShape& shape, const std::vector<double>& totals, void* to) {
    for (std::int64_t c = 0; c < shape.channels; ++c) {
        static_cast<T*>(to)[c] = from_arithmetic<T>(static_cast<decltype(to_arithmetic(T{}))>(
            totals[static_cast<std::size_t>(c)]));
    }
}

}  // namespace

void bias_act(const BiasShape& shape, const BiasAct& settings, const void* bias, const void* x,
              void* y, std::uint8_t* bits) {
    const auto bias_act_range = FASTGAN_SELECT(bias_act_range);
    with_biases(shape, bias, [&](const BiasReader& reader) {
        const std::int64_t tiles = (shape.numel + kTile - 1) / kTile;
        parallel_for(0, tiles, 1, [&](std::int64_t begin, std::int64_t end) {
            bias_act_range(shape.type, settings, reader, x, begin * kTile,
                           std::min(end * kTile, shape.numel), y, bits);
        });
    });
}

void bias_act_gradient(const BiasShape& shape, const BiasAct& settings, const void* bias,
                       Kept keeps, const void* kept, const void* grad, void* grad_x,
                       void* grad_bias) {
    const auto gradient_range = FASTGAN_SELECT(bias_act_gradient_range);
    with_biases(shape, bias, [&](const BiasReader& reader) {
        const std::int64_t slots = grad_bias == nullptr ? 0 : reader.slots();
        const std::int64_t unit = std::max(kTile, 4 * (slots + kTile - 1) / kTile * kTile);
        const std::int64_t tiles = (shape.numel + unit - 1) / unit;
        std::vector<double> sums(static_cast<std::size_t>(tiles * slots));
        parallel_for(0, tiles, 1, [&](std::int64_t begin, std::int64_t end) {
            std::vector<double> scratch(static_cast<std::size_t>(slots));
            for (std::int64_t tile = begin; tile < end; ++tile) {
                gradient_range(shape.type, settings, reader, keeps, kept, grad, tile * unit,
                               std::min((tile + 1) * unit, shape.numel), grad_x,
                               slots == 0 ? nullptr : sums.data() + tile * slots, scratch.data());
            }
        });
        if (grad_bias == nullptr) {
            return;
        }
        std::vector<CompensatedSum<double>> totals(static_cast<std::size_t>(shape.channels));
        for (std::int64_t tile = 0; tile < tiles; ++tile) {
            for (std::int64_t slot = 0; slot < slots; ++slot) {
                const std::int64_t channel =
                    reader.inner != 0 ? slot : slot / shape.inner % shape.channels;
                totals[static_cast<std::size_t>(channel)] +=
                    sums[static_cast<std::size_t>(tile * slots + slot)];
            }
        }
        std::vector<double> rounded(totals.size());
        std::transform(totals.begin(), totals.end(), rounded.begin(),
                       [](const auto& sum) { return sum.total(); });
        switch (shape.type) {
            case FloatType::float64:
                return store_sums<double>(shape, rounded, grad_bias);
            case FloatType::float32:
                return store_sums<float>(shape, rounded, grad_bias);
            case FloatType::float16:
                return store_sums<Half>(shape, rounded, grad_bias);
            case FloatType::bfloat16:
                return store_sums<BFloat16>(shape, rounded, grad_bias);
        }
    });
}

}  // namespace fastgan::cpu
