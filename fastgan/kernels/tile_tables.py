"""Tiles per architecture, and how many programs fill a GPU: data for ``tiles.py``.

A row: bits, max_rows, max_columns, max_channels, then the tile (block_m, block_n, block_k, warps,
stages). Written by ``benchmarks/tune_convolutions.py``; rows shared by several kernels or
architectures are named after the first. MEASURED names the GPU of the measurement; tables without
one were chosen to compile without spilling.
"""

from __future__ import annotations

Row = tuple[int, int | None, int | None, int | None, tuple[int, int, int, int, int]]
Rows = tuple[Row, ...]

MEASURED: dict[str, str | None] = {
    "sm_80": None,
    "sm_90": None,
    "sm_100": None,
    "default": None,
}

# Two for each multiprocessor.
PROGRAMS: dict[str, int] = {
    "sm_80": 216,
    "sm_90": 264,
    "sm_100": 296,
    "default": 160,
}

SM_80_GATHER: Rows = (
    (16, None, None, 31, (64, 64, 32, 4, 2)),
    (16, 1024, 16, None, (16, 16, 128, 4, 3)),
    (16, None, 16, None, (128, 16, 32, 4, 4)),
    (16, None, 32, None, (128, 32, 32, 4, 4)),
    (16, 8192, 64, None, (64, 64, 32, 4, 4)),
    (16, None, 64, None, (128, 64, 32, 8, 3)),
    (16, 8192, 128, None, (64, 64, 32, 4, 4)),
    (16, 16384, 128, None, (128, 64, 32, 8, 3)),
    (16, 4096, 256, None, (64, 64, 32, 4, 4)),
    (16, 8192, 256, None, (128, 64, 32, 8, 3)),
    (16, 2048, None, None, (64, 64, 32, 4, 4)),
    (16, 4096, None, None, (128, 64, 32, 8, 3)),
    (16, None, None, None, (128, 128, 32, 8, 3)),
    (32, None, None, 31, (32, 32, 32, 4, 2)),
    (32, 1024, 16, None, (16, 16, 64, 4, 3)),
    (32, None, 16, None, (128, 16, 32, 4, 3)),
    (32, None, 32, None, (64, 32, 32, 4, 3)),
    (32, 8192, None, None, (64, 64, 32, 4, 3)),
    (32, None, None, None, (128, 64, 32, 8, 2)),
)
SM_80_WEIGHT_GRADIENT: Rows = (
    (16, None, 16, None, (128, 16, 64, 4, 3)),
    (16, 16, None, None, (64, 64, 64, 4, 3)),
    (16, 64, None, None, (64, 64, 64, 4, 3)),
    (16, None, 64, None, (128, 64, 32, 8, 3)),
    (16, None, None, None, (128, 128, 32, 8, 3)),
    (32, None, 16, None, (128, 16, 32, 4, 3)),
    (32, None, None, None, (64, 64, 16, 8, 3)),
)
SM_90_GATHER: Rows = (
    (16, None, None, 31, (64, 64, 32, 4, 2)),
    (16, 1024, 16, None, (16, 16, 128, 4, 4)),
    (16, None, 16, None, (128, 16, 64, 4, 4)),
    (16, None, 32, None, (128, 32, 64, 4, 4)),
    (16, 8192, 64, None, (64, 64, 64, 4, 4)),
    (16, None, 64, None, (128, 64, 64, 8, 3)),
    (16, 8192, 128, None, (64, 64, 64, 4, 4)),
    (16, 16384, 128, None, (128, 64, 64, 8, 3)),
    (16, 4096, 256, None, (64, 64, 64, 4, 4)),
    (16, 8192, 256, None, (128, 64, 64, 8, 3)),
    (16, 2048, None, None, (64, 64, 64, 4, 4)),
    (16, 4096, None, None, (128, 64, 64, 8, 3)),
    (16, None, None, None, (128, 128, 64, 8, 3)),
    (32, None, None, 31, (32, 32, 32, 4, 2)),
    (32, 1024, 16, None, (16, 16, 64, 4, 3)),
    (32, None, 16, None, (128, 16, 32, 4, 3)),
    (32, None, 32, None, (64, 32, 32, 4, 3)),
    (32, 8192, None, None, (64, 64, 32, 4, 3)),
    (32, None, None, None, (128, 64, 32, 8, 3)),
)
SM_90_WEIGHT_GRADIENT: Rows = (
    (16, None, 16, None, (128, 16, 64, 4, 3)),
    (16, 16, None, None, (64, 64, 64, 4, 3)),
    (16, 64, None, None, (64, 64, 64, 4, 3)),
    (16, None, 64, None, (128, 64, 64, 8, 3)),
    (16, None, None, None, (128, 128, 32, 8, 4)),
    (32, None, 16, None, (128, 16, 32, 4, 3)),
    (32, None, None, None, (64, 64, 16, 8, 3)),
)
DEFAULT_GATHER: Rows = (
    (16, None, 16, None, (64, 16, 32, 4, 2)),
    (16, None, None, None, (64, 64, 32, 4, 2)),
    (32, None, 16, None, (64, 16, 32, 4, 2)),
    (32, None, None, None, (64, 32, 32, 4, 2)),
)
DEFAULT_WEIGHT_GRADIENT: Rows = (
    (16, None, 16, None, (64, 16, 32, 4, 2)),
    (16, None, None, None, (64, 64, 32, 4, 2)),
    (32, None, 16, None, (64, 16, 32, 4, 2)),
    (32, None, None, None, (64, 32, 16, 4, 2)),
)

TABLES: dict[str, dict[str, Rows]] = {
    "sm_80": {
        "gather": SM_80_GATHER,
        "scatter": SM_80_GATHER,
        "weight_gradient": SM_80_WEIGHT_GRADIENT,
    },
    "sm_90": {
        "gather": SM_90_GATHER,
        "scatter": SM_90_GATHER,
        "weight_gradient": SM_90_WEIGHT_GRADIENT,
    },
    "sm_100": {
        "gather": SM_90_GATHER,
        "scatter": SM_90_GATHER,
        "weight_gradient": SM_90_WEIGHT_GRADIENT,
    },
    "default": {
        "gather": DEFAULT_GATHER,
        "scatter": DEFAULT_GATHER,
        "weight_gradient": DEFAULT_WEIGHT_GRADIENT,
    },
}
