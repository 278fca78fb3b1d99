// Adam, the update of one weight at step t = 1, 2, ...:
//
//   exp_avg    <- exp_avg + (1 - beta1) * (grad - exp_avg)
//   exp_avg_sq <- beta2 * exp_avg_sq + (1 - beta2) * grad^2
//   v           = exp_avg_sq                                   or, amsgrad,
//   max_exp_avg_sq <- max(max_exp_avg_sq, exp_avg_sq)
//   v           = max_exp_avg_sq
//   param      <- param - lr / (1 - beta1^t) * exp_avg / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//
// Kingma & Ba 2015, arXiv 1412.6980, algorithm 1; amsgrad: Reddi, Kale & Kumar 2018, arXiv
// 1904.09237, algorithm 2. Operations in torch.optim.Adam's order.
#pragma once

#include "arithmetic.h"

namespace fastgan {

struct AdamSettings {
    double beta1;
    double beta2;
    double eps;
    bool amsgrad;
};

// Constants of one tensor's update.
struct AdamScalars {
    double beta1;
    double beta2;
    double eps;
    double step_size;
    double bias_correction2_sqrt;
};

FASTGAN_INLINE AdamScalars step_scalars(const AdamSettings& settings, double lr, double step) {
    const double bias_correction1 = 1 - power(settings.beta1, step);
    const double bias_correction2 = 1 - power(settings.beta2, step);
    return AdamScalars{settings.beta1, settings.beta2, settings.eps, lr / bias_correction1,
                       power(bias_correction2, 0.5)};
}

// A: float or double. States, in this order: exp_avg, exp_avg_sq and, with kAmsgrad,
// max_exp_avg_sq.
template <typename A, bool kAmsgrad>
struct AdamRule {
    static constexpr int kStates = kAmsgrad ? 3 : 2;
    static constexpr bool kReadsStep = true;
    using Settings = AdamSettings;

    Lerp<A> lerp;  // by 1 - beta1
    A beta2;
    A one_minus_beta2;
    A eps;
    A negated_step_size;
    A bias_correction2_sqrt;

    FASTGAN_INLINE static AdamRule make(const AdamScalars& scalars) {
        return AdamRule{Lerp<A>::make(static_cast<A>(1 - scalars.beta1)),
                        static_cast<A>(scalars.beta2),
                        static_cast<A>(1 - scalars.beta2),
                        static_cast<A>(scalars.eps),
                        static_cast<A>(-scalars.step_size),
                        static_cast<A>(scalars.bias_correction2_sqrt)};
    }

    // Returns the new weight and updates the states.
    FASTGAN_INLINE A operator()(A param, A grad, A (&states)[kStates]) const {
        A& exp_avg = states[0];
        A& exp_avg_sq = states[1];
        exp_avg = lerp(exp_avg, grad);
        exp_avg_sq = multiply_add(one_minus_beta2 * grad, grad, exp_avg_sq * beta2);
        A v = exp_avg_sq;
        if constexpr (kAmsgrad) {
            states[2] = maximum(states[2], exp_avg_sq);
            v = states[2];
        }
        const A denominator = square_root(v) / bias_correction2_sqrt + eps;
        return param + negated_step_size * exp_avg / denominator;
    }
};

}  // namespace fastgan
