"""The functions that bend smoothly: layer, group and instance norm; tanh, sigmoid, softplus.

Their second derivative isn't zero, so the penalty's gradient has a part that goes back through the
layers before them (:mod:`fastgan.penalty.passes`). It starts at each of them with what
:meth:`CurvedStep.curvature` says. Every other method means what
:class:`fastgan.penalty.steps.Step` says of it.
"""

# ruff: noqa: D102

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
    """What a norm keeps of its points: xhat in the input's shape, and 1 / deviation."""

    xhat: Tensor
    invstd: Tensor


class _Norm(CurvedStep):
    """y = weight * xhat + bias, xhat = (x - mean) r, r = (var + eps)^(-1/2), within each sample.

    Mean and variance are those of a group of M elements. With T(p) = r (p - mean p - xhat mean(xhat
    p)), which is symmetric, and p = weight * grad,

        J t = weight * T(t)             J^T grad = T(p)
        curvature of <p, T(u)>  =  -r^2 (C (p - mean p) + B (u - mean u) + (A - 3 B C) xhat)
        with A = mean(p (u - mean u)),  B = mean(xhat p),  C = mean(xhat u)

    which follows from <p, T(u)> = M r (A - B C), d xhat = T(dx) and dr = -r^2 mean(xhat dx).

    Arithmetic is float32 or wider. Parameters: weight, bias; their shapes are the subclass's.
    """

    offsets = (1,)

    def __init__(self, eps: float) -> None:
        self.eps = eps

    @abstractmethod
    def _grouped(self, maps: Tensor) -> Tensor:
        """A view in which a group lies along :meth:`_within`."""

    @abstractmethod
    def _within(self, grouped: Tensor) -> list[int]:
        """The dimensions that make up a group."""

    @abstractmethod
    def _spread(self, vector: Tensor, grouped: Tensor) -> Tensor:
        """A weight or bias as it broadcasts over ``grouped``."""

    @abstractmethod
    def _gathered(self, product: Tensor) -> Tensor:
        """The sum over all that a weight is spread over; of a grouped tensor."""

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        # Not torch's own: its instance_norm and layer_norm have wrong third derivatives (2.13).
        input = inputs[0]
        weight, bias = parameters
        grouped = widened(self._grouped(input))
        within = self._within(grouped)
        centred = grouped - grouped.mean(within, keepdim=True)
        result = centred * (centred.square().mean(within, keepdim=True) + self.eps).rsqrt()
        if weight is not None:
            result = result * self._spread(weight, result)
        if bias is not None:
            result = result + self._spread(bias, result)
        return result.reshape(input.shape).to(input.dtype)

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0]

    def _weighted(self, maps: Tensor, parameters: Parameters) -> Tensor:
        weight = parameters[0]
        grouped = widened(self._grouped(maps))
        return grouped if weight is None else grouped * self._spread(widened(weight), grouped)

    def _projected(self, grouped: Tensor, kept: Normalised) -> Tensor:
        """T of a tensor that nobody else reads if it is wide enough."""
        xhat = widened(self._grouped(kept.xhat))
        within = self._within(grouped)
        along = (xhat * grouped).mean(within, keepdim=True)
        centred = grouped - grouped.mean(within, keepdim=True)
        return centred.addcmul_(xhat, along, value=-1).mul_(kept.invstd)

    def _normalised(self, values: Tensor, overwrite: bool) -> Normalised:
        grouped = widened(self._grouped(values))
        variance, mean = torch.var_mean(grouped, self._within(grouped), correction=0, keepdim=True)
        invstd = (variance + self.eps).rsqrt()
        wide = grouped.dtype == values.dtype
        # Widened values are a copy already; values that may be overwritten need none.
        centred = grouped - mean if wide and not overwrite else grouped.sub_(mean)
        xhat = centred.mul_(invstd).reshape(values.shape)
        if not wide:
            xhat = values.copy_(xhat) if overwrite else xhat.to(values.dtype)
        return Normalised(xhat, invstd)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        weight, bias = parameters
        output = torch.empty_like(input)
        kept = None
        if rows.primal:
            kept = self._normalised(input[: rows.primal], rows.overwrite)
            xhat = widened(self._grouped(kept.xhat))
            if weight is not None:
                xhat = xhat * self._spread(widened(weight), xhat)
            if bias is not None:
                xhat = xhat.add_(self._spread(widened(bias), xhat))
            self._grouped(output[: rows.primal]).copy_(xhat)
        if rows.primal < input.size(0):
            moved = self._projected(widened(self._grouped(input[rows.primal :])), rows.points)
            if weight is not None:
                moved.mul_(self._spread(widened(weight), moved))
            self._grouped(output[rows.primal :]).copy_(moved)
        return output, kept

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        result = self._projected(self._weighted(grad, parameters), to.kept)
        return [result.reshape(grad.shape).to(grad.dtype)]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        weight_grad: Tensor | None = None
        bias_grad: Tensor | None = None
        values = widened(self._grouped(grad[: rows.primal]))
        if rows.wanted[0]:
            if rows.primal:
                xhat = widened(self._grouped(rows.kept.xhat))
                weight_grad = self._gathered(values * xhat)
            if rows.primal < grad.size(0):
                tangents = widened(self._grouped(inputs[0][rows.primal :]))
                moved = self._projected(tangents, rows.points)
                signals = widened(self._grouped(grad[rows.primal :]))
                part = self._gathered(moved.mul_(signals))
                weight_grad = part if weight_grad is None else weight_grad.add_(part)
        if rows.wanted[1]:
            bias_grad = self._gathered(values)
        return [weight_grad, bias_grad]

    def curvature(self, grad: Tensor, tangent: Tensor, parameters: Parameters, kept: Any) -> Tensor:
        p = self._weighted(grad, parameters)
        u = widened(self._grouped(tangent))
        xhat = widened(self._grouped(kept.xhat))
        within = self._within(p)
        p = p - p.mean(within, keepdim=True)
        u = u - u.mean(within, keepdim=True)
        a, b, c = ((x * y).mean(within, keepdim=True) for x, y in ((p, u), (xhat, p), (xhat, u)))
        result = p.mul_(c).addcmul_(u, b).addcmul_(xhat, a - 3 * b * c)
        return result.mul_(-kept.invstd.square()).reshape(grad.shape).to(grad.dtype)


