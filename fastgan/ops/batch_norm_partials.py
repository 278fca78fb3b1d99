"""``torch.ops.fastgan.batch_norm_partials``: batch norm's statistics, tile by tile.

The first of two stages, the second being
:mod:`fastgan.ops.batch_norm_finalize`. A channel's values, in the order of (N, ...), are cut into
tiles; of each::

    mean = sum(x) / n,    m2 = sum((x - mean)^2)

``input`` is (N, C, ...), float64, float32, float16 or bfloat16, contiguous or channels-last (others
are copied). ``count`` (tiles,), ``mean`` and ``m2`` (tiles, C) are float32, float64 of float64: the
fields of :class:`fastgan.fusion.PartialStatistics`. How many tiles there are depends on the shape
alone, so that results don't depend on the number of threads. Kernels: ``csrc/cpu/batch_norm.cpp``,
``csrc/cuda/batch_norm_statistics.cu``; the formulas: ``csrc/math/batch_norm.h``.

Order of gradients supported: none. The op raises where autograd would have to record it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_image,
    rows_of,
    tile_count,
    tile_size,
)
from fastgan.ops.registration import NAMESPACE, define_if_absent, register_fallback
from fastgan.ops.without_gradient import register_without_gradient

__all__ = ["SCHEMA", "check", "plain_partials"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = "batch_norm_partials(Tensor input) -> (Tensor count, Tensor mean, Tensor m2)"


def plain_partials(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The op in plain PyTorch."""
    check_image("batch_norm_partials", "input", input)
    rows = rows_of(input).to(arithmetic_dtype(input.dtype))
    size = tile_size(*rows.shape)
    tiles = rows.split(size) if rows.shape[0] else ()
    means = [tile.mean(0) for tile in tiles]
    squares = [((tile - mean) ** 2).sum(0) for tile, mean in zip(tiles, means, strict=True)]
    empty = rows.new_empty((0, rows.shape[1]))
    return (
        rows.new_tensor([tile.shape[0] for tile in tiles]),
        torch.stack(means) if means else empty,
        torch.stack(squares) if squares else empty.clone(),
    )


def _fake(input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_image("batch_norm_partials", "input", input)
    channels = input.shape[1]
    values = input.numel() // max(channels, 1)
    tiles = tile_count(values, channels)
    dtype = arithmetic_dtype(input.dtype)
    return (
        input.new_empty((tiles,), dtype=dtype),
        input.new_empty((tiles, channels), dtype=dtype),
        input.new_empty((tiles, channels), dtype=dtype),
    )


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        # A mean much larger than the spread; more than one tile; odd sizes.
        values = torch.randn((9, 6, 17, 19), generator=generator, dtype=torch.float64) + 100
        for memory_format in (torch.contiguous_format, torch.channels_last):
            input = values.to(dtype).to(device).contiguous(memory_format=memory_format)
            count, mean, m2 = torch.ops.fastgan.batch_norm_partials(input)
            rows = rows_of(input.cpu().double())
            for i, tile in enumerate(rows.split(tile_size(*rows.shape))):
                assert_close("batch_norm_partials", "mean", mean[i], tile.mean(0), dtype)
                expected = tile.var(0, correction=0)
                variance = m2[i].cpu() / count[i].cpu()
                assert_close("batch_norm_partials", "m2", variance, expected, torch.float16)


define_if_absent(SCHEMA)
register_fallback("batch_norm_partials", plain_partials)
torch.library.register_fake(f"{NAMESPACE}::batch_norm_partials", _fake)
register_without_gradient(torch.ops.fastgan.batch_norm_partials.default)
