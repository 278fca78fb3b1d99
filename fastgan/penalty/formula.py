"""The penalty as a function of each sample's gradient, and its derivative by that gradient.

    P = weight * mean_n (||g_n|| - target)^2            sided="one": only where ||g_n|| > target
    dP/dg_n = (2 weight / N) (||g_n|| - target) g_n / ||g_n||                 0 where ||g_n|| = 0

Everything here is float32 or float64, whatever dtype the critic uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import fastgan.ops.penalty_tangent  # noqa: F401 - defines the op that is called here
from fastgan.losses import at_least_float32
from fastgan.penalty.rule import wide


@dataclass(frozen=True)
class Formula:
    """Settings of the penalty.

    Attributes:
        weight: the penalty's factor.
        target: the norm at which the penalty is zero.
        one_sided: whether only norms above the target are penalised.
    """

    weight: float
    target: float
    one_sided: bool

    def value(self, gradient: Tensor) -> Tensor:
        """P of g, (N, ...), differentiable to any order."""
        elements = tuple(range(1, gradient.dim()))
        squared_norm = at_least_float32(gradient).square().sum(dim=elements)
        if self.target == 0:
            # Without the root, no derivative is singular at zero.
            return self.weight * squared_norm.mean()
        excess = _safe_root(squared_norm) - self.target
        if self.one_sided:
            excess = excess.relu()
        return self.weight * excess.square().mean()

    def value_and_tangent(self, gradient: Tensor, out: Tensor) -> Tensor:
        """P of g, (N, ...), and N dP/dg, written to ``out``; neither has a graph.

        The factor N keeps a large batch's tangents in half precision's range. ``out`` has g's
        shape; each sample's elements must be dense in memory.
        """
        dtypes = (gradient.dtype, out.dtype)
        if gradient.dtype != out.dtype and (torch.float64 in dtypes or torch.float32 not in dtypes):
            # The critic casts its images; the op supports only half to float32 and back.
            gradient = gradient.to(torch.float64 if out.dtype == torch.float64 else torch.float32)
        if gradient.stride() != out.stride():
            gradient = torch.empty_like(out, dtype=gradient.dtype).copy_(gradient)
        numbers = torch.empty(gradient.size(0) + 1, dtype=wide(gradient), device=gradient.device)
        norms, value = numbers[1:], numbers[:1]
        torch.ops.fastgan.penalty_tangent_.default(
            gradient, out, norms, value, self.weight, self.target, self.one_sided
        )
        return value.view(())


def _safe_root(squared: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0 in every order (sqrt alone gives inf, then NaN)."""
    is_zero = squared == 0
    return squared.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)
