"""The probability of ADA's augmentations, steered by how much the discriminator overfits.

Karras et al. 2020, arXiv 2006.06676, section 3: a discriminator that learns the images by heart is
surer of them than of new ones. So is measured how sure it is of what it is trained on,

    r = E[sign D(x)],    x real images as it sees them, D > 0 where it takes them for real,

which is 0 for one that can't tell and 1 for one that is never wrong. Every ``ada_interval`` updates
of the discriminator, p rises by a fixed amount where the mean r since the last time is above
``ada_target``, and falls where it is below, within 0 and 1; the amount is such that p could rise
from 0 to 1 within ``ada_kimg`` thousand images.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastgan.training.config import TrainConfig
from fastgan.training.processes import Processes

__all__ = ["DECISIONS", "AdaptiveProbability"]

DECISIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = types.MappingProxyType(
    {
        "bce": lambda real, fake: real,
        "hinge": lambda real, fake: real,
        # Reals are to score 1 and generated images 0.
        "least-squares": lambda real, fake: real - 0.5,
        # It judges pairs; a constant that is added to all scores changes nothing.
        "relativistic": lambda real, fake: real - fake,
    }
)
"""By loss, of the scores of real and generated images: above 0 where the real ones are taken for
real. A Wasserstein critic takes nothing for real or generated, and has none."""


class AdaptiveProbability:
    """The probability p, which an update reads and moves without waiting for the device.

    Args:
        config: resolved settings.
        device: where p lives.
        processes: who share each batch; all have the same p.

    Attributes:
        p: the probability, a float32 tensor without dimensions that keeps its place.

    Example:
        >>> settings = {"augment": "ada", "batch_size": 100, "ada_kimg": 1, "ada_interval": 1}
        >>> config = TrainConfig(out="run", **settings).resolved()
        >>> adaptive = AdaptiveProbability(config, torch.device("cpu"), Processes())
        >>> _ = adaptive.update(torch.tensor(0.9)), adaptive.update(torch.tensor(0.7))
        >>> adaptive.update(torch.tensor(0.5))["ada_p"].item() == adaptive.p.item()
        True
        >>> round(adaptive.p.item(), 4)  # up, up, down by 100 of 1000 images
        0.1
    """

    def __init__(self, config: TrainConfig, device: torch.device, processes: Processes) -> None:
        assert config.batch_size is not None
        self._target = config.ada_target
        self._interval = config.ada_interval
        self._amount = config.ada_interval * config.batch_size / (1000 * config.ada_kimg)
        self._decision = DECISIONS[config.loss]
        self._processes = processes
        # p; the sum of r since it was moved; of how many updates.
        self._state = torch.zeros(3, device=device)

    @property
    def p(self) -> Tensor:
        """The probability."""
        return self._state[0]

    def measure(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """r of these scores, a detached scalar."""
        decided = self._decision(real_scores.detach().float(), fake_scores.detach().float())
        # Scores of an update that overflows, and is left out, must not be p's for ever.
        return decided.sign().nan_to_num().mean()

    def update(self, r: Tensor) -> dict[str, Tensor]:
        """Counts an update of the discriminator, and moves p if it is time.

        Args:
            r: of :meth:`measure`, of this process's part of the batch.

        Returns:
            ``ada_p``.
        """
        p, total, count = self._state.unbind()
        total += self._processes.sum_(r.clone()) / self._processes.world_size
        count += 1
        due = count >= self._interval
        p += due * self._amount * (total / count - self._target).sign()
        p.clamp_(0, 1)
        self._state[1:] *= ~due
        return {"ada_p": p.clone()}

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint holds. Waits for the device."""
        return dict(zip(("p", "total", "count"), self._state.tolist(), strict=True))

    def load_state_dict(self, saved: Any) -> None:
        """Goes on from what :meth:`state_dict` gave.

        Raises:
            ValueError: something else.
        """
        found = saved if isinstance(saved, dict) else {}
        p, total, count = numbers = [found.get(name, math.nan) for name in ("p", "total", "count")]
        if not (
            all(type(each) is float for each in numbers)
            and 0 <= p <= 1
            and 0 <= count < self._interval
            and count == int(count)
            and abs(total) <= count
        ):
            raise ValueError("has no probability of augmentation, or one that can't be")
        self._state.copy_(torch.tensor(numbers))
