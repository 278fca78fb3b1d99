"""``torch.ops.fastgan.batch_norm_statistics``: both stages of batch norm's statistics in one call.

:mod:`fastgan.ops.batch_norm_partials` and :mod:`fastgan.ops.batch_norm_finalize`, for a batch norm
that stands alone: one op costs the host less than two, and on a CPU the tiles' statistics stay in
double between the stages. ``input`` is as for the former; ``weight``, ``running_mean`` and
``running_var`` as for the latter, updated in place. Returns ``mean``, ``invstd`` and ``scale``,
(C,), float32, float64 of float64 input.

Order of gradients supported: none. The op raises where autograd would have to record it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.batch_norm_finalize import plain_finalize
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_image,
    check_vectors,
)
from fastgan.ops.batch_norm_partials import plain_partials
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_fallback,
    register_in_place_on_lists,
)

__all__ = ["SCHEMA", "check"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "batch_norm_statistics(Tensor input, Tensor? weight, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps) -> "
    "(Tensor mean, Tensor invstd, Tensor scale)"
)
_OP = "batch_norm_statistics"


def _plain(
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return plain_finalize(*plain_partials(input), weight, running_mean, running_var, momentum, eps)


def _fake(
    input: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_image(_OP, "input", input)
    channels = input.shape[1]
    check_vectors(_OP, channels, weight=weight, running_mean=running_mean, running_var=running_var)
    dtype = arithmetic_dtype(input.dtype)
    mean, invstd, scale = (input.new_empty(channels, dtype=dtype) for _ in range(3))
    return mean, invstd, scale


def _written(args: Sequence[Any]) -> list[Tensor]:
    return [running for running in args[2:4] if running is not None]


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        values = torch.randn((9, 6, 17, 19), generator=generator, dtype=torch.float64).to(dtype)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            running_mean, running_var = torch.ones((2, 6), device=device).unbind()
            mean, invstd, _ = torch.ops.fastgan.batch_norm_statistics(
                values.to(device).contiguous(memory_format=memory_format),
                None,
                running_mean,
                running_var,
                0.25,
                1e-3,
            )
            wide = values.double()
            variance = wide.var((0, 2, 3), correction=0)
            new_mean = 0.75 + 0.25 * wide.mean((0, 2, 3))
            new_var = 0.75 + 0.25 * wide.var((0, 2, 3))
            arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
            assert_close(_OP, "mean", mean, wide.mean((0, 2, 3)), arithmetic)
            assert_close(_OP, "invstd", invstd, (variance + 1e-3).rsqrt(), arithmetic)
            assert_close(_OP, "running_mean", running_mean, new_mean, torch.float32)
            assert_close(_OP, "running_var", running_var, new_var, torch.float32)


define_if_absent(SCHEMA)
register_fallback(_OP, _plain)
torch.library.register_fake(f"{NAMESPACE}::{_OP}", _fake)
register_in_place_on_lists(torch.ops.fastgan.batch_norm_statistics.default, _written)
