// Compiled once per instruction set: see instruction_sets.h.
#include "batch_norm_loops.h"

#include <type_traits>

#include "../math/compensated_sum.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// The types of a tile's sums. Neither error grows with the rows: a double loses 2^-53 of sum(|t|)
// per row, less than half a float's rounding for all rows of a tile.
template <typename T>
struct SumOf {
    using Type = double;
};
template <>
struct SumOf<double> {
    using Type = CompensatedSum<double>;
};

template <typename T>
using Sum = typename SumOf<T>::Type;

// The type of a few rows' moments.
template <typename T>
struct PartOf {
    using Type = float;
};
template <>
struct PartOf<float> {
    using Type = double;
};
template <>
struct PartOf<double> {
    using Type = double;
};

FASTGAN_INLINE double total_of(double sum) {
    return sum;
}
FASTGAN_INLINE double total_of(const CompensatedSum<double>& sum) {
    return sum.total();
}

template <typename T>
using Arithmetic = decltype(to_arithmetic(T{}));

// Rows added at a time, with one load and store of the sums. They are first added in the adder's
// type: three float additions round about as much as computing the terms, and take half the time of
// double ones. For 16-bit values kRowsInFloat rows are added in float.
//
// So for any number of rows a sum of terms t has an error of at most 21 u sum(|t|), u = 2^-24: 3
// roundings of each term, 3 for adding 4 rows and, for 16-bit values, 15 for adding 16 such sums.
constexpr std::int64_t kRowsAtATime = 4;
constexpr std::int64_t kRowsInFloat = 64;
// Columns at a time, whose sums stay in the L1 cache.
constexpr std::int64_t kColumnsAtATime = 256;
// A run of one channel is processed as rows of this many columns, each with its own sum: the same
// number on every processor, for the same results.
constexpr std::int64_t kLanes = 16;
// Processors don't recognise and prefetch adjacent rows, so prefetch this many bytes ahead, for
// this many columns at a time: 0.31 instead of 0.54 ms for statistics of 4 MiB in memory on one
// thread of a Xeon, as long as a plain read.
constexpr std::int64_t kBytesAhead = 4096;
constexpr std::int64_t kColumnsAsked = 64;
constexpr std::int64_t kCacheLine = 64;

// Adds four rows, or one, to the sums of each column, and prefetches the rows `ahead` rows later,
// unless that is 0.
//
// Adder: add(r, i, c, sum, other) adds element i, in row r and column c, to sums of type Part;
// fetch(i, columns) prefetches from element i on; prepare(rows, first, stride, begin, count) is
// called before adding columns [begin, begin + count) of these rows.
template <int kRows, typename A, typename Adder>
FASTGAN_INLINE void add_rows(Adder& adder, std::int64_t first, std::int64_t stride,
                             std::int64_t ahead, std::int64_t columns, A* __restrict sums,
                             A* __restrict others) {
    for (std::int64_t begin = 0; begin < columns; begin += kColumnsAsked) {
        const std::int64_t end = begin + kColumnsAsked < columns ? begin + kColumnsAsked : columns;
        if (ahead > 0) {
            for (int r = 0; r < kRows; ++r) {
                adder.fetch(first + (ahead + r) * stride + begin, end - begin);
            }
        }
        adder.prepare(kRows, first + begin, stride, begin, end - begin);
        for (std::int64_t c = begin; c < end; ++c) {
            typename Adder::Part sum = 0;
            typename Adder::Part other = 0;
#pragma GCC unroll 4
            for (int r = 0; r < kRows; ++r) {
                adder.add(r, first + r * stride + c, c, sum, other);
            }
            sums[c] += sum;
            others[c] += other;
        }
    }
}

template <typename A, typename Adder>
FASTGAN_INLINE void add_block(Adder& adder, std::int64_t first, std::int64_t rows,
                              std::int64_t stride, std::int64_t ahead, std::int64_t columns,
                              A* sums, A* others) {
    std::int64_t row = 0;
    for (; row + kRowsAtATime <= rows; row += kRowsAtATime) {
        add_rows<kRowsAtATime>(adder, first + row * stride, stride, ahead, columns, sums, others);
    }
    for (; row < rows; ++row) {
        add_rows<1>(adder, first + row * stride, stride, 0, columns, sums, others);
    }
}

