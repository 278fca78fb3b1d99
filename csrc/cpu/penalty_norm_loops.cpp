// Compiled once per instruction set: see instruction_sets.h.
#include "penalty_norm_loops.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// A row's sums have this many parts, to fit a vector register.
constexpr int kLanes = 16;

// A channel's number, or the only one.
template <bool kPerElement, typename A>
FASTGAN_INLINE A number(const A* numbers, std::int64_t channel) {
    return kPerElement ? numbers[channel] : numbers[0];
}

// Calls body(element, channel), channels counting within a row. Elements are independent, but
// outputs may alias inputs.
template <typename Body>
FASTGAN_INLINE void for_elements(const NormRows& rows, const Body& body) {
    for (std::int64_t row = 0; row < rows.rows; ++row) {
        const std::int64_t start = row * rows.count;
#pragma GCC ivdep
        for (std::int64_t i = 0; i < rows.count; ++i) {
            body(start + i, i);
        }
    }
}

enum class Second { none, product, square };

template <typename T, typename A, bool kPerElement, Second kSecond>
void add_sums(const NormRows& rows, const T* a, const A* shift, const T* b, A* first, A* second) {
    if constexpr (kPerElement) {
        for_elements(rows, [&](std::int64_t i, std::int64_t channel) {
            const A value = to_arithmetic(a[i]) - shift[channel];
            first[channel] += value;
            if constexpr (kSecond == Second::product) {
                second[channel] += value * to_arithmetic(b[i]);
            } else if constexpr (kSecond == Second::square) {
                second[channel] += value * value;
            }
        });
    } else {
        A firsts[kLanes] = {};
        A seconds[kLanes] = {};
        const auto add = [&](int lane, std::int64_t i) {
            const A value = to_arithmetic(a[i]) - shift[0];
            firsts[lane] += value;
            if constexpr (kSecond == Second::product) {
                seconds[lane] += value * to_arithmetic(b[i]);
            } else if constexpr (kSecond == Second::square) {
                seconds[lane] += value * value;
            }
        };
        const std::int64_t count = rows.rows * rows.count;
        std::int64_t i = 0;
        for (; i + kLanes <= count; i += kLanes) {
            for (int lane = 0; lane < kLanes; ++lane) {
                add(lane, i + lane);
            }
        }
        for (int lane = 0; i < count; ++i, ++lane) {
            add(lane, i);
        }
        for (int lane = 0; lane < kLanes; ++lane) {
            first[0] += firsts[lane];
            if constexpr (kSecond != Second::none) {
                second[0] += seconds[lane];
            }
        }
    }
}

template <typename T, typename A, bool kPerElement>
void normalise(const NormRows& rows, const T* x, const A* mean, const A* invstd, const A* weight,
               const A* bias, T* xhat, T* output) {
    for_elements(rows, [&](std::int64_t i, std::int64_t channel) {
        const A value = normalised(to_arithmetic(x[i]), number<kPerElement>(mean, channel),
                                   number<kPerElement>(invstd, channel));
        xhat[i] = from_arithmetic<T>(value);
        output[i] = from_arithmetic<T>(value * number<kPerElement>(weight, channel) +
                                       number<kPerElement>(bias, channel));
    });
}

template <typename T, typename A, bool kPerElement>
void project(const NormRows& rows, const T* grad, const T* xhat, const A* before, const A* after,
             const A* mean, const A* along, const A* invstd, T* output) {
    for_elements(rows, [&](std::int64_t i, std::int64_t channel) {
        const A p = to_arithmetic(grad[i]) * number<kPerElement>(before, channel);
        const A result =
            projected(p, number<kPerElement>(mean, channel), number<kPerElement>(along, channel),
                      to_arithmetic(xhat[i]), number<kPerElement>(invstd, channel));
        output[i] = from_arithmetic<T>(result * number<kPerElement>(after, channel));
    });
}

