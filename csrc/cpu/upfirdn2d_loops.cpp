// Compiled once per instruction set: see instruction_sets.h. The formulas: math/upfirdn2d.h.
#include "upfirdn2d_loops.h"

#include "value_blocks.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// --- Sums of products ----------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <typename A>
struct Vectors;
template <>
struct Vectors<float> {
    typedef float Type __attribute__((vector_size(kBytes)));
    typedef std::int32_t Lanes __attribute__((vector_size(kBytes)));
    typedef std::uint8_t Bytes __attribute__((vector_size(kBytes / 4)));
};
template <>
struct Vectors<double> {
    typedef double Type __attribute__((vector_size(kBytes)));
    typedef std::int64_t Lanes __attribute__((vector_size(kBytes)));
    typedef std::uint8_t Bytes __attribute__((vector_size(kBytes / 8)));
};

template <typename A>
using Vector = typename Vectors<A>::Type;
template <typename A>
using Bytes = typename Vectors<A>::Bytes;
template <typename A>
constexpr std::int64_t kVector = kBytes / sizeof(A);

template <typename V>
FASTGAN_INLINE V multiply_add_all(V a, V b, V c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(a[0]) == 4) {
        return _mm512_fmadd_ps(a, b, c);
    } else {
        return _mm512_fmadd_pd(a, b, c);
    }
#elif defined(__AVX2__)
    if constexpr (sizeof(a[0]) == 4) {
        return _mm256_fmadd_ps(a, b, c);
    } else {
        return _mm256_fmadd_pd(a, b, c);
    }
#else
    return a * b + c;
#endif
}

template <typename A>
FASTGAN_INLINE Vector<A> load_vector(const A* from) {
    Vector<A> vector;
    memcpy(&vector, from, sizeof(vector));
    return vector;
}

// The sources of one sum, and how much of each counts.
template <typename A>
struct Terms {
    const A** sources;
    A* coefficients;
    std::int64_t count;

    FASTGAN_INLINE void add(const A* source, A coefficient) {
        sources[count] = source;
        coefficients[count++] = coefficient;
    }
};

// Values of the rows that are filtered together: with what they are made from and into, they stay
// in a first-level cache.
constexpr std::int64_t kTogether = 2048;

// Terms are added in groups, whose sums are added: the error of a filter of many taps grows with
// their root.
constexpr std::int64_t kGroup = 16;

template <int kVectors, typename A>
FASTGAN_INLINE void add_group(const Terms<A>& terms, std::int64_t begin, std::int64_t end,
                              std::int64_t at, Vector<A> (&sums)[kVectors]) {
    constexpr std::int64_t lanes = kVector<A>;
    const Vector<A> c = terms.coefficients[begin] - Vector<A>{};
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
        sums[v] = c * load_vector(terms.sources[begin] + at + v * lanes);
    }
    for (std::int64_t t = begin + 1; t < end; ++t) {
        const A* const source = terms.sources[t] + at;
        const Vector<A> by = terms.coefficients[t] - Vector<A>{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            sums[v] = multiply_add_all(by, load_vector(source + v * lanes), sums[v]);
        }
    }
}

template <int kVectors, typename A>
FASTGAN_INLINE void sum_block(const Terms<A>& terms, std::int64_t at, A* out) {
    Vector<A> sums[kVectors];
    const std::int64_t count = terms.count;
    add_group(terms, 0, count < kGroup ? count : kGroup, at, sums);
    for (std::int64_t begin = kGroup; begin < count; begin += kGroup) {
        Vector<A> group[kVectors];
        add_group(terms, begin, count - begin < kGroup ? count : begin + kGroup, at, group);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            sums[v] += group[v];
        }
    }
    memcpy(out, sums, sizeof(sums));
}

// As sum_terms, of kCount terms, which stay in registers; size is at least one vector.
template <int kCount, typename A>
void sum_few(const Terms<A>& terms, std::int64_t times, std::int64_t size, std::int64_t step,
             std::int64_t out_step, A* out) {
    constexpr std::int64_t lanes = kVector<A>;
    const A* sources[kCount];
    Vector<A> by[kCount];
#pragma GCC unroll 16
    for (int t = 0; t < kCount; ++t) {
        sources[t] = terms.sources[t];
        by[t] = terms.coefficients[t] - Vector<A>{};
    }
    for (std::int64_t k = 0; k < times; ++k) {
        for (std::int64_t i = 0; i < size; i += lanes) {
            const std::int64_t inside = i + lanes <= size ? i : size - lanes;
            const std::int64_t at = k * step + inside;
            Vector<A> sum = by[0] * load_vector(sources[0] + at);
#pragma GCC unroll 16
            for (int t = 1; t < kCount; ++t) {
                sum = multiply_add_all(by[t], load_vector(sources[t] + at), sum);
            }
            memcpy(out + k * out_step + inside, &sum, sizeof(sum));
        }
    }
}

// The same of more terms, `spacing` apart, where step is kShift * spacing: sums of neighbours share
// their sources. times is at least kShared.
constexpr std::int64_t kShared = 4;

template <int kCount, int kShift, typename A>
void sum_window(const Terms<A>& terms, std::int64_t spacing, std::int64_t times, std::int64_t size,
                std::int64_t out_step, A* out) {
    Vector<A> by[kCount];
#pragma GCC unroll 16
    for (int t = 0; t < kCount; ++t) {
        by[t] = terms.coefficients[t] - Vector<A>{};
    }
    for (std::int64_t k = 0; k < times; k += kShared) {
        k = k + kShared <= times ? k : times - kShared;
        for (std::int64_t i = 0; i < size; i += kVector<A>) {
            const std::int64_t inside = i + kVector<A> <= size ? i : size - kVector<A>;
            const A* source = terms.sources[0] + k * kShift * spacing + inside;
            Vector<A> sums[kShared];
#pragma GCC unroll 32
            for (int s = 0; s < kCount + kShift * (kShared - 1); ++s, source += spacing) {
                const Vector<A> value = load_vector(source);
#pragma GCC unroll 4
                for (int m = 0; m < kShared; ++m) {
                    const int t = s - m * kShift;
                    if (t == 0) {
                        sums[m] = by[0] * value;
                    } else if (0 < t && t < kCount) {
                        sums[m] = multiply_add_all(by[t], value, sums[m]);
                    }
                }
            }
#pragma GCC unroll 4
            for (int m = 0; m < kShared; ++m) {
                memcpy(out + (k + m) * out_step + inside, &sums[m], sizeof(sums[m]));
            }
        }
    }
}

