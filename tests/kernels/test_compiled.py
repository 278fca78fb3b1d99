"""Every shipped tile, compiled for its architecture with what the library fuses around it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

pytest.importorskip("triton", reason="Triton is a dependency on Linux only")

import triton
from compiling import Compiled, Described, compile_for

from fastgan.kernels import ConvGeometry, plans
from fastgan.kernels.plans import Operation
from fastgan.kernels.tile_tables import TABLES
from fastgan.kernels.tiles import Problem, Tile, TileRow, rows_of, tile_for

#: Compute capability; bytes of shared memory that a program may have. sm_80's tiles serve 8.6 and
#: 8.9 too, which have less of it than 8.0.
ARCHITECTURES = {
    "sm_80": ((8, 0), 101376),
    "sm_90": ((9, 0), 232448),
    "sm_100": ((10, 0), 232448),
    "default": ((12, 0), 101376),
}
GEOMETRY = ConvGeometry((4, 4), (2, 2), (1, 1))
TRANSPOSED = ConvGeometry((4, 4), (2, 2), (1, 1), transposed=True)
PLAIN = Operation(None, "none", 0.0)
F32 = torch.float32

FORWARD_PROLOGUES = [PLAIN, Operation("norm_activation", "relu", 0.0)]
FORWARD_EPILOGUES = [
    Operation("bias_activation", "tanh", 0.0),
    Operation("statistics", "none", 0),
    Operation("activation_gradient", "leaky_relu", 0.2),
]
GRADIENT_PROLOGUES = [
    PLAIN,
    Operation("activation_gradient", "tanh", 0.0),
    Operation("batch_norm_gradient", "none", 0.0),
]
GRADIENT_EPILOGUES = [
    Operation("bias_activation", "none", 0.0),
    Operation("activation_gradient", "leaky_relu", 0.2),
    Operation("norm_activation_gradient", "leaky_relu", 0.2),
]
PAIRS = [
    *itertools.product(FORWARD_PROLOGUES, FORWARD_EPILOGUES),
    *itertools.product(GRADIENT_PROLOGUES, GRADIENT_EPILOGUES),
]
HEAVIEST = PAIRS[-1]
#: Of a weight gradient: on its paired operand, on its gathered one.
HEAVIEST_OPERANDS = (GRADIENT_PROLOGUES[-1], FORWARD_PROLOGUES[-1])


def prologue_pointers(prologue: Operation, dtype: torch.dtype) -> list[torch.dtype | None]:
    """Second tensor, mean, scale, bias, slope, offset."""
    return {
        None: [None] * 6,
        "norm_activation": [None, F32, F32, F32, None, None],
        "activation_gradient": [dtype, *[None] * 5],
        "batch_norm_gradient": [dtype, F32, F32, None, F32, F32],
    }[prologue.name]


def epilogue_pointers(epilogue: Operation, dtype: torch.dtype) -> list[torch.dtype | None]:
    """Second tensor, bias, mean, scale, invstd, count, first, second."""
    return {
        "bias_activation": [None, F32, None, None, None, None, None, None],
        "statistics": [None, F32, None, None, None, F32, F32, F32],
        "activation_gradient": [dtype, *[None] * 7],
        "norm_activation_gradient": [dtype, F32, F32, F32, F32, None, F32, F32],
    }[str(epilogue.name)]


def channels_last(shape: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    _, c, h, w = shape
    return (c * h * w, 1, c * w, c)


def problem_of(row: TileRow) -> Problem:
    """The largest of the row's class."""
    return Problem(
        row.kernel,
        row.bits,
        row.max_rows or 2**19,
        row.max_columns or 512,
        row.max_channels or 512,
    )


