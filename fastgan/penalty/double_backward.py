"""The penalty in plain PyTorch: a gradient with ``create_graph=True``, differentiated again.

torch 2.13's third derivatives of layer norm, instance norm and batch norm in training mode are
wrong, as finite differences show: :func:`refuse_wrong_derivatives`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fastgan.losses import at_least_float32
from fastgan.penalty.formula import Formula
from fastgan.penalty.points import within_transform

#: The term that is the penalty at a batch.
TERMS = {"points": "gp", "real": "r1", "fake": "r2"}


@dataclass(frozen=True)
class Asked:
    """The penalty to compute.

    Attributes:
        loss: (real scores, fake scores) -> a scalar; None for a penalty alone. Both arguments are
            the tensors that the critic returned.
        penalties: by batch: "points" (interpolates, or given points), "real" or "fake".
        name: of a loss in :data:`fastgan.ops.adversarial_loss.TERMS`, if it is one of them.
    """

    loss: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor] | None
    penalties: dict[str, Formula]
    name: str | None = None


def loss_by_double_backward(
    asked: Asked,
    scores: Callable[[str, Tensor], list[Tensor]],
    images: Callable[[str], Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, differentiable to any order, and its terms.

    Args:
        asked: what to compute.
        scores: (name of a batch, images) -> the critic's scores.
        images: (name of a batch) -> its images.
    """
    computed: dict[str, list[Tensor]] = {}
    terms: dict[str, Tensor] = {}

    def run(name: str) -> None:
        def sum_at(points: Tensor) -> Tensor:
            computed[name] = outputs = scores(name, points)
            return sum((s.sum() for s in outputs[1:]), outputs[0].sum())

        formula = asked.penalties.get(name)
        if formula is None:
            computed[name] = scores(name, images(name))
        else:
            terms[TERMS[name]] = _penalty(sum_at, images(name), formula)

    if asked.loss is not None:
        run("fake")
        run("real")
        terms["adversarial"] = asked.loss(computed["real"], computed["fake"])
    if "points" in asked.penalties:
        run("points")
    total = sum(list(terms.values())[1:], next(iter(terms.values())))
    if asked.loss is not None:
        for name in ("real", "fake"):
            terms[name] = mean_score(computed[name])
    return total, {name: term.detach() for name, term in terms.items()}


def mean_score(scores: Sequence[Tensor]) -> Tensor:
    """The mean over all tensors' elements."""
    flat = [at_least_float32(score).flatten() for score in scores]
    return (flat[0] if len(flat) == 1 else torch.cat(flat)).mean()


def _penalty(scores: Callable[[Tensor], Tensor], points: Tensor, formula: Formula) -> Tensor:
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


def refuse_wrong_derivatives(loss: Tensor, critic: Any) -> Tensor:
    """Returns ``loss``; its backward raises under create_graph if the third derivative would be
    wrong.

    Doesn't apply within transforms of ``torch.func``, which don't say whether they differentiate
    again, nor to critics that are functions, because their layers are unknown.
    """
    if not loss.requires_grad or not isinstance(critic, nn.Module):
        return loss
    if torch.compiler.is_compiling() or within_transform():
        return loss
    for name, module in critic.named_modules():
        if _has_wrong_third_derivative(module):
            layer = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
            loss.register_hook(partial(_refuse_create_graph, layer))
            break
    return loss


def _refuse_create_graph(layer: str, grad: Tensor) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"create_graph is set, but {layer} is torch's own norm, whose third derivative is "
            "wrong, and so would be the derivative of this gradient; expected path='fused', which "
            "has the right one where it takes the critic, or create_graph=False"
        )


def _has_wrong_third_derivative(module: nn.Module) -> bool:
    if isinstance(module, (_BatchNorm, _InstanceNorm)):
        return module.training or module.running_mean is None
    return isinstance(module, nn.LayerNorm)
