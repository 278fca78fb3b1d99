// Compiled once per instruction set: see instruction_sets.h. The formulas: math/bias_act.h.
#include "bias_act_loops.h"

#include "value_blocks.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

constexpr std::int64_t kBlock = kBiasActBlock;
// Values of one place that are added in the arithmetic's type before they go on in double.
constexpr std::int64_t kDepth = 8;
constexpr std::int64_t kLanes = 16;

template <typename A>
struct BlockBias {
    const A* values;  // null where one value serves all
    A value;

    // `filled` is used where a block has values of more than one channel.
    FASTGAN_INLINE static BlockBias at(const BiasReader& bias, std::int64_t place,
                                       std::int64_t count, A* filled) {
        const A* const all = static_cast<const A*>(bias.values);
        if (all == nullptr) {
            return {nullptr, A(-0.0)};  // which changes nothing, not even a zero's sign
        }
        if (bias.inner == 0) {
            return {all + place % bias.period, A(0)};
        }
        std::int64_t run = place / bias.inner;
        std::int64_t left = bias.inner - place % bias.inner;
        if (left >= count) {
            return {nullptr, all[run % bias.channels]};
        }
        for (std::int64_t i = 0; i < count; ++i, --left) {
            if (left == 0) {
                ++run;
                left = bias.inner;
            }
            filled[i] = all[run % bias.channels];
        }
        return {filled, A(0)};
    }
};

template <typename T, typename A>
FASTGAN_INLINE void load_block(const T* __restrict x, const BlockBias<A>& bias, std::int64_t count,
                               A* __restrict u) {
    if (bias.values != nullptr) {
        for (std::int64_t i = 0; i < count; ++i) {
            u[i] = to_arithmetic(x[i]) + bias.values[i];
        }
    } else {
        for (std::int64_t i = 0; i < count; ++i) {
            u[i] = to_arithmetic(x[i]) + bias.value;
        }
    }
}

template <typename T, typename A>
FASTGAN_INLINE void load_block(const T* __restrict x, std::int64_t count, A* __restrict u) {
    for (std::int64_t i = 0; i < count; ++i) {
        u[i] = to_arithmetic(x[i]);
    }
}

template <typename T, typename A>
FASTGAN_INLINE void store_block(const A* __restrict u, std::int64_t count, T* __restrict y) {
    for (std::int64_t i = 0; i < count; ++i) {
        y[i] = from_arithmetic<T>(u[i]);
    }
}

// Whether the output of "lrelu" has the sign of what it is of: its bits are taken from it. A gain of 1
// or more keeps it from vanishing.
FASTGAN_INLINE bool keeps_signs(const BiasAct& settings) {
    return settings.alpha >= 0 && settings.gain >= 1;
}

// "lrelu" of a whole block, in one loop.
template <typename A>
FASTGAN_INLINE void leaky_block(const A* __restrict x, const BlockBias<A>& bias, A alpha, A gain,
                                A clamp, A* __restrict y) {
    const A* __restrict const values = bias.values;
    const A value = bias.value;
    if (values != nullptr) {
        for (std::int64_t i = 0; i < kBlock; ++i) {
            const A u = x[i] + values[i];
            y[i] = clamped((u > A(0) ? u : u * alpha) * gain, clamp);
        }
    } else {
        for (std::int64_t i = 0; i < kBlock; ++i) {
            const A u = x[i] + value;
            y[i] = clamped((u > A(0) ? u : u * alpha) * gain, clamp);
        }
    }
}

template <typename T>
void typed_range(const BiasAct& settings, const BiasReader& bias, const T* x, std::int64_t begin,
                 std::int64_t end, T* y, std::uint8_t* bits) {
    using A = Arithmetic<T>;
    alignas(64) A u[kBlock] = {};
    alignas(64) A filled[kBlock];
    std::uint8_t packed[kBlock / 8];
    [[maybe_unused]] const bool is_leaky =
        settings.act == StyleActivation::lrelu && (bits == nullptr || keeps_signs(settings));
    for (std::int64_t i = begin; i < end; i += kBlock) {
        const std::int64_t count = end - i < kBlock ? end - i : kBlock;
        const auto block_bias = BlockBias<A>::at(bias, i, count, filled);
        if constexpr (sizeof(T) == sizeof(A)) {
            if (is_leaky && count == kBlock) {
                leaky_block(x + i, block_bias, static_cast<A>(settings.alpha),
                            static_cast<A>(settings.gain), static_cast<A>(settings.clamp), y + i);
                if (bits != nullptr) {
                    pack_rising(y + i, kBlock, false, bits + i / 8);
                }
                continue;
            }
        }
        load_block(x + i, block_bias, count, u);
        if (bits != nullptr) {
            for (std::int64_t j = count; j < kBlock; ++j) {
                u[j] = A(0);
            }
            pack_rising(u, kBlock, settings.act == StyleActivation::relu, packed);
            memcpy(bits + i / 8, packed, (count + 7) / 8);
        }
        apply_bias_act(settings, u, count);
        store_block(u, count, y + i);
    }
}

