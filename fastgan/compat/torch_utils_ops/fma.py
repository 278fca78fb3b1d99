"""``fma.fma``: a product and a sum in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["fma"]


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c``, with broadcasting; differentiable to any order.

    Example:
        >>> fma(torch.tensor([2.0, 3.0]), torch.tensor(4.0), torch.tensor(1.0))
        tensor([ 9., 13.])
    """
    return torch.addcmul(c, a, b)
