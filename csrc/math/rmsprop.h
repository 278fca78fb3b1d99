// RMSprop, the update of one weight:
//
//   square_avg <- alpha * square_avg + (1 - alpha) * grad^2
//   v           = square_avg                                   or, centered,
//   grad_avg   <- grad_avg + (1 - alpha) * (grad - grad_avg)
//   v           = square_avg - grad_avg^2
//   param      <- param - lr * grad / (sqrt(v) + eps)          or, with momentum,
//   buffer     <- momentum * buffer + grad / (sqrt(v) + eps)
//   param      <- param - lr * buffer
//
// Tieleman & Hinton 2012, lecture 6.5 of "Neural Networks for Machine Learning"; centered: Graves
// 2013, arXiv 1308.0850, equations 38 to 45. Operations in torch.optim.RMSprop's order.
#pragma once

#include "arithmetic.h"

namespace fastgan {

struct RmspropSettings {
    double alpha;
    double eps;
    double momentum;
    bool centered;
};

// Constants of one tensor's update.
struct RmspropScalars {
    double lr;
    double alpha;
    double eps;
    double momentum;
};

FASTGAN_INLINE RmspropScalars step_scalars(const RmspropSettings& settings, double lr,
                                           double /*step*/) {
    return RmspropScalars{lr, settings.alpha, settings.eps, settings.momentum};
}

// A: float or double. States, in this order: square_avg and, with kMomentum, momentum_buffer and,
// with kCentered, grad_avg.
template <typename A, bool kMomentum, bool kCentered>
struct RmspropRule {
    static constexpr int kStates = 1 + (kMomentum ? 1 : 0) + (kCentered ? 1 : 0);
    static constexpr bool kReadsStep = false;
    using Settings = RmspropSettings;

    A negated_lr;
    A alpha;
    A one_minus_alpha;
    A eps;
    A momentum;
    Lerp<A> lerp;  // by 1 - alpha

    FASTGAN_INLINE static RmspropRule make(const RmspropScalars& scalars) {
        return RmspropRule{
            static_cast<A>(-scalars.lr),       static_cast<A>(scalars.alpha),
            static_cast<A>(1 - scalars.alpha), static_cast<A>(scalars.eps),
            static_cast<A>(scalars.momentum),  Lerp<A>::make(static_cast<A>(1 - scalars.alpha))};
    }

    // Returns the new weight and updates the states.
    FASTGAN_INLINE A operator()(A param, A grad, A (&states)[kStates]) const {
        A& square_avg = states[0];
        square_avg = multiply_add(one_minus_alpha * grad, grad, square_avg * alpha);
        A v = square_avg;
        if constexpr (kCentered) {
            A& grad_avg = states[kStates - 1];
            grad_avg = lerp(grad_avg, grad);
            v = multiply_add(-grad_avg, grad_avg, square_avg);
        }
        const A denominator = square_root(v) + eps;
        if constexpr (kMomentum) {
            A& momentum_buffer = states[1];
            momentum_buffer = momentum_buffer * momentum + grad / denominator;
            return multiply_add(negated_lr, momentum_buffer, param);
        } else {
            return param + negated_lr * grad / denominator;
        }
    }
};

}  // namespace fastgan
