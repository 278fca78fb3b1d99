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
};
template <>
struct Vectors<double> {
    typedef double Type __attribute__((vector_size(kBytes)));
};

template <typename A>
using Vector = typename Vectors<A>::Type;

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

// Terms are added in groups, whose sums are added: the error of a filter of many taps grows with
// their root.
constexpr std::int64_t kGroup = 16;

template <int kVectors, typename A>
FASTGAN_INLINE void add_group(const Terms<A>& terms, std::int64_t begin, std::int64_t end,
                              std::int64_t at, Vector<A> (&sums)[kVectors]) {
    constexpr std::int64_t lanes = kBytes / sizeof(A);
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
    constexpr std::int64_t lanes = kBytes / sizeof(A);
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

// out[k * out_step + i] = sum of coefficient * source[k * step + i], 0 <= i < size, 0 <= k < times.
template <typename A>
void sum_terms(const Terms<A>& terms, std::int64_t times, std::int64_t size, std::int64_t step,
               std::int64_t out_step, A* out) {
    constexpr std::int64_t lanes = kBytes / sizeof(A);
    if (step == size && out_step == size) {
        size *= times;
        times = 1;
    }
    if (size >= lanes) {
        switch (terms.count) {
            case 1:
                return sum_few<1>(terms, times, size, step, out_step, out);
            case 2:
                return sum_few<2>(terms, times, size, step, out_step, out);
            case 3:
                return sum_few<3>(terms, times, size, step, out_step, out);
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
        for (; i + 2 * lanes <= size; i += 2 * lanes) {
            sum_block<2>(terms, base + i, to + i);
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

// --- Rows ----------------------------------------------------------------------------------------

// Of row buffers: lanes beside each other, places one after the other.
template <typename T, typename A>
FASTGAN_INLINE void load_typed(const T* __restrict from, RowStrides strides, std::int64_t places,
                               std::int64_t lanes, A* __restrict to) {
    if (lanes == 1 && strides.place == 1) {
        for (std::int64_t i = 0; i < places; ++i) {
            to[i] = to_arithmetic(from[i]);
        }
    } else if (strides.lane == 1) {
        for (std::int64_t i = 0; i < places; ++i) {
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                to[i * lanes + lane] = to_arithmetic(from[i * strides.place + lane]);
            }
        }
    } else {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            for (std::int64_t i = 0; i < places; ++i) {
                to[i * lanes + lane] = to_arithmetic(from[lane * strides.lane + i * strides.place]);
            }
        }
    }
}

template <typename T, typename A>
FASTGAN_INLINE void store_typed(const A* __restrict from, RowStrides strides, std::int64_t places,
                                std::int64_t lanes, T* __restrict to) {
    if (lanes == 1 && strides.place == 1) {
        for (std::int64_t i = 0; i < places; ++i) {
            to[i] = from_arithmetic<T>(from[i]);
        }
    } else if (strides.lane == 1) {
        for (std::int64_t i = 0; i < places; ++i) {
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                to[i * strides.place + lane] = from_arithmetic<T>(from[i * lanes + lane]);
            }
        }
    } else {
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            for (std::int64_t i = 0; i < places; ++i) {
                to[lane * strides.lane + i * strides.place] =
                    from_arithmetic<T>(from[i * lanes + lane]);
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

// A filter over rows that come in order. Along x the outputs are walked in phases: o = k * ups + q
// meets places start(q) + k * downs + j with the same coefficients for all k, up / down = ups /
// downs in lowest terms. With one lane a row's places lie in `downs` arrays, by their remainder, so
// that each is walked with stride 1; with more, one array has all.
template <typename A>
class FirRows {
  public:
    FirRows(const FirFilter& filter, std::int64_t lanes, Scratch<A>& scratch)
        : filter_(filter), lanes_(lanes) {
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
        array_ = lanes == 1 ? per_array : places_ * lanes;
        prepared_ = lanes == 1 ? per_array * downs_ : places_ * lanes;
        rows_ = (filter.y.taps + filter.y.up - 1) / filter.y.up;
        row_ = filter.separable ? x.out * lanes : prepared_;
        row_ = (row_ + 15) / 16 * 16;
        const std::int64_t along_x = (x.taps + x.up - 1) / x.up;
        const std::int64_t most = filter.separable ? (along_x > rows_ ? along_x : rows_)
                                                   : along_x * rows_;
        ring_ = scratch.take(rows_ * row_);
        row_in_ = filter.separable ? scratch.take(prepared_) : nullptr;
        line_ = lanes == 1 && downs_ > 1 ? scratch.take(places_) : nullptr;
        phases_ = lanes == 1 && ups_ > 1 ? scratch.take(ups_ * times(0)) : nullptr;
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
                memset(line_, 0, places_ * sizeof(A));
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
        const std::int64_t first = begin_ > 0 ? begin_ : 0;
        const std::int64_t last = begin_ + places_ < filter_.x.in ? begin_ + places_ : filter_.x.in;
        if (first < last) {
            A* const to = (line_ != nullptr ? line_ : prepared) + (first - begin_) * lanes_;
            load(first, last - first, to);
        }
        if (line_ != nullptr) {
            part(prepared);
        }
        if (filter_.separable) {
            for (std::int64_t q = 0; q < ups_ && q < filter_.x.out; ++q) {
                terms_.count = 0;
                add_terms(prepared, static_cast<const A*>(filter_.along_x), q);
                sum_phase(q, slot, ups_ * lanes_);
            }
            join(slot);
        }
    }

    // An output row, of rows that have been pushed: places `step` apart.
    FASTGAN_INLINE void produce(std::int64_t output, std::int64_t step, A* out) {
        const FirTaps rows = rows_of(output);
        if (filter_.separable) {
            const A* const coefficients = static_cast<const A*>(filter_.along_y);
            terms_.count = 0;
            for (std::int64_t j = 0; j < rows.count; ++j) {
                terms_.add(slot_of(rows.place + j), coefficients[rows.first + j * filter_.y.up]);
            }
            sum_terms(terms_, filter_.x.out, lanes_, lanes_, step, out);
            return;
        }
        for (std::int64_t q = 0; q < ups_ && q < filter_.x.out; ++q) {
            terms_.count = 0;
            for (std::int64_t j = 0; j < rows.count; ++j) {
                const std::int64_t row = rows.first + j * filter_.y.up;
                add_terms(slot_of(rows.place + j),
                          static_cast<const A*>(filter_.along_x) + row * filter_.x.taps, q);
            }
            sum_phase(q, out, ups_ * step);
        }
        join(out);
    }

  private:
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

    FASTGAN_INLINE void sum_phase(std::int64_t q, A* out, std::int64_t out_step) {
        if (lanes_ > 1) {
            sum_terms(terms_, times(q), lanes_, downs_ * lanes_, out_step,
                      out + q * (out_step / ups_));
        } else {
            sum_terms(terms_, 1, times(q), 0, 0, ups_ > 1 ? phases_ + q * times(0) : out);
        }
    }

    // With one lane: places by their remainder.
    FASTGAN_INLINE void part(A* prepared) const {
        const A* __restrict const line = line_;
        if (downs_ == 2) {
            A* __restrict const even = prepared;
            A* __restrict const odd = prepared + array_;
            const std::int64_t pairs = places_ / 2;
            for (std::int64_t k = 0; k < pairs; ++k) {
                even[k] = line[2 * k];
                odd[k] = line[2 * k + 1];
            }
            if (places_ % 2 != 0) {
                even[pairs] = line[places_ - 1];
            }
            return;
        }
        for (std::int64_t i = 0; i < places_; ++i) {
            prepared[i % downs_ * array_ + i / downs_] = line[i];
        }
    }

    // With one lane: the phases' outputs in order.
    FASTGAN_INLINE void join(A* out) const {
        if (phases_ == nullptr) {
            return;
        }
        A* __restrict const to = out;
        const std::int64_t size = times(0);
        if (ups_ == 2) {
            const A* __restrict const even = phases_;
            const A* __restrict const odd = phases_ + size;
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
            to[o] = phases_[o % ups_ * size + o / ups_];
        }
    }

    FirFilter filter_;
    std::int64_t lanes_;
    std::int64_t ups_;
    std::int64_t downs_;
    std::int64_t begin_ = 0;
    std::int64_t places_;
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
FASTGAN_INLINE void write_bits(const A* row, std::int64_t places, std::int64_t lanes, bool not_below,
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
        memset(scratch, 0, lanes);
        const std::int64_t left = places - 8 * b < 8 ? places - 8 * b : 8;
        for (std::int64_t p = 0; p < left; ++p) {
            const A* const values = row + (8 * b + p) * lanes;
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                const bool bit = rises(values[lane], not_below);
                scratch[lane] =
                    static_cast<std::uint8_t>(scratch[lane] | static_cast<unsigned>(bit) << p);
            }
        }
        for (std::int64_t lane = 0; lane < lanes; ++lane) {
            bits[b * strides.place + lane * strides.lane] = scratch[lane];
        }
    }
}

// row = row * gain, and where the bit is not `set` that times `factor`, or 0 where that is null.
template <typename A>
FASTGAN_INLINE void read_bits(const std::uint8_t* bits, bool set, RowStrides strides,
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
        for (std::int64_t p = 0; p < left; ++p) {
            A* const values = row + (8 * b + p) * lanes;
            for (std::int64_t lane = 0; lane < lanes; ++lane) {
                const A value = values[lane] * gain;
                const A other = factor != nullptr ? value * by : A(0);
                values[lane] = (scratch[lane] >> p & 1) != 0 ? value : other;
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
    for (std::int64_t i = 0; i < count; ++i) {
        row[i] = (row[i] > A(0) ? row[i] : row[i] * slope) * gain;
    }
    if (is_clamped) {
        if (writes) {
            for (std::int64_t i = 0; i < count; ++i) {
                other[i] = (row[i] < A(0) ? -row[i] : row[i]) - clamp;
            }
            write_bits(other, places, task.lanes, true, task.sign_bytes, strides, scratch,
                       bits + task.sign_bytes * strides.place);
        }
        for (std::int64_t i = 0; i < count; ++i) {
            row[i] = clamped(row[i], clamp);
        }
    }
}

// --- A task --------------------------------------------------------------------------------------

// Scratch memory in A's: what has been used of `scratch`, with rows beyond what the task has.
template <typename A>
std::int64_t typed_rows(const FirTask& task, A* memory) {
    Scratch<A> scratch{memory};
    const std::int64_t lanes = task.lanes;
    FirRows<A> first(task.first, lanes, scratch);
    const FirFilter none{{1, 1, 1, 1, 0, 1}, {1, 1, 1, 1, 0, 1}, true, nullptr, nullptr};
    FirRows<A> second(task.has_activation ? task.second : none, lanes, scratch);
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
    const bool same_type = task.type == FloatType::float32 || task.type == FloatType::float64;
    const bool direct = same_type && (lanes > 1 ? task.y_strides.lane == 1
                                                : task.y_strides.place == 1);
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
