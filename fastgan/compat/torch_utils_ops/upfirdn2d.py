"""``upfirdn2d.upfirdn2d``, its filters, and centred filtering and resampling.

Formula and source: :mod:`fastgan.ops.upfirdn2d`. Everything is differentiable to any order in x.
``impl="ref"`` is plain PyTorch, any other fastgan's op, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops import upfirdn2d as _op
from fastgan.ops.conv2d_resample import centred
from fastgan.ops.conv2d_resample import four_sides as _parse_padding
from fastgan.reference import style_ops

__all__ = ["downsample2d", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]

Scaling = int | Sequence[int]

#: Some code imports it, and ``_parse_padding``, ``_parse_scaling`` and ``_init``.
_get_filter_size = _op.taps_of


def _init() -> bool:
    return True


def _parse_scaling(scaling: Scaling) -> tuple[int, int]:
    """(x, y) of one number or two.

    Raises:
        ConfigError: a number below 1, or other than two (a ValueError).
    """
    factors = [scaling] * 2 if isinstance(scaling, int) else list(scaling)
    if len(factors) != 2 or min(factors) < 1:
        raise ConfigError(f"scaling is {scaling}; expected a number from 1 on, or (x, y)")
    return int(factors[0]), int(factors[1])


def setup_filter(
    f: Any,
    device: torch.device | str = "cpu",
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1,
    separable: bool | None = None,
) -> Tensor:
    """A filter for the other functions, in float32.

    Args:
        f: taps: a tensor, an array or a list, of two dimensions or one, or a number; None for 1.
        device: the filter's device.
        normalize: divide by the sum of the taps.
        flip_filter: reverse their order.
        gain: factor of the filtered result.
        separable: whether a 1-d filter is applied along both axes, or becomes its outer product
            with itself. None: from 8 taps on.

    Returns:
        (rows, columns) or (taps,).

    Raises:
        ConfigError: more than two dimensions, no taps, or a separable filter of two (a ValueError).

    Example:
        >>> setup_filter([1, 1])
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
        >>> setup_filter(range(1, 9)).shape
        torch.Size([8])
    """
    taps = torch.as_tensor(1 if f is None else list(f) if isinstance(f, range) else f)
    taps = taps.to(torch.float32)
    if taps.dim() == 0:
        taps = taps[None]
    if taps.dim() > 2 or taps.numel() == 0 or (separable and taps.dim() == 2):
        raise ConfigError(
            f"f has shape {tuple(taps.shape)}; expected (taps,), or (rows, columns) if it isn't to "
            "be separable"
        )
    if separable is None:
        separable = taps.dim() == 1 and taps.numel() >= 8
    if taps.dim() == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        taps = taps / taps.sum()
    if flip_filter:
        taps = taps.flip(list(range(taps.dim())))
    return taps.mul(gain ** (taps.dim() / 2)).to(device)


def upfirdn2d(
    x: Tensor,
    f: Tensor | None,
    up: Scaling = 1,
    down: Scaling = 1,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Inserts zeros, pads, filters, and keeps every ``down``-th value.

    Args:
        x: (N, C, H, W).
        f: from :func:`setup_filter`, or None for 1.
        up: one number, or (x, y).
        down: one number, or (x, y).
        padding: of the upsampled image: one number, (x, y), or (x0, x1, y0, y1). Negative ones
            crop.
        flip_filter: False for a convolution, True for a correlation.
        gain: factor of the result.
        impl: see this module.

    Returns:
        (N, C, (H up_y + y0 + y1 - taps) // down_y + 1, and the width likewise).

    Example:
        >>> upfirdn2d(torch.ones(1, 1, 4, 4), setup_filter([1, 1]), down=2).shape
        torch.Size([1, 1, 2, 2])
    """
    function = style_ops.upfirdn2d if impl == "ref" else _op.upfirdn2d
    return function(
        x,
        f,
        _parse_scaling(up),
        _parse_scaling(down),
        _parse_padding(padding),
        flip_filter,
        float(gain),
    )


def filter2d(
    x: Tensor,
    f: Tensor | None,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Filters images; keeps the size if ``padding`` is 0.

    Args:
        x: as in :func:`upfirdn2d`, and so the rest.
        f: the filter.
        padding: added to the padding that keeps the size.
        flip_filter: see there.
        gain: see there.
        impl: see there.

    Example:
        >>> filter2d(torch.ones(1, 1, 4, 4), setup_filter([1, 2, 1])).shape
        torch.Size([1, 1, 4, 4])
    """
    sides = centred(_parse_padding(padding), f)
    return upfirdn2d(x, f, padding=sides, flip_filter=flip_filter, gain=gain, impl=impl)


def upsample2d(
    x: Tensor,
    f: Tensor | None,
    up: Scaling = 2,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Upsamples images: ``up`` times the size if ``padding`` is 0; the gain is times up_x up_y.

    Args:
        x: as in :func:`upfirdn2d`, and so the rest.
        f: the filter.
        up: one number, or (x, y).
        padding: added to what keeps the image centred.
        flip_filter: see there.
        gain: see there.
        impl: see there.

    Example:
        >>> upsample2d(torch.ones(1, 1, 4, 4), setup_filter([1, 3, 3, 1])).shape
        torch.Size([1, 1, 8, 8])
    """
    up_x, up_y = _parse_scaling(up)
    sides = centred(_parse_padding(padding), f, up=(up_x, up_y))
    return upfirdn2d(x, f, (up_x, up_y), 1, sides, flip_filter, gain * up_x * up_y, impl)


def downsample2d(
    x: Tensor,
    f: Tensor | None,
    down: Scaling = 2,
    padding: Scaling = 0,
    flip_filter: bool = False,
    gain: float = 1,
    impl: str = "cuda",
) -> Tensor:
    """Downsamples images: the size divided by ``down`` if ``padding`` is 0.

    Args:
        x: as in :func:`upfirdn2d`, and so the rest.
        f: the filter.
        down: one number, or (x, y).
        padding: added to what keeps the image centred.
        flip_filter: see there.
        gain: see there.
        impl: see there.

    Example:
        >>> downsample2d(torch.ones(1, 1, 8, 8), setup_filter([1, 3, 3, 1])).shape
        torch.Size([1, 1, 4, 4])
    """
    factors = _parse_scaling(down)
    sides = centred(_parse_padding(padding), f, down=factors)
    return upfirdn2d(x, f, 1, factors, sides, flip_filter, gain, impl)
