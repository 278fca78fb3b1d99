"""The functions that bend smoothly: layer, group and instance norm; tanh, sigmoid, softplus.

Their second derivative isn't zero, so the penalty's gradient has a part that goes back through the
layers before them (:mod:`fastgan.penalty.passes`). It starts at each of them with what
:meth:`CurvedStep.curvature` says. Every other method means what
:class:`fastgan.penalty.steps.Step` says of it.
"""

# ruff: noqa: D102

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastgan.ops.penalty_norm  # noqa: F401 - defines the ops that are called here
from fastgan.losses import widened
from fastgan.penalty.steps import (
    Gradients,
    PairedRows,
    Parameters,
    Rows,
    Step,
    Target,
    Tensors,
)

ops = torch.ops.fastgan

__all__ = ["CurvedStep", "GroupNorm", "LayerNorm", "SmoothActivation"]


class CurvedStep(Step):
    """A step of one input whose derivative J(x) moves smoothly with x."""

    bends = True
    curved = True

    @abstractmethod
    def curvature(self, grad: Tensor, tangent: Tensor, parameters: Parameters, kept: Any) -> Tensor:
        """The gradient of <grad, J(x) tangent> in x, at the points of which ``kept`` was kept."""


class SmoothActivation(CurvedStep):
    """y = f(x), elementwise.

    Args:
        op: torch's name.
        function: f in plain torch.
        first: f'(x), of y if ``from_output``, else of x.
        second: f''(x), of the same.
        from_output: what the derivatives are computed from.
    """

    def __init__(
        self,
        op: str,
        function: Callable[[Tensor], Tensor],
        first: Callable[[Tensor], Tensor],
        second: Callable[[Tensor], Tensor],
        from_output: bool = True,
    ) -> None:
        self.keeps_output = from_output
        self.op = op
        self.function = function
        self.first = first
        self.second = second

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return self.function(inputs[0])

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0]

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        output = torch.empty_like(input)
        if rows.primal:
            output[: rows.primal] = self.function(input[: rows.primal])
        if rows.primal < input.size(0):
            torch.mul(input[rows.primal :], self.first(rows.points), out=output[rows.primal :])
        return output, (output if self.keeps_output else input)[: rows.primal]

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return [grad * self.first(to.kept)]

    def curvature(self, grad: Tensor, tangent: Tensor, parameters: Parameters, kept: Any) -> Tensor:
        return self.second(kept).mul_(grad).mul_(tangent)


@dataclass
class Normalised:
    """What a norm keeps of its points: xhat in the input's shape, 1 / deviation of each group."""

    xhat: Tensor
    invstd: Tensor