template <typename A>
FASTGAN_INLINE bool are_spaced(const Terms<A>& terms, std::int64_t spacing) {
    bool all = true;
    for (std::int64_t t = 2; t < terms.count; ++t) {
        all &= terms.sources[t] - terms.sources[t - 1] == spacing;
    }
    return all;
}

// out[k * out_step + i] = sum of coefficient * source[k * step + i], 0 <= i < size, 0 <= k < times.
template <typename A>
void sum_terms(const Terms<A>& terms, std::int64_t times, std::int64_t size, std::int64_t step,
               std::int64_t out_step, A* out) {
    constexpr std::int64_t lanes = kVector<A>;
    if (step == size && out_step == size) {
        size *= times;
        times = 1;
    }
    if (size >= lanes) {
        // Those of StyleGAN3's filters.
        const std::int64_t spacing = terms.count > 4 ? terms.sources[1] - terms.sources[0] : 0;
        if (times >= kShared && are_spaced(terms, spacing)) {
            if (terms.count == 6 && step == spacing) {
                return sum_window<6, 1>(terms, spacing, times, size, out_step, out);
            }
            if (terms.count == 12 && step == 2 * spacing) {
                return sum_window<12, 2>(terms, spacing, times, size, out_step, out);
            }
        }
        // Of a long row, blocks need fewer addresses for each sum.
        switch (terms.count <= 4 || size < 16 * lanes ? terms.count : 0) {
            case 1:
                return sum_few<1>(terms, times, size, step, out_step, out);
            case 2:
                return sum_few<2>(terms, times, size, step, out_step, out);
            case 4:
                return sum_few<4>(terms, times, size, step, out_step, out);
            case 6:
                return sum_few<6>(terms, times, size, step, out_step, out);
            case 8:
                return sum_few<8>(terms, times, size, step, out_step, out);
            case 12:
                return sum_few<12>(terms, times, size, step, out_step, out);
            case 16:
                return sum_few<16>(terms, times, size, step, out_step, out);
            default:
                break;
        }
    }
    for (std::int64_t k = 0; k < times; ++k) {
        A* const to = out + k * out_step;
        const std::int64_t base = k * step;
        if (terms.count == 0) {
            memset(to, 0, size * sizeof(A));
            continue;
        }
        std::int64_t i = 0;
        for (; i + 8 * lanes <= size; i += 8 * lanes) {
            sum_block<8>(terms, base + i, to + i);
        }
        for (; i + 4 * lanes <= size; i += 4 * lanes) {
            sum_block<4>(terms, base + i, to + i);
        }
        for (; i + lanes <= size; i += lanes) {
            sum_block<1>(terms, base + i, to + i);
        }
        if (i < size && size >= lanes) {
            sum_block<1>(terms, base + size - lanes, to + size - lanes);
            continue;
        }
        for (; i < size; ++i) {
            A sum = A(0);
            for (std::int64_t begin = 0; begin < terms.count; begin += kGroup) {
                A group = terms.coefficients[begin] * terms.sources[begin][base + i];
                for (std::int64_t t = begin + 1; t < terms.count && t < begin + kGroup; ++t) {
                    group = multiply_add(terms.coefficients[t], terms.sources[t][base + i], group);
                }
                sum = begin == 0 ? group : sum + group;
            }
            to[i] = sum;
        }
    }
}

// --- Four taps along both axes, as StyleGAN2's ----------------------------------------------------

constexpr int kFour = 4;
// Lines between both axes: so many that a line's values are in the cache before they are read at other
// offsets than they were written.
constexpr std::int64_t kLines = 16;
// Columns that are met before the next channels: so many are beside each other in memory.
constexpr std::int64_t kColumns = 16;

struct Span {
    std::int64_t begin;
    std::int64_t end;
};

template <int kValue>
struct Number {
    static constexpr int value = kValue;
};

// sums[m] = sum over t of by[t] * the vector `row` further at each of rows t + m * kDown.
template <int kDown, int kTogether, typename A>
FASTGAN_INLINE void meet_rows(const A* from, std::int64_t row, const Vector<A> (&by)[kFour],
                              Vector<A> (&sums)[kTogether]) {
#pragma GCC unroll 16
    for (int r = 0; r < kDown * (kTogether - 1) + kFour; ++r) {
        const Vector<A> value = load_vector(from + r * row);
#pragma GCC unroll 4
        for (int m = 0; m < kTogether; ++m) {
            const int t = r - m * kDown;
            if (t == 0) {
                sums[m] = by[0] * value;
            } else if (0 < t && t < kFour) {
                sums[m] = multiply_add_all(by[t], value, sums[m]);
            }
        }
    }
}

