"""Plans, computed once per problem: tile, grid, and all arguments except the pointers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton.language as tl

from fastgan.kernels import activations, epilogues, index_maps, prologues
from fastgan.kernels.descriptor_gemm import (
    descriptor_gemm_kernel,
    descriptor_weight_gradient_kernel,
)
from fastgan.kernels.descriptors import (
    BLOCK_K,
    Layout,
    box_of,
    boxes_of,
    input_layout,
    weight_layout,
)
from fastgan.kernels.geometry import ConvGeometry, division_by
from fastgan.kernels.implicit_gemm import implicit_gemm_kernel
from fastgan.kernels.launch import Launch
from fastgan.kernels.split_reduction import (
    channel_sums_kernel,
    sum_splits_kernel,
    weight_gradient_kernel,
)
from fastgan.kernels.tiles import Problem, Tile, architecture_of, programs_of, splits_of, tile_for

Pair = tuple[int, int]
#: A 4-d tensor's shape or strides.
Four = tuple[int, int, int, int]

#: Name -> the Triton function, and which of the activation's functions it gets.
PROLOGUES: dict[str | None, tuple[Any, str]] = {
    None: (None, ""),
    "norm_activation": (prologues.norm_activation, "forward"),
    "activation_gradient": (prologues.activation_gradient, "gradient"),
    "batch_norm_gradient": (prologues.batch_norm_gradient, "forward"),
}
#: The same, with the reduction.
EPILOGUES: dict[str | None, tuple[Any, str, Any]] = {
    "bias_activation": (epilogues.bias_activation, "forward", None),
    "statistics": (epilogues.bias_activation, "forward", epilogues.statistics),
    "activation_gradient": (epilogues.activation_gradient, "gradient", None),
    "norm_activation_gradient": (
        epilogues.norm_activation_gradient,
        "gradient_by_input",
        epilogues.gradient_sums,
    ),
}

# Both sums are memory-bound: any tile works that reads whole cache lines and leaves enough
# programs.
CHANNEL_SUMS_TILE = Tile(64, 64, 0, 4, 2)
SUM_SPLITS_BLOCK = (16, 128)
SUM_SPLITS_TILE = Tile(0, 0, 0, 4, 2)
#: Tiles of descriptor_gemm_kernel by architecture, the largest that don't spill. The first that
#: gives every multiprocessor a program is taken, or the last.
DESCRIPTOR_TILES = {
    "sm_90": (
        Tile(256, 128, BLOCK_K, 8, 3),
        Tile(128, 128, BLOCK_K, 8, 4),
        Tile(128, 64, BLOCK_K, 4, 4),
        Tile(64, 64, BLOCK_K, 4, 4),
    ),
    "sm_100": (
        Tile(128, 128, BLOCK_K, 8, 4),
        Tile(128, 64, BLOCK_K, 4, 4),
        Tile(64, 64, BLOCK_K, 4, 4),
    ),
}


class Operation(NamedTuple):
    """A prologue or epilogue: its name, its activation and that one's negative slope."""

    name: str | None
    activation: str
    negative_slope: float


def _functions(operation: Operation) -> tuple[Any, Any]:
    """A prologue, and its activation or the activation's gradient."""
    load, which = PROLOGUES[operation.name]
    return load, getattr(activations.FUNCTIONS[operation.activation], which) if which else None


class ConvolutionPlan(NamedTuple):
    """A launch of ``implicit_gemm_kernel``, and the number of tiles with statistics.

    With layouts, of the input's and the weight's descriptors, it is ``descriptor_gemm_kernel``'s.
    """

    launch: Launch
    tiles: int
    layouts: tuple[Layout, ...] = ()


class ReductionPlan(NamedTuple):
    """A launch that computes ``splits`` sums, and the one that adds them (None for one split).

    With layouts, of the paired and the gathered side's descriptors, it is
    ``descriptor_weight_gradient_kernel``'s.
    """

    launch: Launch
    splits: int
    total: Launch | None
    layouts: tuple[Layout, ...] = ()


def _position_type(positions: int) -> tl.dtype:
    # A tile's last row may lie beyond the last position.
    return tl.int32 if positions < 2**31 - 4096 else tl.int64


