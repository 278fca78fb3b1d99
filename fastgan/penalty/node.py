"""The autograd node of the fused passes: parameters in, a loss out.

The forward pass computes loss and gradients together; backward returns the gradients times
grad_output (a GradScaler's scale). With ``create_graph=True`` backward runs the tapes again in
differentiable functions, for derivatives of any order at double backward's cost.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.entries import Value
from fastgan.penalty.rule import with_random
from fastgan.penalty.tape import Tape

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
        assert data is not None
        if value.leaf.grad_fn is not None and data.data_ptr() != value.leaf.data_ptr():
            leaf = leaf + (data - leaf).detach()  # its value before the critic wrote to it
        known[value] = leaf
    for node in tape.nodes:
        args = node.replaced(lambda _, arg: known[arg] if isinstance(arg, Value) else arg)
        result = with_random(node, partial(node.rule.replay, node, args))
        results = result if isinstance(result, (tuple, list)) else [result]
        for output, tensor in zip(node.outputs, results, strict=False):
            if output is not None:
                known[output] = tensor
    return [known[value] for value in scores if value in known]


class Loss(torch.autograd.Function):
    """A loss with a graph that leads to the parameters.

    Arguments of ``apply``: the loss, a scalar; ``count`` times each parameter's gradient, or None;
    ``count``; composed: (held tensors, parameters by identity) -> the loss, in differentiable
    functions; the parameters, which may have a graph of their own; the held tensors.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        gradients: list[Tensor | None],
        count: int,
        composed: Composed,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        # Autograd keeps them for a second backward only with retain_graph.
        ctx.save_for_backward(*tensors, *gradients)
        ctx.order = [id(leaf) for leaf in tensors[: len(gradients)]]
        ctx.count, ctx.composed, ctx.tensors = count, composed, len(tensors)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        (grad_output,), size = grad_outputs, len(ctx.order)
        results: list[Tensor | None] = [None] * (4 + ctx.tensors)
        if grad_output is None:
            return tuple(results)
        saved = ctx.saved_tensors
        leaves, held, gradients = saved[:size], saved[size : ctx.tensors], saved[ctx.tensors :]
        reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if not reached:
            return tuple(results)
        computed: Sequence[Tensor]
        if not torch.is_grad_enabled():
            scaled = torch._foreach_mul(
                _at_least_float32([gradients[i] for i in reached]), grad_output / ctx.count
            )
            computed = [
                gradient.to(leaves[i].dtype) for i, gradient in zip(reached, scaled, strict=True)
            ]
        else:
            with torch.autocast(grad_output.device.type, enabled=False):
                # One leaf's graph may lead to another: clones separate their direct uses.
                clones = [leaf.clone() for leaf in leaves]
                computed = torch.autograd.grad(
                    ctx.composed(held, dict(zip(ctx.order, clones, strict=True))),
                    [clones[i] for i in reached],
                    grad_output,
                    create_graph=True,
                    materialize_grads=True,
                )
        for i, gradient in zip(reached, computed, strict=True):
            results[4 + i] = gradient
        return tuple(results)


def _at_least_float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each in float32, or its wider dtype; 16-bit ones are converted in one launch on a GPU."""
    narrow = [tensor for tensor in tensors if tensor.dtype in (torch.float16, torch.bfloat16)]
    if not narrow:
        return list(tensors)
    copies = [torch.empty_like(tensor, dtype=torch.float32) for tensor in narrow]
    torch._foreach_copy_(copies, narrow)
    wide = iter(copies)
    return [
        next(wide) if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    ]
