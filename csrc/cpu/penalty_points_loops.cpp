// Compiled once per instruction set: see instruction_sets.h.
#include "penalty_points_loops.h"

#include "../math/float_pairs.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// A sum has this many parts, to fit a vector register; a double takes the sum of this many terms,
// 128 per part: for any number of terms the relative error is at most 129 u.
constexpr int kLanes = 16;
constexpr std::int64_t kTermsAtOnce = 2048;

template <typename From, typename To, bool kDense>
void mix(const MixRow& row, const From* real, const From* fake, double eps, To* fake_out,
         To* real_out, To* points) {
    using A = decltype(to_arithmetic(From{}));
    const A share = static_cast<A>(eps);
    const std::int64_t real_stride = kDense ? 1 : row.real_stride;
    const std::int64_t fake_stride = kDense ? 1 : row.fake_stride;
#pragma GCC ivdep
    for (std::int64_t i = 0; i < row.count; ++i) {
        const A r = to_arithmetic(real[i * real_stride]);
        const A f = to_arithmetic(fake[i * fake_stride]);
        fake_out[i] = from_arithmetic<To>(f);
        real_out[i] = from_arithmetic<To>(r);
        points[i] = from_arithmetic<To>(interpolated(r, f, share));
    }
}

template <typename T>
double squares(const T* values, std::int64_t count) {
    using A = decltype(to_arithmetic(T{}));
    double total = 0;
    for (std::int64_t start = 0; start < count; start += kTermsAtOnce) {
        const std::int64_t end = start + kTermsAtOnce < count ? start + kTermsAtOnce : count;
        A lanes[kLanes] = {};
        std::int64_t i = start;
        for (; i + kLanes <= end; i += kLanes) {
            for (int lane = 0; lane < kLanes; ++lane) {
                const A value = to_arithmetic(values[i + lane]);
                lanes[lane] += value * value;
            }
        }
        for (int lane = 0; i < end; ++i, ++lane) {
            const A value = to_arithmetic(values[i]);
            lanes[lane] += value * value;
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            total += lanes[lane];
        }
    }
    return total;
}

template <typename From, typename To>
void scale(const From* input, double factor, To* output, std::int64_t count) {
    using A = decltype(to_arithmetic(From{}));
    const A by = static_cast<A>(factor);
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        output[i] = from_arithmetic<To>(to_arithmetic(input[i]) * by);
    }
}

}  // namespace

void mix_row(const MixRow& row, const void* real, const void* fake, double eps, void* fake_out,
             void* real_out, void* points) {
    for_float_pair(row.from, row.to, [&]<typename From, typename To>() {
        const auto run = row.real_stride == 1 && row.fake_stride == 1 ? mix<From, To, true>
                                                                      : mix<From, To, false>;
        run(row, static_cast<const From*>(real), static_cast<const From*>(fake), eps,
            static_cast<To*>(fake_out), static_cast<To*>(real_out), static_cast<To*>(points));
    });
}

double sum_of_squares(FloatType type, const void* values, std::int64_t count) {
    double result = 0;
    for_float_type(type, [&]<typename T>() {
        result = squares(static_cast<const T*>(values), count);
    });
    return result;
}

void scale_row(FloatType from, FloatType to, const void* input, double factor, void* output,
               std::int64_t count) {
    for_float_pair(from, to, [&]<typename From, typename To>() {
        scale(static_cast<const From*>(input), factor, static_cast<To*>(output), count);
    });
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
