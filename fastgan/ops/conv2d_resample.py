"""``conv2d_resample``: a convolution between FIR-filtered upsampling and downsampling.

::

    y = downsample(conv(upsample(pad(x), f), w), f)

of StyleGAN2 (Karras et al. 2019, arXiv 1912.04958). The filter is the same for every channel and
commutes with the convolution, which allows less work::

    up      a transposed convolution of stride ``up``, then the filter
    down    the filter, then a convolution of stride ``down``
    1x1     at the fewest pixels: before upsampling, after downsampling

Order of gradients supported: any, in x and w.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.convolution import conv2d, conv_transpose2d
from fastgan.ops.memory_format import is_channels_last, laid_out
from fastgan.ops.registration import calls_its_function, is_transformed
from fastgan.ops.upfirdn2d import taps_of, upfirdn2d
from fastgan.ops.winograd import CHANNELS

Padding = int | Sequence[int]


def four_sides(padding: Padding) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) from one number, (x, y) or all four.

    Raises:
        ConfigError: any other number of numbers (a ValueError).

    Example:
        >>> four_sides(1), four_sides((1, 2)), four_sides([1, 2, 3, 4])
        ((1, 1, 1, 1), (1, 1, 2, 2), (1, 2, 3, 4))
    """
    sides = [padding] * 4 if isinstance(padding, int) else list(padding)
    if len(sides) == 2:
        sides = [sides[0], sides[0], sides[1], sides[1]]
    if len(sides) != 4:
        raise ConfigError(f"padding is {padding}; expected a number, or 2 or 4 of them")
    x0, x1, y0, y1 = map(int, sides)
    return x0, x1, y0, y1


def centred(
    sides: Sequence[int], f: Tensor | None, up: Sequence[int] = (1, 1), down: Sequence[int] = (1, 1)
) -> tuple[int, int, int, int]:
    """Padding that keeps an image centred after resampling with a filter.

    Args:
        sides: (x0, x1, y0, y1).
        f: the filter.
        up: (x, y); 1 if ``down`` isn't.
        down: (x, y).

    Example:
        >>> import torch
        >>> centred((0, 0, 0, 0), torch.ones(4), up=(2, 2))
        (2, 1, 2, 1)
    """
    x0, x1, y0, y1 = sides
    (taps_x, taps_y), (up_x, up_y), (down_x, down_y) = taps_of(f), up, down
    return (
        x0 + (taps_x + up_x - down_x) // 2,
        x1 + (taps_x - max(up_x, down_x)) // 2,
        y0 + (taps_y + up_y - down_y) // 2,
        y1 + (taps_y - max(up_y, down_y)) // 2,
    )


def conv2d_resample(
    x: Tensor,
    w: Tensor,
    f: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: Padding = 0,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """Upsamples, convolves and downsamples images.

    Args:
        x: (N, C, H, W); float64, float32, float16 or bfloat16.
        w: (C_out, C / groups, kh, kw), of x's dtype.
        f: filter of both resamplings, as in :func:`fastgan.ops.upfirdn2d.upfirdn2d`; None for none.
        up: upsampling factor.
        down: downsampling factor.
        padding: of the upsampled image: one number, (x, y), or (x0, x1, y0, y1). The filter's
            centring is added.
        groups: of the convolution.
        flip_weight: True for torch's convolution (correlation), False for a true convolution.
        flip_filter: as in ``upfirdn2d``.

    Returns:
        (N, C_out, H', W').

    Raises:
        ConfigError: a factor below 1, or a wrong padding (a ValueError).
        RuntimeError: shapes or dtypes that torch's convolution refuses.

    Example:
        >>> import torch
        >>> x, w, f = torch.ones(1, 2, 8, 8), torch.ones(3, 2, 3, 3), torch.ones(4, 4) / 16
        >>> conv2d_resample(x, w, f, up=2, padding=1).shape
        torch.Size([1, 3, 16, 16])
    """
    return resampled(
        conv2d, conv_transpose2d, x, w, f, up, down, padding, groups, flip_weight, flip_filter
    )


def resampled(
    conv2d: Callable[..., Tensor],
    conv_transpose2d: Callable[..., Tensor],
    x: Tensor,
    w: Tensor,
    f: Tensor | None,
    up: int,
    down: int,
    padding: Padding,
    groups: int = 1,
    flip_weight: bool = True,
    flip_filter: bool = False,
) -> Tensor:
    """:func:`conv2d_resample` by given convolutions, of which one runs."""
    if min(up, down) < 1:
        raise ConfigError(f"up is {up}, down is {down}; expected numbers from 1 on")
    sides, one, factors = four_sides(padding), (1, 1), (down, down)
    if up > 1:
        sides = centred(sides, f, up=(up, up))
    if down > 1:
        sides = centred(sides, f, down=factors)
    x0, x1, y0, y1 = sides
    rows, columns = w.shape[2:]
    # The weight for torch's convolution, and for its transpose.
    correlated = w if flip_weight else w.flip([2, 3])
    if (rows, columns) == one and min(up, down) == 1:
        if down > 1:
            x = upfirdn2d(x, f, one, factors, sides, flip_filter)
            return conv2d(x, correlated, groups=groups)
        if up > 1:
            x = conv2d(x, correlated, groups=groups)
            return upfirdn2d(x, f, (up, up), one, sides, flip_filter, up * up)
    if up > 1:
        transposed = w.flip([2, 3]) if flip_weight else w
        if groups > 1:
            transposed = transposed.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        else:
            transposed = transposed.transpose(0, 1)
        sides = (x0 - columns + 1, x1 - columns + up, y0 - rows + 1, y1 - rows + up)
        # Pixels that would be cropped aren't computed.
        cut_x, cut_y = max(min(-sides[0], -sides[1]), 0), max(min(-sides[2], -sides[3]), 0)
        channels_last = _is_faster_channels_last(x, transposed)
        if channels_last:
            transposed = laid_out(transposed, True)
        x = conv_transpose2d(x, transposed, stride=up, padding=(cut_y, cut_x), groups=groups)
        sides = (sides[0] + cut_x, sides[1] + cut_x, sides[2] + cut_y, sides[3] + cut_y)
        x = upfirdn2d(x, f, one, one, sides, flip_filter, up * up)
        if channels_last:
            x = laid_out(x, False)
        return x if down == 1 else upfirdn2d(x, f, one, factors, flip_filter=flip_filter)
    if down > 1:
        x = upfirdn2d(x, f, one, one, sides, flip_filter)
        return conv2d(x, correlated, stride=down, groups=groups)
    if x0 == x1 >= 0 and y0 == y1 >= 0:
        return conv2d(x, correlated, padding=(y0, x0), groups=groups)
    return conv2d(F.pad(x, list(sides)), correlated, groups=groups)


def _is_faster_channels_last(x: Tensor, w: Tensor) -> bool:
    """Whether a contiguous x's convolution and filter save more channels-last than a copy takes.

    True where CPU kernels of our own run them, and nothing records or transforms the copies.
    """
    return (
        x.is_cpu
        and x.dtype == torch.float32
        and not is_channels_last(x)
        and all(channels % CHANNELS == 0 for channels in w.shape[:2])
        and calls_its_function(x)
        and not (torch.is_grad_enabled() and (x.requires_grad or w.requires_grad))
        and torch._C._get_tracing_state() is None
        and not is_transformed("upfirdn2d")
    )
