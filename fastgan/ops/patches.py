"""``torch.ops.fastgan.patch_scatter``: a convolution whose output is an image, on CPUs.

::

    wide = conv_transpose2d(small, weight, bias, stride, padding)

``small`` (N, O, h, w) and ``weight`` (O, C, kH, kW) of float32 or bfloat16, O a multiple of 16 and
C * kH * kW at most 64; ``bias`` (C,) of either dtype or None. ``wide`` is (N, C, rows, columns).
Channels-last arguments are fastest. ``channels_last`` sets the layout of ``wide``; None is that of
torch's convolution (:mod:`fastgan.ops.memory_format`). Sums are float32. Formula:
``csrc/cpu/patches.h``. The kernel is for CPUs; otherwise torch's convolution runs.

Order of gradients supported: none. It raises if autograd would have to record it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.define import define_op
from fastgan.ops.memory_format import empty_map, gives_channels_last

#: ``small``'s channels must be a multiple of the first; a patch has at most the second's values.
CHANNELS, PATCH_SIZE = 16, 64
_DTYPES = (torch.float32, torch.bfloat16)


def _left_over(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    places: tuple[int, int],
) -> tuple[int, ...]:
    """Checks all arguments; returns the output padding for ``wide``'s size."""
    if small.dtype not in _DTYPES or weight.dtype != small.dtype:
        raise RuntimeError(
            f"fastgan::patch_scatter: dtypes {small.dtype} and {weight.dtype}; expected float32 or "
            "bfloat16, the same for both"
        )
    if small.dim() != 4:
        raise RuntimeError(
            f"fastgan::patch_scatter: small has shape {tuple(small.shape)}; expected four "
            "dimensions"
        )
    if small.shape[1] < 1 or small.shape[1] % CHANNELS != 0:
        raise RuntimeError(
            f"fastgan::patch_scatter: small has {small.shape[1]} channels; expected a multiple of "
            f"{CHANNELS}"
        )
    if (
        weight.dim() != 4
        or len(weight) != small.shape[1]
        or not 1 <= weight[0].numel() <= PATCH_SIZE
    ):
        raise RuntimeError(
            f"fastgan::patch_scatter: weight has shape {tuple(weight.shape)}; expected "
            f"({small.shape[1]}, C, kH, kW) with C * kH * kW at most {PATCH_SIZE}"
        )
    if bias is not None and tuple(bias.shape) != (weight.shape[1],):
        shape = ", ".join(map(str, bias.shape))
        raise RuntimeError(
            f"fastgan::patch_scatter: bias has shape ({shape}); expected ({weight.shape[1]})"
        )
    if bias is not None and bias.dtype not in _DTYPES:
        raise RuntimeError(
            f"fastgan::patch_scatter: bias has dtype {bias.dtype}; expected float32 or bfloat16"
        )
    left_over = tuple(
        wide + 2 * added - taps - step * (few - 1)
        for wide, added, taps, step, few in zip(
            places, padding, weight.shape[2:], stride, small.shape[2:], strict=True
        )
    )
    fit = all(0 <= rest < step for rest, step in zip(left_over, stride, strict=True))
    if not fit or min(*small.shape[2:], *places) < 1 or min(padding) < 0:
        raise RuntimeError(
            f"fastgan::patch_scatter: places {tuple(small.shape[2:])} and {places} do not belong "
            f"together at padding {padding}, stride {stride} and {tuple(weight.shape[2:])} taps"
        )
    return left_over


def _empty(
    small: Tensor, weight: Tensor, places: tuple[int, int], channels_last: bool | None
) -> Tensor:
    if channels_last is None:
        channels_last = gives_channels_last(small, weight)
    return empty_map(small, (len(small), weight.shape[1], *places), channels_last)


def _examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in _DTYPES:
        small = torch.randn(3, 96, 5, 7, generator=generator).to(dtype)
        weight = torch.randn(96, 3, 4, 4, generator=generator).to(dtype)
        bias = torch.randn(3, generator=generator)
        yield small, weight, bias, 2, 2, 1, 1, 10, 14


@define_op(
    "patch_scatter(Tensor small, Tensor weight, Tensor? bias, int row_stride, int column_stride, "
    "int row_padding, int column_padding, int rows, int columns, bool? channels_last=None) "
    "-> Tensor",
    examples=_examples,
    exact=torch.float32,
)
def patch_scatter(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_stride: int,
    column_stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
    channels_last: bool | None = None,
) -> Tensor:
    """As torch's transposed convolution."""
    stride, padding = (row_stride, column_stride), (row_padding, column_padding)
    left_over = _left_over(small, weight, bias, stride, padding, (rows, columns))
    bias = None if bias is None else bias.to(small.dtype)
    wide = F.conv_transpose2d(
        small, weight, bias, stride=stride, padding=padding, output_padding=left_over
    )
    return _empty(small, weight, (rows, columns), channels_last).copy_(wide)
