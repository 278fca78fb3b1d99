"""Measures tiles on this GPU and writes its architecture's table, fastgan/kernels/tile_tables.py.

    python benchmarks/tune_convolutions.py                 # about 5 minutes; writes the table
    python benchmarks/tune_convolutions.py --print         # the same, but only prints it
    python benchmarks/tune_convolutions.py --batch 64 --only gather

The problems are the convolutions of DCGAN-64's generator and discriminator (Radford et al. 2015,
figure 1, 64 channels) at batch 64, 128 and 512, forward and both gradients, with the prologue and
epilogue that they have in training, in bfloat16 and in float32 as torch's settings have it. All
candidates for a problem take turns in one run, over inputs that together exceed the cache, timed
with events; of each the median counts. Tiles that spill registers or exceed the shared memory are
left out.

Rows are written per class: the problems of a kernel and width with up to so many columns, in order
of their positions. Afterwards run ``pytest -m tiles tests/kernels/test_compiled.py``, which
compiles the new rows with all that may be fused around them; it needs no GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fastgan.kernels import ConvGeometry, forward, input_gradient, weight_gradient
from fastgan.kernels import convolution as host
from fastgan.kernels.fusion import (
    BatchNormGradient,
    BiasActivation,
    NormActivation,
    NormActivationGradient,
    Statistics,
)
from fastgan.kernels.tile_tables import MEASURED, PROGRAMS, TABLES
from fastgan.kernels.tiles import Problem, Tile, architecture_of

TARGET = Path(host.__file__).parent / "tile_tables.py"
BATCHES = (64, 128, 512)
#: A channel count below this has rows of its own: a step then goes over several taps.
FEW = 32

CANDIDATES = {
    16: [
        Tile(16, 16, 128, 4, 4),
        Tile(64, 16, 64, 4, 4),
        Tile(128, 16, 64, 4, 4),
        Tile(64, 32, 64, 4, 4),
        Tile(128, 32, 64, 4, 4),
        Tile(64, 64, 32, 4, 4),
        Tile(64, 64, 64, 4, 4),
        Tile(64, 128, 64, 4, 3),
        Tile(128, 64, 64, 8, 3),
        Tile(128, 64, 64, 8, 4),
        Tile(128, 128, 32, 8, 4),
        Tile(128, 128, 64, 8, 3),
        Tile(128, 256, 64, 8, 3),
        Tile(256, 128, 64, 8, 3),
    ],
    32: [
        Tile(16, 16, 64, 4, 3),
        Tile(128, 16, 32, 4, 3),
        Tile(64, 32, 32, 4, 3),
        Tile(64, 64, 32, 4, 3),
        Tile(128, 64, 32, 8, 3),
        Tile(128, 128, 32, 8, 3),
    ],
}

HEADER = '''"""Tiles per architecture, and how many programs fill a GPU: data for ``tiles.py``.

A row: bits, max_rows, max_columns, max_channels, then the tile (block_m, block_n, block_k, warps,
stages). Written by ``benchmarks/tune_convolutions.py``; rows shared by several kernels or
architectures are named after the first. MEASURED names the GPU of the measurement; tables without
one were chosen to compile without spilling.
"""

from __future__ import annotations

Row = tuple[int, int | None, int | None, int | None, tuple[int, int, int, int, int]]
Rows = tuple[Row, ...]

'''

Row = tuple[int, int | None, int | None, int | None, tuple[int, ...]]
#: By kernel.
Table = dict[str, tuple[Row, ...]]


class Layer(NamedTuple):
    """A convolution: (in_channels, out_channels), the size it starts from, and its geometry."""

    channels: tuple[int, int]
    size: int
    geometry: ConvGeometry


def layers() -> list[Layer]:
    """Of DCGAN-64's generator, then of its discriminator."""
    widths = (512, 256, 128, 64)
    first = ConvGeometry((4, 4), transposed=True)
    up = ConvGeometry((4, 4), (2, 2), (1, 1), transposed=True)
    down = ConvGeometry((4, 4), (2, 2), (1, 1))
    pairs = list(zip((*widths,), (*widths[1:], 3), strict=True))
    generator = [Layer((100, 512), 1, first)]
    generator += [Layer(pair, 4 * 2**i, up) for i, pair in enumerate(pairs)]
    discriminator = [Layer(pair[::-1], 8 * 2**i, down) for i, pair in enumerate(pairs)][::-1]
    return [*generator, *discriminator, Layer((512, 1), 4, ConvGeometry((4, 4)))]


