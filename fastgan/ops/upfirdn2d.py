"""``upfirdn2d``: insert zeros, pad, filter and decimate images.

::

    v[y * up_y + pad_y0, x * up_x + pad_x0] = input[y, x],    zero elsewhere
    w[y, x] = gain * sum_{i, j} v[y + i, x + j] * f[fh - 1 - i, fw - 1 - j]
    output[y, x] = w[y * down_y, x * down_x]

for each map of (N, C, H, W): a true convolution, unless the filter is flipped. Negative padding
crops. The output has ``(H * up_y + pad_y0 + pad_y1 - fh) // down_y + 1`` rows. A filter of one
dimension is used along both, one after the other. Source: Karras et al. 2019, arXiv 1912.04958.

Order of gradients supported: any.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.memory_format import is_channels_last

__all__ = ["upfirdn2d"]


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Sequence[int] = (1, 1),
    down: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    flip_filter: bool = False,
    gain: float = 1.0,
) -> Tensor:
    """Pads, upsamples, filters and downsamples images.

    Args:
        x: (N, C, H, W); float64, float32, float16 or bfloat16.
        f: (taps,) or (rows, columns); None for a single tap of 1.
        up: (x, y): of each value, this many places are made; the others are zero.
        down: (x, y): of so many results one is kept.
        padding: (x0, x1, y0, y1), in places after upsampling; negative ones crop.
        flip_filter: correlate instead of convolve.
        gain: factor of the result.

    Returns:
        (N, C, rows, columns), in the dtype and memory format of x.

    Raises:
        ConfigError: an argument doesn't fit, or the result would be empty (a ValueError).

    Example:
        >>> upfirdn2d(torch.ones(1, 1, 2, 2), torch.ones(2), up=(2, 2), padding=(1, 0, 1, 0)).shape
        torch.Size([1, 1, 4, 4])
    """
    if x.dim() != 4:
        raise ConfigError(f"x has shape {tuple(x.shape)}; expected (N, C, H, W)")
    if f is not None and (f.dim() not in (1, 2) or f.numel() == 0):
        raise ConfigError(f"f has shape {tuple(f.shape)}; expected (taps,) or (rows, columns)")
    (up_x, up_y), (down_x, down_y), (x0, x1, y0, y1) = up, down, padding
    if min(up_x, up_y, down_x, down_y) < 1:
        raise ConfigError(f"up is {tuple(up)}, down is {tuple(down)}; expected numbers from 1 on")
    taps = (1, 1) if f is None else (f.shape[-1], f.shape[0])
    for size, factor, before, after, length in (
        (x.shape[3], up_x, x0, x1, taps[0]),
        (x.shape[2], up_y, y0, y1, taps[1]),
    ):
        if size * factor + before + after < length:
            raise ConfigError(
                f"a filter of {length} taps is longer than {size} * {factor} + {before} + {after} "
                "values"
            )
    batch, channels, height, width = x.shape
    output = F.pad(
        x.reshape(batch, channels, height, 1, width, 1), [0, up_x - 1, 0, 0, 0, up_y - 1]
    ).reshape(batch, channels, height * up_y, width * up_x)
    output = F.pad(output, [x0, x1, y0, y1])
    if f is None:
        output = output * gain if gain != 1 else output
    else:
        taps_of_one = (f * gain ** (f.dim() / 2)).to(x.dtype)
        taps_of_one = taps_of_one if flip_filter else taps_of_one.flip(list(range(f.dim())))
        kernel = taps_of_one.expand(channels, 1, *taps_of_one.shape)
        if f.dim() == 2:
            output = F.conv2d(output, kernel, groups=channels)
        else:
            output = F.conv2d(output, kernel.unsqueeze(2), groups=channels)
            output = F.conv2d(output, kernel.unsqueeze(3), groups=channels)
    output = output[:, :, ::down_y, ::down_x]
    format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return output.contiguous(memory_format=format)
