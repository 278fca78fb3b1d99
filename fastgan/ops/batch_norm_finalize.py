"""``torch.ops.fastgan.batch_norm_finalize``: batch norm's statistics, merged from those of tiles.

The second stage after :mod:`fastgan.ops.batch_norm_partials`, or after the epilogue of a
convolution. Tiles are merged in their order, in double, by Chan, Golub and LeVeque 1983,
"Algorithms for computing the sample variance", (2.1). With n values of a channel in all::

    mean,  variance = m2 / n,  invstd = 1 / sqrt(variance + eps),  scale = weight * invstd
    running_mean <- (1 - momentum) * running_mean + momentum * mean
    running_var  <- (1 - momentum) * running_var + momentum * m2 / (n - 1)

``count`` (tiles,), ``mean`` and ``m2`` (tiles, C) are all float32 or all float64, and so are the
results, (C,). ``weight``, ``running_mean`` and ``running_var``, (C,) or None, may be of any of the
four dtypes; the latter two are updated in place, unless there are no values. Without tiles the mean
and the variance are 0. Kernels: ``csrc/cpu/batch_norm.cpp``,
``csrc/cuda/batch_norm_statistics.cu``; the formulas: ``csrc/math/batch_norm.h``.

Order of gradients supported: none. The op raises where autograd would have to record it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.batch_norm_formulas import assert_close, check_arrays, check_vectors
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_fallback,
    register_in_place_on_lists,
)

__all__ = ["SCHEMA", "check", "plain_finalize"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "batch_norm_finalize(Tensor count, Tensor mean, Tensor m2, Tensor? weight, "
    "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float eps) -> "
    "(Tensor mean, Tensor invstd, Tensor scale)"
)


def _check_arguments(
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
) -> None:
    op = "batch_norm_finalize"
    if mean.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            f"fastgan::{op}: mean has dtype {mean.dtype}; expected float32 or float64"
        )
    if mean.dim() != 2:
        raise RuntimeError(
            f"fastgan::{op}: mean has shape {tuple(mean.shape)}; expected (tiles, C)"
        )
    check_arrays(op, mean.dtype, (mean.shape[0],), count=count)
    check_arrays(op, mean.dtype, tuple(mean.shape), m2=m2)
    check_vectors(
        op, mean.shape[1], weight=weight, running_mean=running_mean, running_var=running_var
    )


def plain_finalize(
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The op in plain PyTorch."""
    _check_arguments(count, mean, m2, weight, running_mean, running_var)
    counts, means, squares = count.double()[:, None], mean.double(), m2.double()
    total = counts.sum()
    divisor = total.clamp(min=1)
    # All tiles at once: the sum over tiles of Chan's terms, around the mean of all.
    overall = (means * (counts / divisor)).sum(0)
    m2_overall = (squares + counts * (means - overall) ** 2).sum(0)
    invstd = (m2_overall / divisor + eps).rsqrt()
    scale = invstd if weight is None else invstd * weight
    changes = total > 0
    for running, new in (
        (running_mean, overall),
        (running_var, m2_overall / (total - 1)),
    ):
        if running is not None:
            after = (1 - momentum) * running.double() + momentum * new
            running.copy_(torch.where(changes, after, running.double()))
    return overall.to(mean.dtype), invstd.to(mean.dtype), scale.to(mean.dtype, copy=True)


def _fake(
    count: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check_arguments(count, mean, m2, weight, running_mean, running_var)
    channels = mean.shape[1]
    return mean.new_empty(channels), mean.new_empty(channels), mean.new_empty(channels)


def _written(args: Sequence[Any]) -> list[Tensor]:
    return [running for running in args[4:6] if running is not None]


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    name = "batch_norm_finalize"
    for dtype in (torch.float64, torch.float32):
        count = torch.tensor([64.0, 64.0, 5.0])
        mean = torch.randn((3, 70), generator=generator) + 100
        m2 = torch.rand((3, 70), generator=generator) * count[:, None]
        weight, running_mean, running_var = torch.rand((3, 70), generator=generator).unbind()
        count, mean, m2, weight, running_mean, running_var = (
            t.to(dtype).to(device, copy=True)
            for t in (count, mean, m2, weight, running_mean, running_var)
        )
        before = [
            t.cpu().double().clone() for t in (count, mean, m2, weight, running_mean, running_var)
        ]
        actual = torch.ops.fastgan.batch_norm_finalize(
            count, mean, m2, weight, running_mean, running_var, 0.25, 1e-3
        )
        counts, means, squares, weights, old_mean, old_var = before
        expected_mean = (counts[:, None] * means).sum(0) / 133
        difference = counts[:, None] * (means - expected_mean) ** 2
        expected_m2 = (squares + difference).sum(0)
        invstd = 1 / (expected_m2 / 133 + 1e-3).sqrt()
        expected = (
            expected_mean,
            invstd,
            weights * invstd,
            0.75 * old_mean + 0.25 * expected_mean,
            0.75 * old_var + 0.25 * expected_m2 / 132,
        )
        names = ("mean", "invstd", "scale", "running_mean", "running_var")
        for what, value, right in zip(
            names, (*actual, running_mean, running_var), expected, strict=True
        ):
            assert_close(name, what, value, right, dtype)


define_if_absent(SCHEMA)
register_fallback("batch_norm_finalize", plain_finalize)
torch.library.register_fake(f"{NAMESPACE}::batch_norm_finalize", _fake)
register_in_place_on_lists(torch.ops.fastgan.batch_norm_finalize.default, _written)