class _Norm(CurvedStep):
    """y = weight * xhat + bias, xhat = (x - mean) / deviation, over groups within each sample.

    The formulas, of the derivatives too, are those of :mod:`fastgan.ops.penalty_norm`, whose ops
    see maps (M, C, ...) with a weight and a bias for each of C channels. Parameters: weight, bias.

    Args:
        groups: of channels, each normalised by itself.
        eps: what the variance is increased by.
    """

    offsets = (1,)
    kernel = "penalty_norm_forward_"

    def __init__(self, groups: int, eps: float) -> None:
        self.groups = groups
        self.eps = eps

    @abstractmethod
    def _maps(self, input: Tensor) -> Tensor:
        """``input``, laid out as :meth:`_dense` has it, or a view of it, as the ops' maps.

        Never a copy: what the ops write there would be lost.
        """

    @abstractmethod
    def _vector(self, parameter: Tensor, like: Tensor) -> Tensor:
        """A weight or bias of the layer as the ops' vector, for inputs such as ``like``."""

    @abstractmethod
    def _parameter(self, vector: Tensor, like: Tensor) -> Tensor:
        """The inverse of ``_vector``."""

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        # Not torch's own: its instance_norm and layer_norm have wrong third derivatives (2.13).
        input = inputs[0]
        maps = widened(self._maps(self._dense(input)))
        grouped = maps.reshape(maps.size(0), self.groups, maps.size(1) // self.groups, -1)
        centred = grouped - grouped.mean((2, 3), keepdim=True)
        result = centred * (centred.square().mean((2, 3), keepdim=True) + self.eps).rsqrt()
        weight, bias = (
            None if p is None else self._vector(p, input).view(self.groups, -1, 1)
            for p in parameters
        )
        if weight is not None:
            result = result * weight
        if bias is not None:
            result = result + bias
        return self._unmapped(result.reshape(maps.shape), input).to(input.dtype)

    @abstractmethod
    def _unmapped(self, maps: Tensor, like: Tensor) -> Tensor:
        """The inverse of ``_maps``."""

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0]

    def _vectors(self, parameters: Parameters, like: Tensor) -> list[Tensor | None]:
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        return [
            None if p is None else self._vector(p, like).to(wide).contiguous() for p in parameters
        ]

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = self._dense(inputs[0])
        weight, bias = self._vectors(parameters, input)
        output = torch.empty_like(input)
        kept = None
        if rows.primal:
            values = input[: rows.primal]
            ours = rows.overwrite or input is not inputs[0]
            maps = self._maps(values)
            wide = torch.float64 if input.dtype == torch.float64 else torch.float32
            kept = Normalised(
                values if ours else torch.empty_like(values),
                torch.empty(maps.size(0), self.groups, dtype=wide, device=input.device),
            )
            ops.penalty_norm_forward_(
                maps,
                weight,
                bias,
                self.groups,
                self.eps,
                self._maps(kept.xhat),
                kept.invstd,
                self._maps(output[: rows.primal]),
            )
        if rows.primal < input.size(0):
            self._project(input[rows.primal :], rows.points, weight, True, output[rows.primal :])
        return output, kept

    def _project(
        self, grad: Tensor, kept: Normalised, weight: Tensor | None, tangent: bool, out: Tensor
    ) -> None:
        ops.penalty_norm_project_(
            self._maps(grad),
            self._maps(kept.xhat),
            kept.invstd,
            weight,
            self.groups,
            tangent,
            self._maps(out),
        )

    def _dense(self, input: Tensor) -> Tensor:
        """``input``, or a copy, laid out as maps here are."""
        channels_last = self._channels_go_last(input.dim())
        layout = torch.channels_last if channels_last else torch.contiguous_format
        return input.contiguous(memory_format=layout)

    def _channels_go_last(self, dimensions: int) -> bool:
        """Whether a batch of so many dimensions lies channels-last in memory."""
        return self.channels_last and dimensions == 4

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        weight, _ = self._vectors(parameters, grad)
        dense = self._dense(grad)
        out = dense if to.overwrite or dense is not grad else torch.empty_like(dense)
        self._project(dense, to.kept, weight, False, out)
        return [out]

    def _summed(
        self, grad: Tensor, tangent: Tensor | None, kept: Normalised
    ) -> tuple[Tensor, Tensor]:
        """The gradients of weight and bias, of rows of values or of tangents."""
        maps = self._maps(grad)
        sums = torch.empty(
            2, maps.size(0), maps.size(1), dtype=kept.invstd.dtype, device=grad.device
        )
        means = sums.new_empty(2, *kept.invstd.shape)
        ops.penalty_norm_gradients_(
            maps,
            None if tangent is None else self._maps(tangent),
            self._maps(kept.xhat),
            kept.invstd,
            self.groups,
            sums[0],
            sums[1],
            means,
        )
        weight_grad, bias_grad = sums.sum(1)
        return self._parameter(weight_grad, grad), self._parameter(bias_grad, grad)

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        grad = self._dense(grad)
        weight_grad = bias_grad = None
        if rows.primal:
            weight_grad, bias_grad = self._summed(grad[: rows.primal], None, rows.kept)
        if rows.wanted[0] and rows.primal < grad.size(0):
            tangents = self._dense(inputs[0][rows.primal :])
            part, _ = self._summed(grad[rows.primal :], tangents, rows.points)
            weight_grad = part if weight_grad is None else weight_grad.add_(part)
        return [weight_grad, bias_grad]

    def curvature(self, grad: Tensor, tangent: Tensor, parameters: Parameters, kept: Any) -> Tensor:
        weight, _ = self._vectors(parameters, grad)
        grad, tangent = self._dense(grad), self._dense(tangent)
        result = torch.empty_like(grad)
        ops.penalty_norm_curvature_(
            self._maps(grad),
            self._maps(tangent),
            self._maps(kept.xhat),
            kept.invstd,
            weight,
            self.groups,
            self._maps(result),
        )
        return result


class GroupNorm(_Norm):
    """Over groups of channels and all positions; one group is the critic's layer norm, as many as
    channels instance norm. One weight and bias per channel."""

    def __init__(self, op: str, groups: int, eps: float) -> None:
        super().__init__(groups, eps)
        self.op = op

    def _maps(self, input: Tensor) -> Tensor:
        return input

    def _unmapped(self, maps: Tensor, like: Tensor) -> Tensor:
        return maps

    def _vector(self, parameter: Tensor, like: Tensor) -> Tensor:
        return parameter

    def _parameter(self, vector: Tensor, like: Tensor) -> Tensor:
        return vector


class LayerNorm(_Norm):
    """Over the last dimensions, as many as ``shape`` has, with a weight and bias per element.

    To the ops, each element is a channel, and each group of elements a sample.
    """

    op = "layer_norm"

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        super().__init__(1, eps)
        self.shape = list(shape)

    def _channels_go_last(self, dimensions: int) -> bool:
        # Channels-last, the last one or two dimensions of a map are no stretch of memory.
        return super()._channels_go_last(dimensions) and len(self.shape) == 3

    def _in_memory_order(self, maps: Tensor, dimensions: int) -> Tensor:
        """Channels of channels-last maps go last; ``dimensions`` are those of a batch."""
        return maps.movedim(-3, -1) if self._channels_go_last(dimensions) else maps

    def _maps(self, input: Tensor) -> Tensor:
        elements = math.prod(self.shape)
        return self._in_memory_order(input, input.dim()).view(-1, elements)

    def _unmapped(self, maps: Tensor, like: Tensor) -> Tensor:
        ordered = self._in_memory_order(like, like.dim())
        maps = maps.reshape(ordered.shape)
        return maps.movedim(-1, -3) if ordered is not like else maps

    def _vector(self, parameter: Tensor, like: Tensor) -> Tensor:
        return self._in_memory_order(parameter, like.dim()).reshape(-1)

    def _parameter(self, vector: Tensor, like: Tensor) -> Tensor:
        if self._channels_go_last(like.dim()):
            channels, height, width = self.shape
            return vector.view(height, width, channels).movedim(-1, -3)
        return vector.view(self.shape)