// Output rows that meet all their taps, kTogether at a time, of the channels of a channels-last map:
// each value is loaded once for all of them and filtered along y, and the last sums stay in registers
// to be filtered along x. By passes over a row each output would take ten loads and stores, not three.
//
//     x             the first tap of the first output row
//     first, in     the column of the first tap of output column 0, and how many columns x has
template <int kDown, int kTogether, typename A>
void four_taps(const A* x, RowStrides strides, const A* along_y, const A* along_x,
               std::int64_t first, std::int64_t in, Span out, std::int64_t lanes,
               RowStrides out_strides, A* y) {
    constexpr int rows = kDown * (kTogether - 1) + kFour;
    Vector<A> by_y[kFour];
    Vector<A> by_x[kFour];
    for (int t = 0; t < kFour; ++t) {
        by_y[t] = along_y[t] - Vector<A>{};
        by_x[t] = along_x[t] - Vector<A>{};
    }
    for (std::int64_t i = 0; i < lanes; i += kVector<A>) {
        const std::int64_t lane = i + kVector<A> <= lanes ? i : lanes - kVector<A>;
        Vector<A> sums[kTogether][kFour];
        const auto meet = [&](std::int64_t column, int slot) __attribute__((always_inline)) {
            if (column < 0 || column >= in) {
#pragma GCC unroll 4
                for (int m = 0; m < kTogether; ++m) {
                    sums[m][slot] = Vector<A>{};
                }
                return;
            }
            const A* const from = x + column * strides.place + lane;
            Vector<A> met[kTogether];
            meet_rows<kDown>(from, strides.row, by_y, met);
#pragma GCC unroll 4
            for (int m = 0; m < kTogether; ++m) {
                sums[m][slot] = met[m];
            }
            // Columns lie too far apart for the processor to foresee the next rows. They are more than
            // a first-level cache holds.
#pragma GCC unroll 8
            for (int r = rows; r < rows + kDown * kTogether; ++r) {
                __builtin_prefetch(from + r * strides.row, 0, 2);
            }
        };
#pragma GCC unroll 4
        for (int slot = 0; slot < kFour - kDown; ++slot) {
            meet(first + out.begin * kDown + slot, slot);
        }
        for (std::int64_t o = out.begin; o < out.end; ++o) {
#pragma GCC unroll 2
            for (int slot = kFour - kDown; slot < kFour; ++slot) {
                meet(first + o * kDown + slot, slot);
            }
#pragma GCC unroll 4
            for (int m = 0; m < kTogether; ++m) {
                Vector<A> sum = by_x[0] * sums[m][0];
#pragma GCC unroll 4
                for (int t = 1; t < kFour; ++t) {
                    sum = multiply_add_all(by_x[t], sums[m][t], sum);
                }
                memcpy(y + m * out_strides.row + o * out_strides.place + lane, &sum, sizeof(sum));
#pragma GCC unroll 4
                for (int slot = 0; slot < kFour - kDown; ++slot) {
                    sums[m][slot] = sums[m][slot + kDown];
                }
            }
        }
    }
}

// Every second value of a and b behind one another, from kFirst on.
template <int kFirst, typename A>
FASTGAN_INLINE Vector<A> every_second(Vector<A> a, Vector<A> b) {
    constexpr int lanes = static_cast<int>(kVector<A>);
#if defined(__clang__)
    Vector<A> result;
    for (int l = 0; l < lanes; ++l) {
        const int from = 2 * l + kFirst;
        result[l] = from < lanes ? a[from] : b[from - lanes];
    }
    return result;
#else
    typename Vectors<A>::Lanes from;
    for (int l = 0; l < lanes; ++l) {
        from[l] = 2 * l + kFirst;
    }
    return __builtin_shuffle(a, b, from);
#endif
}

// The same of one map whose columns are beside each other, in two steps: `count` columns along y,
// into a line for each output row, `size` apart;
template <int kDown, int kTogether, typename A>
void four_taps_along_y(const A* x, std::int64_t row, const A* along_y, std::int64_t count,
                       std::int64_t size, A* lines) {
    constexpr std::int64_t lanes = kVector<A>;
    Vector<A> by[kFour];
    for (int t = 0; t < kFour; ++t) {
        by[t] = along_y[t] - Vector<A>{};
    }
    for (std::int64_t i = 0; i < count; i += lanes) {
        const std::int64_t inside = i + lanes <= count ? i : count - lanes;
        Vector<A> met[kTogether];
        meet_rows<kDown>(x + inside, row, by, met);
#pragma GCC unroll 4
        for (int m = 0; m < kTogether; ++m) {
            memcpy(lines + m * size + inside, &met[m], sizeof(met[m]));
        }
    }
}

// then lines along x, from the first tap of output column 0 on.
template <int kDown, typename A>
void four_taps_along_x(const A* lines, std::int64_t size, const A* along_x, std::int64_t rows,
                       std::int64_t out, std::int64_t out_row, A* y) {
    constexpr std::int64_t lanes = kVector<A>;
    Vector<A> by[kFour];
    for (int t = 0; t < kFour; ++t) {
        by[t] = along_x[t] - Vector<A>{};
    }
    for (std::int64_t m = 0; m < rows; ++m) {
        for (std::int64_t o = 0; o < out; o += lanes) {
            const std::int64_t inside = o + lanes <= out ? o : out - lanes;
            const A* const line = lines + m * size + kDown * inside;
            Vector<A> taps[kFour];
            if constexpr (kDown == 1) {
#pragma GCC unroll 4
                for (int t = 0; t < kFour; ++t) {
                    taps[t] = load_vector(line + t);
                }
            } else {
#pragma GCC unroll 2
                for (int t = 0; t < kFour; t += 2) {
                    const Vector<A> a = load_vector(line + t), b = load_vector(line + t + lanes);
                    taps[t] = every_second<0, A>(a, b);
                    taps[t + 1] = every_second<1, A>(a, b);
                }
            }
            Vector<A> sum = by[0] * taps[0];
#pragma GCC unroll 4
            for (int t = 1; t < kFour; ++t) {
                sum = multiply_add_all(by[t], taps[t], sum);
            }
            memcpy(y + m * out_row + inside, &sum, sizeof(sum));
        }
    }
}

// --- Rows ----------------------------------------------------------------------------------------

// Of row buffers: lanes beside each other, places one after the other. Lanes or places are beside
// each other in memory, too.
template <typename T, typename A>
void load_typed(const T* __restrict from, RowStrides strides, std::int64_t places,
                std::int64_t lanes, A* __restrict to) {
    if (lanes == 1 && strides.place == 1) {
        return load_typed(from, {0, 0, 1}, 1, places, to);
    }
    if (strides.lane == 1) {
        for (std::int64_t i = 0; i < places; ++i) {
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                to[i * lanes + lane] = to_arithmetic(from[i * strides.place + lane]);
            }
        }
    } else {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            const T* __restrict const row = from + lane * strides.lane;
            // The maps' rows take turns, which hardware prefetchers don't predict.
            for (std::int64_t i = 0; i < places; i += 64 / sizeof(T)) {
                __builtin_prefetch(row + strides.row + i);
            }
            for (std::int64_t i = 0; i < places; ++i) {
                to[i * lanes + lane] = to_arithmetic(row[i]);
            }
        }
    }
}

