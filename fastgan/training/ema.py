"""The generator's exponential moving average, used for samples."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class ExponentialMovingAverage:
    """Keeps ``average = decay * average + (1 - decay) * value`` of a module's parameters.

    Early on the decay is ``min(decay, (1 + t) / (10 + t))`` after ``t`` updates, so that the random
    initial weights are forgotten quickly. Buffers (batch norm's running statistics, which are
    averages already) are copied.

    On a CUDA device the device counts the updates, so that CUDA graphs can contain them.

    Args:
        module: the module to follow.
        decay: from 0 to below 1.
        updates: the number of earlier updates.

    Attributes:
        module: a copy of the module in eval mode, with the average.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> average = ExponentialMovingAverage(layer, decay=0.9)
        >>> average.update(layer)
        >>> average.module.weight.requires_grad
        False
    """

    def __init__(self, module: nn.Module, decay: float, updates: int = 0) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._averaged: list[Tensor] = list(self.module.parameters())
        self._buffers: list[Tensor] = list(self.module.buffers())
        device = self._averaged[0].device
        self._updates: Tensor | int = updates
        if device.type == "cuda":
            self._updates = torch.full((), updates, dtype=torch.float32, device=device)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Updates the average after an update of the parameters."""
        self._updates += 1
        weights: list[Tensor] = list(module.parameters())
        if isinstance(self._updates, Tensor):
            share = 1 - ((1 + self._updates) / (10 + self._updates)).clamp(max=self.decay)
            change = torch._foreach_sub(weights, self._averaged)
            torch._foreach_mul_(change, share)
            torch._foreach_add_(self._averaged, change)
        else:
            decay = min(self.decay, (1 + self._updates) / (10 + self._updates))
            torch._foreach_lerp_(self._averaged, weights, 1 - decay)
        if self._buffers:
            torch._foreach_copy_(self._buffers, list(module.buffers()))
