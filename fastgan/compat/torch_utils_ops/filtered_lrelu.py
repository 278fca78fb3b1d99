"""``filtered_lrelu.filtered_lrelu``: see :mod:`fastgan.ops.filtered_lrelu`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastgan.ops import filtered_lrelu as _op
from fastgan.ops.conv2d_resample import four_sides
from fastgan.reference import style_ops

__all__ = ["filtered_lrelu"]


def _init() -> bool:
    return True


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None = None,
    fd: Tensor | None = None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int | Sequence[int] = 0,
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
    impl: str = "cuda",
) -> Tensor:
    """Bias, upsampling with gain up^2, leaky ReLU times gain, clamp, downsampling.

    Differentiable to any order in x and b.

    Args:
        x: (N, C, H, W).
        fu: upsampling filter, from ``upfirdn2d.setup_filter``; None for 1.
        fd: downsampling filter.
        b: (C,), or None for 0.
        up: upsampling factor.
        down: downsampling factor.
        padding: of the upsampled image: one number, (x, y), or (x0, x1, y0, y1). Negative ones
            crop.
        gain: factor of the leaky ReLU.
        slope: of the leaky ReLU below zero.
        clamp: largest magnitude after the leaky ReLU; None for no bound.
        flip_filter: correlate instead of convolve.
        impl: "ref" for plain PyTorch; any other for fastgan's op, on any device.

    Returns:
        (N, C, rows, columns).

    Example:
        >>> import torch
        >>> f = torch.ones(12) / 12
        >>> filtered_lrelu(torch.ones(1, 2, 8, 8), f, f, up=2, down=2, padding=[11, 10] * 2).shape
        torch.Size([1, 2, 8, 8])
    """
    function = style_ops.filtered_lrelu if impl == "ref" else _op.filtered_lrelu
    return function(x, fu, fd, b, up, down, four_sides(padding), gain, slope, clamp, flip_filter)
