"""The probability of ADA's augmentations, controlled by the discriminator's overfitting.

Karras et al. 2020, arXiv 2006.06676, section 3. A discriminator that memorises its training images
is surer of them than of new ones, which is measured by

    r = E[sign D(x)],    x augmented real images, D > 0 for "real",

0 for a guessing discriminator and 1 for one that is always right. Every ``ada_interval`` updates of
the discriminator, p rises by a fixed amount if the mean r since the last time is above
``ada_target``, otherwise falls, within [0, 1]; p could rise from 0 to 1 within ``ada_kimg``
thousand images.
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

DECISIONS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = types.MappingProxyType(
    {
        "bce": lambda real, fake: real,
        "hinge": lambda real, fake: real,
        # Targets are 1 for reals and 0 for generated images.
        "least-squares": lambda real, fake: real - 0.5,
        # It compares pairs, so a constant added to all scores has no effect.
        "relativistic": lambda real, fake: real - fake,
    }
)
"""Loss -> function of real and generated scores, above 0 if real images are classified as real. A
Wasserstein critic doesn't classify, and has none."""


class AdaptiveProbability:
    """The probability p, read and updated without waiting for the device.

    Args:
        config: resolved settings.
        device: p's device.
        processes: the processes that share each batch; all have the same p.

    Attributes:
        p: the probability, a 0-d float32 tensor, updated in place.

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
        # p; the sum of r since its last change; the number of updates.
        self._state = torch.zeros(3, device=device)

    @property
    def p(self) -> Tensor:
        """The probability."""
        return self._state[0]

    def measure(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """r of these scores, a detached scalar."""
        decided = self._decision(real_scores.detach().float(), fake_scores.detach().float())
        # An overflow in a skipped update must not make p NaN for ever.
        return decided.sign().nan_to_num().mean()

    def update(self, r: Tensor) -> dict[str, Tensor]:
        """Counts an update of the discriminator, and changes p if it is time.

        Args:
            r: from :meth:`measure`, for this process's part of the batch.

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
        """State for a checkpoint. Waits for the device."""
        return dict(zip(("p", "total", "count"), self._state.tolist(), strict=True))

    def load_state_dict(self, saved: Any) -> None:
        """Restores a :meth:`state_dict`.

        Raises:
            ValueError: it isn't such a state.
        """
        state = saved if isinstance(saved, dict) else {}
        p, total, count = numbers = [state.get(name, math.nan) for name in ("p", "total", "count")]
        if not (
            all(type(number) is float for number in numbers)
            and 0 <= p <= 1
            and 0 <= count < self._interval
            and count == int(count)
            and abs(total) <= count
        ):
            raise ValueError("has no probability of augmentation, or one that can't be")
        self._state.copy_(torch.tensor(numbers))
