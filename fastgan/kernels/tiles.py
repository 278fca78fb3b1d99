"""Selects a kernel's tile from the tables of ``tile_tables.py`` by problem class.

A problem's class is the kernel, its dtype's width and the size of its matrix product. A table lists
tiles, each with its largest problem; the first row that fits is selected.
``benchmarks/tune_convolutions.py`` writes the tables from measurements on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from fastgan.kernels.tile_tables import PROGRAMS, TABLES

Capability = tuple[int, int]


class Problem(NamedTuple):
    """A matrix product, rows x columns, summed over a reduction.

    Attributes:
        kernel: "gather", "scatter" or "weight_gradient".
        bits: the dtype's width, 16 or 32.
        rows: positions of the output, in all phases; for a weight gradient, the gathered side's
            channels.
        columns: channels of the output; for a weight gradient, the paired side's.
        channels: the summed channels at each tap; for a weight gradient, as rows.
    """

    kernel: str
    bits: int
    rows: int
    columns: int
    channels: int


class Tile(NamedTuple):
    """A program's tile, warps and stages.

    Attributes:
        block_m: rows of its tile.
        block_n: columns of its tile.
        block_k: the reduction's length per step.
        warps: of 32 threads.
        stages: steps with loads in flight at a time.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int


class TileRow(NamedTuple):
    """A tile and its largest problem; None is no bound."""

    kernel: str
    bits: int
    max_rows: int | None
    max_columns: int | None
    max_channels: int | None
    tile: Tile

    def takes(self, problem: Problem) -> bool:
        """Whether the problem fits this row."""
        return (
            self.kernel == problem.kernel
            and self.bits == problem.bits
            and (self.max_rows is None or problem.rows <= self.max_rows)
            and (self.max_columns is None or problem.columns <= self.max_columns)
            and (self.max_channels is None or problem.channels <= self.max_channels)
        )


def architecture_of(capability: Capability) -> str:
    """The table for a GPU of this compute capability.

    Example:
        >>> [architecture_of(c) for c in [(8, 6), (9, 0), (10, 3), (12, 0)]]
        ['sm_80', 'sm_90', 'sm_100', 'default']
    """
    return {8: "sm_80", 9: "sm_90", 10: "sm_100"}.get(capability[0], "default")


def rows_of(architecture: str) -> tuple[TileRow, ...]:
    """The table of an architecture."""
    return tuple(
        TileRow(kernel, *row[:4], Tile(*row[4]))
        for kernel, rows in TABLES[architecture].items()
        for row in rows
    )


_ROWS = {architecture: rows_of(architecture) for architecture in TABLES}


def tile_for(problem: Problem, capability: Capability) -> Tile:
    """The tile of the first row that fits the problem.

    Example:
        >>> tile_for(Problem("gather", 32, 1, 1, 1), (9, 0)).block_k >= 16
        True
    """
    return next(row.tile for row in _ROWS[architecture_of(capability)] if row.takes(problem))


def programs_of(capability: Capability) -> int:
    """How many programs fill the GPU: two for each multiprocessor.

    Example:
        >>> programs_of((9, 0))
        264
    """
    return PROGRAMS[architecture_of(capability)]


def splits_of(tiles: int, steps: int, capability: Capability) -> int:
    """The number of splits of a reduction with this many steps and tiles.

    Enough splits to fill the GPU, of at least four steps each to keep their overhead small.

    Example:
        >>> splits_of(tiles=1, steps=40, capability=(9, 0))
        10
    """
    wanted = programs_of(capability) // tiles
    return max(1, min(wanted, steps // 4, 128))
