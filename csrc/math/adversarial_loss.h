// The adversarial losses' terms of a score s, and their derivatives:
//
//                     as a real image's     as a generated one's
//   logistic          softplus(-s)          softplus(s)
//   hinge             max(0, 1 - s)         max(0, 1 + s)
//   least_squares     (s - 1)^2 / 2         s^2 / 2
//   wasserstein       -s                    s
//
// fastgan/losses.py has the papers. Beyond a hinge the derivative is 0; NaN stays NaN.
#pragma once

#include "bias_act.h"

namespace fastgan {

// In the order of their codes.
enum class AdversarialLoss { logistic, hinge, least_squares, wasserstein };
inline constexpr int kAdversarialLosses = 4;

// One tensor of scores.
struct ScoreBatch {
    const void* scores;
    std::int64_t count;  // -1 if there is none
    bool as_real;
};

// A factor, because GCC 12 doesn't vectorise loops with a selection of -s or s.
template <typename A>
FASTGAN_INLINE A sign_of(bool as_real) {
    return as_real ? A(-1) : A(1);
}

template <typename A>
FASTGAN_INLINE A score_term(AdversarialLoss loss, A s, bool as_real) {
    const A u = s * sign_of<A>(as_real);
    switch (loss) {
        case AdversarialLoss::logistic:
            return StyleRow<StyleActivation::softplus>::value(u);
        case AdversarialLoss::hinge:
            return A(1) + u <= A(0) ? A(0) : A(1) + u;
        case AdversarialLoss::least_squares: {
            const A difference = as_real ? A(1) + u : u;
            return difference * difference * A(0.5);
        }
        default:
            return u;
    }
}

// factor times the term's derivative.
template <typename A>
FASTGAN_INLINE A score_gradient(AdversarialLoss loss, A s, bool as_real, A factor) {
    const A u = s * sign_of<A>(as_real);
    const A signed_factor = factor * sign_of<A>(as_real);
    switch (loss) {
        case AdversarialLoss::logistic:
            return signed_factor * Row<Activation::sigmoid>::value(u, A(0));
        case AdversarialLoss::hinge:
            return A(1) + u <= A(0) ? A(0) : signed_factor;
        case AdversarialLoss::least_squares:
            return signed_factor * (as_real ? A(1) + u : u);
        default:
            return signed_factor;
    }
}

// The score, or its sigmoid.
template <typename A>
FASTGAN_INLINE A shown_score(A s, bool squash) {
    return squash ? Row<Activation::sigmoid>::value(s, A(0)) : s;
}

}  // namespace fastgan