// --- Gradient ------------------------------------------------------------------------------------

// g = g * act', from what slope() of math/bias_act.h takes.
template <typename A>
FASTGAN_INLINE void apply_slope(const BiasAct& settings, const A* __restrict z, std::int64_t count,
                                A* __restrict g) {
    const A alpha = static_cast<A>(settings.alpha);
    switch (settings.act) {
        case StyleActivation::linear:
            break;
        case StyleActivation::relu:
            for (std::int64_t i = 0; i < count; ++i) {
                g[i] = z[i] <= A(0) ? A(0) : g[i];
            }
            break;
        case StyleActivation::lrelu:
            for (std::int64_t i = 0; i < count; ++i) {
                g[i] = z[i] > A(0) ? g[i] : g[i] * alpha;
            }
            break;
        default:
            with_smooth_style(settings.act, [=](auto row) {
                for (std::int64_t i = 0; i < count; ++i) {
                    g[i] *= row.slope(z[i]);
                }
            });
    }
}

// g = 0 where the output is beyond its bound, or at it if `at_it_too`: of an output that was
// bounded nothing else is known.
template <typename A>
FASTGAN_INLINE void drop_clamped(const A* __restrict y, A clamp, bool at_it_too, std::int64_t count,
                                 A* __restrict g) {
    for (std::int64_t i = 0; i < count; ++i) {
        const A magnitude = y[i] < A(0) ? -y[i] : y[i];
        const bool inside = at_it_too ? magnitude < clamp : magnitude <= clamp;
        g[i] = inside ? g[i] : A(0);
    }
}

// Of values [begin, begin + count) in the lanes of a run.
template <typename A>
FASTGAN_INLINE double sum_of(const A* g, std::int64_t begin, std::int64_t end) {
    alignas(64) A lanes[kLanes] = {};
    std::int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
        for (std::int64_t lane = 0; lane < kLanes; ++lane) {
            lanes[lane] += g[i + lane];
        }
    }
    double sum = 0;
    for (; i < end; ++i) {
        sum += static_cast<double>(g[i]);
    }
    double sums[kLanes];
    for (std::int64_t lane = 0; lane < kLanes; ++lane) {
        sums[lane] = static_cast<double>(lanes[lane]);
    }
    for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
        for (std::int64_t lane = 0; lane < half; ++lane) {
            sums[lane] += sums[lane + half];
        }
    }
    return sum + sums[0];
}

// The bias' gradient: in runs straight into sums, in periods by way of `parts`.
template <typename A>
class BiasSums {
  public:
    FASTGAN_INLINE BiasSums(const BiasReader& bias, double* sums, void* scratch)
        : bias_(bias),
          sums_(sums),
          parts_(static_cast<A*>(scratch)),
          flush_after_(kDepth * ((bias.period + kBlock - 1) / kBlock)) {
        if (sums != nullptr && bias.inner == 0) {
            memset(parts_, 0, bias.slots() * sizeof(A));
        }
    }

    FASTGAN_INLINE void add(const A* __restrict g, std::int64_t place, std::int64_t count) {
        if (sums_ == nullptr) {
            return;
        }
        if (bias_.inner == 0) {
            A* __restrict const parts = parts_ + place % bias_.period;
            for (std::int64_t i = 0; i < count; ++i) {
                parts[i] += g[i];
            }
            if (++blocks_ == flush_after_) {
                flush();
            }
            return;
        }
        std::int64_t run = place / bias_.inner;
        std::int64_t left = bias_.inner - place % bias_.inner;
        for (std::int64_t i = 0; i < count; ++run, left = bias_.inner) {
            const std::int64_t to = count - i < left ? count : i + left;
            sums_[run % bias_.channels] += sum_of(g, i, to);
            i = to;
        }
    }

