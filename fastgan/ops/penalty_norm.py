"""``torch.ops.fastgan.penalty_norm_*``: layer, group and instance norm in the gradient penalty.

Maps are (N, C, ...), any of the four dtypes, each sample without gaps, contiguous or channels-last;
every group of C / groups channels and all positions, M elements, is normalised by itself::

    xhat = (x - mean) r,    r = (var + eps)^(-1/2),    T(p) = r (p - mean p - xhat mean(xhat p))

    penalty_norm_forward_     xhat, invstd = r (N, groups), output = weight * xhat + bias
    penalty_norm_project_     tangent: output = weight * T(grad);  else output = T(weight * grad)
    penalty_norm_curvature_   output = d/dx <p, T(u)>, with p = weight * grad and u = tangent
                              = -r^2 (C (p - mean p) + B (u - mean u) + (A - 3 B C) xhat),
                              A = mean(p (u - mean u)), B = mean(xhat p), C = mean(xhat u)
    penalty_norm_gradients_   weight_grad (N, C) = sums over positions of grad * xhat or, with a
                              tangent, of grad * T(tangent);  bias_grad (N, C) of grad

T is the derivative of xhat, and symmetric. weight and bias (C,), either may be None, statistics and
sums are float32, or float64 for float64 maps; means (2, N, groups) is room to work in. Outputs are
given, and may be the very tensor that an input is. Sums are taken in an order that doesn't change
between runs. Kernels: ``csrc/cpu/penalty_norm.cpp``, ``csrc/cuda/penalty_norm.cu``; the formulas:
``csrc/math/penalty_norm.h``. No gradient of their own: they raise where autograd would record them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_fallback,
    register_in_place_on_lists,
)

__all__ = [
    "SCHEMAS",
    "check_curvature",
    "check_forward",
    "check_gradients",
    "check_project",
]

#: As in csrc/penalty_ops.cpp.
SCHEMAS = {
    "penalty_norm_forward_": (
        "penalty_norm_forward_(Tensor input, Tensor? weight, Tensor? bias, int groups, float eps, "
        "Tensor(a!) xhat, Tensor(b!) invstd, Tensor(c!) output) -> ()"
    ),
    "penalty_norm_project_": (
        "penalty_norm_project_(Tensor grad, Tensor xhat, Tensor invstd, Tensor? weight, "
        "int groups, bool tangent, Tensor(a!) output) -> ()"
    ),
    "penalty_norm_curvature_": (
        "penalty_norm_curvature_(Tensor grad, Tensor tangent, Tensor xhat, Tensor invstd, "
        "Tensor? weight, int groups, Tensor(a!) output) -> ()"
    ),
    "penalty_norm_gradients_": (
        "penalty_norm_gradients_(Tensor grad, Tensor? tangent, Tensor xhat, Tensor invstd, "
        "int groups, Tensor(a!) weight_grad, Tensor(b!) bias_grad, Tensor(c!) means) -> ()"
    ),
}


def _grouped(maps: Tensor, groups: int) -> Tensor:
    """(N, groups, channels of a group, positions), in the dtype that is computed in."""
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


def _plain_forward_(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    eps: float,
    xhat: Tensor,
    invstd: Tensor,
    output: Tensor,
) -> None:
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


def _plain_project_(
    grad: Tensor,
    xhat: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    groups: int,
    tangent: bool,
    output: Tensor,
) -> None:
    p, scale, direction = _grouped(grad, groups), _spread(weight, groups), _grouped(xhat, groups)
    if tangent:
        _write(output, _projected(p, direction, invstd) * scale)
    else:
        _write(output, _projected(p * scale, direction, invstd))


def _plain_curvature_(
    grad: Tensor,
    tangent: Tensor,
    xhat: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    groups: int,
    output: Tensor,
) -> None:
    p = _grouped(grad, groups) * _spread(weight, groups)
    u, direction = _grouped(tangent, groups), _grouped(xhat, groups)
    p, u = p - _mean(p), u - _mean(u)
    a, b, c = _mean(p * u), _mean(direction * p), _mean(direction * u)
    scale = -invstd.square().view(*p.shape[:2], 1, 1)
    _write(output, scale * (c * p + b * u + (a - 3 * b * c) * direction))


def _plain_gradients_(
    grad: Tensor,
    tangent: Tensor | None,
    xhat: Tensor,
    invstd: Tensor,
    groups: int,
    weight_grad: Tensor,
    bias_grad: Tensor,
    means: Tensor,
) -> None:
    signal, direction = _grouped(grad, groups), _grouped(xhat, groups)
    if tangent is not None:
        u = _grouped(tangent, groups)
        means.copy_(torch.stack([_mean(u), _mean(u * direction)]).view(means.shape))
        direction = _projected(u, direction, invstd)
    weight_grad.copy_((signal * direction).sum(3).view(weight_grad.shape))
    bias_grad.copy_(signal.sum(3).view(bias_grad.shape))


# --- What fastgan doctor runs ---------------------------------------------------------------------


def _example(
    device: torch.device | str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Maps x, d and u in float64, channels-last, on the device; a weight and a bias."""
    random = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 2, 6, 5, 3, generator=random, dtype=torch.float64).to(device)
    x, d, u = (m.contiguous(memory_format=torch.channels_last) for m in maps.unbind(0))
    weight, bias = torch.randn(2, 6, generator=random, dtype=torch.float64).to(device).unbind(0)
    return x, d, u, weight, bias