// Two sums of each of at most kColumns columns. For 16-bit values, the last rows_in_float rows'
// sums are separate, in float.
template <typename T, std::int64_t kColumns>
struct ColumnSums {
    static constexpr bool kInFloat = sizeof(T) == 2;
    std::int64_t rows_in_float;
    alignas(64) Sum<T> sums[kColumns];
    alignas(64) Sum<T> others[kColumns];
    alignas(64) float sums_in_float[kInFloat ? kColumns : 1];
    alignas(64) float others_in_float[kInFloat ? kColumns : 1];

    FASTGAN_INLINE void start(std::int64_t columns) {
        rows_in_float = 0;
        for (std::int64_t c = 0; c < columns; ++c) {
            sums[c] = {};
            others[c] = {};
        }
    }

    template <typename Adder>
    FASTGAN_INLINE void add(Adder& adder, std::int64_t first, std::int64_t rows,
                            std::int64_t stride, std::int64_t ahead, std::int64_t columns) {
        if constexpr (!kInFloat) {
            add_block(adder, first, rows, stride, ahead, columns, sums, others);
            return;
        }
        while (rows > 0) {
            if (rows_in_float == 0) {
                for (std::int64_t c = 0; c < columns; ++c) {
                    sums_in_float[c] = 0;
                    others_in_float[c] = 0;
                }
            }
            const std::int64_t room = kRowsInFloat - rows_in_float;
            const std::int64_t count = rows < room ? rows : room;
            add_block(adder, first, count, stride, ahead, columns, sums_in_float, others_in_float);
            first += count * stride;
            rows -= count;
            rows_in_float += count;
            if (rows_in_float == kRowsInFloat) {
                finish(columns);
            }
        }
    }

    // Adds columns [0, count) of another row.
    template <typename Adder>
    FASTGAN_INLINE void add_row(Adder& adder, std::int64_t first, std::int64_t count) {
        add_rows<1>(adder, first, 0, 0, count, sums, others);
    }

    FASTGAN_INLINE void finish(std::int64_t columns) {
        if (rows_in_float > 0) {
            for (std::int64_t c = 0; c < columns; ++c) {
                sums[c] += sums_in_float[c];
                others[c] += others_in_float[c];
            }
            rows_in_float = 0;
        }
    }
};

// kBytesAhead in rows of this many channels, a multiple of kRowsAtATime; 0 for rows so short that
// the processor prefetches them.
template <typename T>
FASTGAN_INLINE std::int64_t rows_ahead(std::int64_t channels) {
    const std::int64_t row_bytes = channels * static_cast<std::int64_t>(sizeof(T));
    const std::int64_t step = kRowsAtATime * row_bytes;
    return row_bytes < kCacheLine ? 0 : (kBytesAhead + step - 1) / step * kRowsAtATime;
}

template <typename T>
FASTGAN_INLINE void fetch_values(const T* values, std::int64_t count) {
    constexpr std::int64_t per_line = kCacheLine / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t i = 0; i < count; i += per_line) {
        __builtin_prefetch(values + i);
    }
}

// Adds a channel's span: run by run, each run in rows of kLanes columns.
template <typename T, typename Adder>
FASTGAN_INLINE void add_span(Adder& adder, ChannelSpan span, ColumnSums<T, kLanes>& sums) {
    std::int64_t image = span.begin / span.image_size;
    std::int64_t within = span.begin - image * span.image_size;
    sums.start(kLanes);
    for (std::int64_t left = span.count; left > 0; ++image) {
        const std::int64_t run = span.image_size - within < left ? span.image_size - within : left;
        const std::int64_t first = image * span.image_stride + within;
        const std::int64_t rows = run / kLanes;
        sums.add(adder, first, rows, kLanes, 0, kLanes);
        sums.add_row(adder, first + rows * kLanes, run - rows * kLanes);
        left -= run;
        within = 0;
    }
    sums.finish(kLanes);
}

