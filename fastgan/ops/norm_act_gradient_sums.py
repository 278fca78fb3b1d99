"""``torch.ops.fastgan.norm_act_gradient_sums``: the two sums of batch norm's gradient, by tiles.

::

    u = (x - mean) * scale + bias,    g = grad_output * z'(u),    xhat = (x - mean) * invstd
    grad = sum(g),    grad_xhat = sum(g * xhat)

The first of three stages back through a batch norm and an activation;
:mod:`fastgan.ops.norm_act_gradient_finalize` adds the tiles' sums up, and
:mod:`fastgan.ops.norm_act_gradient` makes the input's gradient. The results, (tiles, C), are the
fields of :class:`fastgan.fusion.GradientSums`; tiles are those of
:mod:`fastgan.ops.batch_norm_partials`.

``grad_output`` and ``input`` are (N, C, ...), of one of the four dtypes; the other arguments as for
:mod:`fastgan.ops.norm_act`, ``invstd`` as ``mean``. Kernels: ``csrc/cpu/batch_norm.cpp``,
``csrc/cuda/norm_act_gradient.cu``; the formulas: ``csrc/math/batch_norm.h``.

Order of gradients supported: none. The op raises where autograd would have to record it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS, BY_CODE
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_alike,
    check_arrays,
    normalise,
    per_channel,
    rows_of,
    tile_count,
    tile_size,
)
from fastgan.ops.norm_act import check_norm
from fastgan.ops.registration import NAMESPACE, define_if_absent, register_fallback
from fastgan.ops.without_gradient import register_without_gradient

__all__ = ["SCHEMA", "check", "plain_sums"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "norm_act_gradient_sums(Tensor grad_output, Tensor input, Tensor mean, Tensor invstd, "
    "Tensor scale, Tensor? bias, int activation, float negative_slope) -> "
    "(Tensor grad, Tensor grad_xhat)"
)
_OP = "norm_act_gradient_sums"


def plain_sums(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """The op in plain PyTorch."""
    _check_arguments(grad_output, input, mean, invstd, scale, bias, activation)
    u = normalise(input, mean, scale, bias)
    g = BY_CODE[activation].gradient_by_input(grad_output.to(mean.dtype), u, negative_slope)
    xhat = (input.to(mean.dtype) - per_channel(mean, input)) * per_channel(invstd, input)
    sums = []
    for terms in (g, g * xhat):
        rows = rows_of(terms)
        tiles = rows.split(tile_size(*rows.shape)) if rows.shape[0] else ()
        parts = [tile.sum(0) for tile in tiles]
        sums.append(torch.stack(parts) if parts else rows.new_empty((0, rows.shape[1])))
    return sums[0], sums[1]


def _check_arguments(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
) -> None:
    check_norm(_OP, input, mean, scale, bias, activation)
    check_alike(_OP, "grad_output", grad_output, "input", input)
    check_arrays(_OP, arithmetic_dtype(input.dtype), (input.shape[1],), invstd=invstd)


def _fake(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    invstd: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    _check_arguments(grad_output, input, mean, invstd, scale, bias, activation)
    channels = input.shape[1]
    tiles = tile_count(input.numel() // max(channels, 1), channels)
    return mean.new_empty((tiles, channels)), mean.new_empty((tiles, channels))


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    mean, invstd, scale, bias = torch.rand((4, 6), generator=generator)
    for dtype in DTYPES:
        grad, values = torch.randn((2, 9, 6, 17, 19), generator=generator).to(dtype)
        vectors = [v.to(arithmetic_dtype(dtype)).to(device) for v in (mean, invstd, scale, bias)]
        for activation in ACTIVATIONS.values():
            for memory_format in (torch.contiguous_format, torch.channels_last):
                on_device = [
                    t.to(device).contiguous(memory_format=memory_format) for t in (grad, values)
                ]
                actual = torch.ops.fastgan.norm_act_gradient_sums(
                    *on_device, *vectors, activation.code, 0.2
                )
                # The mean of the values' terms, so that the tolerance is that of one of them.
                x = values.double() - per_channel(mean.double(), values)
                u = x * per_channel(scale.double(), values)
                u = u + per_channel(bias.double(), values)
                g = activation.gradient_by_input(grad.double(), u, 0.2)
                xhat = x * per_channel(invstd.double(), values)
                for what, sums, terms in zip(
                    ("grad", "grad_xhat"), actual, (g, g * xhat), strict=True
                ):
                    mean_of_terms = sums.double().sum(0) / (9 * 17 * 19)
                    right = terms.mean((0, 2, 3))
                    assert_close(_OP, f"{what} of {activation.name}", mean_of_terms, right, dtype)


define_if_absent(SCHEMA)
register_fallback(_OP, plain_sums)
torch.library.register_fake(f"{NAMESPACE}::{_OP}", _fake)
register_without_gradient(torch.ops.fastgan.norm_act_gradient_sums.default)