template <typename T, typename A>
void store_typed(const A* __restrict from, RowStrides strides, std::int64_t places,
                 std::int64_t lanes, T* __restrict to) {
    if (lanes == 1 && strides.place == 1) {
        return store_typed(from, {0, 0, 1}, 1, places, to);
    }
    if (strides.lane == 1) {
        for (std::int64_t i = 0; i < places; ++i) {
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                to[i * strides.place + lane] = from_arithmetic<T>(from[i * lanes + lane]);
            }
        }
    } else {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            for (std::int64_t i = 0; i < places; ++i) {
                to[lane * strides.lane + i] = from_arithmetic<T>(from[i * lanes + lane]);
            }
        }
    }
}

// body(T()) for the types that are computed in A.
template <typename A, typename Body>
FASTGAN_INLINE void with_type_of(FloatType type, const Body& body) {
    if constexpr (sizeof(A) == sizeof(double)) {
        body(double());
    } else if (type == FloatType::float32) {
        body(float());
    } else if (type == FloatType::float16) {
        body(Half());
    } else {
        body(BFloat16());
    }
}

FASTGAN_INLINE std::int64_t common_divisor(std::int64_t a, std::int64_t b) {
    while (b != 0) {
        const std::int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

// Scratch memory, handed out piece by piece; with a null base it counts.
template <typename A>
struct Scratch {
    A* base;
    std::int64_t used = 0;

    FASTGAN_INLINE A* take(std::int64_t count) {
        const std::int64_t at = used;
        used += (count + 15) / 16 * 16;
        return base == nullptr ? nullptr : base + at;
    }
};

// A filter over rows. Along x the outputs are walked in phases: o = k * ups + q meets places
// start(q) + k * downs + j with the same coefficients for all k, up / down = ups / downs in lowest
// terms. With one lane a row's places lie in `downs` arrays, by their remainder, so that each is
// walked with stride 1; with more, one array has all.
//
// Rows come in order and stay in a ring; a separable filter goes along x as they come or, `y_first`,
// along y before x. Or rows are read where they are, along y first, and so many outputs at a time
// that short rows cost no more than long ones; not where one lane has phases to join, which would
// be done for each output row instead of each row of the input.
enum class Order { x_first, y_first, y_first_in_place };

template <typename A>
class FirRows {
  public:
    FirRows(const FirFilter& filter, std::int64_t lanes, Order order, Scratch<A>& scratch)
        : filter_(filter),
          lanes_(lanes),
          y_first_(order != Order::x_first && filter.separable),
          in_place_(order == Order::y_first_in_place && filter.separable),
          has_four_taps_(in_place_ && filter.x.taps == kFour && filter.y.taps == kFour &&
                         filter.x.up == 1 && filter.y.up == 1 && filter.x.down == filter.y.down &&
                         filter.x.down <= 2) {
        const FirAxis& x = filter.x;
        const std::int64_t divisor = common_divisor(x.up, x.down);
        ups_ = x.up / divisor;
        downs_ = x.down / divisor;
        std::int64_t end = 0;
        bool any = false;
        for (std::int64_t q = 0; q < ups_ && q < x.out; ++q) {
            const FirTaps taps = taps_of(x, q);
            if (taps.count > 0) {
                const std::int64_t last = taps.place + (times(q) - 1) * downs_ + taps.count;
                begin_ = any && begin_ < taps.place ? begin_ : taps.place;
                end = any && end > last ? end : last;
                any = true;
            }
        }
        places_ = end - begin_;
        const std::int64_t per_array = (places_ + downs_ - 1) / downs_;
        width_ = lanes == 1 ? per_array : places_ * lanes;
        const std::int64_t fitting = kTogether / (places_ * lanes > 0 ? places_ * lanes : 1);
        const std::int64_t inside = x.in < x.out ? x.in : x.out;
        const std::int64_t beside = lanes > 1 ? lanes : inside - kFour;
        has_four_taps_ = has_four_taps_ && beside >= kVector<A>;
        together_ = in_place_ && fitting > 1 && !has_four_taps_ ? fitting : 1;
        array_ = together_ * width_;
        prepared_ = lanes == 1 ? array_ * downs_ : array_;
        rows_ = (filter.y.taps + filter.y.up - 1) / filter.y.up;
        first_ = begin_ > 0 ? begin_ : 0;
        const std::int64_t last = begin_ + places_ < x.in ? begin_ + places_ : x.in;
        inside_ = last > first_ ? last - first_ : 0;
        has_four_taps_ = has_four_taps_ && (lanes > 1 || inside_ >= kVector<A>);
        row_ = y_first_ ? inside_ * lanes : filter.separable ? x.out * lanes : prepared_;
        // A cache line more: rows of a power of two would share its sets.
        row_ = (row_ + 15) / 16 * 16 + 16;
        const std::int64_t along_x = (x.taps + x.up - 1) / x.up;
        const std::int64_t most = filter.separable ? (along_x > rows_ ? along_x : rows_)
                                                   : along_x * rows_;
        ring_ = in_place_ ? nullptr : scratch.take(rows_ * row_);
        row_in_ = filter.separable ? scratch.take(prepared_) : nullptr;
        line_ = lanes == 1 && downs_ > 1 ? scratch.take(prepared_) : nullptr;
        phases_ = lanes == 1 && ups_ > 1 ? scratch.take(together_ * ups_ * times(0)) : nullptr;
        line_size_ = (places_ + 15) / 16 * 16;
        const bool has_lines = has_four_taps_ && lanes == 1;
        lines_ = has_lines ? scratch.take(kLines * line_size_) : nullptr;
        // Divisions are taken once, not for each row.
        phase_taps_ = reinterpret_cast<FirTaps*>(
            scratch.take(ups_ * static_cast<std::int64_t>(sizeof(FirTaps) / sizeof(A))));
        along_x_ = along_x;
        offsets_ = reinterpret_cast<std::int64_t*>(scratch.take(
            ups_ * along_x * static_cast<std::int64_t>(sizeof(std::int64_t) / sizeof(A))));
        terms_.coefficients = scratch.take(most);
        terms_.sources = reinterpret_cast<const A**>(
            scratch.take(most * static_cast<std::int64_t>(sizeof(void*) / sizeof(A))));
        if (scratch.base != nullptr) {
            memset(filter.separable ? row_in_ : ring_, 0,
                   (filter.separable ? prepared_ : rows_ * row_) * sizeof(A));
            if (line_ != nullptr) {
                memset(line_, 0, prepared_ * sizeof(A));
            }
            if (lines_ != nullptr) {
                memset(lines_, 0, kLines * line_size_ * sizeof(A));
            }
            for (std::int64_t q = 0; q < ups_ && q < x.out; ++q) {
                const FirTaps taps = phase_taps_[q] = taps_of(x, q);
                for (std::int64_t j = 0; j < taps.count; ++j) {
                    const std::int64_t at = taps.place - begin_ + j;
                    offsets_[q * along_x_ + j] =
                        lanes == 1 ? at % downs_ * array_ + at / downs_ : at * lanes;
                }
            }
        }
    }

    // Which rows an output row needs.
    FASTGAN_INLINE FirTaps rows_of(std::int64_t output) const {
        return within(filter_.y, taps_of(filter_.y, output));
    }

    // Takes a row of the input. load(first, places, to) copies places from `first` on.
    template <typename Load>
    FASTGAN_INLINE void push(std::int64_t row, const Load& load) {
        A* const slot = slot_of(row);
        A* const prepared = filter_.separable ? row_in_ : slot;
        if (inside_ > 0) {
            load(first_, inside_, y_first_ ? slot : first_inside(prepared));
        }
        if (y_first_) {
            return;
        }
        if (line_ != nullptr) {
            part(prepared, places_);
        }
        if (filter_.separable) {
            filter_along_x(prepared, 1, lanes_, 0, slot);
        }
    }

    // As push(), of a row with all the places of x, which lie as in a ring.
    FASTGAN_INLINE bool takes_whole_rows() const {
        return filter_.separable && !y_first_ && lanes_ > 1 && begin_ >= 0 &&
               begin_ + places_ <= filter_.x.in;
    }
    FASTGAN_INLINE void push_whole(std::int64_t row, const A* places) {
        filter_along_x(places + begin_ * lanes_, 1, lanes_, 0, slot_of(row));
    }

    // Output rows [begin, end) of rows that are read where they are.
    void produce_in_place(std::int64_t begin, std::int64_t end, const A* x, RowStrides strides,
                          RowStrides out_strides, A* y) {
        const FirAxis& axis = filter_.y;
        const std::int64_t divisor = common_divisor(axis.up, axis.down);
        const std::int64_t phases = axis.up / divisor, step = axis.down / divisor * strides.row;
        const std::int64_t stride = lanes_ == 1 ? width_ * downs_ : width_;
        if (lines_ != nullptr) {
            return axis.down == 1
                       ? filter_four_taps_by_lines<1>(begin, end, x, strides, out_strides, y)
                       : filter_four_taps_by_lines<2>(begin, end, x, strides, out_strides, y);
        }
        for (std::int64_t o = begin; o < end;) {
            if (has_four_taps_ && meets_all(o)) {
                std::int64_t after = o + 1;
                while (after < end && meets_all(after)) {
                    ++after;
                }
                if (axis.down == 1) {
                    filter_four_taps<1>(o, after, x, strides, out_strides, y);
                } else {
                    filter_four_taps<2>(o, after, x, strides, out_strides, y);
                }
                o = after;
                continue;
            }
            std::int64_t count = 1;
            while (meets_all(o) && count < together_ && o + count < end && meets_all(o + count)) {
                ++count;
            }
            for (std::int64_t q = 0; q < phases && q < count; ++q) {
                take_rows(o + q, x, strides);
                A* const to = first_inside(row_in_) + q * stride;
                const std::int64_t times = (count - q + phases - 1) / phases;
                if (strides.place == lanes_) {
                    sum_terms(terms_, times, inside_ * lanes_, step, phases * stride, to);
                } else {
                    for (std::int64_t k = 0; k < times; ++k) {
                        sum_terms(terms_, inside_, lanes_, strides.place, lanes_,
                                  to + k * phases * stride);
                        for (std::int64_t j = 0; j < terms_.count; ++j) {
                            terms_.sources[j] += step;
                        }
                    }
                }
            }
            if (line_ != nullptr) {
                part(row_in_, count * stride);
            }
            filter_along_x(row_in_, count, out_strides.place, out_strides.row,
                           y + o * out_strides.row);
            o += count;
        }
    }

    // An output row, of rows that have been pushed: places `step` apart.
    void produce(std::int64_t output, std::int64_t step, A* out) {
        const FirTaps rows = rows_of(output);
        if (filter_.separable) {
            const A* const coefficients = static_cast<const A*>(filter_.along_y);
            terms_.count = 0;
            for (std::int64_t j = 0; j < rows.count; ++j) {
                terms_.add(slot_of(rows.place + j), coefficients[rows.first + j * filter_.y.up]);
            }
            if (!y_first_) {
                sum_terms(terms_, filter_.x.out, lanes_, lanes_, step, out);
                return;
            }
            sum_terms(terms_, inside_, lanes_, lanes_, lanes_, first_inside(row_in_));
            filter_along_x(row_in_, 1, step, 0, out);
            return;
        }
        for (std::int64_t q = 0; q < ups_ && q < filter_.x.out; ++q) {
            terms_.count = 0;
            for (std::int64_t j = 0; j < rows.count; ++j) {
                const std::int64_t row = rows.first + j * filter_.y.up;
                add_terms(slot_of(rows.place + j),
                          static_cast<const A*>(filter_.along_x) + row * filter_.x.taps, q);
            }
            sum_phase(q, 1, ups_ * step, 0, out);
        }
        if (phases_ != nullptr) {
            join(0, out);
        }
    }

  private:
    // Whether an output row lies so that none of its taps is beyond the map.
    FASTGAN_INLINE bool meets_all(std::int64_t output) const {
        const FirTaps taps = taps_of(filter_.y, output);
        return taps.place >= 0 && taps.place + taps.count <= filter_.y.in;
    }

    // Has `terms_` the rows that an output row needs, from column first_ on.
    FASTGAN_INLINE void take_rows(std::int64_t output, const A* x, RowStrides strides) {
        const A* const coefficients = static_cast<const A*>(filter_.along_y);
        const FirTaps rows = rows_of(output);
        terms_.count = 0;
        for (std::int64_t j = 0; j < rows.count; ++j) {
            terms_.add(x + (rows.place + j) * strides.row + first_ * strides.place,
                       coefficients[rows.first + j * filter_.y.up]);
        }
    }

    // As many rows of sums as registers hold.
    template <int kDown>
    static constexpr int kTogetherOf = kBytes == 64 && kDown == 1 ? 4 : 2;

    // Output rows that meet all their taps, of more lanes than one.
    template <int kDown>
    void filter_four_taps(std::int64_t begin, std::int64_t end, const A* x, RowStrides strides,
                          RowStrides out_strides, A* y) const {
        constexpr int together = kTogetherOf<kDown>;
        const auto rows = [&](auto as_many, std::int64_t o) {
            for (std::int64_t column = 0; column < filter_.x.out; column += kColumns / kDown) {
                const std::int64_t after = column + kColumns / kDown;
                four_taps<kDown, decltype(as_many)::value>(
                    x + (o * kDown - filter_.y.pad) * strides.row, strides,
                    static_cast<const A*>(filter_.along_y), static_cast<const A*>(filter_.along_x),
                    -filter_.x.pad, filter_.x.in,
                    {column, after < filter_.x.out ? after : filter_.x.out}, lanes_, out_strides,
                    y + o * out_strides.row);
            }
        };
        std::int64_t o = begin;
        for (; o + together <= end; o += together) {
            rows(Number<together>(), o);
        }
        for (; o < end; ++o) {
            rows(Number<1>(), o);
        }
    }

    // Any output rows, of one lane.
    template <int kDown>
    void filter_four_taps_by_lines(std::int64_t begin, std::int64_t end, const A* x,
                                   RowStrides strides, RowStrides out_strides, A* y) {
        constexpr int together = kTogetherOf<kDown>;
        const auto rows = [&](auto as_many, std::int64_t o, A* line) {
            four_taps_along_y<kDown, decltype(as_many)::value>(
                x + (o * kDown - filter_.y.pad) * strides.row + first_, strides.row,
                static_cast<const A*>(filter_.along_y), inside_, line_size_, line);
        };
        for (std::int64_t first = begin; first < end; first += kLines) {
            const std::int64_t last = first + kLines < end ? first + kLines : end;
            for (std::int64_t o = first; o < last;) {
                A* const line = lines_ + (o - first) * line_size_ + first_ - begin_;
                if (!meets_all(o)) {
                    take_rows(o, x, strides);
                    sum_terms(terms_, 1, inside_, inside_, inside_, line);
                    ++o;
                } else if (o + together <= last && meets_all(o + together - 1)) {
                    rows(Number<together>(), o, line);
                    o += together;
                } else {
                    rows(Number<1>(), o, line);
                    ++o;
                }
            }
            four_taps_along_x<kDown>(lines_, line_size_, static_cast<const A*>(filter_.along_x),
                                     last - first, filter_.x.out, out_strides.row,
                                     y + first * out_strides.row);
        }
    }

    // The first place that is one of the input's, in a row that will be filtered along x.
    FASTGAN_INLINE A* first_inside(A* prepared) const {
        return (line_ != nullptr ? line_ : prepared) + (first_ - begin_) * lanes_;
    }

    // `rows` prepared rows; outputs `step` apart in rows `row_step` apart.
    void filter_along_x(const A* prepared, std::int64_t rows, std::int64_t step,
                        std::int64_t row_step, A* out) {
        for (std::int64_t q = 0; q < ups_ && q < filter_.x.out; ++q) {
            terms_.count = 0;
            add_terms(prepared, static_cast<const A*>(filter_.along_x), q);
            sum_phase(q, rows, ups_ * step, row_step, out);
        }
        for (std::int64_t row = 0; phases_ != nullptr && row < rows; ++row) {
            join(row * ups_ * times(0), out + row * row_step);
        }
    }

    // How many outputs phase q has.
    FASTGAN_INLINE std::int64_t times(std::int64_t q) const {
        return (filter_.x.out - q + ups_ - 1) / ups_;
    }

    FASTGAN_INLINE A* slot_of(std::int64_t row) const { return ring_ + row % rows_ * row_; }

    FASTGAN_INLINE void add_terms(const A* prepared, const A* coefficients, std::int64_t q) {
        const FirTaps& taps = phase_taps_[q];
        for (std::int64_t j = 0; j < taps.count; ++j) {
            terms_.add(prepared + offsets_[q * along_x_ + j],
                       coefficients[taps.first + j * filter_.x.up]);
        }
    }

    FASTGAN_INLINE void sum_phase(std::int64_t q, std::int64_t rows, std::int64_t out_step,
                                  std::int64_t row_step, A* out) {
        if (lanes_ == 1) {
            const std::int64_t size = times(0);
            sum_terms(terms_, rows, times(q), width_, ups_ > 1 ? ups_ * size : row_step,
                      ups_ > 1 ? phases_ + q * size : out);
            return;
        }
        for (std::int64_t row = 0; row < rows; ++row) {
            sum_terms(terms_, times(q), lanes_, downs_ * lanes_, out_step,
                      out + q * (out_step / ups_) + row * row_step);
            for (std::int64_t j = 0; row + 1 < rows && j < terms_.count; ++j) {
                terms_.sources[j] += width_;
            }
        }
    }

    // With one lane: places by their remainder, of a row or of rows that begin with the first.
    FASTGAN_INLINE void part(A* prepared, std::int64_t places) const {
        const A* __restrict const line = line_;
        if (downs_ == 2) {
            A* __restrict const even = prepared;
            A* __restrict const odd = prepared + array_;
            const std::int64_t pairs = places / 2;
            for (std::int64_t k = 0; k < pairs; ++k) {
                even[k] = line[2 * k];
                odd[k] = line[2 * k + 1];
            }
            if (places % 2 != 0) {
                even[pairs] = line[places - 1];
            }
            return;
        }
        for (std::int64_t i = 0; i < places; ++i) {
            prepared[i % downs_ * array_ + i / downs_] = line[i];
        }
    }

    // With one lane: the phases' outputs in order.
    FASTGAN_INLINE void join(std::int64_t from, A* out) const {
        A* __restrict const to = out;
        const A* __restrict const phases = phases_ + from;
        const std::int64_t size = times(0);
        if (ups_ == 2) {
            const A* __restrict const even = phases;
            const A* __restrict const odd = phases + size;
            const std::int64_t pairs = filter_.x.out / 2;
            for (std::int64_t k = 0; k < pairs; ++k) {
                to[2 * k] = even[k];
                to[2 * k + 1] = odd[k];
            }
            if (filter_.x.out % 2 != 0) {
                to[filter_.x.out - 1] = even[pairs];
            }
            return;
        }
        for (std::int64_t o = 0; o < filter_.x.out; ++o) {
            to[o] = phases[o % ups_ * size + o / ups_];
        }
    }

    FirFilter filter_;
    std::int64_t lanes_;
    bool y_first_;
    bool in_place_;
    bool has_four_taps_;
    A* lines_;  // of four_taps_along_y()
    std::int64_t line_size_;
    std::int64_t together_;
    // The input's places that count, from which on.
    std::int64_t first_;
    std::int64_t inside_;
    std::int64_t ups_;
    std::int64_t downs_;
    std::int64_t begin_ = 0;
    std::int64_t places_;
    std::int64_t width_;  // of a row in an array
    std::int64_t array_;
    std::int64_t prepared_;
    std::int64_t rows_;
    std::int64_t row_;
    A* ring_;
    A* row_in_;
    A* line_;
    A* phases_;
    FirTaps* phase_taps_;
    std::int64_t along_x_;
    std::int64_t* offsets_;
    Terms<A> terms_;
};

// --- The activation between filters --------------------------------------------------------------

// The bits of a row: byte b, of `lanes` maps, at bits[b * place + lane * lane stride].
template <typename A>
void write_bits(const A* row, std::int64_t places, std::int64_t lanes, bool not_below,
                std::int64_t bytes, RowStrides strides, std::uint8_t* scratch,
                std::uint8_t* bits) {
    if (lanes == 1) {
        pack_rising(row, (places + 15) / 16 * 16, not_below, scratch);
        for (std::int64_t b = 0; b < bytes; ++b) {
            bits[b * strides.place] = scratch[b];
        }
        return;
    }
    for (std::int64_t b = 0; b < bytes; ++b) {
        const std::int64_t left = places - 8 * b < 8 ? places - 8 * b : 8;
        const A* const values = row + 8 * b * lanes;
        std::int64_t at = 0;
        if (lanes >= kVector<A>) {
            for (; at < lanes; at += kVector<A>) {
                at = at + kVector<A> <= lanes ? at : lanes - kVector<A>;
                auto set = Vector<A>{} != Vector<A>{};
                for (std::int64_t p = 0; p < left; ++p) {
                    const Vector<A> u = load_vector(values + p * lanes + at);
                    set |= (not_below ? ~(u <= A(0)) : u > A(0)) & 1 << p;
                }
                const auto packed = __builtin_convertvector(set, Bytes<A>);
                memcpy(scratch + at, &packed, sizeof(packed));
            }
        }
        for (; at < lanes; ++at) {
            unsigned byte = 0;
            for (std::int64_t p = 0; p < left; ++p) {
                byte |= static_cast<unsigned>(rises(values[p * lanes + at], not_below)) << p;
            }
            scratch[at] = static_cast<std::uint8_t>(byte);
        }
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            bits[b * strides.place + lane * strides.lane] = scratch[lane];
        }
    }
}

// row = row * gain, and where the bit is not `set` that times `factor`, or 0 where that is null.
template <typename A>
void read_bits(const std::uint8_t* bits, bool set, RowStrides strides,
                              std::int64_t bytes, std::int64_t places, std::int64_t lanes, A gain,
                              const A* factor, std::uint8_t* scratch, A* row) {
    const std::uint8_t invert = set ? 0 : 0xff;
    if (lanes == 1) {
        for (std::int64_t b = 0; b < bytes; ++b) {
            scratch[b] = bits[b * strides.place] ^ invert;
        }
        scale_unset(scratch, (places + 15) / 16 * 16, gain, factor, row, row);
        return;
    }
    const A by = factor != nullptr ? *factor : A(0);
    for (std::int64_t b = 0; b < bytes; ++b) {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            scratch[lane] = bits[b * strides.place + lane * strides.lane] ^ invert;
        }
        const std::int64_t left = places - 8 * b < 8 ? places - 8 * b : 8;
        A* const values = row + 8 * b * lanes;
        std::int64_t at = 0;
        for (; at + kVector<A> <= lanes; at += kVector<A>) {
            Bytes<A> packed;
            memcpy(&packed, scratch + at, sizeof(packed));
            const auto set = __builtin_convertvector(packed, decltype(Vector<A>{} > A(0)));
            for (std::int64_t p = 0; p < left; ++p) {
                A* const place = values + p * lanes + at;
                const Vector<A> value = load_vector(place) * gain;
                const Vector<A> other = factor != nullptr ? value * by : Vector<A>{};
                const Vector<A> result = (set & 1 << p) != 0 ? value : other;
                memcpy(place, &result, sizeof(result));
            }
        }
        for (; at < lanes; ++at) {
            for (std::int64_t p = 0; p < left; ++p) {
                A& place = values[p * lanes + at];
                const A value = place * gain;
                const A other = factor != nullptr ? value * by : A(0);
                place = (scratch[at] >> p & 1) != 0 ? value : other;
            }
        }
    }
}

