"""The penalty as PyTorch writes it: a gradient with a graph, differentiated again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.penalty.formula import Formula

__all__ = ["penalty_by_double_backward"]


def penalty_by_double_backward(
    scores: Callable[[Tensor], Tensor], points: Tensor, formula: Formula
) -> Tensor:
    """P at ``points``, differentiable to any order in whatever ``scores`` depends on.

    Args:
        scores: images to one score per sample, shape (N,).
        points: (N, ...).
        formula: weight, target and side.
    """
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
