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

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastgan.ops.backends import fusion, select_backend
from fastgan.penalty.elementwise import ActivationRule
from fastgan.penalty.entries import Node, Value
from fastgan.penalty.products import Convolution
from fastgan.penalty.rule import OUTPUT


def _readable(node: Node) -> bool:
    """Whether a node is an activation with a mask that the kernels read from its output."""
    rule = node.rule
    return (
        isinstance(rule, ActivationRule)
        and rule.activation.piecewise_linear
        and rule.read == OUTPUT
        and node.by_images
    )


def _masks(node: Node) -> bool:
    """Whether a node is a convolution that is fastest by the kernels, with masks."""
    if not isinstance(node.rule, Convolution):
        return False
    stage, weight = node.rule.prepared(node)
    if stage is None:
        return False
    input = weight.new_empty(()).expand(node.slots[0].shape)
    return all(
        select_backend(which, stage, input, weight, fusion(store="activation")).fuses
        for which in ("forward", "input_gradient")
    )


def move_masks(nodes: Sequence[Node], scores: Iterable[Value]) -> None:
    """Replaces the rules of neighbouring convolutions and activations on a tape.

    Args:
        nodes: all of the tape's nodes.
        scores: the values that the critic returned.
    """
    convolutions = set(filter(_masks, nodes))
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
            by.append(beside.named("convolution") if beside and beside in convolutions else None)
        rule = node.rule
        node.rule = ActivationRule(rule.activation, rule.negative_slope, (by[0], by[1]))
    for node in convolutions:
        node.rule = Convolution(after.get(node), before.get(node))