// The row between the filters, in place; `other` has room for as much.
template <typename A>
void activate_row(const FirTask& task, std::int64_t m, std::uint8_t* scratch, A* other, A* row) {
    const std::int64_t places = task.first.x.out, count = places * task.lanes;
    const A gain = static_cast<A>(task.activation.gain);
    const A slope = static_cast<A>(task.activation.slope);
    const A clamp = static_cast<A>(task.activation.clamp);
    const bool is_clamped = clamp - clamp == A(0);
    const RowStrides& strides = task.sign_strides;
    std::uint8_t* const bits =
        task.signs == Signs::none ? nullptr : task.sign_bits + m * strides.row;
    if (task.signs == Signs::read) {
        read_bits(bits, true, strides, task.sign_bytes, places, task.lanes, gain, &slope, scratch,
                  row);
        if (is_clamped) {
            read_bits<A>(bits + task.sign_bytes * strides.place, false, strides, task.sign_bytes,
                         places, task.lanes, A(1), nullptr, scratch, row);
        }
        return;
    }
    const bool writes = bits != nullptr && m >= task.sign_begin && m < task.sign_end;
    if (writes) {
        write_bits(row, places, task.lanes, false, task.sign_bytes, strides, scratch, bits);
    }
    if (is_clamped && writes) {
        for (std::int64_t i = 0; i < count; ++i) {
            const A value = (row[i] > A(0) ? row[i] : row[i] * slope) * gain;
            other[i] = (value < A(0) ? -value : value) - clamp;
        }
        write_bits(other, places, task.lanes, true, task.sign_bytes, strides, scratch,
                   bits + task.sign_bytes * strides.place);
    }
    for (std::int64_t i = 0; i < count; ++i) {
        row[i] = clamped((row[i] > A(0) ? row[i] : row[i] * slope) * gain, clamp);
    }
}

