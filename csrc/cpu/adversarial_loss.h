// The adversarial losses on the CPU; the formulas: math/adversarial_loss.h.
#pragma once

#include "../math/adversarial_loss.h"

namespace fastgan::cpu {

// value (1,) and shown (3,) of the arithmetic's type: the sum of the batches' mean terms; the means
// of their scores or, with `squash`, of the scores' sigmoids, and the difference. Without fakes
// theirs are 0.
void adversarial_loss(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                      const ScoreBatch& fake, bool squash, void* shown, void* value);

// scale times one batch's gradient, of type `type`; grad_output (1,) of the arithmetic's type, or
// null for 1.
void adversarial_gradient(FloatType type, AdversarialLoss loss, const ScoreBatch& batch,
                          const void* grad_output, double scale, void* gradient);

}  // namespace fastgan::cpu