def compile_convolution(
    architecture: str,
    row: TileRow,
    prologue: Operation,
    epilogue: Operation,
    dtype: torch.dtype,
    precision: str,
    folder: Path,
) -> Compiled:
    capability, _ = ARCHITECTURES[architecture]
    scatter = row.kernel == "scatter"
    problem = problem_of(row)
    in_size, out_size = ((4, 4), (8, 8)) if scatter else ((8, 8), (4, 4))
    # A few channels: taps and channels numbered through.
    in_channels = 256 if row.max_channels is None else 3
    input_shape = (problem.rows // (out_size[0] * out_size[1]), in_channels, *in_size)
    weight_shape = (problem.columns, in_channels, 4, 4)
    if scatter:
        weight_shape = (in_channels, problem.columns, 4, 4)
    with patch.object(plans, "tile_for", lambda problem, capability: row.tile):
        plan = plans.plan_convolution(
            scatter=scatter,
            input_shape=input_shape,
            input_strides=channels_last(input_shape),
            weight_shape=weight_shape,
            weight_strides=channels_last(weight_shape),
            output_size=out_size,
            geometry=TRANSPOSED if scatter else GEOMETRY,
            dtype=dtype,
            capability=capability,
            prologue=prologue,
            epilogue=epilogue,
            precision=precision,
        )
    pointers = [
        dtype,
        *prologue_pointers(prologue, dtype),
        dtype,
        dtype,
        *epilogue_pointers(epilogue, dtype),
    ]
    return compile_for(plan.launch, pointers, capability[0] * 10 + capability[1], folder)


def compile_by_descriptors(
    architecture: str, tile: Tile, kernel: str, epilogue: Operation, folder: Path
) -> Compiled:
    capability, _ = ARCHITECTURES[architecture]
    dtype = torch.bfloat16
    small, large = (128, 256, 16, 16), (128, 256, 32, 32)
    given = {"geometry": TRANSPOSED if kernel == "scatter" else GEOMETRY, "capability": capability}
    with patch.dict(plans.DESCRIPTOR_TILES, {architecture: (tile,)}):
        if kernel == "weight_gradient":
            plan = plans.plan_weight_gradient_by_descriptors(
                paired_shape=small,
                gathered_shape=large,
                weight_strides=channels_last((256, 256, 4, 4)),
                **given,
            )
            pointers: list[torch.dtype | Described | None] = [F32]
        else:
            sizes = (small, large) if kernel == "scatter" else (large, small)
            plan = plans.plan_by_descriptors(
                scatter=kernel == "scatter",
                input_shape=sizes[0],
                weight_shape=(256, 256, 4, 4),
                output_size=sizes[1][2:],
                epilogue=epilogue,
                **given,
            )
            pointers = [dtype, *epilogue_pointers(epilogue, dtype)]
    pointers += [Described(dtype, layout.block) for layout in plan.layouts]
    return compile_for(plan.launch, pointers, capability[0] * 10 + capability[1], folder)


def compile_weight_gradient(
    architecture: str,
    row: TileRow,
    paired: Operation,
    gathered: Operation,
    dtype: torch.dtype,
    precision: str,
    folder: Path,
) -> Compiled:
    capability, _ = ARCHITECTURES[architecture]
    problem = problem_of(row)
    paired_shape = (128, problem.columns, 16, 16)
    gathered_shape = (128, min(problem.rows, 512), 32, 32)
    with patch.object(plans, "tile_for", lambda problem, capability: row.tile):
        plan = plans.plan_weight_gradient(
            paired_shape=paired_shape,
            paired_strides=channels_last(paired_shape),
            gathered_shape=gathered_shape,
            gathered_strides=channels_last(gathered_shape),
            weight_strides=channels_last((problem.columns, gathered_shape[1], 4, 4)),
            geometry=GEOMETRY,
            dtype=dtype,
            capability=capability,
            paired_prologue=paired,
            gathered_prologue=gathered,
            precision=precision,
        )
    pointers = [
        dtype,
        *prologue_pointers(paired, dtype),
        dtype,
        *prologue_pointers(gathered, dtype),
        F32,
    ]
    return compile_for(plan.launch, pointers, capability[0] * 10 + capability[1], folder)


def triton_version() -> tuple[int, int]:
    major, minor, *_ = triton.__version__.split(".")
    return int(major), int(minor)


def assert_shippable(compiled: Compiled, architecture: str, row: TileRow) -> None:
    _, shared_limit = ARCHITECTURES[architecture]
    # Triton 3.6 spills a few registers of the largest tiles' epilogues, once a tile; 3.7 none.
    assert compiled.stack <= (0 if triton_version() >= (3, 7) else 64)
    assert compiled.shared <= shared_limit
    assert compiled.tensor_memory <= 512
    if row.bits == 16 and row.tile.block_m >= 64:
        instruction = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}.get(
            architecture, "mma.sync"
        )
        assert instruction in compiled.ptx


def distinct_rows(architecture: str, *kernels: str) -> list[TileRow]:
    """One row of each bits, tile and way to sum: others compile to the same."""
    rows = {
        (row.bits, row.tile, row.max_channels): row
        for row in rows_of(architecture)
        if row.kernel in kernels
    }
    return list(rows.values())


def rows_of_all(*kernels: str) -> list[tuple[str, TileRow]]:
    return [(name, row) for name in TABLES for row in distinct_rows(name, *kernels)]


def name_of(value: object) -> str:
    if isinstance(value, TileRow):
        few = "" if value.max_channels is None else "-few-channels"
        return f"{value.kernel}-{value.bits}-" + "x".join(str(v) for v in value.tile) + few
    return str(value)


def numbers_of(row: TileRow) -> list[tuple[torch.dtype, str]]:
    if row.bits == 32:
        return [(F32, "ieee"), (F32, "tf32")]
    return [(torch.bfloat16, "ieee"), (torch.float16, "ieee")]


