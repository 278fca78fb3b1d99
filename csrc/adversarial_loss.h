// The kernels of the adversarial losses. The formulas: math/adversarial_loss.h.
#pragma once

#include "kernel.h"
#include "math/adversarial_loss.h"

namespace fastgan {

// value (1,) and shown (3,) of the arithmetic's type: the sum of the batches' mean terms; the means
// of their scores or, with `squash`, of the scores' sigmoids, and the difference. Without fakes
// theirs are 0.
FASTGAN_KERNEL(adversarial_loss, FloatType type, AdversarialLoss loss, const ScoreBatch& real,
               const ScoreBatch& fake, bool squash, void* shown, void* value)

// scale times both batches' gradients, of type `type`; grad_output (1,) of the arithmetic's type,
// or null for 1.
FASTGAN_KERNEL(adversarial_gradients, FloatType type, AdversarialLoss loss, const ScoreBatch& real,
               const ScoreBatch& fake, const void* grad_output, double scale, void* grad_real,
               void* grad_fake)

}  // namespace fastgan
