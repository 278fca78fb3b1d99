// The steps around an optimiser's rule: unscaling, sign and weight decay of the gradient before it,
// clipping of the weight before or after it, and the low-precision copy of the new weight.
#pragma once

#include <cstdint>

#include "arithmetic.h"
#include "clip.h"
#include "float_types.h"

namespace fastgan {

// A number in a tensor of one element, float or double, on the computing device; or none.
struct ScalarReference {
    void* data = nullptr;
    bool is_float64 = false;

    FASTGAN_INLINE bool present() const { return data != nullptr; }

    FASTGAN_INLINE double read() const {
        return is_float64 ? *static_cast<const double*>(data)
                          : static_cast<double>(*static_cast<const float*>(data));
    }

    FASTGAN_INLINE void write(double value) const {
        if (is_float64) {
            *static_cast<double*>(data) = value;
        } else {
            *static_cast<float*>(data) = static_cast<float>(value);
        }
    }
};

// Settings of one call, for all its tensors.
struct StepSettings {
    double lr = 0;
    ScalarReference lr_tensor;   // takes precedence over lr
    ScalarReference grad_scale;  // divides every gradient
    ScalarReference found_inf;   // not zero: the step is skipped
    double weight_decay = 0;
    bool maximize = false;
    ClipBounds clip_before;  // infinities: no clip
    ClipBounds clip_after;
    FloatType shadow_type = FloatType::bfloat16;

    FASTGAN_INLINE bool skipped() const { return found_inf.present() && found_inf.read() != 0; }
    FASTGAN_INLINE double current_lr() const { return lr_tensor.present() ? lr_tensor.read() : lr; }
};

// The same, with the numbers read on the device.
struct CommonScalars {
    double weight_decay;
    double grad_scale;
    bool is_scaled;
    bool maximize;
    ClipBounds clip_before;
    ClipBounds clip_after;
};

FASTGAN_INLINE CommonScalars common_scalars(const StepSettings& settings) {
    return CommonScalars{settings.weight_decay,
                         settings.grad_scale.present() ? settings.grad_scale.read() : 1.0,
                         settings.grad_scale.present(),
                         settings.maximize,
                         settings.clip_before,
                         settings.clip_after};
}

// Whether there is a grad_scale: known at compile time, or checked for each weight.
enum class Scaling { absent, present, asked };

// One weight's whole update. Values, in this order: param, grad, the rule's states. The gradient is
// divided by grad_scale, if there is one, and stored, as in torch's fused optimisers; the update
// uses the quotient before it is rounded to T.
template <typename T, typename RuleType, Scaling kScaling>
struct OptimizerStep {
    using Rule = RuleType;
    using A = decltype(to_arithmetic(T{}));
    static constexpr int kValues = 2 + Rule::kStates;

    Rule rule;
    A weight_decay;
    A grad_scale;
    A sign;
    bool is_scaled;
    Choice<A> if_it_decays;
    Clip<T> clip_before;
    Clip<T> clip_after;

    FASTGAN_INLINE OptimizerStep(const Rule& the_rule, const CommonScalars& scalars)
        : rule(the_rule),
          weight_decay(static_cast<A>(scalars.weight_decay)),
          grad_scale(static_cast<A>(scalars.grad_scale)),
          sign(scalars.maximize ? A(-1) : A(1)),
          is_scaled(scalars.is_scaled),
          if_it_decays(Choice<A>::make(scalars.weight_decay != 0)),
          clip_before(scalars.clip_before),
          clip_after(scalars.clip_after) {}

    FASTGAN_INLINE bool scaled() const {
        return kScaling == Scaling::present || (kScaling == Scaling::asked && is_scaled);
    }

    FASTGAN_INLINE bool writes(int value) const { return value != 1 || scaled(); }

    FASTGAN_INLINE void operator()(T (&values)[kValues]) const {
        const A param = to_arithmetic(clip_before(values[0]));
        A grad = to_arithmetic(values[1]);
        if (scaled()) {
            grad = grad / grad_scale;
            values[1] = from_arithmetic<T>(grad);
        }
        grad = grad * sign;
        // Selected, because adding 0 * infinity would give NaN for a weight_decay of 0.
        const A decayed = multiply_add(weight_decay, param, grad);
        grad = if_it_decays(decayed, grad);
        A states[Rule::kStates];
        for (int s = 0; s < Rule::kStates; ++s) {
            states[s] = to_arithmetic(values[2 + s]);
        }
        const A updated = rule(param, grad, states);
        for (int s = 0; s < Rule::kStates; ++s) {
            values[2 + s] = from_arithmetic<T>(states[s]);
        }
        values[0] = clip_after(from_arithmetic<T>(updated));
    }
};

// Only the clip, in the same form.
template <typename T>
struct ClipStep {
    static constexpr int kValues = 1;

    Clip<T> clip;

    FASTGAN_INLINE explicit ClipStep(ClipBounds bounds) : clip(bounds) {}

    FASTGAN_INLINE bool writes(int) const { return true; }

    FASTGAN_INLINE void operator()(T (&values)[kValues]) const { values[0] = clip(values[0]); }
};

// A weight's low-precision copy, rounded to nearest via float.
template <typename Shadow, typename T>
FASTGAN_INLINE Shadow shadow_of(T param) {
    return from_arithmetic<Shadow>(static_cast<float>(to_arithmetic(param)));
}

}  // namespace fastgan
