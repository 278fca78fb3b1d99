"""``torch.ops.fastgan.penalty_norm_*``: layer, group and instance norm in the gradient penalty.

Maps are (N, C, ...), of the four dtypes, with dense samples, contiguous or channels-last; every
group of C / groups channels over all positions, M elements, is normalised separately::

    xhat = (x - mean) r,    r = (var + eps)^(-1/2),    T(p) = r (p - mean p - xhat mean(xhat p))

    penalty_norm_forward_     xhat, invstd = r (N, groups), output = weight * xhat + bias
    penalty_norm_project_     tangent: output = weight * T(grad);  else output = T(weight * grad)
    penalty_norm_curvature_   output = d/dx <p, T(u)>, with p = weight * grad and u = tangent
                              = -r^2 (C (p - mean p) + B (u - mean u) + (A - 3 B C) xhat),
                              A = mean(p (u - mean u)), B = mean(xhat p), C = mean(xhat u)
    penalty_norm_gradients_   weight_grad (N, C) = sums over positions of grad * xhat or, with a
                              tangent, of grad * T(tangent);  bias_grad (N, C) of grad

T is the derivative of xhat, and symmetric. weight and bias (C,) (or None), statistics and sums are
float32, or float64 for float64 maps; means (2, N, groups) is a workspace. Outputs are arguments and
may be the same tensor as an input. Sums have a fixed order. Kernels: ``csrc/cpu/penalty_norm.cpp``,
``csrc/cuda/penalty_norm.cu``; the formulas: ``csrc/math/penalty_norm.h``. No gradient of their own:
they raise if autograd would record them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op


def _grouped(maps: Tensor, groups: int) -> Tensor:
    """(N, groups, channels of a group, positions), in the arithmetic's dtype."""
    wide = maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps
    return wide.reshape(maps.size(0), groups, maps.size(1) // max(groups, 1), -1)


def _mean(grouped: Tensor) -> Tensor:
    return grouped.mean((2, 3), keepdim=True)


def _spread(vector: Tensor | None, groups: int) -> Tensor | float:
    return 1.0 if vector is None else vector.view(groups, -1, 1)


def _projected(p: Tensor, xhat: Tensor, invstd: Tensor) -> Tensor:
    return (p - _mean(p) - xhat * _mean(xhat * p)) * invstd.view(*p.shape[:2], 1, 1)


def _write(output: Tensor, grouped: Tensor) -> None:
    output.copy_(grouped.reshape(output.shape))


# --- Examples -------------------------------------------------------------------------------------


def _maps() -> Iterator[tuple[Tensor, ...]]:
    """Maps x, d and u, a weight and a bias, xhat and invstd of three groups; an output map."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        wide = torch.promote_types(dtype, torch.float32)
        maps = torch.randn(3, 2, 6, 5, 3, generator=random).to(dtype)
        x, d, u = (m.contiguous(memory_format=torch.channels_last) for m in maps.unbind(0))
        weight, bias = torch.randn(2, 6, generator=random).to(wide).unbind(0)
        groups = _grouped(x, 3)
        variance, mean = torch.var_mean(groups, (2, 3), correction=0, keepdim=True)
        invstd = (variance + 1e-5).rsqrt()
        xhat = torch.empty_like(x).copy_(((groups - mean) * invstd).view(x.shape))
        yield x, d, u, weight, bias, xhat, invstd.view(2, 3), torch.zeros_like(x)


def _forward_examples() -> Iterator[tuple[Any, ...]]:
    for x, _, _, weight, bias, xhat, invstd, output in _maps():
        yield x, weight, bias, 3, 1e-5, torch.zeros_like(xhat), torch.zeros_like(invstd), output


def _project_examples() -> Iterator[tuple[Any, ...]]:
    for _, d, _, weight, _, xhat, invstd, output in _maps():
        yield d, xhat, invstd, weight, 3, False, output
        yield d, xhat, invstd, weight, 3, True, output


def _curvature_examples() -> Iterator[tuple[Any, ...]]:
    for _, d, u, weight, _, xhat, invstd, output in _maps():
        yield d, u, xhat, invstd, weight, 3, output


def _gradients_examples() -> Iterator[tuple[Any, ...]]:
    for _, d, u, _, _, xhat, invstd, _ in _maps():
        of_weight, of_bias, means = (invstd.new_zeros(s) for s in ((2, 6), (2, 6), (2, 2, 3)))
        yield d, None, xhat, invstd, 3, of_weight, of_bias, means
        yield d, u, xhat, invstd, 3, of_weight, of_bias, means


# --- The ops --------------------------------------------------------------------------------------


@define_op(
    "penalty_norm_forward_(Tensor input, Tensor? weight, Tensor? bias, int groups, float eps, "
    "Tensor(a!) xhat, Tensor(b!) invstd, Tensor(c!) output) -> ()",
    examples=_forward_examples,
)
def penalty_norm_forward_(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    xhat: Tensor,
    invstd: Tensor,
    output: Tensor,
) -> None:
    """Fills ``xhat``, ``invstd`` and ``output``."""
    x = _grouped(input, groups)
    centred = x - _mean(x)
    scale = (_mean(centred.square()) + eps).rsqrt()
    normalised = centred * scale
    result = normalised * _spread(weight, groups)
    if bias is not None:
        result = result + _spread(bias, groups)
    invstd.copy_(scale.view(invstd.shape))
    _write(xhat, normalised)
    _write(output, result)


@define_op(
    "penalty_norm_project_(Tensor grad, Tensor xhat, Tensor invstd, Tensor? weight, "
    "int groups, bool tangent, Tensor(a!) output) -> ()",
    examples=_project_examples,
)
def penalty_norm_project_(
    grad: Tensor,
    xhat: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    groups: int,
    tangent: bool,
    output: Tensor,
) -> None:
    """Fills ``output``."""
    p, scale, direction = _grouped(grad, groups), _spread(weight, groups), _grouped(xhat, groups)
    if tangent:
        _write(output, _projected(p, direction, invstd) * scale)
    else:
        _write(output, _projected(p * scale, direction, invstd))


@define_op(
    "penalty_norm_curvature_(Tensor grad, Tensor tangent, Tensor xhat, Tensor invstd, "
    "Tensor? weight, int groups, Tensor(a!) output) -> ()",
    examples=_curvature_examples,
)
def penalty_norm_curvature_(
    grad: Tensor,
    tangent: Tensor,
    xhat: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    groups: int,
    output: Tensor,
) -> None:
    """Fills ``output``."""
    p = _grouped(grad, groups) * _spread(weight, groups)
    u, direction = _grouped(tangent, groups), _grouped(xhat, groups)
    p, u = p - _mean(p), u - _mean(u)
    a, b, c = _mean(p * u), _mean(direction * p), _mean(direction * u)
    scale = -invstd.square().view(*p.shape[:2], 1, 1)
    _write(output, scale * (c * p + b * u + (a - 3 * b * c) * direction))


@define_op(
    "penalty_norm_gradients_(Tensor grad, Tensor? tangent, Tensor xhat, Tensor invstd, "
    "int groups, Tensor(a!) weight_grad, Tensor(b!) bias_grad, Tensor(c!) means) -> ()",
    examples=_gradients_examples,
    scratch=("means",),
)
def penalty_norm_gradients_(
    grad: Tensor,
    tangent: Tensor | None,
    xhat: Tensor,
    invstd: Tensor,
    groups: int,
    weight_grad: Tensor,
    bias_grad: Tensor,
    means: Tensor,
) -> None:
    """Fills ``weight_grad`` and ``bias_grad``, and uses ``means``."""
    signal, direction = _grouped(grad, groups), _grouped(xhat, groups)
    if tangent is not None:
        u = _grouped(tangent, groups)
        direction = _projected(u, direction, invstd)
    weight_grad.copy_((signal * direction).sum(3).view(weight_grad.shape))
    bias_grad.copy_(signal.sum(3).view(bias_grad.shape))
