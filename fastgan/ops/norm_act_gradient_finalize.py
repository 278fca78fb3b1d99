"""``torch.ops.fastgan.norm_act_gradient_finalize``: batch norm's gradient terms from its sums.

With the tiles' sums added in their order, in double, and n values a channel (``count``)::

    grad_weight = sum(g * xhat),    grad_bias = sum(g)
    slope = -scale * invstd * grad_weight / n,    offset = -scale * grad_bias / n

so that the input's gradient is scale * g + (x - mean) * slope + offset (Ioffe and Szegedy 2015,
arXiv 1502.03167, section 3). With ``count`` = 0 the statistics are taken for constants, as the
running ones are: slope and offset are 0.

``grad`` and ``grad_xhat`` are (tiles, C), of :mod:`fastgan.ops.norm_act_gradient_sums` or of a
convolution's epilogue; ``scale`` and ``invstd`` are (C,), and so are the results; all float32, or
all float64. Kernels: ``csrc/cpu/batch_norm.cpp``, ``csrc/cuda/norm_act_gradient.cu``.

Order of gradients supported: none. The op raises where autograd would have to record it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops.batch_norm_formulas import assert_close, check_arrays
from fastgan.ops.registration import NAMESPACE, define_if_absent, register_fallback
from fastgan.ops.without_gradient import register_without_gradient

__all__ = ["SCHEMA", "check", "plain_finalize"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "norm_act_gradient_finalize(Tensor grad, Tensor grad_xhat, Tensor scale, Tensor invstd, "
    "int count) -> (Tensor slope, Tensor offset, Tensor grad_weight, Tensor grad_bias)"
)
_OP = "norm_act_gradient_finalize"


def _check_arguments(
    grad: Tensor, grad_xhat: Tensor, scale: Tensor, invstd: Tensor, count: int
) -> None:
    if grad.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            f"fastgan::{_OP}: grad has dtype {grad.dtype}; expected float32 or float64"
        )
    if grad.dim() != 2:
        raise RuntimeError(
            f"fastgan::{_OP}: grad has shape {tuple(grad.shape)}; expected (tiles, C)"
        )
    check_arrays(_OP, grad.dtype, tuple(grad.shape), grad_xhat=grad_xhat)
    check_arrays(_OP, grad.dtype, (grad.shape[1],), scale=scale, invstd=invstd)


def plain_finalize(
    grad: Tensor, grad_xhat: Tensor, scale: Tensor, invstd: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op in plain PyTorch."""
    _check_arguments(grad, grad_xhat, scale, invstd, count)
    if count < 0:
        raise RuntimeError(f"fastgan::{_OP}: count is {count}; expected at least 0")
    grad_bias, grad_weight = grad.double().sum(0), grad_xhat.double().sum(0)
    if count == 0:  # constant statistics: 0, even where a sum is not finite
        slope = offset = torch.zeros_like(grad_bias)
    else:
        slope = -scale.double() * invstd.double() * grad_weight / count
        offset = -scale.double() * grad_bias / count
    dtype = grad.dtype
    return (
        slope.to(dtype, copy=True),
        offset.to(dtype, copy=True),
        grad_weight.to(dtype, copy=True),
        grad_bias.to(dtype, copy=True),
    )


def _fake(
    grad: Tensor, grad_xhat: Tensor, scale: Tensor, invstd: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_arguments(grad, grad_xhat, scale, invstd, count)
    channels = grad.shape[1]
    slope, offset, grad_weight, grad_bias = (grad.new_empty(channels) for _ in range(4))
    return slope, offset, grad_weight, grad_bias


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32):
        grad, grad_xhat = torch.randn((2, 3, 70), generator=generator).to(dtype)
        scale, invstd = torch.rand((2, 70), generator=generator).to(dtype)
        for count in (0, 10):
            actual = torch.ops.fastgan.norm_act_gradient_finalize(
                *(t.to(device) for t in (grad, grad_xhat, scale, invstd)), count
            )
            grad_bias, grad_weight = grad.double().sum(0), grad_xhat.double().sum(0)
            share = 1 / count if count else 0.0
            expected = (
                -scale.double() * invstd.double() * grad_weight * share,
                -scale.double() * grad_bias * share,
                grad_weight,
                grad_bias,
            )
            names = ("slope", "offset", "grad_weight", "grad_bias")
            for what, value, right in zip(names, actual, expected, strict=True):
                assert_close(_OP, what, value, right, dtype)


define_if_absent(SCHEMA)
register_fallback(_OP, plain_finalize)
torch.library.register_fake(f"{NAMESPACE}::{_OP}", _fake)
register_without_gradient(torch.ops.fastgan.norm_act_gradient_finalize.default)