// --- A task --------------------------------------------------------------------------------------

// Scratch memory in A's: what has been used of `scratch`, with rows beyond what the task has.
template <typename A>
std::int64_t typed_rows(const FirTask& task, A* memory) {
    Scratch<A> scratch{memory};
    const std::int64_t lanes = task.lanes;
    const bool same_type = task.type == FloatType::float32 || task.type == FloatType::float64;
    const auto are_beside = [&](const RowStrides& strides) {
        return same_type && (lanes > 1 ? strides.lane : strides.place) == 1;
    };
    const bool in_place = !task.has_activation && task.first.separable &&
                          (lanes > 1 || task.first.x.down % task.first.x.up == 0) &&
                          are_beside(task.x_strides) && are_beside(task.y_strides);
    // Between an upsampling and a downsampling filter, rows are short before and behind.
    FirRows<A> first(task.first, lanes,
                     in_place                           ? Order::y_first_in_place
                     : task.has_activation && lanes > 1 ? Order::y_first
                                                        : Order::x_first,
                     scratch);
    const FirFilter none{{1, 1, 1, 1, 0, 1}, {1, 1, 1, 1, 0, 1}, true, nullptr, nullptr};
    FirRows<A> second(task.has_activation ? task.second : none, lanes, Order::x_first, scratch);
    const std::int64_t middle = (task.first.x.out * lanes + 15) / 16 * 16;
    A* const row = scratch.take(task.has_activation ? middle : 0);
    A* const other = scratch.take(task.has_activation ? middle : 0);
    auto* const bytes = reinterpret_cast<std::uint8_t*>(scratch.take(middle));
    const FirAxis& out = task.has_activation ? task.second.x : task.first.x;
    A* const result = scratch.take(out.out * lanes);
    if (memory == nullptr) {
        return scratch.used;
    }
    if (task.has_activation) {
        memset(row, 0, middle * sizeof(A));
        memset(other, 0, middle * sizeof(A));
    }
    if (in_place) {
        first.produce_in_place(task.row_begin, task.row_end, static_cast<const A*>(task.x),
                               task.x_strides, task.y_strides, static_cast<A*>(task.y));
        return scratch.used;
    }
    std::int64_t next = -1;  // the first row of the input that has not been pushed
    const auto push_first = [&](std::int64_t output) {
        const FirTaps rows = first.rows_of(output);
        next = next > rows.place ? next : rows.place;
        for (; next < rows.place + rows.count; ++next) {
            first.push(next, [&](std::int64_t from, std::int64_t places, A* to) {
                with_type_of<A>(task.type, [&](auto zero) {
                    using T = decltype(zero);
                    load_typed(static_cast<const T*>(task.x) + next * task.x_strides.row +
                                   from * task.x_strides.place,
                               task.x_strides, places, lanes, to);
                });
                if (task.bias != nullptr) {
                    const A* const bias = static_cast<const A*>(task.bias);
                    for (std::int64_t i = 0; i < places; ++i) {
                        for (std::int64_t lane = 0; lane < lanes; ++lane) {
                            to[i * lanes + lane] += bias[lane];
                        }
                    }
                }
            });
        }
    };
    const auto middle_row = [&](std::int64_t m) {
        push_first(m);
        first.produce(m, lanes, row);
        activate_row(task, m, bytes, other, row);
    };
    std::int64_t next_middle = task.signs == Signs::written ? task.sign_begin : 0;
    const bool direct = are_beside(task.y_strides);
    for (std::int64_t o = task.row_begin; o < task.row_end; ++o) {
        A* const to = direct ? static_cast<A*>(task.y) + o * task.y_strides.row : result;
        const std::int64_t step = direct ? task.y_strides.place : lanes;
        if (!task.has_activation) {
            push_first(o);
            first.produce(o, step, to);
        } else {
            const FirTaps rows = second.rows_of(o);
            for (; next_middle < rows.place + rows.count; ++next_middle) {
                if (next_middle >= rows.place) {
                    middle_row(next_middle);
                    if (second.takes_whole_rows()) {
                        second.push_whole(next_middle, row);
                        continue;
                    }
                    second.push(next_middle, [&](std::int64_t from, std::int64_t places, A* into) {
                        memcpy(into, row + from * lanes, places * lanes * sizeof(A));
                    });
                } else if (task.signs == Signs::written) {
                    middle_row(next_middle);
                }
            }
            second.produce(o, step, to);
        }
        if (!direct) {
            with_type_of<A>(task.type, [&](auto zero) {
                using T = decltype(zero);
                store_typed(result, task.y_strides, out.out, lanes,
                            static_cast<T*>(task.y) + o * task.y_strides.row);
            });
        }
    }
    for (; task.signs == Signs::written && next_middle < task.sign_end; ++next_middle) {
        middle_row(next_middle);
    }
    return scratch.used;
}

}  // namespace

std::int64_t fir_scratch(const FirTask& task) {
    return task.type == FloatType::float64 ? typed_rows<double>(task, nullptr)
                                           : typed_rows<float>(task, nullptr);
}

void fir_rows(const FirTask& task, void* scratch) {
    if (task.type == FloatType::float64) {
        typed_rows(task, static_cast<double*>(scratch));
    } else {
        typed_rows(task, static_cast<float*>(scratch));
    }
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
