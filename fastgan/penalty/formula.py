"""The penalty as a function of each sample's gradient, and its derivative in that gradient.

    P = weight * mean_n (||g_n|| - target)^2            sided="one": only where ||g_n|| > target
    dP/dg_n = (2 weight / N) (||g_n|| - target) g_n / ||g_n||                 0 where ||g_n|| = 0

Everything here is float32 or wider, whatever the critic computes in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgan.losses import widened

__all__ = ["Formula"]


@dataclass(frozen=True)
class Formula:
    """What is asked of the norms.

    Attributes:
        weight: the penalty's factor.
        target: the norm that isn't penalised.
        one_sided: whether smaller norms aren't penalised either.
    """

    weight: float
    target: float
    one_sided: bool

    def value(self, gradient: Tensor) -> Tensor:
        """P, differentiable to any order.

        Args:
            gradient: g, (N, ...).
        """
        elements = tuple(range(1, gradient.dim()))
        squared_norm = widened(gradient).square().sum(dim=elements)
        if self.target == 0:
            # Without the root nothing is singular at zero, in any order of derivative.
            return self.weight * squared_norm.mean()
        excess = _safe_root(squared_norm) - self.target
        if self.one_sided:
            excess = excess.relu()
        return self.weight * excess.square().mean()

    def value_and_tangent(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """P, and N dP/dg in ``gradient``'s shape; neither carries a graph.

        The factor N keeps the tangents of a large batch within a half-precision number's range.
        """
        elements = tuple(range(1, gradient.dim()))
        gradient = widened(gradient)
        norm = torch.linalg.vector_norm(gradient, dim=elements)
        if self.target == 0:
            excess = norm
            slope = torch.ones_like(norm)
        else:
            excess = norm - self.target
            if self.one_sided:
                excess = excess.relu()
            slope = torch.where(norm == 0, 0, excess / norm)
        value = self.weight * excess.square().mean()
        factor = (2 * self.weight * slope).view(-1, *[1] * len(elements))
        return value, gradient * factor


def _safe_root(squared: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0 in every order (sqrt alone gives inf, then NaN)."""
    is_zero = squared == 0
    return squared.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)