class Work(NamedTuple):
    """A problem, and calls that do it on one set of inputs each."""

    problem: Problem
    calls: list[Callable[[], Any]]


def works(layer: Layer, batch: int, dtype: torch.dtype, device: torch.device) -> list[Work]:
    """Forward, input gradient and weight gradient of a layer."""
    inputs, outputs = layer.channels
    geometry, size = layer.geometry, (layer.size, layer.size)
    out_size = geometry.output_size(size)
    first, second = (inputs, outputs) if geometry.transposed else (outputs, inputs)
    bits = dtype.itemsize * 8

    def image(channels: int, pixels: tuple[int, int]) -> torch.Tensor:
        shape = (batch, channels, *pixels)
        return torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    weight = image(1, (1, 1)).new_empty(first, second, *geometry.kernel_size).normal_(std=0.02)
    weight = weight.to(memory_format=torch.channels_last)
    in_vector, out_vector = (torch.rand(n, device=device) + 0.5 for n in (inputs, outputs))
    norm = NormActivation(in_vector, in_vector, in_vector, "relu", 0.0)
    # As many as exceed the cache together.
    elements = batch * max(inputs * size[0] * size[1], outputs * out_size[0] * out_size[1])
    copies = max(2, min(16, 2**27 // (elements * dtype.itemsize)))
    forwards, backwards, weights = [], [], []
    for _ in range(copies):
        x, y, grad = image(inputs, size), image(outputs, out_size), image(outputs, out_size)
        gradient = BatchNormGradient(y, out_vector, out_vector, out_vector, out_vector)
        store = Statistics() if outputs > 3 else BiasActivation(None, "tanh")
        forwards.append(
            lambda x=x, store=store: forward(x, weight, geometry, prologue=norm, epilogue=store)
        )
        backwards.append(
            lambda x=x, grad=grad, gradient=gradient: input_gradient(
                grad,
                weight,
                geometry,
                size,
                prologue=gradient,
                epilogue=NormActivationGradient(x, norm, in_vector),
            )
        )
        weights.append(
            lambda x=x, grad=grad, gradient=gradient: weight_gradient(
                x, grad, geometry, weight, input_prologue=norm, grad_prologue=gradient
            )
        )
    out_rows, in_rows = (batch * pixels[0] * pixels[1] for pixels in (out_size, size))
    kernels = ("scatter", "gather") if geometry.transposed else ("gather", "scatter")
    return [
        Work(Problem(kernels[0], bits, out_rows, outputs, inputs), forwards),
        Work(Problem(kernels[1], bits, in_rows, inputs, outputs), backwards),
        Work(Problem("weight_gradient", bits, second, first, second), weights),
    ]


def fits(tile: Tile, problem: Problem) -> bool:
    """Whether a tile is worth a try: not much wider than the problem, not too deep for it."""
    wide = tile.block_n <= max(16, 2 * problem.columns)
    deep = tile.block_k <= 32 if problem.channels < FEW else tile.block_k <= 4 * problem.channels
    return wide and (deep or problem.kernel == "weight_gradient")


def measure(work: Work, candidates: Iterable[Tile], rounds: int) -> dict[Tile, float]:
    """Median milliseconds of each tile that runs, all in turns."""
    from triton.runtime.errors import OutOfResources

    plans = host._plans()
    chosen = plans.tile_for
    known: dict[Tile, dict[Any, Any]] = {}
    try:
        for tile in candidates:
            host._PLANS = {}
            plans.tile_for = lambda problem, capability, tile=tile: tile
            try:
                for call in work.calls:
                    call()
                torch.cuda.synchronize()
            except OutOfResources:
                continue
            compiled = [
                kernel for plan in host._PLANS.values() for kernel in plan.launch._compiled.values()
            ]
            if not any(kernel.n_spills for kernel in compiled):
                known[tile] = host._PLANS
    finally:
        plans.tile_for = chosen
    times: dict[Tile, list[float]] = {tile: [] for tile in known}
    order = list(known)
    for number in range(rounds):
        shift = number % max(1, len(order))
        for tile in order[shift:] + order[:shift]:
            host._PLANS = known[tile]
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for call in work.calls:
                call()
            end.record()
            end.synchronize()
            times[tile].append(start.elapsed_time(end) / len(work.calls))
    host._PLANS = {}
    return {tile: statistics.median(values) for tile, values in times.items()}


def table_from(best: dict[Problem, Tile], old: Table) -> Table:
    """The table in which every problem finds its tile; old rows stay where nothing was measured.

    Problems of a kernel and width are classed by their columns, a power of two; within a class a
    row reaches up to its problem's rows, and the last row of all to any problem.
    """
    measured = {(problem.kernel, problem.bits, problem.channels < FEW) for problem in best}
    table = {
        kernel: [row for row in rows if (kernel, row[0], row[3] is not None) not in measured]
        for kernel, rows in old.items()
    }
    for kernel, bits, few in measured:
        group = {
            problem: tile
            for problem, tile in best.items()
            if (problem.kernel, problem.bits, problem.channels < FEW) == (kernel, bits, few)
        }
        classes = sorted({_class_of(problem.columns) for problem in group})
        for columns in classes:
            members = sorted(
                (problem.rows, tile)
                for problem, tile in group.items()
                if _class_of(problem.columns) == columns
            )
            merged: list[tuple[int, Tile]] = []
            for count, tile in members:
                if merged and (merged[-1][1] == tile or merged[-1][0] == count):
                    merged.pop()
                merged.append((count, tile))
            for count, tile in merged:
                last = (count, tile) == merged[-1]
                table[kernel].append(
                    (
                        bits,
                        None if last else count,
                        None if columns == classes[-1] else columns,
                        FEW - 1 if few else None,
                        tuple(tile),
                    )
                )
    # First match: the rows for few channels come before those for any.
    return {
        kernel: tuple(sorted(rows, key=lambda row: (row[0], row[3] is None)))
        for kernel, rows in table.items()
    }


def _class_of(columns: int) -> int:
    return max(16, 1 << (columns - 1).bit_length())


def render(
    measured: dict[str, str | None], programs: dict[str, int], tables: dict[str, Table]
) -> str:
    """The text of tile_tables.py."""
    lines = ["MEASURED: dict[str, str | None] = {"]
    lines += [f"    {_quoted(name)}: {_quoted(gpu)}," for name, gpu in measured.items()]
    lines += ["}", "", "# Two for each multiprocessor.", "PROGRAMS: dict[str, int] = {"]
    lines += [f"    {_quoted(name)}: {count}," for name, count in programs.items()]
    lines += ["}", ""]
    names: dict[tuple[Row, ...], str] = {}
    for architecture, table in tables.items():
        for kernel, rows in table.items():
            if rows not in names:
                names[rows] = f"{architecture}_{kernel}".upper()
                lines.append(f"{names[rows]}: Rows = (")
                lines += [f"    {row}," for row in rows]
                lines.append(")")
    lines += ["", "TABLES: dict[str, dict[str, Rows]] = {"]
    for architecture, table in tables.items():
        lines.append(f"    {_quoted(architecture)}: {{")
        lines += [f"        {_quoted(kernel)}: {names[rows]}," for kernel, rows in table.items()]
        lines.append("    },")
    return HEADER + "\n".join([*lines, "}", ""])


def _quoted(text: str | None) -> str:
    return "None" if text is None else f'"{text}"'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--only", choices=["gather", "scatter", "weight_gradient"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--print", action="store_true", help="print the table, write nothing")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs a CUDA device: torch finds none on this machine")
    device = torch.device("cuda", torch.cuda.current_device())
    architecture = architecture_of(torch.cuda.get_device_capability(device))
    best: dict[Problem, Tile] = {}
    for dtype in (torch.bfloat16, torch.float32):
        for batch in arguments.batch:
            for layer in layers():
                for work in works(layer, batch, dtype, device):
                    problem = work.problem
                    if arguments.only not in (None, problem.kernel):
                        continue
                    tiles = [tile for tile in CANDIDATES[problem.bits] if fits(tile, problem)]
                    times = measure(work, tiles, arguments.rounds)
                    ranked = sorted(times, key=times.__getitem__)
                    # Of a weight gradient, the largest batch decides: it is measured last.
                    best[problem] = ranked[0]
                    shown = ", ".join(f"{tuple(t)} {1e3 * times[t]:.1f} us" for t in ranked[:3])
                    print(f"batch {batch} {problem}: {shown}", flush=True)
    tables = {**TABLES, architecture: table_from(best, TABLES[architecture])}
    measured = {**MEASURED, architecture: torch.cuda.get_device_name(device)}
    multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    programs = {**PROGRAMS, architecture: 2 * multiprocessors}
    text = render(measured, programs, tables)
    if arguments.print:
        print(text)
    else:
        TARGET.write_text(text, encoding="utf-8")
        print(f"wrote {TARGET}")


if __name__ == "__main__":
    main()
