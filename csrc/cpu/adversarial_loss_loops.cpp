// Compiled once per instruction set: see instruction_sets.h.
#include "adversarial_loss_loops.h"

#include "../math/float_pairs.h"

namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET {

namespace {

template <AdversarialLoss kLoss>
struct Tag {
    static constexpr AdversarialLoss value = kLoss;
};

// body(tag) with the loss's tag, so that each has loops without branches.
template <typename Body>
FASTGAN_INLINE void with_loss(AdversarialLoss loss, const Body& body) {
    switch (loss) {
        case AdversarialLoss::logistic:
            return body(Tag<AdversarialLoss::logistic>());
        case AdversarialLoss::hinge:
            return body(Tag<AdversarialLoss::hinge>());
        case AdversarialLoss::least_squares:
            return body(Tag<AdversarialLoss::least_squares>());
        case AdversarialLoss::wasserstein:
            return body(Tag<AdversarialLoss::wasserstein>());
    }
}

// Sums have this many parts, in double, to fit vector registers.
constexpr int kLanes = 16;
// Scores at a time: compilers unroll a loop over fewer instead of vectorising it.
constexpr int kBlock = 128;

template <AdversarialLoss kLoss, bool kSquash, typename T>
void add_terms(const T* scores, std::int64_t count, bool as_real, double* sums) {
    using A = decltype(to_arithmetic(T{}));
    double terms[kLanes] = {};
    double shown[kLanes] = {};
    A values[kBlock];
    A of_values[kBlock];
    for (std::int64_t start = 0; start < count; start += kBlock) {
        const int width = count - start < kBlock ? static_cast<int>(count - start) : kBlock;
        for (int i = 0; i < width; ++i) {
            values[i] = to_arithmetic(scores[start + i]);
        }
        for (int i = 0; i < width; ++i) {
            of_values[i] = score_term(kLoss, values[i], as_real);
        }
        for (int i = 0; i < width; ++i) {
            values[i] = shown_score(values[i], kSquash);
        }
        int i = 0;
        for (; i + kLanes <= width; i += kLanes) {
            for (int lane = 0; lane < kLanes; ++lane) {
                terms[lane] += static_cast<double>(of_values[i + lane]);
                shown[lane] += static_cast<double>(values[i + lane]);
            }
        }
        for (int lane = 0; i < width; ++i, ++lane) {
            terms[lane] += static_cast<double>(of_values[i]);
            shown[lane] += static_cast<double>(values[i]);
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        sums[0] += terms[lane];
        sums[1] += shown[lane];
    }
}

template <AdversarialLoss kLoss, typename T>
void gradients(const T* __restrict scores, std::int64_t count, bool as_real, double factor,
               T* __restrict gradient) {
    using A = decltype(to_arithmetic(T{}));
    const A by = static_cast<A>(factor);
    for (std::int64_t i = 0; i < count; ++i) {
        gradient[i] =
            from_arithmetic<T>(score_gradient(kLoss, to_arithmetic(scores[i]), as_real, by));
    }
}

}  // namespace

void add_score_terms(FloatType type, AdversarialLoss loss, const ScoreBatch& batch, bool squash,
                     double* sums) {
    for_float_type(type, [&]<typename T>() {
        with_loss(loss, [&](auto tag) {
            const auto add =
                squash ? add_terms<tag.value, true, T> : add_terms<tag.value, false, T>;
            add(static_cast<const T*>(batch.scores), batch.count, batch.as_real, sums);
        });
    });
}

void write_score_gradients(FloatType type, AdversarialLoss loss, const ScoreBatch& batch,
                           double factor, void* gradient) {
    for_float_type(type, [&]<typename T>() {
        with_loss(loss, [&](auto tag) {
            gradients<tag.value>(static_cast<const T*>(batch.scores), batch.count, batch.as_real,
                                 factor, static_cast<T*>(gradient));
        });
    });
}

}  // namespace fastgan::cpu::FASTGAN_INSTRUCTION_SET