def large_ones_of_all(*kernels: str) -> list[Any]:
    """Those far from spilling are marked ``tiles``.

    With at most 16 results a thread they are. Of the others each has 60 registers left or more, but
    for sm_90's and the largest of each kind.
    """
    rows = rows_of_all(*kernels)

    def kind(architecture: str, row: TileRow) -> tuple[object, ...]:
        return architecture, row.bits, row.max_channels

    def size(row: TileRow) -> int:
        return row.tile.block_m * row.tile.block_n

    largest: dict[tuple[object, ...], int] = {}
    for name, row in rows:
        largest[kind(name, row)] = max(size(row), largest.get(kind(name, row), 0))

    def marks(name: str, row: TileRow) -> Any:
        near = name == "sm_90" or size(row) == largest[kind(name, row)]
        return () if near and size(row) > 2048 else pytest.mark.tiles

    return [pytest.param(name, row, marks=marks(name, row)) for name, row in rows]


# A scatter is a gather with more arithmetic on its indices; here either stands for both.
@pytest.mark.parametrize(
    ("architecture", "row"), large_ones_of_all("gather", "scatter"), ids=name_of
)
def test_each_tile_with_the_most_around_it(architecture, row, tmp_path):
    dtype, precision = numbers_of(row)[0]
    scatter = row._replace(kernel="scatter")
    compiled = compile_convolution(architecture, scatter, *HEAVIEST, dtype, precision, tmp_path)
    assert_shippable(compiled, architecture, row)


DESCRIBED = [
    pytest.param(
        architecture,
        tile,
        kernel,
        # The tiles that come nearest to spilling stand for all.
        marks=() if min(tile[:2]) == 128 and kernel == "scatter" else pytest.mark.tiles,
    )
    for architecture, tiles in plans.DESCRIPTOR_TILES.items()
    for tile in tiles
    for kernel in ("gather", "scatter", "weight_gradient")
]


def heaviest_on_store(tile: Tile) -> Operation:
    """What the largest tile stores takes no other tensor."""
    return FORWARD_EPILOGUES[1] if tile.block_m > 128 else HEAVIEST[1]


@pytest.mark.parametrize(("architecture", "tile", "kernel"), DESCRIBED)
def test_each_tile_of_descriptors(architecture, tile, kernel, tmp_path):
    most = heaviest_on_store(tile)
    compiled = compile_by_descriptors(architecture, tile, kernel, most, tmp_path)
    # As for the other tiles.
    assert compiled.stack <= (0 if triton_version() >= (3, 7) else 64)
    assert compiled.shared <= ARCHITECTURES[architecture][1]
    products = {"sm_90": "wgmma.mma_async", "sm_100": "tcgen05.mma"}[architecture]
    assert products in compiled.ptx
    # No thread copies operands.
    assert "cp.async.bulk.tensor.5d" in compiled.ptx
    assert "cp.async.ca" not in compiled.ptx


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        # The exact GELU comes nearest to spilling.
        ("sm_90", "gelu"),
        *(pytest.param("sm_90", name, marks=pytest.mark.tiles) for name in ("silu", "gelu_tanh")),
        *(
            pytest.param(architecture, "silu", marks=pytest.mark.tiles)
            for architecture in TABLES
            if architecture != "sm_90"
        ),
    ],
)
def test_smooth_activations_in_the_largest_tile(architecture, name, tmp_path):
    """On load, and back through on store, where some registers may spill, once a tile.

    Those of the exact GELU do, 42 on sm_100; on load, in the loop, none may.
    """
    assert_smooth_activation_fits(architecture, name, max, 192, tmp_path)


@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
def test_smooth_activations_in_the_smallest_tile(name, tmp_path):
    assert_smooth_activation_fits("sm_90", name, min, 0, tmp_path)


def assert_smooth_activation_fits(architecture, name, extreme, most_on_store, folder):
    rows = [row for row in distinct_rows(architecture, "scatter") if row.bits == 16]
    row = extreme(rows, key=lambda row: row.tile.block_m * row.tile.block_n * row.tile.block_k)
    for prologue, epilogue, most in (
        (Operation("norm_activation", name, 0.0), FORWARD_EPILOGUES[1], 0),
        (
            GRADIENT_PROLOGUES[-1],
            Operation("norm_activation_gradient", name, 0.0),
            most_on_store,
        ),
    ):
        compiled = compile_convolution(
            architecture, row, prologue, epilogue, torch.bfloat16, "ieee", folder
        )
        assert compiled.stack <= most
        assert compiled.shared <= ARCHITECTURES[architecture][1]


