"""Lets convolutions by ``fastgan.kernels`` apply the masks of neighbouring activations.

For a convolution W, the masks m and m' of the activations after and before it, a tangent u and an
output gradient d, the kernels compute each of these in one pass over memory:

    tangents    m * (W u)
    gradients   m' * (W^T d)

A mask is read from its activation's output. The convolution before applies it if only the
activation uses that convolution's output; the convolution after applies it if nothing else uses the
activation's output. Scores count as used. Both then have one dtype: an autocast cast is an op on
the tape, between them.

The forward pass isn't fused: the critic runs eagerly while it is recorded, so the next activation
isn't known yet when a convolution runs.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from fastgan.kernels.fusion import ActivationGradient
from fastgan.ops.backends import TRITON, fusion, select_backend
from fastgan.penalty.elementwise import ActivationRule
from fastgan.penalty.entries import Node, Value
from fastgan.penalty.products import Convolution
from fastgan.penalty.rule import OUTPUT


def _mask(activation: Node) -> ActivationGradient:
    """An activation's mask, for the kernels to apply."""
    rule = activation.rule
    assert isinstance(rule, ActivationRule)
    return ActivationGradient(activation.output, rule.activation.name, rule.negative_slope)


def _readable(node: Node) -> bool:
    """Whether a node is an activation with a mask that the kernels read from its output."""
    rule = node.rule
    return (
        type(rule) is ActivationRule
        and rule.activation.piecewise_linear
        and rule.read == OUTPUT
        and node.by_images
    )


def _named(name: str, node: Node) -> str:
    return f"{name} of '{node.layer}'" if node.layer else name


class MaskingConvolution(Convolution):
    """A convolution by the kernels that masks its tangents, its gradients or both.

    Args:
        after: the activation of its output; None doesn't mask tangents.
        before: the activation of its input; None doesn't mask gradients.
    """

    def __init__(self, after: Node | None, before: Node | None) -> None:
        self.after = after
        self.before = before

    @classmethod
    def supports(cls, node: Node) -> bool:
        """Whether a node is a convolution for which the kernels, with masks, are the fastest
        backend."""
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
        return TRITON.fused_forward(stage, left, weight, None, _mask(self.after))[0]

    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        stage, weight = self.prepared(node)
        if self.before is None or stage is None:
            return super().to_left(node, grad, right)
        mask = _mask(self.before)
        return TRITON.fused_input_gradient(stage, grad, mask.kept, weight, None, mask)[0]

    def backend(self, node: Node) -> tuple[str, str]:
        path, _ = super().backend(node)
        done = " and ".join(
            f"{what} by {_named(node.rule.activation.name, node)}"
            for what, node in (("tangents", self.after), ("gradients", self.before))
            if node is not None and isinstance(node.rule, ActivationRule)
        )
        return path, f"on storing, masks {done}" if done else ""


class MaskedActivation(ActivationRule):
    """An activation with its mask applied by the convolutions beside it.

    Args:
        rule: the activation's own rule.
        tangents: the convolution that masks the tangents, for reports; None if none does.
        gradients: the same for the gradients.
    """

    def __init__(self, rule: ActivationRule, tangents: str | None, gradients: str | None) -> None:
        super().__init__(rule.activation, rule.negative_slope)
        self.masked_tangents = tangents
        self.masked_gradients = gradients

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        return super().slot_vjp(node, grad, slot) if self.masked_gradients is None else grad

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return super().slot_vjp(node, tangent, slot) if self.masked_tangents is None else tangent

    def backend(self, node: Node) -> tuple[str, str]:
        by = (("tangents", self.masked_tangents), ("gradients", self.masked_gradients))
        done = [f"to {what} by {name}" for what, name in by if name is not None]
        path = "triton" if len(done) == len(by) else "aten"
        return path, f"applied {', '.join(done)}" if done else ""


def move_masks(nodes: Sequence[Node], scores: Iterable[Value]) -> None:
    """Replaces the rules of neighbouring convolutions and activations on a tape.

    Args:
        nodes: all of the tape's nodes.
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
        readers = takers.get(value, ())
        return readers[0] if len(readers) == 1 else None

    after: dict[Node, Node] = {}
    before: dict[Node, Node] = {}
    for node in filter(_readable, nodes):
        assert isinstance(node.rule, ActivationRule)
        input = node.slots[0]
        maker = makers.get(input) if sole_taker(input) is node else None
        by: list[str | None] = []
        for beside, masks in ((maker, after), (sole_taker(node.result), before)):
            if beside in convolutions:
                masks[beside] = node
            by.append(_named("convolution", beside) if beside in convolutions else None)
        node.rule = MaskedActivation(node.rule, *by)
    for node in convolutions:
        node.rule = MaskingConvolution(after.get(node), before.get(node))