// The sum of the lanes, in a fixed order.
template <typename A>
FASTGAN_INLINE double sum_of_lanes(A* lanes) {
    for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (std::int64_t lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return total_of(lanes[0]);
}

// --- Statistics ----------------------------------------------------------------------------------

// Adds d = x - shift and d^2, for float in double, as torch does on CPUs.
template <typename T>
struct MomentsAdder {
    using Value = T;
    using Part = typename PartOf<T>::Type;
    const T* __restrict values;
    const Part* __restrict shifts;

    FASTGAN_INLINE void fetch(std::int64_t i, std::int64_t columns) const {
        fetch_values(values + i, columns);
    }

    FASTGAN_INLINE void prepare(int, std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    }

    FASTGAN_INLINE void add(int, std::int64_t i, std::int64_t c, Part& sum, Part& square) const {
        const Part d = static_cast<Part>(to_arithmetic(values[i])) - shifts[c];
        sum += d;
        square = multiply_add(d, d, square);
    }
};

template <typename T>
void typed_column_moments(const T* values, std::int64_t rows, std::int64_t channels, double* mean,
                          double* m2) {
    typename MomentsAdder<T>::Part shifts[kColumnsAtATime];
    ColumnSums<T, kColumnsAtATime> sums;
    for (std::int64_t begin = 0; begin < channels; begin += kColumnsAtATime) {
        const std::int64_t columns =
            channels - begin < kColumnsAtATime ? channels - begin : kColumnsAtATime;
        for (std::int64_t c = 0; c < columns; ++c) {
            shifts[c] = shift_by<typename MomentsAdder<T>::Part>(to_arithmetic(values[begin + c]));
        }
        const MomentsAdder<T> adder{values, shifts};
        sums.start(columns);
        sums.add(adder, begin, rows, channels, rows_ahead<T>(channels), columns);
        sums.finish(columns);
        for (std::int64_t c = 0; c < columns; ++c) {
            const auto moments = TileMoments<double>::of_sums(shifts[c], total_of(sums.sums[c]),
                                                              total_of(sums.others[c]),
                                                              static_cast<double>(rows));
            mean[begin + c] = moments.mean;
            m2[begin + c] = moments.m2;
        }
    }
}

template <typename T>
void typed_span_moments(const T* values, ChannelSpan span, double* mean, double* m2) {
    const std::int64_t image = span.begin / span.image_size;
    const T first = values[image * span.image_stride + (span.begin - image * span.image_size)];
    const auto shift = shift_by<typename MomentsAdder<T>::Part>(to_arithmetic(first));
    typename MomentsAdder<T>::Part shifts[kLanes];
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        shifts[lane] = shift;
    }
    ColumnSums<T, kLanes> sums;
    const MomentsAdder<T> adder{values, shifts};
    add_span(adder, span, sums);
    const auto moments =
        TileMoments<double>::of_sums(shift, sum_of_lanes(sums.sums), sum_of_lanes(sums.others),
                                     static_cast<double>(span.count));
    *mean = moments.mean;
    *m2 = moments.m2;
}

// --- Smooth activations --------------------------------------------------------------------------

// Piecewise linear activations are inlined in the loops. A smooth one would be compiled into each
// loop for each type, and takes longer than a pass over the L1 cache: it processes buffers of the
// arithmetic's type.
constexpr std::int64_t kBuffer = kRowsAtATime * kColumnsAsked;

// u = z(u).
template <typename A>
void apply_smooth(Activation activation, A negative_slope, A* __restrict u, std::int64_t count) {
    with_smooth(activation, [=](auto tag) {
        for (std::int64_t i = 0; i < count; ++i) {
            u[i] = activate<decltype(tag)::value>(u[i], negative_slope);
        }
    });
}

// grad = grad * z'(u).
template <typename A>
void apply_smooth_gradient_by_input(Activation activation, A negative_slope, const A* __restrict u,
                                    A* __restrict grad, std::int64_t count) {
    with_smooth(activation, [=](auto tag) {
        for (std::int64_t i = 0; i < count; ++i) {
            grad[i] = gradient_by_input<decltype(tag)::value>(grad[i], u[i], negative_slope);
        }
    });
}

