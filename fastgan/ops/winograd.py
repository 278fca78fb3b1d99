"""``torch.ops.fastgan.winograd_gather``, ``winograd_scatter`` and ``winograd_weight_gradient``.

Convolutions with fewer products, on CPUs. Of 3x3 taps and stride 1 16 in place of 36, of 4x4 taps
and stride 2 36 in place of 64, of 5x5 taps and stride 2 49 in place of 100::

    gather            small = conv2d(wide, weight, bias, stride, padding)
    scatter           wide  = conv_transpose2d(small, weight, bias, stride, padding)
    weight gradient   of either's weight, given the two maps, one of them a gradient

``wide`` (N, C, H, W), ``small`` (N, O, h, w), ``weight`` (O, C, taps, taps), of float32 or
bfloat16, C and O multiples of 32; ``bias`` of either dtype or None. ``rows`` and ``columns`` are
those of the output, where H + 2 * padding is (h - 1) * stride + taps, or less than `stride` more.
Sums are taken in float32. Arguments are channels-last at best. Maps are laid out as torch's
convolution lays them out (:mod:`fastgan.ops.memory_format`), which costs a copy where both
arguments are contiguous; a weight's gradient is channels-last. Formulas: ``csrc/cpu/winograd.h``,
after Winograd 1980 and Lavin and Gray 2016 (arXiv 1509.09308). Kernels for the CPU alone;
elsewhere, and without a compiled part, torch's convolutions.

Order of gradients supported: none. They raise where autograd would have to record them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fastgan.errors import FastganError
from fastgan.ops.memory_format import empty_map, gives_channels_last
from fastgan.ops.registration import NAMESPACE, define_if_absent, register_fallback
from fastgan.ops.without_gradient import register_without_gradient

__all__ = [
    "CHANNELS",
    "PRODUCTS",
    "SCHEMAS",
    "check_gather",
    "check_scatter",
    "check_weight_gradient",
]

#: What counts of channels must be multiples of.
CHANNELS = 32

#: (taps, stride) -> the products for 2x2 places of the small map; the formula has 4 * taps**2.
PRODUCTS = {(3, 1): 16, (4, 2): 36, (5, 2): 49}

#: As in csrc/convolution_ops.cpp.
SCHEMAS = (
    "winograd_gather(Tensor wide, Tensor weight, Tensor? bias, int stride, int row_padding, "
    "int column_padding, int rows, int columns) -> Tensor",
    "winograd_scatter(Tensor small, Tensor weight, Tensor? bias, int stride, int row_padding, "
    "int column_padding, int rows, int columns) -> Tensor",
    "winograd_weight_gradient(Tensor small, Tensor wide, int taps, int stride, "
    "int row_padding, int column_padding) -> Tensor",
)

_DTYPES = (torch.float32, torch.bfloat16)


def _check_arguments(
    op: str,
    small: tuple[int, ...],
    wide: tuple[int, ...],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    first: Tensor,
    second: Tensor,
) -> None:
    """Of the two maps' shapes, (N, channels, rows, columns), taps and stride, and tensors given."""
    taps, stride = kernel
    if not any(kernel == each for each in PRODUCTS):  # not hashed: they may be symbols
        raise RuntimeError(
            f"fastgan::{op}: {taps} by {taps} taps and stride {stride}; expected 3 and 1, 4 and 2, "
            "or 5 and 2"
        )
    if first.dtype not in _DTYPES:
        raise RuntimeError(
            f"fastgan::{op}: a map has dtype {first.dtype}; expected float32 or bfloat16"
        )
    if second.dtype != first.dtype:
        name = "wide" if op == "winograd_weight_gradient" else "weight"
        raise RuntimeError(
            f"fastgan::{op}: {name} has dtype {second.dtype}; expected {first.dtype}"
        )
    if len(small) != 4 or len(wide) != 4 or small[0] != wide[0]:
        raise RuntimeError(f"fastgan::{op}: maps {small} and {wide}; expected (N, C, H, W), one N")
    if any(count < 1 or count % CHANNELS != 0 for count in (small[1], wide[1])):
        raise RuntimeError(
            f"fastgan::{op}: {small[1]} and {wide[1]} channels; expected a multiple of {CHANNELS}"
        )
    for few, many, added in zip(small[2:], wide[2:], padding, strict=True):
        left_over = many + 2 * added - (few - 1) * stride - taps
        if few < 1 or many < 1 or added < 0 or not 0 <= left_over < stride:
            raise RuntimeError(
                f"fastgan::{op}: maps {small} and {wide} do not belong together at padding "
                f"{padding}, {taps} by {taps} taps and stride {stride}"
            )


