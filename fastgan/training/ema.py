"""The generator's exponential moving average, which samples are drawn from."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * value`` of a module's parameters.

    Early on the decay is ``min(decay, (1 + t) / (10 + t))`` after ``t`` updates, so that the
    random initial weights are forgotten at once. Buffers (batch norm's running statistics,
    averages already) are copied.

    Args:
        module: the module to follow.
        decay: from 0 to below 1.

    Attributes:
        module: a copy of the module in eval mode that holds the average.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> average = ExponentialMovingAverage(layer, decay=0.9)
        >>> average.update(layer, step=1)
        >>> average.module.weight.requires_grad
        False
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._averaged: list[Tensor] = list(self.module.parameters())

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Takes in the parameters after update number ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, list(module.parameters()), 1 - decay)
        for averaged, buffer in zip(self.module.buffers(), module.buffers(), strict=True):
            averaged.copy_(buffer)
