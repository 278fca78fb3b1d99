"""``torch.ops.fastgan.winograd_gather``, ``winograd_scatter`` and ``winograd_weight_gradient``.

Convolutions with fewer products, on CPUs: 16 instead of 36 for 3x3 taps and stride 1, 25 instead of
36 with stride 2, 36 instead of 64 for 4x4 taps and stride 1 or 2, 49 instead of 100 for 5x5 taps
and stride 2::

    gather            small = conv2d(wide, weight, bias, stride, padding)
    scatter           wide  = conv_transpose2d(small, weight, bias, stride, padding)
    weight gradient   of either's weight, given the two maps, one of them a gradient

``wide`` (N, C, H, W), ``small`` (N, O, h, w), ``weight`` (O, C, taps, taps), of float32 or
bfloat16, C and O multiples of 32; ``bias`` of either dtype or None. ``rows`` and ``columns`` are
the output's; H + 2 * padding is (h - 1) * stride + taps, or less than `stride` more. Sums are
float32. A modulated convolution's factors and noise are applied on load and on store::

    output = output_scale * convolution(input_scale * input) + bias + noise

with ``input_scale`` (N, input channels), ``output_scale`` (N, output channels) and ``noise``
(N or 1, 1, rows, columns), float32 or None. Channels-last arguments are fastest. Maps have the
layout of torch's convolutions (:mod:`fastgan.ops.memory_format`), which costs a copy if both
arguments are contiguous; a weight's gradient is channels-last. Formulas: ``csrc/cpu/winograd.h``,
after Winograd 1980 and Lavin and Gray 2016 (arXiv 1509.09308). The kernels are for CPUs; otherwise
torch's convolutions run.

Order of gradients supported: none. They raise if autograd would have to record them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastgan.ops.define import define_op
from fastgan.ops.memory_format import empty_map, gives_channels_last

#: Channels must be multiples of this.
CHANNELS = 32

#: (taps, stride) -> products for 2x2 pixels of the small map, instead of 4 * taps**2.
PRODUCTS = {(3, 1): 16, (3, 2): 25, (4, 1): 36, (4, 2): 36, (5, 2): 49}

_DTYPES = (torch.float32, torch.bfloat16)
#: Fewer products have larger rounding errors.
UNITS = 256


def _check_arguments(
    op: str,
    small: tuple[int, ...],
    wide: tuple[int, ...],
    kernel: tuple[int, int],
    padding: tuple[int, int],
    first: Tensor,
    second: Tensor,
) -> None:
    """Checks two maps' shapes (N, channels, rows, columns), taps, stride and tensors."""
    taps, stride = kernel
    if not any(kernel == size for size in PRODUCTS):  # not hashed: they may be symbolic
        raise RuntimeError(
            f"fastgan::{op}: {taps} by {taps} taps and stride {stride}; expected 3 or 4 and 1 or "
            "2, or 5 and 2"
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


def _modulated(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: tuple[int, int],
    places: tuple[int, int],
    input_scale: Tensor | None,
    output_scale: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """output_scale * convolution(input_scale * input) + bias + noise, laid out as torch's."""
    transposed = op == "winograd_scatter"
    if input.dim() != 4 or weight.dim() != 4:
        raise RuntimeError(
            f"fastgan::{op}: a map has shape {tuple(input.shape)} and the weight "
            f"{tuple(weight.shape)}; expected four dimensions"
        )
    in_dimension, out_dimension = (0, 1) if transposed else (1, 0)
    if weight.shape[in_dimension] != input.shape[1] or weight.shape[2] != weight.shape[3]:
        raise RuntimeError(
            f"fastgan::{op}: weight has shape {tuple(weight.shape)} and a map "
            f"{tuple(input.shape)}; expected as many rows of taps as columns, and channels to match"
        )
    sizes = (input.shape[0], weight.shape[out_dimension], *places)
    small, wide = (tuple(input.shape), sizes) if transposed else (sizes, tuple(input.shape))
    _check_arguments(op, small, wide, (weight.shape[2], stride), padding, input, weight)
    _check_bias(op, bias, sizes[1])
    for name, scale, shape in (
        ("input_scale", input_scale, tuple(input.shape[:2])),
        ("output_scale", output_scale, sizes[:2]),
    ):
        if scale is not None and tuple(scale.shape) != shape:
            raise RuntimeError(
                f"fastgan::{op}: {name} has shape {tuple(scale.shape)}; expected {shape}"
            )
    if noise is not None and (
        noise.dim() != 4
        or (noise.shape[0] != 1 and noise.shape[0] != sizes[0])
        or tuple(noise.shape[1:]) != (1, *sizes[2:])
    ):
        raise RuntimeError(
            f"fastgan::{op}: noise has shape {tuple(noise.shape)}; expected "
            f"{(sizes[0], 1, *sizes[2:])} or {(1, 1, *sizes[2:])}"
        )
    for name, tensor in (
        ("input_scale", input_scale),
        ("output_scale", output_scale),
        ("noise", noise),
    ):
        if tensor is not None and tensor.dtype != torch.float32:
            raise RuntimeError(f"fastgan::{op}: {name} has dtype {tensor.dtype}; expected float32")
    result = empty_map(input, sizes, gives_channels_last(input, weight))
    if input_scale is not None:
        input = input * input_scale[:, :, None, None].to(input.dtype)
    if transposed:
        left_over = [
            many + 2 * added - (few - 1) * stride - weight.shape[2]
            for many, added, few in zip(places, padding, input.shape[2:], strict=True)
        ]
        output = torch.conv_transpose2d(input, weight, None, stride, padding, left_over)
    else:
        output = torch.conv2d(input, weight, None, stride, padding)
    if output_scale is not None:
        output = output * output_scale[:, :, None, None].to(output.dtype)
    for added in (None if bias is None else bias[:, None, None], noise):
        output = output if added is None else output + added.to(output.dtype)
    return result.copy_(output)


# --- Examples -------------------------------------------------------------------------------------


def _cases() -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
    """Taps, stride, both maps and the weight; padding 1."""
    generator = torch.Generator().manual_seed(0)
    for taps, stride in PRODUCTS:
        rows, columns = ((size + 2 - taps) // stride + 1 for size in (9, 6))
        small, wide, weight = (
            torch.randn(shape, generator=generator)
            for shape in ((3, 64, rows, columns), (3, 32, 9, 6), (64, 32, taps, taps))
        )
        yield taps, stride, small, wide, weight


def _gather_examples() -> Iterator[tuple[Any, ...]]:
    for _, stride, small, wide, weight in _cases():
        example = (wide, weight, weight[:, 0, 0, 0].clone(), stride, 1, 1, *small.shape[2:])
        yield example
        if stride == 1:
            yield (*example, *_factors(wide, small))


def _scatter_examples() -> Iterator[tuple[Any, ...]]:
    for _, stride, small, wide, weight in _cases():
        example = (small, weight, None, stride, 1, 1, *wide.shape[2:])
        yield example
        if stride == 2:
            yield (*example, *_factors(small, wide))


def _factors(input: Tensor, output: Tensor) -> tuple[Tensor, ...]:
    """A modulated convolution's scales and noise."""
    return input[:, :, 0, 0].clone(), output[:, :, 0, 0].clone(), output[:1, :1].contiguous()


def _weight_gradient_examples() -> Iterator[tuple[Any, ...]]:
    for taps, stride, small, wide, _ in _cases():
        yield small, wide, taps, stride, 1, 1


# --- The ops --------------------------------------------------------------------------------------


@define_op(
    "winograd_gather(Tensor wide, Tensor weight, Tensor? bias, int stride, int row_padding, "
    "int column_padding, int rows, int columns, Tensor? input_scale=None, "
    "Tensor? output_scale=None, Tensor? noise=None) -> Tensor",
    examples=_gather_examples,
    units=UNITS,
    exact=torch.float32,
)
def winograd_gather(
    wide: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Torch's convolution, perhaps modulated."""
    factors = (input_scale, output_scale, noise)
    padding, places = (row_padding, column_padding), (rows, columns)
    return _modulated("winograd_gather", wide, weight, bias, stride, padding, places, *factors)


@define_op(
    "winograd_scatter(Tensor small, Tensor weight, Tensor? bias, int stride, int row_padding, "
    "int column_padding, int rows, int columns, Tensor? input_scale=None, "
    "Tensor? output_scale=None, Tensor? noise=None) -> Tensor",
    examples=_scatter_examples,
    units=UNITS,
    exact=torch.float32,
)
def winograd_scatter(
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    row_padding: int,
    column_padding: int,
    rows: int,
    columns: int,
    input_scale: Tensor | None = None,
    output_scale: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """Torch's transposed convolution, perhaps modulated."""
    factors = (input_scale, output_scale, noise)
    padding, places = (row_padding, column_padding), (rows, columns)
    return _modulated("winograd_scatter", small, weight, bias, stride, padding, places, *factors)


@define_op(
    "winograd_weight_gradient(Tensor small, Tensor wide, int taps, int stride, "
    "int row_padding, int column_padding) -> Tensor",
    examples=_weight_gradient_examples,
    units=UNITS,
    exact=torch.float32,
)
def winograd_weight_gradient(
    small: Tensor, wide: Tensor, taps: int, stride: int, row_padding: int, column_padding: int
) -> Tensor:
    """Torch's weight gradient, channels-last."""
    shapes = tuple(small.shape), tuple(wide.shape)
    padding = (row_padding, column_padding)
    _check_arguments("winograd_weight_gradient", *shapes, (taps, stride), padding, small, wide)
    output = empty_map(small, (small.shape[1], wide.shape[1], taps, taps), True)
    gradient = conv2d_weight(
        wide, (small.shape[1], wide.shape[1], taps, taps), small, stride=stride, padding=padding
    )
    return output.copy_(gradient)