class GroupNorm(_Norm):
    """Over groups of channels and all positions; one group is the critic's layer norm, as many as
    channels instance norm. One weight and bias per channel."""

    def __init__(self, op: str, groups: int, eps: float) -> None:
        super().__init__(eps)
        self.op = op
        self.groups = groups

    def _grouped(self, maps: Tensor) -> Tensor:
        return maps.unflatten(1, (self.groups, -1))

    def _within(self, grouped: Tensor) -> list[int]:
        return list(range(2, grouped.dim()))

    def _spread(self, vector: Tensor, grouped: Tensor) -> Tensor:
        return vector.view(self.groups, -1, *[1] * (grouped.dim() - 3))

    def _gathered(self, product: Tensor) -> Tensor:
        return product.sum([0, *range(3, product.dim())]).flatten()


class LayerNorm(_Norm):
    """Over the last dimensions, as many as ``shape`` has, with a weight and bias per element."""

    op = "layer_norm"

    def __init__(self, shape: Sequence[int], eps: float) -> None:
        super().__init__(eps)
        self.shape = list(shape)

    def _grouped(self, maps: Tensor) -> Tensor:
        return maps

    def _within(self, grouped: Tensor) -> list[int]:
        return list(range(grouped.dim() - len(self.shape), grouped.dim()))

    def _spread(self, vector: Tensor, grouped: Tensor) -> Tensor:
        return vector

    def _gathered(self, product: Tensor) -> Tensor:
        return product.sum(list(range(product.dim() - len(self.shape))))
