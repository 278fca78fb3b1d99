"""Convolutions as matrix products, on CPUs.

A convolution relates a small map S of (h, w) pixels to a wide one V: a Conv2d's output and input, a
ConvTranspose2d's input and output. Let patches(V) be the matrix with a row for each pixel of S, the
kH * kW * C values of V under the kernel, in the weight's memory order (so the weight is never
copied); fold its adjoint, which adds overlapping rows; and W the weight as a matrix (channels of S,
kH * kW * channels of V):

    gather            S  = patches(V) W^T        Conv2d forward, ConvTranspose2d input gradient
    scatter           V  = fold(S W)             ConvTranspose2d forward, Conv2d input gradient
    weight gradient   W' = S^T patches(V)        of both

oneDNN reorders the weights first and loops over rows of pixels. With 4x4 pixels and hundreds of
channels matrix products are faster, most of all with one pixel, a generator's first layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.profiler import record_function

from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem
from fastgan.ops.memory_format import empty_map, gives_channels_last, laid_out
from fastgan.ops.stages import Pair, Stage

#: Most bytes of a portion's patches.
PATCHES_BYTES = 4 << 20


def traced(name: str) -> AbstractContextManager[object]:
    """Names a pass in a profiler's trace, which would otherwise show only products.

    Args:
        name: the pass; the trace shows "fastgan::matrix_" and this name.
    """
    profiled = torch._C._autograd._profiler_enabled()
    return record_function(f"fastgan::matrix_{name}") if profiled else nullcontext()


class MatrixProduct(Backend):
    """A matrix product with gathered or scattered patches, in portions of the batch."""

    name = "matrix_product"
    path = "aten"

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why a problem isn't such a product."""
        stage = problem.stage
        if problem.device.type != "cpu":
            return "made for CPUs"
        if stage.kind == "linear":
            return "a linear layer is a product of matrices already"
        if stage.groups != 1 or stage.dilation != (1, 1):
            return "groups or dilation"
        if any(e >= s for e, s in zip(stage.output_padding, stage.stride, strict=True)):
            return "its output_padding is not below its stride"
        return None

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias; not differentiable by autograd."""
        channels_last = gives_channels_last(input, weight)
        with traced("forward"):
            if _is_one_row(stage, input, weight):
                output = empty_map(input, (len(input), len(weight), 1, 1), channels_last)
                rows = output.view(len(input), -1)
                torch.mm(_row(input, weight), _row(weight, weight).t(), out=rows)
            elif stage.kind == "conv2d":
                places = stage.output_size((input.shape[2], input.shape[3]), weight)
                output = _gather(stage, input, weight, places, channels_last)
            else:
                places = stage.output_size((input.shape[2], input.shape[3]), weight)
                output = _scatter(stage, input, weight, places, channels_last)
        return output if bias is None else output.add_(bias[:, None, None])

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        places = (input.shape[2], input.shape[3])
        channels_last = gives_channels_last(input, weight)
        with traced("input_gradient"):
            if _is_one_row(stage, input, weight):
                rows = grad_output.flatten(1) @ _row(weight, weight)
                return laid_out(_maps(rows, weight), channels_last)
            if stage.kind == "conv2d":
                return _scatter(stage, grad_output, weight, places, channels_last)
            return _gather(stage, grad_output, weight, places, channels_last)

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias."""
        if _is_one_row(stage, input, weight):
            with traced("weight_gradient"):
                rows = grad_output.flatten(1)
                grad_bias = rows.sum(0) if with_bias else None
                return _maps(rows.t() @ _row(input, weight), weight), grad_bias
        small, wide = (grad_output, input) if stage.kind == "conv2d" else (input, grad_output)
        places = (small.shape[2], small.shape[3])
        matrix: Tensor | None = None
        # 16-bit dtypes take the whole batch at once: portions would be summed in 16 bits.
        whole = [slice(0, len(small))]
        with traced("weight_gradient"):
            for samples in _portions(small, weight) if small.element_size() > 2 else whole:
                rows = _places_as_rows(small[samples]).t()
                patches = _patches(stage, wide[samples], weight, places)
                matrix = rows @ patches if matrix is None else matrix.addmm_(rows, patches)
        assert matrix is not None
        grad_bias = grad_output.sum((0, 2, 3)) if with_bias else None
        return _maps(matrix, weight), grad_bias


def _gather(
    stage: Stage, wide: Tensor, weight: Tensor, places: Pair, channels_last: bool
) -> Tensor:
    matrix = _row(weight, weight).t()
    # Written channels-last, which for one pixel is the same memory as contiguous.
    small = empty_map(wide, (len(wide), len(weight), *places), channels_last or places != (1, 1))
    rows = small.permute(0, 2, 3, 1)
    for samples in _portions(small, weight):
        patches = _patches(stage, wide[samples], weight, places)
        torch.mm(patches, matrix, out=rows[samples].view(len(patches), -1))
    return laid_out(small, channels_last)