def _check_weight(op: str, weight: Tensor, map: Tensor, dimension: int) -> None:
    """Of one map and a weight, in whose `dimension` stand the map's channels."""
    if map.dim() != 4 or weight.dim() != 4:
        raise RuntimeError(
            f"fastgan::{op}: a map has shape {tuple(map.shape)} and the weight "
            f"{tuple(weight.shape)}; expected four dimensions"
        )
    if weight.shape[dimension] != map.shape[1] or weight.shape[2] != weight.shape[3]:
        raise RuntimeError(
            f"fastgan::{op}: weight has shape {tuple(weight.shape)} and a map {tuple(map.shape)}; "
            "expected as many rows of taps as columns, and channels to match"
        )


def _check_bias(op: str, bias: Tensor | None, channels: int) -> None:
    if bias is None:
        return
    if tuple(bias.shape) != (channels,):
        shape = ", ".join(map(str, bias.shape))
        raise RuntimeError(f"fastgan::{op}: bias has shape ({shape}); expected ({channels})")
    if bias.dtype not in _DTYPES:
        raise RuntimeError(
            f"fastgan::{op}: bias has dtype {bias.dtype}; expected float32 or bfloat16"
        )


def _fake_gather(
    wide: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
) -> Tensor:
    _check_weight("winograd_gather", weight, wide, 1)
    small = (wide.shape[0], weight.shape[0], rows, columns)
    padding = (row_padding, column_padding)
    kernel = (weight.shape[2], stride)
    _check_arguments("winograd_gather", small, tuple(wide.shape), kernel, padding, wide, weight)
    _check_bias("winograd_gather", bias, small[1])
    return empty_map(wide, small, gives_channels_last(wide, weight))


def _fake_scatter(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
) -> Tensor:
    _check_weight("winograd_scatter", weight, small, 0)
    wide = (small.shape[0], weight.shape[1], rows, columns)
    padding = (row_padding, column_padding)
    kernel = (weight.shape[2], stride)
    _check_arguments("winograd_scatter", tuple(small.shape), wide, kernel, padding, small, weight)
    _check_bias("winograd_scatter", bias, wide[1])
    return empty_map(small, wide, gives_channels_last(small, weight))


def _fake_weight_gradient(
    small: Tensor, wide: Tensor, taps: int, stride: int, row_padding: int, column_padding: int
) -> Tensor:
    shapes = tuple(small.shape), tuple(wide.shape)
    padding = (row_padding, column_padding)
    _check_arguments("winograd_weight_gradient", *shapes, (taps, stride), padding, small, wide)
    return empty_map(small, (small.shape[1], wide.shape[1], taps, taps), True)


def _plain_gather(
    wide: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
) -> Tensor:
    output = _fake_gather(wide, weight, bias, stride, row_padding, column_padding, rows, columns)
    bias = None if bias is None else bias.to(wide.dtype)
    padding = (row_padding, column_padding)
    return output.copy_(torch.conv2d(wide, weight, bias, stride=stride, padding=padding))


