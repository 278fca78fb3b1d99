// The inner loops of the adversarial losses, declared once per instruction set.
#pragma once

#include <cstdint>

#include "../math/adversarial_loss.h"
#include "instruction_sets.h"

namespace fastgan::cpu {

FASTGAN_FOR_EACH_INSTRUCTION_SET(
    // Adds to sums[0] the terms, to sums[1] the scores or, with `squash`, their sigmoids.
    void add_score_terms(FloatType type, AdversarialLoss loss, const ScoreBatch& batch, bool squash,
                         double* sums);
    // gradient = factor * the terms' derivatives.
    void write_score_gradients(FloatType type, AdversarialLoss loss, const ScoreBatch& batch,
                               double factor, void* gradient))

}  // namespace fastgan::cpu