    FASTGAN_INLINE void flush() {
        if (sums_ == nullptr || bias_.inner != 0) {
            return;
        }
        for (std::int64_t i = 0; i < bias_.slots(); ++i) {
            sums_[i] += static_cast<double>(parts_[i]);
            parts_[i] = A(0);
        }
        blocks_ = 0;
    }

  private:
    BiasReader bias_;
    double* sums_;
    A* parts_;
    std::int64_t flush_after_;
    std::int64_t blocks_ = 0;
};

template <typename T>
void typed_gradient_range(const BiasAct& settings, const BiasReader& bias, Kept keeps,
                          const void* kept, const T* grad, std::int64_t begin, std::int64_t end,
                          T* grad_x, double* sums, void* scratch) {
    using A = Arithmetic<T>;
    const A gain = static_cast<A>(settings.gain);
    const A inverse = gain != A(0) ? A(1) / gain : A(0);
    const A alpha = static_cast<A>(settings.alpha);
    const A clamp = static_cast<A>(settings.clamp);
    const bool is_clamped = clamp - clamp == A(0);
    alignas(64) A g[kBlock] = {};
    alignas(64) A z[kBlock];
    alignas(64) A other[kBlock];
    std::uint8_t packed[kBlock / 8] = {};
    BiasSums<A> bias_sums(bias, sums, scratch);
    for (std::int64_t i = begin; i < end; i += kBlock) {
        const std::int64_t count = end - i < kBlock ? end - i : kBlock;
        const A* const factor = settings.act == StyleActivation::relu ? nullptr : &alpha;
        if constexpr (sizeof(T) == sizeof(A)) {
            if (keeps == Kept::bits && count == kBlock) {
                scale_unset(static_cast<const std::uint8_t*>(kept) + i / 8, kBlock, gain, factor,
                            grad + i, grad_x + i);
                bias_sums.add(grad_x + i, i, count);
                continue;
            }
        }
        load_block(grad + i, count, g);
        if (keeps == Kept::output) {
            load_block(static_cast<const T*>(kept) + i, count, z);
            if (is_clamped) {
                drop_clamped(z, clamp, true, count, g);
            }
            for (std::int64_t j = 0; j < count; ++j) {
                z[j] *= inverse;
                g[j] *= gain;
            }
            apply_slope(settings, z, count, g);
        } else if (keeps == Kept::input) {
            load_block(static_cast<const T*>(kept) + i, BlockBias<A>::at(bias, i, count, other),
                       count, z);
            if (is_clamped) {
                BiasAct unbounded = settings;
                unbounded.clamp = __builtin_inf();
                memcpy(other, z, count * sizeof(A));
                apply_bias_act(unbounded, other, count);
                drop_clamped(other, clamp, false, count, g);
            }
            for (std::int64_t j = 0; j < count; ++j) {
                g[j] *= gain;
            }
            apply_slope(settings, z, count, g);
        } else if (keeps == Kept::bits) {
            memcpy(packed, static_cast<const std::uint8_t*>(kept) + i / 8, (count + 7) / 8);
            scale_unset(packed, kBlock, gain, factor, g, g);
        } else {
            for (std::int64_t j = 0; j < count; ++j) {
                g[j] *= gain;
            }
        }
        store_block(g, count, grad_x + i);
        bias_sums.add(g, i, count);
    }
    bias_sums.flush();
}

}  // namespace

void bias_act_range(FloatType type, const BiasAct& settings, const BiasReader& bias, const void* x,
                    std::int64_t begin, std::int64_t end, void* y, std::uint8_t* bits) {
    with_type(type, [=](auto zero) {
        using T = decltype(zero);
        typed_range(settings, bias, static_cast<const T*>(x), begin, end, static_cast<T*>(y), bits);
    });
}

void bias_act_gradient_range(FloatType type, const BiasAct& settings, const BiasReader& bias,
                             Kept keeps, const void* kept, const void* grad, std::int64_t begin,
                             std::int64_t end, void* grad_x, double* sums, void* scratch) {
    with_type(type, [=](auto zero) {
        using T = decltype(zero);
        typed_gradient_range(settings, bias, keeps, kept, static_cast<const T*>(grad), begin, end,
                             static_cast<T*>(grad_x), sums, scratch);
    });
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
