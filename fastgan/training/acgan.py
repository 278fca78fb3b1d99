"""ACGAN's updates: both losses also contain the discriminator's class prediction.

Odena et al. 2017, arXiv 1610.09585, section 3. With L_S the log-likelihood of the right source and
L_C = E[log P(C = c | x)] + E[log P(C = c | G(c, z))] that of the right class, the discriminator
maximises L_S + L_C and the generator L_C - L_S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.losses import at_least_float32
from fastgan.training.updates import GANUpdater


class ACGANUpdater(GANUpdater):
    """Scores are (N, 2): the source's, for ``config.loss``, and log P(C = c | x)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        of_fooled = self.generator_loss

        def generator_loss(*scores: Tensor) -> Tensor:
            return of_fooled(*(score[:, 0] for score in scores)) - self._likelihood(scores[-1])

        self.generator_loss = generator_loss

    def _adversarial(self, real: Tensor, fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super()._adversarial(real[:, 0], fake[:, 0])
        return loss - self._likelihood(real, fake), metrics

    def _likelihood(self, *scores: Tensor) -> Tensor:
        """L_C of real and generated images' scores, or of generated images' alone."""
        return torch.stack([at_least_float32(score[:, 1]).mean() for score in scores]).sum()
