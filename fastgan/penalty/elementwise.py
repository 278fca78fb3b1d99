"""Rules of functions of each element: y = f(x).

vjp, jvp      f'(x) d,  f'(x) u
gradients     f''(x) d u,  which is zero for the piecewise-linear ones
"""

# ruff: noqa: D102

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.entries import Node
from fastgan.penalty.rule import Autograd, Found, Rule, aligned, sum_to

__all__ = ["PIECEWISE_LINEAR", "SMOOTH", "Dropout", "PReLU", "PiecewiseLinear", "Smooth"]

aten = torch.ops.aten
_POINTWISE = Autograd(pointwise=True)


class _Elementwise(Rule):
    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else _POINTWISE

    def batched(self, node: Node, samples: int) -> bool:
        return True

    def slots_read(self, node: Node) -> Iterable[Any]:
        return () if self.reads_output(node) else (0,)

    def _data(self, node: Node) -> Tensor:
        data: Tensor = node.output if self.reads_output(node) else node.arg(0)
        return data


class PiecewiseLinear(_Elementwise):
    """A function whose derivative is a mask.

    Args:
        masked: (node, x or y, grad, out) -> f'(x) grad, written to ``out`` if that isn't None.
        from_output: (node) -> whether the mask can be had from y; else x is kept.
    """

    def __init__(
        self,
        masked: Callable[[Node, Tensor, Tensor, Tensor | None], Tensor],
        from_output: Callable[[Node], bool],
    ) -> None:
        self.masked = masked
        self.from_output = from_output

    def reads_output(self, node: Node) -> bool:
        return self.from_output(node)

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        return {0: self._masked(node, grad)} if 0 in wanted else {}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        return [None if tangent is None else self._masked(node, tangent)]

    def _masked(self, node: Node, grad: Tensor) -> Tensor:
        return self.masked(node, self._data(node), grad, grad if node.overwrite else None)


class Smooth(_Elementwise):
    """A function with a second derivative.

    Args:
        first: (x or y, *arguments) -> f'(x).
        second: the same -> f''(x).
        of: "y" to compute them from the output, "x" from the input.
    """

    def __init__(
        self, first: Callable[..., Tensor], second: Callable[..., Tensor], *, of: str = "x"
    ) -> None:
        self.first = first
        self.second = second
        self.of_output = of == "y"

    def reads_output(self, node: Node) -> bool:
        return self.of_output

    def curved(self, node: Node) -> bool:
        return True

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        if grad is None or 0 not in wanted:
            return {}
        return {0: self._of(node, self.first) * grad}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        return [None if tangent is None else self._of(node, self.first) * tangent]

    def gradients(
        self,
        node: Node,
        tangents: Found,
        grads: Sequence[Tensor | None],
        wanted: Iterable[Any],
    ) -> Found:
        (grad,), tangent = grads, tangents.get(0)
        if tangent is None or grad is None or 0 not in wanted:
            return {}
        return {0: self._of(node, self.second) * grad * tangent}

    def _of(self, node: Node, derivative: Callable[..., Tensor]) -> Tensor:
        return derivative(self._data(node), *node.args[1:], **node.kwargs)