def _scatter(
    stage: Stage, small: Tensor, weight: Tensor, places: Pair, channels_last: bool
) -> Tensor:
    matrix = _row(weight, weight)
    if _covers(weight, stage, places):
        return laid_out(_maps(_places_as_rows(small) @ matrix, weight), channels_last)
    wide = empty_map(small, (len(small), weight.shape[1], *places), channels_last)
    above, left = stage.padding
    for samples in _portions(small, weight):
        patches = _places_as_rows(small[samples]) @ matrix
        padded = _folded(stage, patches, weight, small[samples], places)
        wide[samples] = padded[:, :, above : above + places[0], left : left + places[1]]
    return wide


def _folded(stage: Stage, patches: Tensor, weight: Tensor, small: Tensor, places: Pair) -> Tensor:
    """The sum of overlapping patches, (n, C, H, W), padding included."""
    channels, kernel_rows, kernel_columns = weight.shape[1:]
    down, right = stage.stride
    rows, columns = small.shape[2:]
    # Includes the last patches' reach beyond the padding.
    height = max(places[0] + 2 * stage.padding[0], (rows - 1) * down + kernel_rows)
    width = max(places[1] + 2 * stage.padding[1], (columns - 1) * right + kernel_columns)
    taps = patches.view(len(small), rows, columns, *_in_memory(weight))
    if _is_channels_last(weight):
        padded = patches.new_zeros(len(small), height, width, channels).permute(0, 3, 1, 2)
        taps = taps.permute(0, 5, 1, 2, 3, 4)
    else:
        padded = patches.new_zeros(len(small), channels, height, width)
        taps = taps.permute(0, 3, 1, 2, 4, 5)
    for row in range(kernel_rows):
        for column in range(kernel_columns):
            padded[
                :,
                :,
                row : row + (rows - 1) * down + 1 : down,
                column : column + (columns - 1) * right + 1 : right,
            ].add_(taps[..., row, column])
    return padded


def _portions(small: Tensor, weight: Tensor) -> Iterator[slice]:
    """Portions of the batch whose patches fit in a cache."""
    count, _, rows, columns = small.shape
    if (rows, columns) == (1, 1):
        yield slice(0, count)  # each patch is a whole map and needs no copy
        return
    bytes_each = rows * columns * weight[0].numel() * small.element_size()
    at_once = max(PATCHES_BYTES // max(bytes_each, 1), 1)
    for first in range(0, count, at_once):
        yield slice(first, first + at_once)


def _patches(stage: Stage, wide: Tensor, weight: Tensor, places: Pair) -> Tensor:
    """(N * h * w, values of a patch), in the memory order of a weight's row."""
    if _covers(weight, stage, (wide.shape[2], wide.shape[3])):
        return _row(wide, weight)
    channels, kernel_rows, kernel_columns = weight.shape[1:]
    down, right = stage.stride
    above, left = stage.padding
    rows, columns = places
    below = max((rows - 1) * down + kernel_rows - wide.shape[2] - above, 0)
    beyond = max((columns - 1) * right + kernel_columns - wide.shape[3] - left, 0)
    if _is_channels_last(weight):
        padded = F.pad(wide.permute(0, 2, 3, 1), (0, 0, left, beyond, above, below)).contiguous()
        sample, row, column, _ = padded.stride()
        # A kernel row's values are contiguous, columns and channels together.
        sizes: tuple[int, ...] = (kernel_rows, kernel_columns * channels)
        strides: tuple[int, ...] = (row, 1)
    else:
        padded = F.pad(wide, (left, beyond, above, below)).contiguous()
        sample, channel, row, column = padded.stride()
        sizes, strides = _in_memory(weight), (channel, row, column)
    return padded.as_strided(
        (len(wide), rows, columns, *sizes), (sample, down * row, right * column, *strides)
    ).reshape(len(wide) * rows * columns, -1)


def _is_one_row(stage: Stage, input: Tensor, weight: Tensor) -> bool:
    """Whether a Conv2d's kernel is as large as its input: a dot product for each channel."""
    return stage.kind == "conv2d" and _covers(weight, stage, (input.shape[2], input.shape[3]))


def _covers(weight: Tensor, stage: Stage, wide_places: Pair) -> bool:
    return stage.padding == (0, 0) and wide_places == tuple(weight.shape[2:])


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _in_memory(weight: Tensor) -> tuple[int, ...]:
    """The sizes of a row of the weight, in the order in which they lie in memory."""
    channels, rows, columns = weight.shape[1:]
    return (rows, columns, channels) if _is_channels_last(weight) else (channels, rows, columns)


def _row(maps: Tensor, weight: Tensor) -> Tensor:
    """Each map, or the weight itself, as a row in the weight's order in memory."""
    return (maps.permute(0, 2, 3, 1) if _is_channels_last(weight) else maps).flatten(1)


def _maps(rows: Tensor, weight: Tensor) -> Tensor:
    """The inverse of :func:`_row`."""
    maps = rows.view(len(rows), *_in_memory(weight))
    return maps.permute(0, 3, 1, 2) if _is_channels_last(weight) else maps


def _places_as_rows(small: Tensor) -> Tensor:
    """(N * h * w, C)."""
    return small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
