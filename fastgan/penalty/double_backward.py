"""The penalty as PyTorch writes it: a gradient with a graph, differentiated again.

torch 2.13's third derivatives of layer norm, instance norm and batch norm in training mode are
wrong, as finite differences show: :func:`refuse_wrong_derivatives`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fastgan.penalty.formula import Formula
from fastgan.penalty.points import within_transform

__all__ = ["penalty_by_double_backward", "refuse_wrong_derivatives"]


def penalty_by_double_backward(
    scores: Callable[[Tensor], Tensor], points: Tensor, formula: Formula
) -> Tensor:
    """P at ``points``, differentiable to any order in whatever ``scores`` depends on.

    Args:
        scores: images to one score per sample, shape (N,).
        points: (N, ...).
        formula: weight, target and side.
    """
    if within_transform():
        # In a transform, requires_grad_ isn't allowed.
        result: tuple[Any, ...] = torch.func.vjp(scores, points.detach())
        output, pull_back = result
        return formula.value(pull_back(torch.ones_like(output))[0])
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        output = scores(points)
        if output.requires_grad:
            (gradient,) = torch.autograd.grad(
                output,
                points,
                torch.ones_like(output),
                create_graph=keep_graph,
                materialize_grads=True,
            )
        else:  # the critic is constant
            gradient = torch.zeros_like(points)
    return formula.value(gradient)


def refuse_wrong_derivatives(penalty: Tensor, critic: Any) -> Tensor:
    """Returns ``penalty``; its backward raises under create_graph if the third derivative would be
    wrong.

    Within a transform of ``torch.func`` it is unchanged, because a transform doesn't say whether it
    differentiates again.

    Args:
        penalty: by :func:`penalty_by_double_backward`.
        critic: the module inside any wrapper, or a function, whose layers can't be seen.
    """
    if not penalty.requires_grad or not isinstance(critic, nn.Module):
        return penalty
    if torch.compiler.is_compiling() or within_transform():
        return penalty
    for name, module in critic.named_modules():
        if _has_wrong_third_derivative(module):
            layer = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
            guarded: Tensor = _OnceDifferentiable.apply(penalty, layer)  # type: ignore[no-untyped-call]
            return guarded
    return penalty


def _has_wrong_third_derivative(module: nn.Module) -> bool:
    if isinstance(module, nn.LayerNorm):
        return True
    if isinstance(module, _BatchNorm):
        return module.training or module.running_mean is None
    if isinstance(module, _InstanceNorm):
        return module.training or not module.track_running_stats
    return False


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, penalty: Tensor, layer: str) -> Tensor:
        ctx.layer = layer
        return penalty.view_as(penalty)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"create_graph is set, but {ctx.layer} is torch's own norm, whose third derivative "
                "is wrong, and so would be the derivative of this gradient; expected path='fused', "
                "which has the right one where it takes the critic, or create_graph=False"
            )
        return grad_outputs[0], None
