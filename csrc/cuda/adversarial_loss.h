// The adversarial losses on CUDA devices, like cpu/adversarial_loss.h, on `stream`.
#pragma once

#include "../math/adversarial_loss.h"

namespace fastgan::cuda {

void adversarial_loss(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                      const ScoreBatch& fake, bool squash, void* shown, void* value, void* stream);

// Both batches' gradients.
void adversarial_gradients(FloatType type, AdversarialLoss loss, const ScoreBatch& real,
                           const ScoreBatch& fake, const void* grad_output, double scale,
                           void* grad_real, void* grad_fake, void* stream);

}  // namespace fastgan::cuda