// grad * z', from the activation's kept value. result may be grad.
template <typename A>
void apply_smooth_gradient(Activation activation, A negative_slope, const A* grad, const A* kept,
                           A* result, std::int64_t count) {
    with_smooth(activation, [=](auto tag) {
#pragma GCC ivdep
        for (std::int64_t i = 0; i < count; ++i) {
            result[i] = activation_gradient<decltype(tag)::value>(grad[i], kept[i], negative_slope);
        }
    });
}

// Calls body(first, rows, begin, count) for blocks of at most kBuffer adjacent values: several
// whole rows, or columns [begin, begin + count) of one.
template <typename Body>
FASTGAN_INLINE void for_each_block(std::int64_t rows, std::int64_t columns, const Body& body) {
    const std::int64_t at_once = columns > 0 && columns < kBuffer ? kBuffer / columns : 1;
    for (std::int64_t row = 0; row < rows; row += at_once) {
        const std::int64_t count = rows - row < at_once ? rows - row : at_once;
        for (std::int64_t begin = 0; begin < columns; begin += kBuffer) {
            body(row * columns + begin, count, begin,
                 columns - begin < kBuffer ? columns - begin : kBuffer);
        }
    }
}

// --- Forward -------------------------------------------------------------------------------------

// A channel's parameters, from arrays or the same for all of a run.
template <typename A>
struct Columns {
    const A* __restrict values;
    FASTGAN_INLINE A operator[](std::int64_t c) const { return values[c]; }
};

template <typename A>
struct Everywhere {
    A value;
    FASTGAN_INLINE A operator[](std::int64_t) const { return value; }
};

// How the (C,) arguments of one call are read.
template <typename A, template <typename> typename Reader>
struct ReaderOf;

template <typename A>
struct ReaderOf<A, Columns> {
    FASTGAN_INLINE static Columns<A> make(const void* values) {
        return Columns<A>{static_cast<const A*>(values)};
    }
};

template <typename A>
struct ReaderOf<A, Everywhere> {
    FASTGAN_INLINE static Everywhere<A> make(const void* values) {
        return Everywhere<A>{*static_cast<const A*>(values)};
    }
};

template <typename A, template <typename> typename Reader>
FASTGAN_INLINE Reader<A> read(const void* values) {
    return ReaderOf<A, Reader>::make(values);
}

// Results are computed elementwise: `result` may be an argument, and ivdep tells the compiler.

template <typename T, template <typename> typename Reader>
void typed_norm_act(const void* input, void* result, std::int64_t rows, std::int64_t columns,
                    const NormActParameters& parameters) {
    using A = Arithmetic<T>;
    const auto mean = read<A, Reader>(parameters.mean);
    const auto scale = read<A, Reader>(parameters.scale);
    const auto bias = read<A, Reader>(parameters.bias);
    const A negative_slope = static_cast<A>(parameters.negative_slope);
    const T* const inputs = static_cast<const T*>(input);
    T* const results = static_cast<T*>(result);
    const auto linear = [&](auto tag) {
        for (std::int64_t row = 0; row < rows; ++row) {
            const T* const x = inputs + row * columns;
            T* const y = results + row * columns;
#pragma GCC ivdep
            for (std::int64_t c = 0; c < columns; ++c) {
                const Normalisation<A> normalise{mean[c], scale[c], bias[c]};
                const A u = normalise(to_arithmetic(x[c]));
                y[c] = from_arithmetic<T>(activate<decltype(tag)::value>(u, negative_slope));
            }
        }
    };
    if_piecewise_linear(parameters.activation, linear, [&] {
        constexpr bool is_arithmetic = std::is_same_v<T, A>;
        alignas(64) A buffer[is_arithmetic ? 1 : kBuffer];
        for_each_block(rows, columns, [&](std::int64_t first, std::int64_t block_rows,
                                          std::int64_t begin, std::int64_t count) {
            A* u = buffer;
            if constexpr (is_arithmetic) {
                u = results + first;
            }
            for (std::int64_t row = 0; row < block_rows; ++row) {
                const T* const x = inputs + first + row * count;
#pragma GCC ivdep
                for (std::int64_t c = 0; c < count; ++c) {
                    const Normalisation<A> normalise{mean[begin + c], scale[begin + c],
                                                     bias[begin + c]};
                    u[row * count + c] = normalise(to_arithmetic(x[c]));
                }
            }
            apply_smooth(parameters.activation, negative_slope, u, block_rows * count);
            if constexpr (!is_arithmetic) {
                for (std::int64_t i = 0; i < block_rows * count; ++i) {
                    results[first + i] = from_arithmetic<T>(u[i]);
                }
            }
        });
    });
}