def _plain_scatter(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
) -> Tensor:
    output = _fake_scatter(small, weight, bias, stride, row_padding, column_padding, rows, columns)
    padding = (row_padding, column_padding)
    left_over = [
        places + 2 * added - (few - 1) * stride - weight.shape[2]
        for places, added, few in zip((rows, columns), padding, small.shape[2:], strict=True)
    ]
    bias = None if bias is None else bias.to(small.dtype)
    return output.copy_(
        torch.conv_transpose2d(
            small, weight, bias, stride=stride, padding=padding, output_padding=left_over
        )
    )


def _plain_weight_gradient(
    small: Tensor, wide: Tensor, taps: int, stride: int, row_padding: int, column_padding: int
) -> Tensor:
    output = _fake_weight_gradient(small, wide, taps, stride, row_padding, column_padding)
    padding = (row_padding, column_padding)
    gradient = conv2d_weight(
        wide, (small.shape[1], wide.shape[1], taps, taps), small, stride=stride, padding=padding
    )
    return output.copy_(gradient)


# --- For `fastgan doctor` -------------------------------------------------------------------------


def _drawn(*size: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(size))
    return torch.randn(size, generator=generator)


def _compare(op: str, device: torch.device | str, found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found.cpu(), expected, rtol=1e-4, atol=1e-3):
        raise FastganError(f"fastgan::{op} gives wrong values on {device}")


def _cases() -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Taps, stride, both maps and the weight; padding 1."""
    for taps, stride in PRODUCTS:
        wide, weight = _drawn(3, 32, 9, 6), _drawn(64, 32, taps, taps)
        rows, columns = ((size + 2 - taps) // stride + 1 for size in (9, 6))
        yield taps, stride, _drawn(3, 64, rows, columns), wide, weight


def check_gather(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with torch's; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    for _, stride, small, wide, weight in _cases():
        bias = _drawn(64)
        arguments = (tensor.to(device) for tensor in (wide, weight, bias))
        found = torch.ops.fastgan.winograd_gather(*arguments, stride, 1, 1, *small.shape[2:])
        expected = torch.conv2d(wide, weight, bias, stride=stride, padding=1)
        _compare("winograd_gather", device, found, expected)


def check_scatter(device: torch.device | str) -> None:
    """As :func:`check_gather`.

    Raises:
        FastganError: a value is wrong.
    """
    for _, stride, small, wide, weight in _cases():
        arguments = (tensor.to(device) for tensor in (small, weight))
        found = torch.ops.fastgan.winograd_scatter(*arguments, None, stride, 1, 1, 9, 6)
        expected = conv2d_input(wide.shape, weight, small, stride=stride, padding=1)
        _compare("winograd_scatter", device, found, expected)


def check_weight_gradient(device: torch.device | str) -> None:
    """As :func:`check_gather`.

    Raises:
        FastganError: a value is wrong.
    """
    for taps, stride, small, wide, weight in _cases():
        arguments = (tensor.to(device) for tensor in (small, wide))
        found = torch.ops.fastgan.winograd_weight_gradient(*arguments, taps, stride, 1, 1)
        expected = conv2d_weight(wide, weight.shape, small, stride=stride, padding=1)
        _compare("winograd_weight_gradient", device, found, expected)


for _schema in SCHEMAS:
    define_if_absent(_schema)
register_fallback("winograd_gather", _plain_gather)
register_fallback("winograd_scatter", _plain_scatter)
register_fallback("winograd_weight_gradient", _plain_weight_gradient)
torch.library.register_fake(f"{NAMESPACE}::winograd_gather", _fake_gather)
torch.library.register_fake(f"{NAMESPACE}::winograd_scatter", _fake_scatter)
torch.library.register_fake(f"{NAMESPACE}::winograd_weight_gradient", _fake_weight_gradient)
register_without_gradient(torch.ops.fastgan.winograd_gather.default)
register_without_gradient(torch.ops.fastgan.winograd_scatter.default)
register_without_gradient(torch.ops.fastgan.winograd_weight_gradient.default)
