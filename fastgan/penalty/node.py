"""The autograd node of the fused passes: parameters in, a loss out.

Loss and gradients are computed together in the forward pass; backward returns the gradients, scaled
by grad_output (under a GradScaler, the scale). If they have to be
differentiable themselves, backward runs the tapes anew in differentiable functions instead, so that
derivatives of any order come out right, at double backward's price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan.losses import at_least_float32
from fastgan.penalty.entries import Value
from fastgan.penalty.rule import with_random
from fastgan.penalty.tape import Tape

__all__ = ["Leaves", "attached", "replayed"]


Leaves = dict[int, Tensor]
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
        args = node.replaced(lambda _, each: known[each] if isinstance(each, Value) else each)
        result = with_random(node, partial(node.rule.replay, node, args))
        results = result if isinstance(result, (tuple, list)) else [result]
        for output, tensor in zip(node.outputs, results, strict=False):
            if output is not None:
                known[output] = tensor
    return [known[value] for value in scores if value in known]


def _alias(left: Tensor, right: Tensor) -> bool:
    return left.data_ptr() == right.data_ptr()


def attached(
    loss: Tensor,
    gradients: dict[int, Tensor],
    leaves: Sequence[Tensor],
    count: int,
    held: Sequence[Tensor],
    composed: Composed,
) -> Tensor:
    """``loss`` with a graph that leads to the parameters.

    Args:
        loss: a scalar.
        gradients: ``count`` times the gradient of each leaf that has one, by ``id``.
        leaves: the parameters, as tensors that may have a graph of their own.
        count: N.
        held: the tensors that ``composed`` takes.
        composed: (held tensors, parameters by identity) -> the loss, in differentiable functions.
    """
    if not leaves:
        return loss
    reached = [id(leaf) in gradients for leaf in leaves]
    mine = [
        gradients.pop(id(leaf))
        for leaf, is_reached in zip(leaves, reached, strict=True)
        if is_reached
    ]
    result: Tensor = _Loss.apply(loss, mine, count, composed, reached, *leaves, *held)  # type: ignore[no-untyped-call]
    return result


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        gradients: list[Tensor],
        count: int,
        composed: Composed,
        reached: list[bool],
        *tensors: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        # Autograd keeps them for a second backward only if it's told to retain the graph.
        ctx.save_for_backward(*tensors, *gradients)
        ctx.order = [id(leaf) for leaf in tensors[: len(reached)]]
        ctx.count, ctx.composed, ctx.reached = count, composed, reached
        ctx.tensors = len(tensors)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad_output,) = grad_outputs
        size = len(ctx.reached)
        every: list[Tensor | None] = [None] * ctx.tensors
        if grad_output is None:
            return (*[None] * 5, *every)
        saved = ctx.saved_tensors
        leaves, held, gradients = saved[:size], saved[size : ctx.tensors], saved[ctx.tensors :]
        asked = [i for i, reached in enumerate(ctx.reached) if reached]
        results: Sequence[Tensor]
        if not torch.is_grad_enabled():
            factor = grad_output / ctx.count
            results = [
                (at_least_float32(gradient) * factor).to(leaves[i].dtype)
                for i, gradient in zip(asked, gradients, strict=True)
            ]
        else:
            with torch.enable_grad(), torch.autocast(grad_output.device.type, enabled=False):
                # One may have a graph that leads to another: each is asked for its own uses only.
                clones = [leaf.clone() for leaf in leaves]
                results = torch.autograd.grad(
                    ctx.composed(held, dict(zip(ctx.order, clones, strict=True))),
                    [clones[i] for i in asked],
                    grad_output,
                    create_graph=True,
                    materialize_grads=True,
                )
        for i, gradient in zip(asked, results, strict=True):
            every[i] = gradient
        return (*[None] * 5, *every)