def _leaky(node: Node, data: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
    slope = node.args[1] if len(node.args) > 1 else 0.01
    return _into(aten.leaky_relu_backward, out, grad, data, slope, slope >= 0)


def _threshold(node: Node, data: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
    return _into(aten.threshold_backward, out, grad, data, 0)


def _hardtanh(node: Node, data: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
    return _into(aten.hardtanh_backward, out, grad, data, *_bounds(node))


def _clamped(low: int | None, high: int | None) -> Callable[..., Tensor]:
    """The mask of a clamp, 1 on its bounds."""

    def masked(node: Node, data: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
        outside = torch.zeros((), dtype=torch.bool, device=data.device)
        for position, beyond in ((low, torch.lt), (high, torch.gt)):
            bound = None if position is None else node.arg(position)
            if bound is not None:
                outside = outside | beyond(data, bound)
        return grad.masked_fill(outside, 0)

    return masked


def _sign(node: Node, data: Tensor, grad: Tensor, out: Tensor | None) -> Tensor:
    return grad * data.sgn()


def _into(op: Any, out: Tensor | None, *args: Any) -> Tensor:
    found: Tensor
    if out is None or not _dense_alike(args[0], args[1]):
        found = op(*args)
    else:
        found = op.grad_input(*args, grad_input=out)
    return found


def _dense_alike(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.stride() == right.stride()


def _bounds(node: Node) -> tuple[float, float]:
    low = node.args[1] if len(node.args) > 1 else -1.0
    high = node.args[2] if len(node.args) > 2 else 1.0
    return low, high


def _rounds_outwards(node: Node) -> bool:
    """Whether what was cut lies on the bound, where the derivative is 0 as well.

    Not so if the output's dtype rounds the bound towards zero, to where it is 1.
    """
    dtype = node.slots[0].dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return True
    low, high = (torch.tensor(bound, dtype=dtype).item() for bound in _bounds(node))
    return low <= _bounds(node)[0] and high >= _bounds(node)[1]


#: Op -> its rule.
PIECEWISE_LINEAR: dict[Any, Rule] = {
    aten.relu.default: PiecewiseLinear(_threshold, lambda node: True),
    aten.leaky_relu.default: PiecewiseLinear(
        _leaky, lambda node: (node.args[1] if len(node.args) > 1 else 0.01) >= 0
    ),
    aten.hardtanh.default: PiecewiseLinear(_hardtanh, _rounds_outwards),
    aten.clamp.default: PiecewiseLinear(_clamped(1, 2), lambda node: False),
    aten.clamp_min.default: PiecewiseLinear(_clamped(1, None), lambda node: False),
    aten.clamp_max.default: PiecewiseLinear(_clamped(None, 1), lambda node: False),
    aten.abs.default: PiecewiseLinear(_sign, lambda node: False),
}


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x * beta > threshold, 1, torch.sigmoid(x * beta))


def _softplus_second(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    sigmoid = torch.sigmoid(x * beta)
    return torch.where(x * beta > threshold, 0, beta * sigmoid * (1 - sigmoid))


def _silu(x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))


def _silu_second(x: Tensor) -> Tensor:
    sigmoid = torch.sigmoid(x)
    return sigmoid * (1 - sigmoid) * (2 + x * (1 - 2 * sigmoid))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu(x: Tensor) -> Tensor:
    cumulative: Tensor = torch.special.ndtr(x)
    return cumulative + x * _density(x)


def _gelu_second(x: Tensor) -> Tensor:
    return (2 - x * x) * _density(x)


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return torch.where(x > 0, scale, scale * alpha * input_scale * torch.exp(x * input_scale))


def _elu_second(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    slope = scale * alpha * input_scale**2 * torch.exp(x * input_scale)
    return torch.where(x > 0, 0, slope)


class _Gelu(Smooth):
    def for_node(self, node: Node) -> Rule:
        return super().for_node(node) if not node.kwargs else _POINTWISE


class _Power(Smooth):
    def for_node(self, node: Node) -> Rule:
        # Of other powers, derivatives at zero are a matter of special cases.
        return super().for_node(node) if node.args[1] in (2, 3, 4) else _POINTWISE


#: Op -> its rule; first derivative, second derivative.
SMOOTH: dict[Any, Rule] = {
    aten.tanh.default: Smooth(lambda y: 1 - y * y, lambda y: 2 * y * (y * y - 1), of="y"),
    aten.sigmoid.default: Smooth(
        lambda y: y * (1 - y), lambda y: y * (1 - y) * (1 - 2 * y), of="y"
    ),
    aten.exp.default: Smooth(lambda y: y, lambda y: y, of="y"),
    aten.softplus.default: Smooth(_softplus, _softplus_second),
    aten.silu.default: Smooth(_silu, _silu_second),
    aten.gelu.default: _Gelu(_gelu, _gelu_second),
    aten.elu.default: Smooth(_elu, _elu_second),
    aten.pow.Tensor_Scalar: _Power(
        lambda x, p: p * x ** (p - 1), lambda x, p: p * (p - 1) * x ** (p - 2)
    ),
    aten.log.default: Smooth(lambda x: 1 / x, lambda x: -1 / (x * x)),
    aten.sin.default: Smooth(torch.cos, lambda x: -torch.sin(x)),
    aten.cos.default: Smooth(lambda x: -torch.sin(x), lambda x: -torch.cos(x)),
}


class PReLU(Rule):
    """y = x where x > 0, else w x; w, one number or one a channel, is a parameter."""

    def for_node(self, node: Node) -> Rule:
        weight = node.slots.get(1)
        fits = 0 in node.slots and (weight is None or not weight.by_images)
        return self if fits else _POINTWISE

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def slots_read(self, node: Node) -> Iterable[Any]:
        return node.slots

    def _scaled(self, node: Node, grad: Tensor) -> Tensor:
        return torch.where(node.arg(0) > 0, grad, node.arg(1) * grad)

    def _to_weight(self, node: Node, product: Tensor) -> Tensor:
        return sum_to(product.masked_fill_(node.arg(0) > 0, 0), node.slots[1].shape)

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        found: Found = {}
        if 0 in wanted:
            found[0] = self._scaled(node, grad)
        if 1 in wanted:
            found[1] = self._to_weight(node, node.arg(0) * grad)
        return found

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        return [None if tangent is None else self._scaled(node, tangent)]

    def gradients(
        self,
        node: Node,
        tangents: Found,
        grads: Sequence[Tensor | None],
        wanted: Iterable[Any],
    ) -> Found:
        (grad,), tangent = grads, tangents.get(0)
        if 1 not in wanted or tangent is None or grad is None:
            return {}
        return {1: self._to_weight(node, tangent * grad)}


class Dropout(_Elementwise):
    """native_dropout: a mask that was drawn, times 1 / (1 - p)."""

    bends = False

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        output, mask = func(*args, **kwargs)
        node.kept = mask
        return output, mask

    def _times(self, node: Node, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        p, training = node.args[1], node.args[2] is not False
        if not training or p == 0:
            return tensor
        return tensor * node.windowed(node.kept) * (0.0 if p == 1 else 1 / (1 - p))

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        return {0: self._times(node, grads[0])}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        return [self._times(node, tangents.get(0)), None]
