"""Rules of functions y = f(x), element by element, and of softmax.

    vjp, jvp      f'(x) d,  f'(x) u
    gradients     f''(x) d u,  which is zero for the piecewise-linear ones

:mod:`fastgan.activations` defines activations' derivatives. Other functions use autograd, and are
listed here as piecewise linear or smooth.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS, Activation, activation_call
from fastgan.ops.bias_act import gradient_by_output
from fastgan.penalty.entries import Node
from fastgan.penalty.rule import (
    OUTPUT,
    PIECEWISE,
    PIECEWISE_LINEAR,
    POINTWISE,
    SMOOTH,
    Autograd,
    Chosen,
    Rule,
    Slots,
)

aten = torch.ops.aten


class ActivationRule(Rule):
    """A row of :data:`fastgan.activations.ACTIVATIONS`.

    Args:
        activation: the table's row.
        negative_slope: of "leaky_relu".
        masked: the names of the convolutions that mask its tangents and its gradients.
    """

    def __init__(
        self,
        activation: Activation,
        negative_slope: float,
        masked: tuple[str | None, str | None] = (None, None),
    ) -> None:
        self.activation = activation
        self.negative_slope = negative_slope
        self.masked = masked
        self.kind = PIECEWISE_LINEAR if activation.piecewise_linear else SMOOTH
        self.read = 0 if activation.keeps_input(negative_slope) else OUTPUT

    def reads(self, node: Node) -> Iterable[Any]:
        return (self.read,)

    def _kept(self, node: Node) -> Tensor:
        data: Tensor = node.output if self.read == OUTPUT else node.arg(0)
        return data

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        return grad if self.masked[1] else self._times(node, grad)

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return tangent if self.masked[0] else self._times(node, tangent)

    def backend(self, node: Node) -> tuple[str, str]:
        by = zip(("tangents", "gradients"), self.masked, strict=True)
        done = [f"to {what} by {name}" for what, name in by if name]
        path = "triton" if len(done) == 2 else "aten"
        return path, f"applied {', '.join(done)}" if done else ""

    def _times(self, node: Node, grad: Tensor) -> Tensor:
        kept = self._kept(node)
        fits = grad.dtype == kept.dtype and grad.stride() == kept.stride()
        out = grad if node.overwrite and fits else None
        return self.activation.gradient(grad, kept, self.negative_slope, out)

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        tangent, second = tangents.get(0), self.activation.second_derivative
        if tangent is None or second is None:
            return None
        return second(self._kept(node), self.negative_slope) * grad * tangent


def _activation(node: Node) -> Rule:
    """The rule for the activation named in the arguments."""
    call = activation_call(node.func, node.args, node.kwargs)
    if call is None or set(node.slots) != {0}:
        return POINTWISE
    return _activation_rule(call.activation.name, float(call.negative_slope))


@lru_cache(maxsize=256)
def _activation_rule(name: str, negative_slope: float) -> ActivationRule:
    return ActivationRule(ACTIVATIONS[name], negative_slope)


_BY_ROWS = Autograd(by_rows=True)


class _BiasAct(Rule):
    """StyleGAN's bias and piecewise-linear activation, differentiated by the output's sign."""

    def for_node(self, node: Node) -> Rule:
        act, alpha, along_samples = node.arg(3), node.arg(4), node.arg(2) % len(node.slots[0].shape)
        known = act < 3 and alpha >= 0 and along_samples != 0 and node.inner == [0]
        return self if known else _BY_ROWS

    def reads(self, node: Node) -> Iterable[Any]:
        return (OUTPUT,)

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return gradient_by_output(tangent, node.output, *(node.arg(i) for i in range(2, 7)))

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        grad = self.slot_jvp(node, grad, slot)
        dim = node.arg(2) % grad.dim()
        return grad if slot == 0 else grad.sum([d for d in range(grad.dim()) if d != dim])


class _Softmax(Rule):
    """_softmax(x, dim, half to float): J = diag(y) - y y^T, along the dimension.

    The gradient of <d, J u> by y is d u - d sum(y u) - u sum(y d), and J takes it on to x.
    """

    kind = SMOOTH

    def reads(self, node: Node) -> Iterable[Any]:
        return (OUTPUT,)

    def batched(self, node: Node, samples: int) -> bool:
        return bool(node.args[1] % max(len(node.result.shape), 1) != 0)

    def _project(self, node: Node, vector: Tensor, dtype: torch.dtype) -> Tensor:
        """J v."""
        vector = vector.to(node.result.dtype)
        result: Tensor = aten._softmax_backward_data(vector, node.output, node.args[1], dtype)
        return result

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        return self._project(node, grad, node.slots[0].dtype)

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return self._project(node, tangent, node.result.dtype)

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        tangent, output, dim = tangents.get(0), node.output, node.args[1]
        if tangent is None:
            return None
        tangent = tangent.to(output.dtype)
        along, back = ((output * t).sum(dim, keepdim=True) for t in (tangent, grad))
        product = (tangent - along).mul_(grad).addcmul_(tangent, back, value=-1)
        return self.slot_vjp(node, product, slot)


#: Op -> its rule.
ELEMENTWISE: dict[Any, Rule] = {
    **{row.op: Chosen(_activation) for row in ACTIVATIONS.values() if row.op is not None},
    **dict.fromkeys(
        (
            *(aten.hardtanh.default, aten.clamp.default, aten.clamp.Tensor),
            *(aten.clamp_min.default, aten.clamp_max.default, aten.maximum.default),
            *(aten.minimum.default, aten.abs.default, aten.threshold.default),
            *(aten.hardshrink.default, aten.softshrink.default),
            *(aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor),
        ),
        PIECEWISE,
    ),
    aten._prelu_kernel.default: Chosen(lambda node: PIECEWISE if node.inner == [0] else POINTWISE),
    torch.ops.fastgan.bias_act.default: _BiasAct(),
    aten._softmax.default: _Softmax(),
    torch.ops.fastgan.filtered_lrelu.default: Autograd(PIECEWISE_LINEAR, by_rows=True),
}
