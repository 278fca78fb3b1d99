"""``filtered_lrelu``: a leaky ReLU between upsampling and downsampling, which aliases less.

::

    u = upfirdn2d(x + b, fu, up=up, padding=padding, gain=up^2)
    v = clamp(gain * leaky_relu(u, slope), -clamp, clamp)
    y = upfirdn2d(v, fd, down=down)

of StyleGAN3 (Karras et al. 2021, arXiv 2106.12423).

Order of gradients supported: any, in x and b.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastgan.ops.bias_act import bias_act
from fastgan.ops.upfirdn2d import upfirdn2d

__all__ = ["filtered_lrelu"]


def filtered_lrelu(
    x: Tensor,
    fu: Tensor | None,
    fd: Tensor | None,
    b: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    gain: float = 2**0.5,
    slope: float = 0.2,
    clamp: float | None = None,
    flip_filter: bool = False,
) -> Tensor:
    """Bias, upsampling, leaky ReLU, clamp and downsampling.

    Args:
        x: (N, C, H, W); float64, float32, float16 or bfloat16.
        fu: the filter of upsampling, as f of :func:`fastgan.ops.upfirdn2d.upfirdn2d`.
        fd: the filter of downsampling, likewise.
        b: (C,); None for 0.
        up: how many places each value becomes, along both axes.
        down: of how many places one is kept, along both axes.
        padding: (x0, x1, y0, y1), in places after upsampling; negative ones crop.
        gain: factor of the leaky ReLU.
        slope: of the leaky ReLU at negative values.
        clamp: the largest magnitude behind the leaky ReLU; None for no bound.
        flip_filter: correlate instead of convolve.

    Returns:
        (N, C, rows, columns), in the dtype and memory format of x.

    Raises:
        ConfigError: an argument doesn't fit, or the result would be empty (a ValueError).

    Example:
        >>> import torch
        >>> x, f = torch.randn(1, 2, 8, 8), torch.ones(12) / 12
        >>> filtered_lrelu(x, f, f, up=2, down=2, padding=(11, 10, 11, 10)).shape
        torch.Size([1, 2, 8, 8])
    """
    x = bias_act(x, b)
    x = upfirdn2d(x, fu, (up, up), (1, 1), padding, flip_filter, gain=up**2)
    x = bias_act(x, act="lrelu", alpha=slope, gain=gain, clamp=clamp)
    return upfirdn2d(x, fd, (1, 1), (down, down), flip_filter=flip_filter)
