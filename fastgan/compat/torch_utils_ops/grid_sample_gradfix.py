"""``grid_sample_gradfix.grid_sample``: see :mod:`fastgan.ops.grid_sample`.

Attributes:
    enabled: whether it is fastgan's (the default) or torch's. Assign to change it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import grid_sample as _op

__all__ = ["enabled", "grid_sample"]

enabled = True


def grid_sample(input: Tensor, grid: Tensor) -> Tensor:
    """Samples images bilinearly at a grid's positions, zero outside.

    Example:
        >>> import torch
        >>> grid_sample(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1, 2))
        tensor([[[[1.]]]])
    """
    if enabled:
        return _op.grid_sample(input, grid)
    return F.grid_sample(input, grid, "bilinear", "zeros", align_corners=False)