// --- Backward ------------------------------------------------------------------------------------

// The gradients' arguments.
template <typename T>
struct GradientArguments {
    using A = Arithmetic<T>;
    const T* __restrict grads;
    const T* __restrict values;
    const A* __restrict means;
    const A* __restrict scales;
    const A* __restrict biases;
    Activation activation;
    A negative_slope;

    FASTGAN_INLINE A input_of_activation(std::int64_t i, std::int64_t c) const {
        return Normalisation<A>{means[c], scales[c], biases[c]}(to_arithmetic(values[i]));
    }
};

// Adds g and g * (x - mean), g = grad * z', of a piecewise linear activation.
template <typename T, Activation kActivation>
struct GradientAdder {
    using Value = T;
    using Part = Arithmetic<T>;
    GradientArguments<T> of;

    FASTGAN_INLINE void fetch(std::int64_t i, std::int64_t columns) const {
        fetch_values(of.grads + i, columns);
        fetch_values(of.values + i, columns);
    }

    FASTGAN_INLINE void prepare(int, std::int64_t, std::int64_t, std::int64_t, std::int64_t) const {
    }

    FASTGAN_INLINE void add(int, std::int64_t i, std::int64_t c, Part& sum, Part& dot) const {
        const Part g = gradient_by_input<kActivation>(
            to_arithmetic(of.grads[i]), of.input_of_activation(i, c), of.negative_slope);
        sum += g;
        dot = multiply_add(g, to_arithmetic(of.values[i]) - of.means[c], dot);
    }
};

// The same for a smooth one: g is computed beforehand.
template <typename T>
struct SmoothGradientAdder {
    using Value = T;
    using Part = Arithmetic<T>;
    GradientArguments<T> of;
    std::int64_t begin;
    std::int64_t count;
    alignas(64) Part gradients[kBuffer];

    FASTGAN_INLINE void fetch(std::int64_t i, std::int64_t columns) const {
        fetch_values(of.grads + i, columns);
        fetch_values(of.values + i, columns);
    }

    FASTGAN_INLINE void prepare(int rows, std::int64_t first, std::int64_t stride,
                                std::int64_t from, std::int64_t columns) {
        alignas(64) Part inputs[kBuffer];
        begin = from;
        count = columns;
        for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t c = 0; c < count; ++c) {
                const std::int64_t i = first + r * stride + c;
                inputs[r * count + c] = of.input_of_activation(i, begin + c);
                gradients[r * count + c] = to_arithmetic(of.grads[i]);
            }
        }
        apply_smooth_gradient_by_input(of.activation, of.negative_slope, inputs, gradients,
                                       rows * count);
    }

    FASTGAN_INLINE void add(int r, std::int64_t i, std::int64_t c, Part& sum, Part& dot) const {
        const Part g = gradients[r * count + c - begin];
        sum += g;
        dot = multiply_add(g, to_arithmetic(of.values[i]) - of.means[c], dot);
    }
};

// body(adder) with the adder for the activation.
template <typename T, typename Body>
FASTGAN_INLINE void with_gradient_adder(const GradientArguments<T>& arguments, const Body& body) {
    if_piecewise_linear(
        arguments.activation,
        [&](auto tag) {
            const GradientAdder<T, decltype(tag)::value> adder{arguments};
            body(adder);
        },
        [&] {
            SmoothGradientAdder<T> adder;
            adder.of = arguments;
            body(adder);
        });
}