def _offset_type(*operands: tuple[Four, Four]) -> tl.dtype:
    """The integer type for offsets into operands of these shapes and strides, and slightly
    beyond."""
    spans = [
        sum((size - 1) * stride for size, stride in zip(*operand, strict=True))
        for operand in operands
    ]
    return tl.int32 if max(spans) < 2**30 else tl.int64


def _stays_in_one_tap(channels: int, block: int) -> bool:
    # Vectors and masks per row are worth up to twice the arithmetic, but not a few channels in a
    # block of 64.
    return 2 * channels >= block


def _axis_arguments(geometry: ConvGeometry) -> tuple[int, ...]:
    """The geometry in the kernels' order: (height, width) of each."""
    return (
        *geometry.kernel_size,
        *geometry.stride,
        *geometry.padding,
        *geometry.dilation,
    )


def plan_convolution(
    *,
    scatter: bool,
    input_shape: Four,
    input_strides: Four,
    weight_shape: Four,
    weight_strides: Four,
    output_size: Pair,
    geometry: ConvGeometry,
    dtype: torch.dtype,
    capability: Pair,
    prologue: Operation,
    epilogue: Operation,
    precision: str,
) -> ConvolutionPlan:
    """The plan of a gather or scatter from ``input_shape`` to ``output_size``.

    A gather sums over the weight's second dimension, a scatter over its first. In an input gradient
    the kernel's input is the convolution's output.
    """
    batch, in_channels, *input_size = input_shape
    in_dimension, out_dimension = (0, 1) if scatter else (1, 0)
    out_channels = weight_shape[out_dimension]
    if scatter:
        geometry = geometry.with_free_strides((input_size[0], input_size[1]))
    phases = geometry.stride if scatter else (1, 1)
    problem = Problem(
        kernel="scatter" if scatter else "gather",
        bits=dtype.itemsize * 8,
        rows=batch * output_size[0] * output_size[1],
        columns=out_channels,
        channels=in_channels,
    )
    tile = tile_for(problem, capability)
    largest_phase = math.prod(
        -(-size // count) for size, count in zip(output_size, phases, strict=True)
    )
    tiles_m = -(-batch * largest_phase // tile.block_m)
    tiles_n = -(-out_channels // tile.block_n)
    tiles = tiles_m * phases[0] * phases[1]
    stride_n, stride_c, stride_h, stride_w = input_strides
    store, output_function, reduction = EPILOGUES[epilogue.name]
    arguments = (
        prologue.negative_slope,
        epilogue.negative_slope,
        batch,
        *input_size,
        *output_size,
        in_channels,
        out_channels,
        stride_n,
        stride_h,
        stride_w,
        stride_c,
        weight_strides[in_dimension],
        weight_strides[out_dimension],
        weight_strides[2],
        weight_strides[3],
        *_axis_arguments(geometry),
        *(math.gcd(d, s) for d, s in zip(geometry.dilation, geometry.stride, strict=True)),
        *geometry.inverse_dilation,
        *division_by(in_channels),
        *phases,
        tiles_m,
        tiles_n,
        index_maps.scatter_axis if scatter else index_maps.gather_axis,
        *_functions(prologue),
        store,
        getattr(activations.FUNCTIONS[epilogue.activation], output_function),
        reduction,
        _stays_in_one_tap(in_channels, tile.block_k),
        in_channels % tile.block_k == 0,
        _position_type(problem.rows),
        _offset_type((input_shape, input_strides), (weight_shape, weight_strides)),
        precision,
        tile.block_m,
        tile.block_n,
        tile.block_k,
    )
    return ConvolutionPlan(Launch(implicit_gemm_kernel, tiles * tiles_n, arguments, tile), tiles)


def _descriptor_tiles(capability: Pair) -> tuple[Tile, ...]:
    return DESCRIPTOR_TILES.get(architecture_of(capability), DESCRIPTOR_TILES["sm_90"])


def plan_by_descriptors(
    *,
    scatter: bool,
    input_shape: Four,
    weight_shape: Four,
    output_size: Pair,
    geometry: ConvGeometry,
    capability: Pair,
    epilogue: Operation,
) -> ConvolutionPlan:
    """As :func:`plan_convolution`, of channels-last tensors that descriptors can describe."""
    batch, in_channels, *input_size = input_shape
    out_channels = weight_shape[1 if scatter else 0]
    if scatter:
        geometry = geometry.with_free_strides((input_size[0], input_size[1]))
    phases = geometry.stride if scatter else (1, 1)
    apart = (1, 1) if scatter else geometry.stride
    # Of the largest phase.
    size = [-(-size // count) for size, count in zip(output_size, phases, strict=True)]
    columns = max(64, _next_power_of_two(out_channels))
    # Epilogues that load another tensor would spill in the largest tile.
    rows = 256 if EPILOGUES[epilogue.name][1] == "forward" else 128
    for tile in _descriptor_tiles(capability):
        box = box_of(tile.block_m, batch, size)
        boxes = boxes_of(box, batch, size)
        tiles = math.prod(boxes) * math.prod(phases)
        tiles_n = -(-out_channels // tile.block_n)
        fits = tile.block_m <= rows and tile.block_n <= columns
        if fits and 2 * tiles * tiles_n >= programs_of(capability):
            break
    block_k = BLOCK_K if in_channels % BLOCK_K == 0 else BLOCK_K // 2
    weight_block = (block_k, tile.block_n) if scatter else (tile.block_n, block_k)
    store, output_function, reduction = EPILOGUES[epilogue.name]
    arguments = (
        epilogue.negative_slope,
        batch,
        *output_size,
        in_channels,
        out_channels,
        *_axis_arguments(geometry),
        *(math.gcd(d, s) for d, s in zip(geometry.dilation, geometry.stride, strict=True)),
        *geometry.inverse_dilation,
        *phases,
        *boxes[1:],
        math.prod(boxes),
        tiles_n,
        index_maps.scatter_axis if scatter else index_maps.gather_axis,
        scatter,
        *(distance.bit_length() - 1 for distance in apart),
        store,
        getattr(activations.FUNCTIONS[epilogue.activation], output_function),
        reduction,
        *box,
        tile.block_n,
        block_k,
    )
    return ConvolutionPlan(
        Launch(descriptor_gemm_kernel, tiles * tiles_n, arguments, tile),
        tiles,
        (
            input_layout(input_shape, apart, box, block_k),
            weight_layout(weight_shape, weight_block),
        ),
    )


def plan_weight_gradient(
    *,
    paired_shape: Four,
    paired_strides: Four,
    gathered_shape: Four,
    gathered_strides: Four,
    weight_strides: Four,
    geometry: ConvGeometry,
    dtype: torch.dtype,
    capability: Pair,
    paired_prologue: Operation,
    gathered_prologue: Operation,
    precision: str,
) -> ReductionPlan:
    """The plan of a weight gradient; the weight's first dimension is the paired side's channels."""
    batch, paired_channels, *paired_size = paired_shape
    _, gathered_channels, *gathered_size = gathered_shape
    taps = geometry.kernel_size[0] * geometry.kernel_size[1]
    positions = batch * paired_size[0] * paired_size[1]
    problem = Problem(
        kernel="weight_gradient",
        bits=dtype.itemsize * 8,
        rows=gathered_channels,
        columns=paired_channels,
        channels=gathered_channels,
    )
    tile = tile_for(problem, capability)
    one_tap = _stays_in_one_tap(gathered_channels, tile.block_m)
    tiles_m = (
        taps * -(-gathered_channels // tile.block_m)
        if one_tap
        else -(-taps * gathered_channels // tile.block_m)
    )
    tiles_n = -(-paired_channels // tile.block_n)
    steps = -(-positions // tile.block_k)
    steps_per_split = -(-steps // splits_of(tiles_m * tiles_n, steps, capability))
    # After rounding up, the last splits may have no steps.
    splits = -(-steps // steps_per_split)
    elements = paired_channels * gathered_channels * taps
    arguments = (
        paired_prologue.negative_slope,
        gathered_prologue.negative_slope,
        batch,
        *paired_size,
        *gathered_size,
        paired_channels,
        gathered_channels,
        *(paired_strides[dimension] for dimension in (0, 2, 3, 1)),
        *(gathered_strides[dimension] for dimension in (0, 2, 3, 1)),
        elements,
        *weight_strides,
        *_axis_arguments(geometry),
        *division_by(paired_size[1]),
        *division_by(paired_size[0] * paired_size[1]),
        steps_per_split,
        tiles_m,
        tiles_n,
        *_functions(paired_prologue),
        *_functions(gathered_prologue),
        one_tap,
        _position_type(positions),
        _offset_type((paired_shape, paired_strides), (gathered_shape, gathered_strides)),
        precision,
        tile.block_m,
        tile.block_n,
        tile.block_k,
    )
    launch = Launch(weight_gradient_kernel, tiles_m * tiles_n * splits, arguments, tile)
    total = _plan_sum_of_splits(splits, elements) if splits > 1 else None
    return ReductionPlan(launch, splits, total)


def plan_weight_gradient_by_descriptors(
    *,
    paired_shape: Four,
    gathered_shape: Four,
    weight_strides: Four,
    geometry: ConvGeometry,
    capability: Pair,
) -> ReductionPlan:
    """As :func:`plan_weight_gradient`, of channels-last tensors that descriptors can describe."""
    batch, paired_channels, *paired_size = paired_shape
    _, gathered_channels, *_ = gathered_shape
    rows, columns = _next_power_of_two(gathered_channels), _next_power_of_two(paired_channels)
    *_, smallest = tile_list = _descriptor_tiles(capability)
    tile = next((t for t in tile_list if t.block_m <= rows and t.block_n <= columns), smallest)
    taps = math.prod(geometry.kernel_size)
    box = box_of(BLOCK_K, batch, paired_size, divides=True)
    boxes = boxes_of(box, batch, paired_size)
    tiles_m = taps * -(-gathered_channels // tile.block_m)
    tiles_n = -(-paired_channels // tile.block_n)
    steps = math.prod(boxes)
    steps_per_split = -(-steps // splits_of(tiles_m * tiles_n, steps, capability))
    splits = -(-steps // steps_per_split)
    elements = paired_channels * gathered_channels * taps
    arguments = (
        paired_channels,
        gathered_channels,
        elements,
        *weight_strides,
        geometry.kernel_size[1],
        *geometry.padding,
        *geometry.dilation,
        *boxes[1:],
        steps_per_split,
        tiles_m,
        tiles_n,
        *(stride.bit_length() - 1 for stride in geometry.stride),
        *box,
        tile.block_m,
        tile.block_n,
    )
    launch = Launch(descriptor_weight_gradient_kernel, tiles_m * tiles_n * splits, arguments, tile)
    total = _plan_sum_of_splits(splits, elements) if splits > 1 else None
    layouts = (
        input_layout(paired_shape, (1, 1), box, tile.block_n),
        input_layout(gathered_shape, geometry.stride, box, tile.block_m),
    )
    return ReductionPlan(launch, splits, total, layouts)


def _next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def plan_channel_sums(
    *, shape: Four, strides: Four, capability: Pair, prologue: Operation
) -> ReductionPlan:
    """The plan of the sum over all positions of each channel."""
    batch, channels, *size = shape
    tile = CHANNEL_SUMS_TILE
    tiles_n = -(-channels // tile.block_n)
    positions = batch * size[0] * size[1]
    steps = -(-positions // tile.block_m)
    steps_per_split = -(-steps // splits_of(tiles_n, steps, capability))
    splits = -(-steps // steps_per_split)
    arguments = (
        prologue.negative_slope,
        batch,
        *size,
        channels,
        *(strides[dimension] for dimension in (0, 2, 3, 1)),
        steps_per_split,
        tiles_n,
        *_functions(prologue),
        _position_type(positions),
        tile.block_m,
        tile.block_n,
    )
    launch = Launch(channel_sums_kernel, tiles_n * splits, arguments, tile)
    return ReductionPlan(launch, splits, _plan_sum_of_splits(splits, channels))


def _plan_sum_of_splits(splits: int, elements: int) -> Launch:
    block_splits, block = SUM_SPLITS_BLOCK
    arguments = (splits, elements, block_splits, block)
    return Launch(sum_splits_kernel, -(-elements // block), arguments, SUM_SPLITS_TILE)
