"""The autograd node of the fused passes: parameters in, a loss out.

Loss and gradients are computed together in the forward pass; backward returns the gradients, scaled
by grad_output (under a GradScaler, the scale). If they have to be
differentiable themselves, backward runs the tapes anew in differentiable functions instead, so that
derivatives of any order come out right, at double backward's price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan.losses import widened
from fastgan.penalty.entries import Value
from fastgan.penalty.rule import with_random
from fastgan.penalty.tape import Tape

__all__ = ["Leaves", "attached", "replayed"]


Leaves = dict[int, Tensor]
Again = Callable[[Sequence[Tensor]], dict[int, Tensor]]
Composed = Callable[[Sequence[Tensor], Leaves], Tensor]


def replayed(tape: Tape, scores: Sequence[Value], images: Tensor, leaves: Leaves) -> list[Tensor]:
    """A recorded critic's scores as a function of images, differentiable to any order.

    Args:
        tape: the recording.
        scores: the values that it returned.
        images: other images.
        leaves: other tensors for the parameters, by identity.
    """
    known: dict[Value, Tensor] = {tape.root: images}
    for value in tape.parameters:
        assert value.leaf is not None
        leaf, data = leaves.get(id(value.leaf), value.leaf), value.tensor
        if value.leaf.grad_fn is not None and data is not None and not _alias(data, value.leaf):
            leaf = leaf + (data - leaf).detach()  # as it was before the critic wrote to it
        known[value] = leaf
    for node in tape.nodes:
        args = node.resolved(known)
        result = with_random(node, partial(node.rule.replay, node, args))
        results = result if isinstance(result, (tuple, list)) else [result]
        for output, tensor in zip(node.outputs, results, strict=False):
            if output is not None:
                known[output] = tensor
    return [known[value] for value in scores if value in known]


def _alias(left: Tensor, right: Tensor) -> bool:
    return left.data_ptr() == right.data_ptr()


@dataclass
class _Recipe:
    """What the node keeps.

    Attributes:
        loss: the value.
        gradients: ``count`` times each parameter's gradient, by ``id``; None once returned.
        count: N.
        again: (held tensors) -> the gradients anew.
        composed: (held tensors, parameters by identity) -> the loss, in differentiable functions.
    """

    loss: Tensor
    gradients: dict[int, Tensor] | None
    count: int
    again: Again
    composed: Composed


def attached(
    loss: Tensor,
    gradients: dict[int, Tensor],
    leaves: Sequence[Tensor],
    count: int,
    held: Sequence[Tensor],
    again: Again,
    composed: Composed,
) -> Tensor:
    """``loss`` with a graph that leads to the parameters.

    Args:
        loss: a scalar.
        gradients: ``count`` times the gradient of each leaf that has one, by ``id``.
        leaves: the parameters, as tensors that may have a graph of their own.
        count: N.
        held: the tensors that ``again`` and ``composed`` take.
        again: computes the gradients anew from these.
        composed: the loss in differentiable functions of these and of the parameters.
    """
    if not leaves:
        return loss
    recipe = _Recipe(loss, gradients, count, again, composed)
    result: Tensor = _Loss.apply(recipe, len(leaves), *leaves, *held)  # type: ignore[no-untyped-call]
    return result


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recipe: _Recipe, count: int, *tensors: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.recipe = recipe
        ctx.count = count
        assert recipe.gradients is not None
        ctx.reached = [id(leaf) in recipe.gradients for leaf in tensors[:count]]
        ctx.order = [id(leaf) for leaf in tensors[:count]]
        ctx.held = len(tensors) - count
        return recipe.loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        recipe: _Recipe = ctx.recipe
        leaves, held = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        rest = [None] * ctx.held
        if grad_output is None:
            return (None, None, *[None] * ctx.count, *rest)
        if not torch.is_grad_enabled():
            # Scaled in place and returned, since a copy would raise peak memory. A second backward
            # (retain_graph) computes them again.
            gradients, recipe.gradients = recipe.gradients, None
            if gradients is None:
                gradients = recipe.again(held)
            factor = grad_output / recipe.count
            found = [
                widened(gradients[key]).mul_(factor).to(leaf.dtype) if key in gradients else None
                for key, leaf in zip(ctx.order, leaves, strict=True)
            ]
            return (None, None, *found, *rest)
        asked = [i for i, reached in enumerate(ctx.reached) if reached]
        with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
            # One may have a graph that leads to another: each is asked for its own uses only.
            leaves = [leaf.clone() for leaf in leaves]
            results = torch.autograd.grad(
                recipe.composed(held, dict(zip(ctx.order, leaves, strict=True))),
                [leaves[i] for i in asked],
                grad_output,
                create_graph=True,
                materialize_grads=True,
            )
        every: list[Tensor | None] = [None] * ctx.count
        for i, gradient in zip(asked, results, strict=True):
            every[i] = gradient
        return (None, None, *every, *rest)