template <typename T>
void typed_column_gradient_sums(const T* grad, const T* input, std::int64_t rows,
                                std::int64_t channels, const NormActParameters& parameters,
                                const Arithmetic<T>* invstd, Arithmetic<T>* grad_sum,
                                Arithmetic<T>* grad_xhat_sum) {
    using B = Arithmetic<T>;
    ColumnSums<T, kColumnsAtATime> sums;
    for (std::int64_t begin = 0; begin < channels; begin += kColumnsAtATime) {
        const std::int64_t columns =
            channels - begin < kColumnsAtATime ? channels - begin : kColumnsAtATime;
        const GradientArguments<T> arguments{grad,
                                             input,
                                             static_cast<const B*>(parameters.mean) + begin,
                                             static_cast<const B*>(parameters.scale) + begin,
                                             static_cast<const B*>(parameters.bias) + begin,
                                             parameters.activation,
                                             static_cast<B>(parameters.negative_slope)};
        sums.start(columns);
        with_gradient_adder(arguments, [&](auto& adder) {
            sums.add(adder, begin, rows, channels, rows_ahead<T>(channels), columns);
        });
        sums.finish(columns);
        for (std::int64_t c = 0; c < columns; ++c) {
            grad_sum[begin + c] = static_cast<B>(total_of(sums.sums[c]));
            grad_xhat_sum[begin + c] = static_cast<B>(total_of(sums.others[c]) *
                                                      static_cast<double>(invstd[begin + c]));
        }
    }
}

template <typename T>
void typed_span_gradient_sums(const T* grad, const T* input, ChannelSpan span,
                              const NormActParameters& parameters, const Arithmetic<T>* invstd,
                              Arithmetic<T>* grad_sum, Arithmetic<T>* grad_xhat_sum) {
    using B = Arithmetic<T>;
    ColumnSums<T, kLanes> sums;
    B means[kLanes], scales[kLanes], biases[kLanes];
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        means[lane] = *static_cast<const B*>(parameters.mean);
        scales[lane] = *static_cast<const B*>(parameters.scale);
        biases[lane] = *static_cast<const B*>(parameters.bias);
    }
    const GradientArguments<T> arguments{grad,
                                         input,
                                         means,
                                         scales,
                                         biases,
                                         parameters.activation,
                                         static_cast<B>(parameters.negative_slope)};
    with_gradient_adder(arguments, [&](auto& adder) { add_span(adder, span, sums); });
    *grad_sum = static_cast<B>(sum_of_lanes(sums.sums));
    *grad_xhat_sum = static_cast<B>(sum_of_lanes(sums.others) * static_cast<double>(*invstd));
}

template <typename T, template <typename> typename Reader>
void typed_gradient(const void* grad, const void* input, void* result, std::int64_t rows,
                    std::int64_t columns, const NormActParameters& parameters,
                    const void* slope_values, const void* offset_values) {
    using A = Arithmetic<T>;
    const auto mean = read<A, Reader>(parameters.mean);
    const auto scale = read<A, Reader>(parameters.scale);
    const auto bias = read<A, Reader>(parameters.bias);
    const auto slope = read<A, Reader>(slope_values);
    const auto offset = read<A, Reader>(offset_values);
    const A negative_slope = static_cast<A>(parameters.negative_slope);
    const T* const grads = static_cast<const T*>(grad);
    const T* const inputs = static_cast<const T*>(input);
    T* const results = static_cast<T*>(result);
    const auto linear = [&](auto tag) {
        for (std::int64_t row = 0; row < rows; ++row) {
            const T* const g = grads + row * columns;
            const T* const x = inputs + row * columns;
            T* const y = results + row * columns;
#pragma GCC ivdep
            for (std::int64_t c = 0; c < columns; ++c) {
                const A value = to_arithmetic(x[c]);
                const A u = Normalisation<A>{mean[c], scale[c], bias[c]}(value);
                const A through =
                    gradient_by_input<decltype(tag)::value>(to_arithmetic(g[c]), u, negative_slope);
                y[c] = from_arithmetic<T>(
                    batch_norm_gradient(through, value, mean[c], scale[c], slope[c], offset[c]));
            }
        }
    };
    if_piecewise_linear(parameters.activation, linear, [&] {
        alignas(64) A through[kBuffer];
        alignas(64) A u[kBuffer];
        for_each_block(rows, columns, [&](std::int64_t first, std::int64_t block_rows,
                                          std::int64_t begin, std::int64_t count) {
            for (std::int64_t row = 0; row < block_rows; ++row) {
                const T* const g = grads + first + row * count;
                const T* const x = inputs + first + row * count;
                for (std::int64_t c = 0; c < count; ++c) {
                    const Normalisation<A> normalise{mean[begin + c], scale[begin + c],
                                                     bias[begin + c]};
                    u[row * count + c] = normalise(to_arithmetic(x[c]));
                    through[row * count + c] = to_arithmetic(g[c]);
                }
            }
            apply_smooth_gradient_by_input(parameters.activation, negative_slope, u, through,
                                           block_rows * count);
            for (std::int64_t row = 0; row < block_rows; ++row) {
                const T* const x = inputs + first + row * count;
                T* const y = results + first + row * count;
#pragma GCC ivdep
                for (std::int64_t c = 0; c < count; ++c) {
                    y[c] = from_arithmetic<T>(batch_norm_gradient(
                        through[row * count + c], to_arithmetic(x[c]), mean[begin + c],
                        scale[begin + c], slope[begin + c], offset[begin + c]));
                }
            }
        });
    });
}