template <typename T, typename A, bool kPerElement>
void curve(const NormRows& rows, const T* grad, const T* tangent, const T* xhat, const A* weight,
           const A* p_mean, const A* u_mean, const A* of_signal, const A* of_tangent,
           const A* of_xhat, T* output) {
    for_elements(rows, [&](std::int64_t i, std::int64_t channel) {
        const Curvature<A> curvature{number<kPerElement>(of_signal, channel),
                                     number<kPerElement>(of_tangent, channel),
                                     number<kPerElement>(of_xhat, channel)};
        output[i] = from_arithmetic<T>(
            curvature(to_arithmetic(grad[i]) * number<kPerElement>(weight, channel),
                      number<kPerElement>(p_mean, channel), to_arithmetic(tangent[i]),
                      number<kPerElement>(u_mean, channel), to_arithmetic(xhat[i])));
    });
}

// Calls run(T{}, A{}, bool constant) for the row's types and layout.
template <typename Run>
FASTGAN_INLINE void for_rows(const NormRows& rows, const Run& run) {
    const auto with_layout = [&](auto stored, auto computed) {
        if (rows.per_element) {
            run.template operator()<decltype(stored), decltype(computed), true>();
        } else {
            run.template operator()<decltype(stored), decltype(computed), false>();
        }
    };
    switch (rows.type) {
        case FloatType::float64:
            return with_layout(double{}, double{});
        case FloatType::float32:
            return with_layout(float{}, float{});
        case FloatType::float16:
            return with_layout(Half{}, float{});
        case FloatType::bfloat16:
            return with_layout(BFloat16{}, float{});
    }
}

}  // namespace

void add_norm_sums(const NormRows& rows, const void* a, const void* shift, const void* b,
                   void* first, void* second) {
    for_rows(rows, [&]<typename T, typename A, bool kPerElement>() {
        const auto add = [&]<Second kSecond>() {
            add_sums<T, A, kPerElement, kSecond>(
                rows, static_cast<const T*>(a), static_cast<const A*>(shift),
                static_cast<const T*>(b), static_cast<A*>(first), static_cast<A*>(second));
        };
        if (b == nullptr) {
            add.template operator()<Second::none>();
        } else if (b == a) {
            add.template operator()<Second::square>();
        } else {
            add.template operator()<Second::product>();
        }
    });
}

void normalise_rows(const NormRows& rows, const void* x, const void* mean, const void* invstd,
                   const void* weight, const void* bias, void* xhat, void* output) {
    for_rows(rows, [&]<typename T, typename A, bool kPerElement>() {
        normalise<T, A, kPerElement>(rows, static_cast<const T*>(x), static_cast<const A*>(mean),
                                     static_cast<const A*>(invstd),
                                     static_cast<const A*>(weight), static_cast<const A*>(bias),
                                     static_cast<T*>(xhat), static_cast<T*>(output));
    });
}

void project_rows(const NormRows& rows, const void* grad, const void* xhat, const void* before,
                 const void* after, const void* mean, const void* along, const void* invstd,
                 void* output) {
    for_rows(rows, [&]<typename T, typename A, bool kPerElement>() {
        project<T, A, kPerElement>(rows, static_cast<const T*>(grad), static_cast<const T*>(xhat),
                                   static_cast<const A*>(before), static_cast<const A*>(after),
                                   static_cast<const A*>(mean), static_cast<const A*>(along),
                                   static_cast<const A*>(invstd), static_cast<T*>(output));
    });
}

void curve_rows(const NormRows& rows, const void* grad, const void* tangent, const void* xhat,
               const void* weight, const void* p_mean, const void* u_mean, const void* of_signal,
               const void* of_tangent, const void* of_xhat, void* output) {
    for_rows(rows, [&]<typename T, typename A, bool kPerElement>() {
        curve<T, A, kPerElement>(
            rows, static_cast<const T*>(grad), static_cast<const T*>(tangent),
            static_cast<const T*>(xhat), static_cast<const A*>(weight),
            static_cast<const A*>(p_mean), static_cast<const A*>(u_mean),
            static_cast<const A*>(of_signal), static_cast<const A*>(of_tangent),
            static_cast<const A*>(of_xhat), static_cast<T*>(output));
    });
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
