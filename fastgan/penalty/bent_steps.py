"""The piecewise-linear functions among a critic's layers: activations and max pooling.

Their second derivative is zero wherever they have one, and their first is a mask. What a mask
needs is kept from the forward pass: the output where it tells (:class:`Activation`), which is
there anyway, else the mask itself. Every method means what :class:`fastgan.penalty.steps.Step`
says of it.
"""

# ruff: noqa: D102

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.penalty.steps import (
    Gradients,
    PairedRows,
    Parameters,
    Rows,
    Step,
    Target,
    Tensors,
    over_samples_and_positions,
)

__all__ = ["Activation", "MaskedActivation", "MaxPool2d", "PReLU"]

aten = torch.ops.aten


class Activation(Step):
    """ReLU, leaky ReLU, hardtanh: piecewise linear, with a mask that the output tells.

    Args:
        op: torch's name.
        function: f in plain torch.
        overwriting: f in place.
        masked: (grad, output, out) -> J^T grad = J grad, into ``out``; right with the input, too.
        telling: whether an output of this dtype tells the mask; else a copy of the input is kept.
        fusion: its name and slope in :data:`fastgan.activations.ACTIVATIONS`; None if it isn't
            there.
    """

    bends = True
    keeps_output = True

    def __init__(
        self,
        op: str,
        function: Callable[[Tensor], Tensor],
        overwriting: Callable[[Tensor], Tensor],
        masked: Callable[[Tensor, Tensor, Tensor], Tensor],
        telling: Callable[[torch.dtype], bool] = lambda dtype: True,
        fusion: tuple[str, float] | None = None,
    ) -> None:
        self.op = op
        self.function = function
        self.overwriting = overwriting
        self.masked = masked
        self.telling = telling
        self.fusion = fusion

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return self.function(inputs[0])

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0]

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        kept = None if self.telling(input.dtype) else input.clone()
        if not rows.overwrite:
            # One copy of the values; the tangents' rows are written by their mask.
            output = torch.empty_like(input)
            output[: rows.primal].copy_(input[: rows.primal])
        else:
            output = input
        if rows.primal:
            self.overwriting(output[: rows.primal])
        if rows.primal < input.size(0):
            self.masked(input[rows.primal :], rows.points, output[rows.primal :])
        return output, output if kept is None else kept

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        out = to.out
        if out is None:
            out = grad if to.overwrite else torch.empty_like(grad)
        return [self.masked(grad, to.kept[: grad.size(0)], out)]


class MaskedActivation(Step):
    """|x|, and leaky ReLU with a negative slope: the output doesn't tell the derivative.

    Args:
        op: torch's name.
        function: f in plain torch.
        derivative: x -> f'(x), elementwise.
    """

    bends = True

    def __init__(
        self,
        op: str,
        function: Callable[[Tensor], Tensor],
        derivative: Callable[[Tensor], Tensor],
    ) -> None:
        self.op = op
        self.function = function
        self.derivative = derivative

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return self.function(inputs[0])

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0]

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        slope = self.derivative(input[: rows.primal]) if rows.primal else None
        if rows.primal == input.size(0):
            return self.function(input), slope
        tangents = input[rows.primal :] * rows.points
        if not rows.primal:
            return tangents, None
        return torch.cat([self.function(input[: rows.primal]), tangents]), slope

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return [grad * to.kept]


class PReLU(Step):
    """Leaky ReLU whose slope, one for all or one per channel, is learnt."""

    op = "prelu"
    bends = True

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        (slope,) = parameters
        assert slope is not None
        return F.prelu(inputs[0], slope)

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0]

    @staticmethod
    def _slope(parameters: Parameters, input: Tensor) -> Tensor:
        (slope,) = parameters
        assert slope is not None
        slope = slope.to(input.dtype)
        return slope if slope.numel() == 1 else slope.view(-1, *[1] * (input.dim() - 2))

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        slope = self._slope(parameters, input)
        positive = input[: rows.primal] > 0
        mask = positive if rows.points is None else torch.cat([positive, rows.points])
        return torch.where(mask, input, slope * input), positive

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        result = torch.where(to.kept, grad, self._slope(parameters, grad) * grad)
        return [result]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        (slope,) = parameters
        assert slope is not None
        mask = torch.cat([m for m in (rows.kept, rows.points) if m is not None])
        product = (inputs[0] * grad).masked_fill_(mask, 0)
        if slope.numel() == 1:
            return [product.sum().view(slope.shape)]
        return [over_samples_and_positions(product)]


class MaxPool2d(Step):
    """Maximum over windows, the mask being where each maximum came from."""

    op = "max_pool2d"
    bends = True

    def __init__(
        self,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        ceil_mode: bool,
    ) -> None:
        self.window = (
            list(kernel_size),
            list(stride),
            list(padding),
            list(dilation),
            ceil_mode,
        )

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return F.max_pool2d(inputs[0], *self.window)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        parts = []
        places = None
        if rows.primal:
            output, places = aten.max_pool2d_with_indices(input[: rows.primal], *self.window)
            parts.append(output)
        if rows.primal < input.size(0):
            # An index counts within a map's rows and columns.
            taken = input[rows.primal :].flatten(2).gather(2, rows.points.flatten(2))
            parts.append(taken.view(rows.points.shape))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)), places

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        flat = grad.new_zeros(*grad.shape[:2], math.prod(to.shapes[0][1:]))
        # Windows overlap where the stride is shorter than the window: sums, not assignments.
        flat.scatter_add_(2, to.kept.flatten(2), grad.flatten(2))
        result = flat.view(grad.size(0), *to.shapes[0])
        return [result]
