"""Has convolutions by ``fastgan.kernels`` apply the masks of the activations beside them.

With W a convolution, m the mask of the activation after it, m' that of the activation before it, u
a tangent and d an output gradient, the kernels compute each of these in one pass over memory:

    tangents    m * (W u)
    gradients   m' * (W^T d)

A mask is read off its activation's output. It goes with the convolution before if nothing but the
activation takes that one's output, and with the convolution after if nothing else takes the
activation's own; scores count as taken. Both hold one dtype then: where autocast changes it, the
cast is an op of its own on the tape, and so is the mask.

Values stay apart: a critic runs eagerly while it is recorded, so when a convolution runs, the next
activation isn't known yet.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastgan.kernels.fusion import ActivationGradient
from fastgan.ops.backends import TRITON, fusion, select_backend
from fastgan.penalty.elementwise import ActivationRule
from fastgan.penalty.entries import Node, Value
from fastgan.penalty.products import Convolution
from fastgan.penalty.rule import OUTPUT

__all__ = ["Mask", "MaskedActivation", "MaskingConvolution", "move_masks"]


@dataclass(frozen=True)
class Mask:
    """An activation's mask.

    Attributes:
        output: of the activation.
        name: of the activation in :data:`fastgan.activations.ACTIVATIONS`.
        slope: of "leaky_relu".
        layer: the module that called it, if anybody asked.
    """

    output: Value
    name: str
    slope: float
    layer: str

    def epilogue(self) -> ActivationGradient:
        """The mask, for the kernels to apply."""
        assert self.output.tensor is not None
        return ActivationGradient(self.output.tensor, self.name, self.slope)

    def __str__(self) -> str:
        return _named(self.name, self.layer)


class MaskingConvolution(Convolution):
    """A convolution by the kernels that masks its tangents, its gradients, or both.

    Args:
        after: the mask of the activation that takes its output; None leaves tangents as they are.
        before: that of the activation whose output it takes; None leaves gradients as they are.
    """

    def __init__(self, after: Mask | None, before: Mask | None) -> None:
        self.after = after
        self.before = before

    @classmethod
    def supports(cls, node: Node) -> bool:
        """Whether a node is a convolution that the kernels are fastest at, masks included."""
        if type(node.rule) is not Convolution:
            return False
        stage, weight = cls.prepared(node)
        if stage is None:
            return False
        input = weight.new_empty(()).expand(node.slots[0].shape)
        return all(
            select_backend(which, stage, input, weight, fusion(store="activation")).fuses
            for which in ("forward", "input_gradient")
        )

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        stage, weight = self.prepared(node)
        if self.after is None or stage is None:
            return super().product(node, left, right)
        return TRITON.fused_forward(stage, left, weight, None, self.after.epilogue())[0]

    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        stage, weight = self.prepared(node)
        if self.before is None or stage is None:
            return super().to_left(node, grad, right)
        mask = self.before.epilogue()
        return TRITON.fused_input_gradient(stage, grad, mask.kept, weight, None, mask)[0]

    def backend(self, node: Node) -> tuple[str, str]:
        path, _ = super().backend(node)
        masks = (("tangents", self.after), ("gradients", self.before))
        done = " and ".join(f"{what} by {mask}" for what, mask in masks if mask is not None)
        return path, f"on storing, masks {done}" if done else ""


class MaskedActivation(ActivationRule):
    """An activation with its mask applied by the convolutions beside it.

    Args:
        rule: the activation's own.
        tangents: which convolution masks the tangents, for tables; None if none does.
        gradients: the same for the gradients.
    """

    def __init__(self, rule: ActivationRule, tangents: str | None, gradients: str | None) -> None:
        super().__init__(rule.activation, rule.negative_slope)
        self.masked_tangents = tangents
        self.masked_gradients = gradients

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        return super().back(node, grad, slot) if self.masked_gradients is None else grad

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return super().back(node, tangent, slot) if self.masked_tangents is None else tangent

    def backend(self, node: Node) -> tuple[str, str]:
        by = (("tangents", self.masked_tangents), ("gradients", self.masked_gradients))
        done = [f"to {what} by {name}" for what, name in by if name is not None]
        path = "triton" if len(done) == len(by) else "aten"
        return path, f"applied {', '.join(done)}" if done else ""


def move_masks(nodes: Sequence[Node], scores: Iterable[Value]) -> None:
    """Gives such neighbours on a tape these rules in place of their own.

    Args:
        nodes: of the tape, complete.
        scores: the values that the critic returned.
    """
    convolutions = {node for node in nodes if MaskingConvolution.supports(node)}
    if not convolutions:
        return
    makers = {value: node for node in nodes for value in node.outputs if value is not None}
    takers: dict[Value, list[Node | None]] = {score: [None] for score in scores}
    for node in nodes:
        for value in node.slots.values():
            takers.setdefault(value, []).append(node)

    def sole_taker(value: Value) -> Node | None:
        found = takers.get(value, ())
        return found[0] if len(found) == 1 else None

    after: dict[Node, Mask] = {}
    before: dict[Node, Mask] = {}
    for node in nodes:
        mask, rule = _mask(node), node.rule
        if mask is None:
            continue
        assert isinstance(rule, ActivationRule)
        input = node.slots[0]
        maker = makers.get(input) if sole_taker(input) is node else None
        by: list[str | None] = []
        for beside, masks in ((maker, after), (sole_taker(mask.output), before)):
            if beside in convolutions:
                masks[beside] = mask
            by.append(_named("convolution", beside.layer) if beside in convolutions else None)
        node.rule = MaskedActivation(rule, *by)
    for node in convolutions:
        node.rule = MaskingConvolution(after.get(node), before.get(node))


def _mask(node: Node) -> Mask | None:
    """The mask of an activation, if the kernels can read it off the output."""
    (output, *_) = node.outputs
    rule = node.rule
    if output is None or type(rule) is not ActivationRule or not node.by_images:
        return None
    if rule.smooth(node) or rule.read != OUTPUT:
        return None
    return Mask(output, rule.activation.name, rule.negative_slope, node.layer)


def _named(name: str, layer: str) -> str:
    return f"{name} of '{layer}'" if layer else name