template <typename T>
void typed_act_gradient(const T* grad, const T* kept, T* result, std::int64_t count,
                        Activation activation, double negative_slope) {
    using A = Arithmetic<T>;
    const auto linear = [&](auto tag) {
#pragma GCC ivdep
        for (std::int64_t i = 0; i < count; ++i) {
            result[i] = from_arithmetic<T>(activation_gradient<decltype(tag)::value>(
                to_arithmetic(grad[i]), to_arithmetic(kept[i]), static_cast<A>(negative_slope)));
        }
    };
    if_piecewise_linear(activation, linear, [&] {
        const A slope = static_cast<A>(negative_slope);
        if constexpr (std::is_same_v<T, A>) {
            apply_smooth_gradient(activation, slope, grad, kept, result, count);
        } else {
            alignas(64) A grads[kBuffer];
            alignas(64) A keeps[kBuffer];
            for_each_block(1, count, [&](std::int64_t, std::int64_t, std::int64_t begin,
                                         std::int64_t values) {
                for (std::int64_t i = 0; i < values; ++i) {
                    grads[i] = to_arithmetic(grad[begin + i]);
                    keeps[i] = to_arithmetic(kept[begin + i]);
                }
                apply_smooth_gradient(activation, slope, grads, keeps, grads, values);
                for (std::int64_t i = 0; i < values; ++i) {
                    result[begin + i] = from_arithmetic<T>(grads[i]);
                }
            });
        }
    });
}

// --- Merging -------------------------------------------------------------------------------------

template <typename A>
void typed_merge_moments(const A* count, const A* mean, const A* m2, std::int64_t tiles,
                         std::int64_t channels, double* __restrict total_mean,
                         double* __restrict total_m2) {
    for (std::int64_t c = 0; c < channels; ++c) {
        total_mean[c] = 0;
        total_m2[c] = 0;
    }
    double total = 0;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        const double tile_count = static_cast<double>(count[tile]);
        for (std::int64_t c = 0; c < channels; ++c) {
            Moments moments{total, total_mean[c], total_m2[c]};
            moments.merge(tile_count, static_cast<double>(mean[tile * channels + c]),
                          static_cast<double>(m2[tile * channels + c]));
            total_mean[c] = moments.mean;
            total_m2[c] = moments.m2;
        }
        total += tile_count;
    }
}

template <typename A>
void typed_add_tiles(const A* sums, std::int64_t tiles, std::int64_t channels,
                     double* __restrict total) {
    for (std::int64_t c = 0; c < channels; ++c) {
        total[c] = 0;
    }
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        for (std::int64_t c = 0; c < channels; ++c) {
            total[c] += static_cast<double>(sums[tile * channels + c]);
        }
    }
}

// function(T{}) for the type of that number.
template <typename Function>
FASTGAN_INLINE void with_type(FloatType type, const Function& function) {
    switch (type) {
        case FloatType::float64:
            return function(double{});
        case FloatType::float32:
            return function(float{});
        case FloatType::float16:
            return function(Half{});
        case FloatType::bfloat16:
            return function(BFloat16{});
    }
}

}  // namespace

