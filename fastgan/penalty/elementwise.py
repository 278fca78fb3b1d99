"""Rules of elementwise functions y = f(x).

vjp, jvp      f'(x) d,  f'(x) u
gradients     f''(x) d u,  which is zero for the piecewise-linear ones
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS, Activation, activation_call
from fastgan.penalty.entries import Node, Samples
from fastgan.penalty.rule import POINTWISE, Found, Rule, Single, aligned, sum_to

__all__ = ["ELEMENTWISE", "ActivationRule"]

aten = torch.ops.aten


class _Elementwise(Single):
    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else POINTWISE

    def batched(self, node: Node, samples: int) -> bool:
        return True

    def slots_read(self, node: Node) -> Iterable[Any]:
        return () if self.reads_output(node) else (0,)

    def read(self, node: Node) -> Tensor:
        """The input or output that the derivatives are computed from."""
        data: Tensor = node.output if self.reads_output(node) else node.arg(0)
        return data


class ActivationRule(_Elementwise):
    """A row of :data:`fastgan.activations.ACTIVATIONS`.

    Args:
        activation: the row.
        negative_slope: of "leaky_relu".
    """

    def __init__(self, activation: Activation, negative_slope: float) -> None:
        self.activation = activation
        self.negative_slope = negative_slope

    def reads_output(self, node: Node) -> bool:
        return not self.activation.keeps_input(self.negative_slope)

    def curved(self, node: Node) -> bool:
        return not self.activation.piecewise_linear

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        kept = self.read(node)
        fits = grad.dtype == kept.dtype and grad.stride() == kept.stride()
        out = grad if node.overwrite and fits else None
        return self.activation.gradient(grad, kept, self.negative_slope, out)

    def bend(self, node: Node, grad: Tensor, tangents: Found, slot: Any) -> Tensor | None:
        tangent, second = tangents.get(0), self.activation.second_derivative
        if tangent is None or second is None:
            return None
        return second(self.read(node), self.negative_slope) * grad * tangent


class _Activations(Rule):
    """The rule of a row's op; which row's, the arguments say."""

    def for_node(self, node: Node) -> Rule:
        call = activation_call(node.func, node.args, node.kwargs)
        if call is None or set(node.slots) != {0}:
            return POINTWISE
        return _activation_rule(call.activation.name, float(call.negative_slope))


@lru_cache(maxsize=256)
def _activation_rule(name: str, negative_slope: float) -> ActivationRule:
    return ActivationRule(ACTIVATIONS[name], negative_slope)


class _PiecewiseLinear(_Elementwise):
    """A function whose derivative is a mask.

    Args:
        masked: (grad, x or y, *arguments) -> f'(x) grad; an ATen op with an overload
            ``grad_input`` may write it over ``grad``.
        arguments: (node) -> the arguments.
        from_output: (node) -> whether the mask can be had from y; else x is kept.
    """

    def __init__(
        self,
        masked: Callable[..., Tensor],
        arguments: Callable[[Node], Sequence[Any]] = lambda node: node.args[1:],
        from_output: Callable[[Node], bool] = lambda node: False,
    ) -> None:
        self.masked = masked
        self.arguments = arguments
        self.from_output = from_output

    def reads_output(self, node: Node) -> bool:
        return self.from_output(node)

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        read, arguments = self.read(node), self.arguments(node)
        in_place = getattr(self.masked, "grad_input", None)
        fits = grad.dtype == read.dtype and grad.stride() == read.stride()
        if node.overwrite and in_place is not None and fits:
            in_place(grad, read, *arguments, grad_input=grad)
            return grad
        return self.masked(grad, read, *arguments)


class _Smooth(_Elementwise):
    """A function with a second derivative.

    Args:
        first: (x or y, *arguments) -> f'(x).
        second: the same -> f''(x).
        of: "y" to compute them from the output, "x" from the input.
        fits: (node) -> whether they hold for its arguments.
    """

    def __init__(
        self,
        first: Callable[..., Tensor],
        second: Callable[..., Tensor],
        of: str = "x",
        fits: Callable[[Node], bool] = lambda node: True,
    ) -> None:
        self.first = first
        self.second = second
        self.of = of
        self.fits = fits

    def for_node(self, node: Node) -> Rule:
        return super().for_node(node) if self.fits(node) else POINTWISE

    def reads_output(self, node: Node) -> bool:
        return self.of == "y"

    def curved(self, node: Node) -> bool:
        return True

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        return self.first(self.read(node), *node.args[1:]) * grad

    def bend(self, node: Node, grad: Tensor, tangents: Found, slot: Any) -> Tensor | None:
        tangent = tangents.get(0)
        if tangent is None:
            return None
        return self.second(self.read(node), *node.args[1:]) * grad * tangent


class _PReLU(Single):
    """y = x where x > 0, else w x; w is a parameter: one number, or one for each channel."""

    def for_node(self, node: Node) -> Rule:
        weight = node.slots.get(1)
        return self if 0 in node.slots and not (weight and weight.by_images) else POINTWISE

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        x, weight = node.arg(0), node.arg(1)
        if slot == 0:
            return torch.where(x > 0, grad, weight * grad)
        return sum_to((x * grad).masked_fill_(x > 0, 0), weight.shape)

    def bend(self, node: Node, grad: Tensor, tangents: Found, slot: Any) -> Tensor | None:
        tangent = tangents.get(0)
        if slot != 1 or tangent is None:
            return None
        return sum_to((tangent * grad).masked_fill_(node.arg(0) > 0, 0), node.slots[1].shape)


class _Dropout(_Elementwise):
    """native_dropout: y = x * mask / (1 - p), with the mask that was drawn."""

    bends = False

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        output, node.kept = func(*args, **kwargs)
        return output, node.kept

    def narrow(self, node: Node, rows: Samples) -> None:
        node.kept = rows.of(node.kept)

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        p, training = node.args[1], node.args[2] is not False
        if not training or p == 0:
            return grad
        mask: Tensor = node.kept
        return grad * mask * (0.0 if p == 1 else 1 / (1 - p))


# Masks -----------------------------------------------------------------------------------------


def _bounds(node: Node) -> tuple[float, float]:
    low = node.args[1] if len(node.args) > 1 else -1.0
    return low, node.args[2] if len(node.args) > 2 else 1.0


def _rounds_outwards(node: Node) -> bool:
    """Whether what was cut lies on the bound, where the derivative is 0 as well.

    Not so if the output's dtype rounds the bound towards zero, to where it is 1.
    """
    low, high = (torch.tensor(bound, dtype=node.slots[0].dtype).item() for bound in _bounds(node))
    return low <= _bounds(node)[0] and high >= _bounds(node)[1]


def _clamped(grad: Tensor, x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    """The mask of a clamp is 1 on its bounds."""
    for bound, beyond in ((low, torch.lt), (high, torch.gt)):
        if bound is not None:
            grad = grad.masked_fill(beyond(x, bound), 0)
    return grad


# Derivatives -----------------------------------------------------------------------------------


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x * beta > threshold, 1, torch.sigmoid(x * beta))


def _softplus_second(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    sigmoid = torch.sigmoid(x * beta)
    return torch.where(x * beta > threshold, 0, beta * sigmoid * (1 - sigmoid))


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, scale, scale * alpha * input_scale * torch.exp(x * input_scale))


def _elu_second(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, 0, scale * alpha * input_scale**2 * torch.exp(x * input_scale))


#: Op -> its rule.
ELEMENTWISE: dict[Any, Rule] = {
    **{row.op: _Activations() for row in ACTIVATIONS.values() if row.op is not None},
    aten.hardtanh.default: _PiecewiseLinear(aten.hardtanh_backward, _bounds, _rounds_outwards),
    aten.clamp.default: _PiecewiseLinear(_clamped),
    aten.clamp_min.default: _PiecewiseLinear(_clamped),
    aten.clamp_max.default: _PiecewiseLinear(_clamped, lambda node: (None, node.args[1])),
    aten.abs.default: _PiecewiseLinear(lambda grad, x: grad * x.sgn()),
    aten._prelu_kernel.default: _PReLU(),
    aten.native_dropout.default: _Dropout(),
    aten.exp.default: _Smooth(lambda y: y, lambda y: y, "y"),
    aten.softplus.default: _Smooth(_softplus, _softplus_second),
    aten.elu.default: _Smooth(_elu, _elu_second),
    # Other powers have special cases at zero.
    aten.pow.Tensor_Scalar: _Smooth(
        lambda x, p: p * x ** (p - 1),
        lambda x, p: p * (p - 1) * x ** (p - 2),
        fits=lambda node: node.args[1] in (2, 3, 4),
    ),
    aten.sqrt.default: _Smooth(lambda y: 0.5 / y, lambda y: -0.25 / y**3, "y"),
    aten.rsqrt.default: _Smooth(lambda y: -0.5 * y**3, lambda y: 0.75 * y**5, "y"),
    aten.reciprocal.default: _Smooth(lambda y: -y * y, lambda y: 2 * y**3, "y"),
    aten.log.default: _Smooth(lambda x: 1 / x, lambda x: -1 / (x * x)),
    aten.sin.default: _Smooth(torch.cos, lambda x: -torch.sin(x)),
    aten.cos.default: _Smooth(lambda x: -torch.sin(x), lambda x: -torch.cos(x)),
}
