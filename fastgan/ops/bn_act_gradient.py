"""``torch.ops.fastgan.bn_act_gradient``: back through a batch norm and an activation, in one call.

:mod:`fastgan.ops.norm_act_gradient_sums`, ``_finalize`` and :mod:`fastgan.ops.norm_act_gradient`,
for a batch norm that stands alone: one op costs the host less than three. The arguments are those
of :mod:`fastgan.ops.bn_act` with ``grad_output`` before them. Returns ``grad_input``, which lies as
``input`` does, and ``grad_weight`` and ``grad_bias``, (C,), float32, float64 of float64 input.

Order of gradients supported: none. The op raises where autograd would have to record it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_alike,
    per_channel,
    without_gaps,
)
from fastgan.ops.norm_act import check_norm
from fastgan.ops.norm_act_gradient import plain_gradient
from fastgan.ops.norm_act_gradient_finalize import plain_finalize
from fastgan.ops.norm_act_gradient_sums import plain_sums
from fastgan.ops.registration import NAMESPACE, define_if_absent, register_fallback
from fastgan.ops.without_gradient import register_without_gradient

__all__ = ["SCHEMA", "check"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "bn_act_gradient(Tensor grad_output, Tensor input, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor invstd, bool batch_statistics, int activation, "
    "float negative_slope) -> (Tensor grad_input, Tensor grad_weight, Tensor grad_bias)"
)
_OP = "bn_act_gradient"


def _plain(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    batch_statistics: bool,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    scale = invstd if weight is None else invstd * weight.to(invstd.dtype)
    sums = plain_sums(grad_output, input, mean, invstd, scale, bias, activation, negative_slope)
    count = input.numel() // max(input.shape[1], 1) if batch_statistics else 0
    slope, offset, grad_weight, grad_bias = plain_finalize(*sums, scale, invstd, count)
    grad_input = plain_gradient(
        grad_output, input, mean, scale, bias, slope, offset, activation, negative_slope
    )
    return grad_input, grad_weight, grad_bias


def _fake(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    batch_statistics: bool,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    check_norm(_OP, input, mean, invstd, bias, activation)
    check_alike(_OP, "grad_output", grad_output, "input", input)
    return (
        torch.empty_like(without_gaps(input)),
        torch.empty_like(mean),
        torch.empty_like(mean),
    )


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    weight, bias, mean, invstd = torch.rand((4, 6), generator=generator)
    for dtype in DTYPES:
        grad, values = torch.randn((2, 3, 6, 5, 7), generator=generator).to(dtype)
        vectors = [v.to(arithmetic_dtype(dtype)).to(device) for v in (weight, bias, mean, invstd)]
        wide_weight, wide_bias, wide_mean, wide_invstd = (
            per_channel(v.double(), values) for v in (weight, bias, mean, invstd)
        )
        for activation in ACTIVATIONS.values():
            for batch_statistics in (False, True):
                actual = torch.ops.fastgan.bn_act_gradient(
                    grad.to(device),
                    values.to(device),
                    *vectors,
                    batch_statistics,
                    activation.code,
                    0.2,
                )
                xhat = (values.double() - wide_mean) * wide_invstd
                g = activation.gradient_by_input(grad.double(), xhat * wide_weight + wide_bias, 0.2)
                mean_of_g, mean_of_gx = (
                    terms.mean((0, 2, 3), keepdim=True) for terms in (g, g * xhat)
                )
                inner = g - mean_of_g - xhat * mean_of_gx if batch_statistics else g
                expected = wide_weight * wide_invstd * inner
                assert_close(_OP, "grad_input", actual[0], expected, dtype)
                for what, value, right in (
                    ("grad_weight", actual[1], mean_of_gx),
                    ("grad_bias", actual[2], mean_of_g),
                ):
                    assert_close(_OP, what, value / 105, right.flatten(), dtype)


define_if_absent(SCHEMA)
register_fallback(_OP, _plain)
torch.library.register_fake(f"{NAMESPACE}::{_OP}", _fake)
register_without_gradient(torch.ops.fastgan.bn_act_gradient.default)