void column_moments(FloatType type, const void* values, std::int64_t rows, std::int64_t channels,
                    double* mean, double* m2) {
    with_type(type, [&](auto example) {
        using T = decltype(example);
        typed_column_moments(static_cast<const T*>(values), rows, channels, mean, m2);
    });
}

void span_moments(FloatType type, const void* values, ChannelSpan span, double* mean, double* m2) {
    with_type(type, [&](auto example) {
        using T = decltype(example);
        typed_span_moments(static_cast<const T*>(values), span, mean, m2);
    });
}

void norm_act_columns(FloatType type, const void* input, void* result, std::int64_t rows,
                      std::int64_t channels, const NormActParameters& parameters) {
    with_type(type, [&](auto example) {
        typed_norm_act<decltype(example), Columns>(input, result, rows, channels, parameters);
    });
}

void norm_act_run(FloatType type, const void* input, void* result, std::int64_t count,
                  const NormActParameters& parameters) {
    with_type(type, [&](auto example) {
        typed_norm_act<decltype(example), Everywhere>(input, result, 1, count, parameters);
    });
}

void column_gradient_sums(FloatType type, const void* grad, const void* input, std::int64_t rows,
                          std::int64_t channels, const NormActParameters& parameters,
                          const void* invstd, void* grad_sum, void* grad_xhat_sum) {
    with_type(type, [&](auto example) {
        using T = decltype(example);
        using A = Arithmetic<T>;
        typed_column_gradient_sums(static_cast<const T*>(grad), static_cast<const T*>(input), rows,
                                   channels, parameters, static_cast<const A*>(invstd),
                                   static_cast<A*>(grad_sum), static_cast<A*>(grad_xhat_sum));
    });
}

void span_gradient_sums(FloatType type, const void* grad, const void* input, ChannelSpan span,
                        const NormActParameters& parameters, const void* invstd, void* grad_sum,
                        void* grad_xhat_sum) {
    with_type(type, [&](auto example) {
        using T = decltype(example);
        using A = Arithmetic<T>;
        typed_span_gradient_sums(static_cast<const T*>(grad), static_cast<const T*>(input), span,
                                 parameters, static_cast<const A*>(invstd),
                                 static_cast<A*>(grad_sum), static_cast<A*>(grad_xhat_sum));
    });
}

void gradient_columns(FloatType type, const void* grad, const void* input, void* result,
                      std::int64_t rows, std::int64_t channels, const NormActParameters& parameters,
                      const void* slope, const void* offset) {
    with_type(type, [&](auto example) {
        typed_gradient<decltype(example), Columns>(grad, input, result, rows, channels, parameters,
                                                   slope, offset);
    });
}

void gradient_run(FloatType type, const void* grad, const void* input, void* result,
                  std::int64_t count, const NormActParameters& parameters, const void* slope,
                  const void* offset) {
    with_type(type, [&](auto example) {
        typed_gradient<decltype(example), Everywhere>(grad, input, result, 1, count, parameters,
                                                      slope, offset);
    });
}

void act_gradient_run(FloatType type, const void* grad, const void* kept, void* result,
                      std::int64_t count, Activation activation, double negative_slope) {
    with_type(type, [&](auto example) {
        using T = decltype(example);
        typed_act_gradient(static_cast<const T*>(grad), static_cast<const T*>(kept),
                           static_cast<T*>(result), count, activation, negative_slope);
    });
}

void merge_moments(bool is_double, const void* count, const void* mean, const void* m2,
                   std::int64_t tiles, std::int64_t channels, double* total_mean,
                   double* total_m2) {
    with_type(is_double ? FloatType::float64 : FloatType::float32, [&](auto example) {
        using A = Arithmetic<decltype(example)>;
        typed_merge_moments(static_cast<const A*>(count), static_cast<const A*>(mean),
                            static_cast<const A*>(m2), tiles, channels, total_mean, total_m2);
    });
}

void add_tiles(bool is_double, const void* sums, std::int64_t tiles, std::int64_t channels,
               double* total) {
    with_type(is_double ? FloatType::float64 : FloatType::float32, [&](auto example) {
        using A = Arithmetic<decltype(example)>;
        typed_add_tiles(static_cast<const A*>(sums), tiles, channels, total);
    });
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
