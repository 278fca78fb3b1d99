// The optimisers: each one's settings, states, and the update of one weight. The ops, the CPU's
// loops and the CUDA kernels are made of these rows.
#pragma once

#include "arithmetic.h"

// Every optimiser: its op is name_step_, its row the struct.
#define FASTGAN_OPTIMIZERS(X) \
    X(rmsprop, RMSprop)       \
    X(adam, Adam)             \
    X(adamw, AdamW)

namespace fastgan {

// The types of an op's arguments.
template <typename... Types>
struct TypeList {};

// A row has:
//   kOp           the op's name for messages
//   kStates       names of the op's lists of states
//   Types         types of the op's other arguments of its own, which are the struct's members
//   Kernels       the row that CUDA's kernels are compiled for
//   uses_state(i) whether these settings use a list
//   decay()       the weight decay that is added to the gradient
//   scalars       Scalars, constants of one tensor's update, from the learning rate and the step's t
//   kReadsStep    whether the scalars depend on t
//   for_rule      calls run(Kind{}) with the Kind whose Rule<A> is the update by these settings; A
//                 is float or double
// A rule takes the weight, the gradient and the states in use, in order, returns the new weight,
// and updates the states.

// RMSprop:
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
struct RMSpropScalars {
    double lr;
    double alpha;
    double eps;
    double momentum;
};

template <typename A, bool kMomentum, bool kCentered>
struct RMSpropRule {
    static constexpr int kStates = 1 + (kMomentum ? 1 : 0) + (kCentered ? 1 : 0);

    A negated_lr;
    A alpha;
    A one_minus_alpha;
    A eps;
    A momentum;
    Lerp<A> lerp;  // by 1 - alpha

    FASTGAN_INLINE static RMSpropRule make(const RMSpropScalars& scalars) {
        return RMSpropRule{
            static_cast<A>(-scalars.lr),       static_cast<A>(scalars.alpha),
            static_cast<A>(1 - scalars.alpha), static_cast<A>(scalars.eps),
            static_cast<A>(scalars.momentum),  Lerp<A>::make(static_cast<A>(1 - scalars.alpha))};
    }

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

struct RMSprop {
    static constexpr const char* kOp = "fastgan::rmsprop_step_";
    static constexpr const char* kStates[] = {"square_avgs", "momentum_buffers", "grad_avgs"};
    using Scalars = RMSpropScalars;
    using Kernels = RMSprop;
    using Types = TypeList<double, double, double, double, bool>;
    static constexpr bool kReadsStep = false;

    double alpha;
    double eps;
    double weight_decay;
    double momentum;
    bool centered;

    bool uses_state(int i) const { return i == 0 || (i == 1 ? momentum > 0 : centered); }

    FASTGAN_INLINE double decay() const { return weight_decay; }

    FASTGAN_INLINE RMSpropScalars scalars(double lr, double /*t*/) const {
        return RMSpropScalars{lr, alpha, eps, momentum};
    }

    template <bool kMomentum, bool kCentered>
    struct Kind {
        template <typename A>
        using Rule = RMSpropRule<A, kMomentum, kCentered>;
    };

    template <typename Run>
    void for_rule(const Run& run) const {
        if (momentum > 0 && centered) {
            run(Kind<true, true>{});
        } else if (momentum > 0) {
            run(Kind<true, false>{});
        } else if (centered) {
            run(Kind<false, true>{});
        } else {
            run(Kind<false, false>{});
        }
    }
};

// Adam:
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
struct AdamScalars {
    double kept;  // of the weight: 1, less in AdamW
    double beta1;
    double beta2;
    double eps;
    double step_size;
    double bias_correction2_sqrt;
};

template <typename A, bool kAmsgrad>
struct AdamRule {
    static constexpr int kStates = kAmsgrad ? 3 : 2;

    A kept;
    Lerp<A> lerp;  // by 1 - beta1
    A beta2;
    A one_minus_beta2;
    A eps;
    A negated_step_size;
    A bias_correction2_sqrt;

    FASTGAN_INLINE static AdamRule make(const AdamScalars& scalars) {
        return AdamRule{static_cast<A>(scalars.kept),
                        Lerp<A>::make(static_cast<A>(1 - scalars.beta1)),
                        static_cast<A>(scalars.beta2),
                        static_cast<A>(1 - scalars.beta2),
                        static_cast<A>(scalars.eps),
                        static_cast<A>(-scalars.step_size),
                        static_cast<A>(scalars.bias_correction2_sqrt)};
    }

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
        return param * kept + negated_step_size * exp_avg / denominator;
    }
};

struct Adam {
    static constexpr const char* kOp = "fastgan::adam_step_";
    static constexpr const char* kStates[] = {"exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"};
    using Scalars = AdamScalars;
    using Kernels = Adam;
    using Types = TypeList<double, double, double, double, bool>;
    static constexpr bool kReadsStep = true;

    double beta1;
    double beta2;
    double eps;
    double weight_decay;
    bool amsgrad;
    bool decoupled = false;  // AdamW

    bool uses_state(int i) const { return i < 2 || amsgrad; }

    FASTGAN_INLINE double decay() const { return decoupled ? 0 : weight_decay; }

    FASTGAN_INLINE AdamScalars scalars(double lr, double t) const {
        return AdamScalars{decoupled ? 1 - lr * weight_decay : 1,
                           beta1,
                           beta2,
                           eps,
                           lr / (1 - power(beta1, t)),
                           square_root(1 - power(beta2, t))};
    }

    template <bool kAmsgrad>
    struct Kind {
        template <typename A>
        using Rule = AdamRule<A, kAmsgrad>;
    };

    template <typename Run>
    void for_rule(const Run& run) const {
        amsgrad ? run(Kind<true>{}) : run(Kind<false>{});
    }
};

// AdamW:
//
//   param      <- param - lr * weight_decay * param
//
// then Adam's update, without weight decay. Loshchilov & Hutter 2019, arXiv 1711.05101,
// algorithm 2. Operations in torch.optim.AdamW's order.
struct AdamW : Adam {
    static constexpr const char* kOp = "fastgan::adamw_step_";

    AdamW(double beta1, double beta2, double eps, double weight_decay, bool amsgrad)
        : Adam{beta1, beta2, eps, weight_decay, amsgrad, true} {}
};

}  // namespace fastgan
