"""``upfirdn2d`` with the arguments of code with its ops in ``op``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastgan.compat.torch_utils_ops import upfirdn2d as _of_torch_utils
from fastgan.errors import ConfigError

__all__ = ["upfirdn2d"]


def upfirdn2d(
    input: Tensor,
    kernel: Tensor,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    pad: Sequence[int] = (0, 0),
) -> Tensor:
    """Inserts zeros, pads, convolves with ``kernel``, and keeps every ``down``-th value.

    Args:
        input: (N, C, H, W).
        kernel: (rows, columns).
        up: one number, or (x, y).
        down: one number, or (x, y).
        pad: (before, after) along both axes, or (x0, x1, y0, y1). Negative ones crop.

    Raises:
        ConfigError: ``pad`` has another length (a ValueError).

    Example:
        >>> import torch
        >>> upfirdn2d(torch.ones(1, 1, 4, 4), torch.ones(2, 2) / 4, up=2, pad=(1, 0)).shape
        torch.Size([1, 1, 8, 8])
    """
    if len(pad) not in (2, 4):
        raise ConfigError(f"pad is {pad}; expected (before, after) or (x0, x1, y0, y1)")
    sides = (*pad, *pad) if len(pad) == 2 else pad
    return _of_torch_utils.upfirdn2d(input, kernel, up, down, sides)
