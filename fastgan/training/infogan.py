"""InfoGAN's updates: both losses also contain a bound of the codes' mutual information with images.

Chen et al. 2016, arXiv 1606.03657, equations 5 and 6: the bound is E[log Q(c | G(z, c))] and the
codes' entropy, which is constant. It is of generated images alone, whose codes are drawn. That of
continuous codes has no upper limit, and a smaller weight, as in the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.losses import at_least_float32
from fastgan.training.acgan import ACGANUpdater
from fastgan.training.updates import _Drawn


class InfoGANUpdater(ACGANUpdater):
    """Scores are (N, 3): the source's, for ``config.loss``, and log Q of both kinds of codes.

    The categorical code is the networks' label. The continuous codes are the noise's first
    ``config.codes`` numbers.
    """

    def _likelihood(self, *scores: Tensor) -> Tensor:
        weights = (self.config.info_weight, self.config.code_weight)
        categorical, continuous = at_least_float32(scores[-1][:, 1:]).mean(0)
        likelihood: Tensor = weights[0] * categorical + weights[1] * continuous
        return likelihood

    def _generated(self, part: _Drawn) -> Tensor:
        images: Tensor = self.generator(part.noise, part.condition[0])
        return images

    def _drawn_for_critic(self, real: Tensor, labels: Tensor | None, penalize: bool) -> _Drawn:
        assert self.num_classes is not None
        labels = self.processes.rows(
            torch.randint(
                self.num_classes,
                (len(real) * self.processes.world_size,),
                generator=self.random,
                device=self.device,
            )
        )
        return self._with_codes(super()._drawn_for_critic(real, labels, penalize))

    def _drawn_for_fakes(self, count: int) -> _Drawn:
        return self._with_codes(super()._drawn_for_fakes(count))

    def _with_codes(self, drawn: _Drawn) -> _Drawn:
        codes = drawn.noise[:, : self.config.codes].flatten(1)
        drawn.condition = (*drawn.condition, codes)
        return drawn
