// Compiled once per instruction set: see instruction_sets.h.
#include "multi_tensor_loops.h"

#include "../math/float_pairs.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

// One loop for every rule, over [begin, begin + count). The runs don't overlap (__restrict), so
// that compilers vectorise it.
template <typename T, typename Step>
FASTGAN_INLINE void run_piece(void* const* data, std::int64_t begin, std::int64_t count,
                              const Step& step) {
    constexpr int kValues = Step::kValues;
    T* __restrict first = static_cast<T*>(data[0]) + begin;
    T* __restrict second = static_cast<T*>(data[kValues > 1 ? 1 : 0]) + begin;
    T* __restrict third = static_cast<T*>(data[kValues > 2 ? 2 : 0]) + begin;
    T* __restrict fourth = static_cast<T*>(data[kValues > 3 ? 3 : 0]) + begin;
    T* __restrict fifth = static_cast<T*>(data[kValues > 4 ? 4 : 0]) + begin;
    const Step local = step;  // a copy that stores can't alias
    for (std::int64_t i = 0; i < count; ++i) {
        T values[kValues];
        values[0] = first[i];
        if constexpr (kValues > 1) {
            values[1] = second[i];
        }
        if constexpr (kValues > 2) {
            values[2] = third[i];
        }
        if constexpr (kValues > 3) {
            values[3] = fourth[i];
        }
        if constexpr (kValues > 4) {
            values[4] = fifth[i];
        }
        local(values);
        first[i] = values[0];
        if constexpr (kValues > 1) {
            if (local.writes(1)) {
                second[i] = values[1];
            }
        }
        if constexpr (kValues > 2) {
            third[i] = values[2];
        }
        if constexpr (kValues > 3) {
            fourth[i] = values[3];
        }
        if constexpr (kValues > 4) {
            fifth[i] = values[4];
        }
    }
}

// Hardware prefetching stops at every 4 KiB page of each run: prefetching this far ahead saves a
// fifth of the time if the weights aren't cached (Sapphire Rapids, two cores). Prefetching beyond a
// run's end is harmless.
constexpr std::int64_t kPrefetchBytes = 2048;
constexpr std::int64_t kPieceBytes = 256;
constexpr std::int64_t kLineBytes = 64;

template <typename T, typename Step>
void run(void* const* data, std::int64_t count, const Step& step) {
    constexpr std::int64_t kPiece = kPieceBytes / static_cast<std::int64_t>(sizeof(T));
    for (std::int64_t begin = 0; begin < count; begin += kPiece) {
        for (int v = 0; v < Step::kValues; ++v) {
            const char* const ahead =
                reinterpret_cast<const char*>(static_cast<const T*>(data[v]) + begin) +
                kPrefetchBytes;
            for (std::int64_t line = 0; line < kPieceBytes; line += kLineBytes) {
                __builtin_prefetch(ahead + line);
            }
        }
        const std::int64_t left = count - begin;
        run_piece<T>(data, begin, left < kPiece ? left : kPiece, step);
    }
}

template <typename T, typename Kind, typename Scalars>
void run_step(void* const* data, std::int64_t count, const Scalars& scalars,
              const CommonScalars& common) {
    using Rule = typename Kind::template Rule<decltype(to_arithmetic(T{}))>;
    const Rule rule = Rule::make(scalars);
    if (common.is_scaled) {
        run<T>(data, count, OptimizerStep<T, Rule, Scaling::present>(rule, common));
    } else {
        run<T>(data, count, OptimizerStep<T, Rule, Scaling::absent>(rule, common));
    }
}

template <typename T, typename Shadow>
void write_shadow(const void* params, void* shadows, std::int64_t count) {
    const T* __restrict from = static_cast<const T*>(params);
    Shadow* __restrict to = static_cast<Shadow*>(shadows);
    for (std::int64_t i = 0; i < count; ++i) {
        to[i] = shadow_of<Shadow>(from[i]);
    }
}

}  // namespace

#define FASTGAN_DEFINE_RUN(name, Optimizer)                                                    \
    void name##_run(FloatType type, void* const* data, std::int64_t count,                     \
                    const Optimizer& optimizer, const Optimizer::Scalars& scalars,             \
                    const CommonScalars& common) {                                             \
        optimizer.for_rule([&]<typename Kind>(Kind) {                                          \
            for_float_type(                                                                    \
                type, [&]<typename T>() { run_step<T, Kind>(data, count, scalars, common); }); \
        });                                                                                    \
    }
FASTGAN_OPTIMIZERS(FASTGAN_DEFINE_RUN)

void clip_run(FloatType type, void* const* data, std::int64_t count, ClipBounds bounds) {
    for_float_type(type, [&]<typename T>() { run<T>(data, count, ClipStep<T>(bounds)); });
}

void shadow_run(FloatType type, const void* params, FloatType shadow_type, void* shadows,
                std::int64_t count) {
    for_float_type(type, [&]<typename T>() {
        if (shadow_type == FloatType::float16) {
            write_shadow<T, Half>(params, shadows, count);
        } else {
            write_shadow<T, BFloat16>(params, shadows, count);
        }
    });
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
