"""Rules of StyleGAN's nonlinear ops: a bias with an activation, alone and between filters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.bias_act import gradient_by_output
from fastgan.penalty.entries import Node
from fastgan.penalty.rule import OUTPUT, Autograd, Rule, aligned

__all__ = ["STYLES"]


class _BySample(Autograd):
    """Derivatives by autograd, one sample at a time."""

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)


_SMOOTH, _PIECEWISE = _BySample(), _BySample(piecewise_linear=True)


class _BiasAct(Rule):
    """A piecewise-linear activation's derivatives, from its output's signs."""

    def for_node(self, node: Node) -> Rule:
        act, alpha, along_samples = node.arg(3), node.arg(4), node.arg(2) % len(node.slots[0].shape)
        known = act < 3 and alpha >= 0 and along_samples != 0 and 0 in node.slots
        return self if known else _SMOOTH

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def reads(self, node: Node) -> Iterable[Any]:
        return (OUTPUT,)

    def smooth(self, node: Node) -> bool:
        return False

    def _scaled(self, node: Node, grad: Tensor) -> Tensor:
        return gradient_by_output(grad, node.output, *(node.arg(i) for i in range(2, 7)))

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        grad = self._scaled(node, grad)
        dim = node.arg(2) % grad.dim()
        return grad if slot == 0 else grad.sum([d for d in range(grad.dim()) if d != dim])

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        output = node.output
        if slot == 1:
            shape = [1] * output.dim()
            shape[node.arg(2)] = -1
            tangent = tangent.reshape(shape).expand_as(output)
        return self._scaled(node, tangent)


_ops = torch.ops.fastgan
#: Op -> its rule.
STYLES: dict[Any, Rule] = {
    _ops.bias_act.default: _BiasAct(),
    _ops.filtered_lrelu.default: _PIECEWISE,
}