def _forward(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    xhat, output, invstd = torch.empty_like(x), torch.empty_like(x), x.new_empty(2, 3)
    torch.ops.fastgan.penalty_norm_forward_(x, weight, bias, 3, 1e-5, xhat, invstd, output)
    return xhat, invstd, output


def _same(name: str, device: torch.device | str, found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found, expected, rtol=1e-9, atol=1e-12):
        raise FastganError(f"fastgan::{name} gives wrong values on {device}")


def _norm_of(x: Tensor, weight: Tensor) -> Tensor:
    """Group norm in elementary functions. (torch's own crashes, channels-last, where the weight
    alone wants a gradient: seen with 2.13.)"""
    groups = x.unflatten(1, (3, -1))
    variance, mean = torch.var_mean(groups, (2, 3, 4), correction=0, keepdim=True)
    xhat: Tensor = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2)
    return xhat * weight.view(-1, 1, 1)


def _tangent_by_torch(x: Tensor, weight: Tensor, u: Tensor, keep_graph: bool) -> Tensor:
    """d/dt of the norm along u, by differentiating its gradient in the incoming one."""
    x = x.detach().requires_grad_()
    y = _norm_of(x, weight)
    seed = torch.zeros_like(y, requires_grad=True)
    (gradient,) = torch.autograd.grad(y, x, seed, create_graph=True)
    tangent: Tensor = torch.autograd.grad(gradient, seed, u, create_graph=keep_graph)[0]
    return tangent


def check_forward(device: torch.device | str) -> None:
    """Runs ``penalty_norm_forward_`` on `device` and compares with torch's group norm.

    Raises:
        FastganError: a value is wrong.
    """
    x, _, _, weight, bias = _example(device)
    expected = torch.nn.functional.group_norm(x, 3, weight, bias)
    _same("penalty_norm_forward_", device, _forward(x, weight, bias)[2], expected)


def check_project(device: torch.device | str) -> None:
    """Runs ``penalty_norm_project_`` on `device` and compares with autograd.

    Raises:
        FastganError: a value is wrong.
    """
    x, d, u, weight, bias = _example(device)
    xhat, invstd, _ = _forward(x, weight, bias)
    op = torch.ops.fastgan.penalty_norm_project_
    found = torch.empty_like(d)
    op(d, xhat, invstd, weight, 3, False, found)
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        output = _norm_of(point, weight)
        (expected,) = torch.autograd.grad(output, point, d)
        tangent = _tangent_by_torch(x, weight, u, False)
    _same("penalty_norm_project_", device, found, expected)
    op(u, xhat, invstd, weight, 3, True, found)
    _same("penalty_norm_project_", device, found, tangent)


def check_curvature(device: torch.device | str) -> None:
    """Runs ``penalty_norm_curvature_`` on `device` and compares with autograd.

    Raises:
        FastganError: a value is wrong.
    """
    x, d, u, weight, bias = _example(device)
    xhat, invstd, _ = _forward(x, weight, bias)
    found = torch.empty_like(d)
    torch.ops.fastgan.penalty_norm_curvature_(d, u, xhat, invstd, weight, 3, found)
    with torch.enable_grad():
        point = x.clone().requires_grad_()
        output = _norm_of(point, weight)
        (signal,) = torch.autograd.grad(output, point, d, create_graph=True)
        (expected,) = torch.autograd.grad(signal, point, u)
    _same("penalty_norm_curvature_", device, found, expected)


def check_gradients(device: torch.device | str) -> None:
    """Runs ``penalty_norm_gradients_`` on `device` and compares with autograd.

    Raises:
        FastganError: a value is wrong.
    """
    x, d, u, weight, bias = _example(device)
    xhat, invstd, _ = _forward(x, weight, bias)
    of_weight, of_bias, means = x.new_empty(2, 6), x.new_empty(2, 6), x.new_empty(2, 2, 3)
    op = torch.ops.fastgan.penalty_norm_gradients_
    op(d, None, xhat, invstd, 3, of_weight, of_bias, means)
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        output = _norm_of(x, leaf)
        (expected,) = torch.autograd.grad(output, leaf, d)
        moved = _tangent_by_torch(x, leaf, u, True)
        (expected_of_tangent,) = torch.autograd.grad(moved, leaf, d)
    _same("penalty_norm_gradients_", device, of_weight.sum(0), expected)
    _same("penalty_norm_gradients_", device, of_bias.sum(0), d.sum((0, 2, 3)))
    op(d, u, xhat, invstd, 3, of_weight, of_bias, means)
    _same("penalty_norm_gradients_", device, of_weight.sum(0), expected_of_tangent)


# --- Registration ---------------------------------------------------------------------------------


def _register(name: str, plain: Callable[..., None], outputs: int) -> None:
    """``outputs`` arguments, the last ones, are written."""

    def written(args: Sequence[Any]) -> Sequence[Tensor]:
        return args[-outputs:]

    def fake(*args: Any) -> None:
        return None

    define_if_absent(SCHEMAS[name])
    register_fallback(name, plain)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    register_in_place_on_lists(getattr(torch.ops.fastgan, name).default, written)


_register("penalty_norm_forward_", _plain_forward_, 3)
_register("penalty_norm_project_", _plain_project_, 1)
_register("penalty_norm_curvature_", _plain_curvature_, 1)
_register("penalty_norm_gradients_", _plain_gradients_, 3)
