"""Tensor descriptors for ``descriptor_gemm_kernel``: what they can describe, and their shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.kernels.geometry import ConvGeometry

Pair = tuple[int, int]
Box = tuple[int, int, int]

#: Distances of neighbouring outputs' inputs.
_STRIDES = (1, 2, 4)
#: A step reads this many channels, or half as many.
BLOCK_K = 64


class Layout(NamedTuple):
    """A tensor as a descriptor sees it.

    Attributes:
        shape: of up to five dimensions.
        strides: in elements, the last one 1.
        block: what one step copies.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    block: tuple[int, ...]


def described(layouts: Sequence[Layout], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Triton's descriptors of tensors with these layouts."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return tuple(
        TensorDescriptor(tensor, list(layout.shape), list(layout.strides), list(layout.block))
        for layout, tensor in zip(layouts, tensors, strict=True)
    )


def undescribed_reason(
    which: str,
    geometry: ConvGeometry,
    dtype: torch.dtype,
    weight_shape: Sequence[int],
    input_size: Pair | None,
) -> str | None:
    """Says why descriptors can't describe the operands of a pass; None if they can.

    Args:
        which: "forward", "input_gradient" or "weight_gradient".
        geometry: of the convolution.
        dtype: of both operands.
        weight_shape: of four dimensions.
        input_size: height and width of the convolution's input; None skips the checks of sizes.

    Example:
        >>> undescribed_reason("forward", ConvGeometry((4, 4)), torch.float16, (64, 3, 4, 4), None)
        'a sum over 3 channels, not a multiple of 32'
    """
    if dtype not in (torch.float16, torch.bfloat16):
        return str(dtype).removeprefix("torch.")
    first, second, *_ = weight_shape
    scatters = which != "weight_gradient" and geometry.transposed == (which == "forward")
    # Blocks of channels, and rows of 16 bytes.
    of_steps, of_rows = (first, second) if scatters else (second, 8)
    if which == "weight_gradient":
        of_steps, of_rows = 0, math.gcd(first, second)
    if of_steps % (BLOCK_K // 2):
        return f"a sum over {of_steps} channels, not a multiple of {BLOCK_K // 2}"
    if of_rows % 8:
        return "channels that are not a multiple of 8"
    if scatters:
        return None
    strides = geometry.stride
    if any(stride not in _STRIDES for stride in strides):
        return f"stride {strides}"
    if input_size is not None:
        size = geometry.output_size(input_size) if geometry.transposed else input_size
        if any(pixels % stride for pixels, stride in zip(size, strides, strict=True)):
            return f"{size[0]}x{size[1]} pixels with stride {strides}"
    return None


def input_layout(shape: tuple[int, int, int, int], apart: Pair, box: Box, block_k: int) -> Layout:
    """Channels-last input, split into planes ``apart`` from each other."""
    batch, channels, height, width = shape
    (s_h, s_w), (box_n, box_h, box_w) = apart, box
    row = width * channels
    return Layout(
        (batch, height // s_h, s_h, width // s_w, s_w * channels),
        (height * row, s_h * row, row, s_w * channels, 1),
        (box_n, box_h, 1, box_w, block_k),
    )


def weight_layout(shape: tuple[int, int, int, int], block: Pair) -> Layout:
    """A channels-last weight: first dimension, taps, second dimension."""
    first, second, *kernel_size = shape
    taps = math.prod(kernel_size)
    return Layout((first, taps, second), (taps * second, second, 1), (block[0], 1, block[1]))


def box_of(positions: int, batch: int, size: Sequence[int], *, divides: bool = False) -> Box:
    """The box of samples, rows and columns that needs the fewest copies.

    Args:
        positions: in the box, a power of two.
        batch: number of samples.
        size: height and width of a phase.
        divides: whether its rows and columns divide the size.

    Example:
        >>> box_of(128, 64, (4, 4)), box_of(128, 64, (32, 32)), box_of(64, 1, (7, 7))
        ((8, 4, 4), (1, 4, 32), (1, 8, 8))
        >>> box_of(64, 64, (6, 8), divides=True)
        (4, 2, 8)
    """
    powers = [2**n for n in range(positions.bit_length())]
    boxes = [
        (positions // (h * w), h, w)
        for h, w in itertools.product(powers, powers)
        if h * w <= positions and not (divides and (size[0] % h or size[1] % w))
    ]
    # Of equally many, the one with the longest rows, which lie together in memory.
    return min(boxes, key=lambda box: (math.prod(boxes_of(box, batch, size)), -box[2], box[0]))


def boxes_of(box: Box, batch: int, size: Sequence[int]) -> tuple[int, int, int]:
    """How many boxes cover a phase, along each dimension."""
    return (-(-batch // box[0]), -(-size[0] // box[1]), -(-size[1] // box[2]))