@pytest.mark.parametrize(("architecture", "row"), large_ones_of_all("weight_gradient"), ids=name_of)
def test_each_weight_gradient_with_the_most_around_it(architecture, row, tmp_path):
    dtype, precision = numbers_of(row)[0]
    compiled = compile_weight_gradient(
        architecture, row, *HEAVIEST_OPERANDS, dtype, precision, tmp_path
    )
    assert_shippable(compiled, architecture, row)


@pytest.mark.tiles
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].name}-{pair[1].name}")
@pytest.mark.parametrize(("architecture", "row"), rows_of_all("gather", "scatter"), ids=name_of)
def test_each_tile_with_all_that_is_fused(architecture, row, pair, tmp_path):
    gather = row._replace(kernel="gather")
    for dtype, precision in numbers_of(row):
        compiled = compile_convolution(architecture, gather, *pair, dtype, precision, tmp_path)
        assert_shippable(compiled, architecture, row)


@pytest.mark.tiles
@pytest.mark.parametrize("on_grad", GRADIENT_PROLOGUES, ids=lambda operation: operation.name)
@pytest.mark.parametrize("on_input", FORWARD_PROLOGUES, ids=lambda operation: operation.name)
@pytest.mark.parametrize(("architecture", "row"), rows_of_all("weight_gradient"), ids=name_of)
def test_each_weight_gradient_with_all_that_is_fused(
    architecture, row, on_input, on_grad, tmp_path
):
    pairs = ((on_grad, on_input), (on_input, on_grad))
    for (dtype, precision), pair in zip(numbers_of(row), pairs, strict=True):
        compiled = compile_weight_gradient(architecture, row, *pair, dtype, precision, tmp_path)
        assert_shippable(compiled, architecture, row)


@pytest.mark.parametrize("architecture", TABLES)
def test_the_small_kernels(architecture, tmp_path):
    capability, limit = ARCHITECTURES[architecture]
    shape = (128, 64, 32, 32)
    plan = plans.plan_channel_sums(
        shape=shape,
        strides=channels_last(shape),
        capability=capability,
        prologue=GRADIENT_PROLOGUES[-1],
    )
    number = capability[0] * 10 + capability[1]
    half = torch.float16
    pointers = [half, *prologue_pointers(GRADIENT_PROLOGUES[-1], half), F32]
    for launch, dtypes in ((plan.launch, pointers), (plan.total, [F32, half])):
        compiled = compile_for(launch, dtypes, number, tmp_path)
        assert compiled.stack == 0
        assert compiled.shared <= limit


@pytest.mark.parametrize("architecture", TABLES)
def test_no_row_is_out_of_reach(architecture):
    capability, _ = ARCHITECTURES[architecture]
    for row in rows_of(architecture):
        assert row.takes(problem_of(row))
        assert tile_for(problem_of(row), capability) == row.tile


@pytest.mark.parametrize("architecture", TABLES)
@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("kernel", ["gather", "scatter", "weight_gradient"])
def test_any_problem_has_a_tile(kernel, bits, architecture):
    capability, _ = ARCHITECTURES[architecture]
    for size in (1, 2**40):
        tile_for(Problem(kernel, bits, size, size, size), capability)


def test_offsets_are_64_bits_wide_where_a_tensor_needs_it(tmp_path, monkeypatch):
    """Per-channel vectors apart, which are no tensor of more than 2^31 elements."""

    def offsets() -> list[list[bool]]:
        """Of each kernel's loads and stores of tiles, whether they are."""
        kernels = [
            compile_convolution(
                "sm_90",
                distinct_rows("sm_90", "gather")[0],
                *HEAVIEST,
                torch.float16,
                "ieee",
                tmp_path,
            ),
            compile_weight_gradient(
                "sm_90",
                distinct_rows("sm_90", "weight_gradient")[0],
                *HEAVIEST_OPERANDS,
                torch.float16,
                "ieee",
                tmp_path,
            ),
        ]
        pattern = r"tt\.addptr .* : (tensor<\d+x\d+x.*), (\S+)"
        return [["xi64>" in of for _, of in re.findall(pattern, k.ttir)] for k in kernels]

    # Results are written once a tile: their offsets needn't be narrow.
    assert offsets() == [[False] * 3 + [True] * 2, [False] * 3 + [True]]
    monkeypatch.setattr(plans, "_offset_type", lambda *operands: plans.tl.int64)
    assert offsets() == [[True] * 5, [True] * 4]


def test_offsets_of_operands_are_32_bits_wide_where_these_hold_them():
    places, huge = (2, 3, 4, 5), (2**25 + 1, 8, 2, 2)
    assert plans._offset_type((places, channels_last(places))) == plans.tl.int32
    assert plans._offset_type((huge, channels_last(huge))) == plans.tl.int64
    # Samples far apart, of which there are two.
    assert plans._offset_type((places, (2**31, 1, 15, 3)), (places, (0, 1, 0, 0))) == plans.tl.int64
