"""The passes over a tape: signals backward, tangents forward, gradients backward.

With S the sum of the scores, and J_i the derivative of op i in its inputs that depend on the
images,

    signals     d = dS/da, from the scores back to the images: g = dS/dx
    penalty     P(g), and its tangent v = dP/dg
    tangents    u = J v, from the images to the scores
    gradients   of <v, g> = <d_i, J_i u> at every op i, with d and u held fixed there: in the
                parameters directly, and in the activations if J_i depends on them. These start a
                second signal e, which goes back through the earlier ops:  e = J^T e + d/da <d, J u>

which is reverse mode over the tangent. It holds for any tape; where every J is piecewise constant
(convolutions, leaky ReLU) there is no e, and the penalty's gradient takes one weight gradient for
each layer: no second backward pass, and none of the zeros that one would drag along.

**An adversarial loss with it.** If c = dL/ds are the gradients of a loss of the scores, e = c at
the scores adds that loss's gradient to the rest. Where no sample sees another and each has one
score, its own signal is c_n d_n, and both gradients of a layer take one product:

    dL/dW + dP/dW = weight gradient of (input c_n a + u, signal d)

**Joined batches.** Rows without a penalty start with c_n in place of 1. Their inputs a and the
other rows' tangents u are the input rows of one weight gradient.

All gradients are computed N times too large, N the number of samples: numbers then start at the
order of 1, and half precision doesn't underflow for large batches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.losses import widened
from fastgan.penalty.entries import Node, Samples, Value
from fastgan.penalty.formula import Formula
from fastgan.penalty.tape import Tape

__all__ = ["Join", "Passes", "second_signals"]

Store = dict[Value, tuple[Tensor, bool]]
"""Value -> (signal or tangent, whether it may be overwritten)."""
Second = dict[Node, tuple[dict[Any, "Tensor | None"], list["Tensor | None"]]]
"""Curved op -> (its inputs' tangents, its results' signals)."""


@dataclass(frozen=True)
class Join:
    """A batch of which only some rows are penalised.

    Attributes:
        others: the samples that aren't.
        points: those that are.
    """

    others: Samples
    points: Samples


def second_signals(tape: Tape) -> set[Node]:
    """The ops that start a second signal, which reaches parameters."""
    return {
        node for node in tape.nodes if len(node.outer) > len(node.own) and node.rule.curved(node)
    }


class Passes:
    """The passes over one tape; they consume it.

    Args:
        tape: a recording.
        scores: the values that the critic returned.
        gradients: N times each parameter's gradient, by ``id``; results are added to these, in the
            dtype they were computed in.
        join: where only some rows are penalised.
    """

    def __init__(
        self,
        tape: Tape,
        scores: Sequence[Value],
        gradients: dict[int, Tensor],
        join: Join | None = None,
    ) -> None:
        self.tape = tape
        self.gradients = gradients
        self.scores = scores
        self.join = join
        self.extra: Store = {}
        self.done: set[Node] = set()
        self.curved = second_signals(tape)

    # Back from the scores, as plain backpropagation ---------------------------------------------

    def backpropagate(self, seeds: Sequence[Tensor]) -> None:
        """Adds the gradient of <seeds, scores>, and of the second signals that are waiting.

        Args:
            seeds: one for each score.
        """
        self._seed(seeds)
        self._back({})

    def _seed(self, seeds: Sequence[Tensor]) -> None:
        for value, seed in zip(self.scores, seeds, strict=True):
            if value.by_parameters:
                self._add(value, seed.to(value.dtype), False)

    def _back(self, second: Second) -> None:
        extra = self.extra
        for node in reversed(self.tape.nodes):
            if extra or second:
                grads, owned = _take(extra, node)
                waiting = second.pop(node, None) if second else None
                if grads is not None:
                    node.overwrite = owned and waiting is None and len(node.outer) == 1
                    self._give(node, node.rule.vjp(node, grads, node.outer), grads, owned)
                if waiting is not None:
                    tangents, signals = waiting
                    found = node.rule.gradients(node, tangents, signals, node.outer)
                    self._give(node, found, signals, False)
            self._release(node)

    def _release(self, node: Node) -> None:
        if node not in self.done:
            self.done.add(node)
            node.released()

    # The penalty --------------------------------------------------------------------------------

    def penalty(
        self,
        formulas: Sequence[tuple[Samples | None, Formula]],
        seeds: Sequence[Tensor] | None = None,
        factors: Tensor | None = None,
        *,
        learning: bool = True,
    ) -> list[Tensor]:
        """P of each formula, and, if ``learning``, the gradient of their sum.

        Args:
            formulas: of the penalties, and the samples that each is of, None for all; of a joined
                batch, one.
            seeds: the gradients of another loss in the scores, N times as large: its gradient is
                added. In a joined batch, those of the other rows.
            factors: the same for samples that have one score each and see no other: a number for
                each row that is penalised, in place of ``seeds``.
            learning: whether gradients are asked for.
        """
        starts = [torch.ones(v.shape, dtype=v.dtype, device=self.tape.device) for v in self.scores]
        if self.join is not None and seeds is not None:
            for start, seed in zip(starts, seeds, strict=True):
                self.join.others.of(start).copy_(self.join.others.of(seed))
        gradient = self._signals(starts, learning)
        tangent = self.tape.empty_images(len(gradient))
        if self.join is not None:
            ((_, formula),) = formulas
            values = [formula.value_and_tangent(gradient, tangent)]
        else:
            values = [
                f.value_and_tangent(gradient, tangent)
                if rows is None
                else f.value_and_tangent(rows.of(gradient), rows.of(tangent))
                for rows, f in formulas
            ]
        del gradient
        if not learning:
            return values
        second = self._tangents(
            tangent, factors, everywhere=seeds is not None and self.join is None
        )
        if seeds is not None and self.join is None:
            self._seed(seeds)
        self._back(second)
        if seeds is None and factors is None:
            self._zeros()
        return values

    def _signals(self, starts: Sequence[Tensor], learning: bool) -> Tensor:
        """Returns g; sets :attr:`signals` to the signals that gradients need."""
        self.signals: dict[Node, list[Tensor | None]] = {}
        root = self.tape.root
        store: Store = {}
        join, curved = self.join, self.curved
        for value, start in zip(self.scores, starts, strict=True):
            if value.by_images:
                if value is root and join is not None:
                    start = join.points.of(start)
                _add(store, value, start, True)
        for node in reversed(self.tape.nodes):
            if not node.by_images:
                continue
            grads, owned = _take(store, node)
            if grads is None:
                continue
            kept = learning and (bool(node.own) or node in curved)
            self.signals[node] = grads if kept else []
            if join is not None and all(node.slots[slot] is root for slot in node.inner):
                # The other images' gradient isn't needed.
                node.rows = join.points
                grads = [_of_rows(grad, join.points) for grad in grads]
            node.overwrite = owned and not kept and len(node.inner) == 1
            found = node.rule.vjp(node, grads, node.inner)
            node.rows = None
            _spread(store, node, found, grads, owned and not kept)
        if root not in store:
            rows = root.shape[0] if self.join is None else len(self.join.points)
            return self.tape.empty_images(rows).zero_()
        return store[root][0]

    def _tangents(self, tangent: Tensor, factors: Tensor | None, *, everywhere: bool) -> Second:
        """Gradients of parameters; returns what goes on from where the tape is curved."""
        nodes = [node for node in self.tape.nodes if node.by_images]
        last = -1
        uses: dict[Value, int] = {}
        for index, node in enumerate(nodes):
            if self.signals.get(node):
                last = index
            for slot in node.inner:
                uses[node.slots[slot]] = index
        again = set(nodes) if everywhere else self._gone_over_again()
        store: Store = {self.tape.root: (tangent, True)}
        del tangent
        second: Second = {}
        rows = None if self.join is None else self.join.points
        for index, node in enumerate(nodes):
            if index <= last and node in self.signals:
                signals = self.signals.pop(node)
                tangents: dict[Any, Tensor | None] = {}
                given = None
                dying = True
                for slot in node.inner:
                    value = node.slots[slot]
                    given = store.get(value)
                    tangents[slot] = None if given is None else given[0]
                    dying = dying and uses[value] == index
                if signals:
                    if node in self.curved:
                        second[node] = (tangents, signals)
                    if node.own:
                        self._of_parameters(node, tangents, signals, factors)
                del signals
                for slot in node.inner:
                    if uses[node.slots[slot]] == index:
                        store.pop(node.slots[slot], None)
                if index < last:
                    owned = (
                        given is not None
                        and given[1]
                        and dying
                        and len(node.inner) == 1
                        and node not in second
                    )
                    del given
                    node.overwrite = owned
                    node.rows = rows
                    results = node.rule.jvp(node, tangents)
                    node.rows = None
                    for output, result in zip(node.outputs, results, strict=False):
                        if output is not None and result is not None:
                            result = result.to(output.dtype)
                            mine = owned or not _shares_memory(result, tangents.values())
                            store[output] = (result, mine and 0 not in result.stride())
            if node not in again:
                self._release(node)
        return second

    def _of_parameters(
        self,
        node: Node,
        tangents: dict[Any, Tensor | None],
        signals: list[Tensor | None],
        factors: Tensor | None,
    ) -> None:
        """The gradients of an op's own parameters, but for those that wait for a second signal."""
        wanted, rule = node.own, node.rule
        if self.join is not None:
            self._of_joined(node, tangents, signals, factors)
            return
        merged = rule.merges and wanted != [rule.bias] and node not in self.curved
        if factors is not None and merged:
            left = rule.left
            input = node.arg(left)
            mixed = _rows(factors, input).to(input.dtype) * input
            tangent = tangents.get(left)
            tangents = {left: mixed if tangent is None else mixed.add_(tangent)}
        if node not in self.curved:
            found = rule.gradients(node, tangents, signals, wanted)
            self._give(node, found, signals, False)
        if factors is not None:
            slots = [slot for slot in wanted if slot == rule.bias] if merged else wanted
            if slots:
                scaled = [None if s is None else s * _rows(factors, s).to(s.dtype) for s in signals]
                self._give(node, rule.vjp(node, scaled, slots), scaled, False)

    def _of_joined(
        self,
        node: Node,
        tangents: dict[Any, Tensor | None],
        signals: list[Tensor | None],
        factors: Tensor | None,
    ) -> None:
        """The same in a joined batch, where nothing waits for a second signal."""
        join, rule, wanted = self.join, node.rule, node.own
        assert join is not None
        points, others = (
            [_of_rows(s, rows) for s in signals] for rows in (join.points, join.others)
        )
        if rule.merges and wanted != [rule.bias]:
            # The points' rows are overwritten with tangents; only their masks were needed.
            value = node.slots[rule.left]
            mine = value.readers == 1 and _exclusive(value)
            input = value.tensor
            assert input is not None
            input = input if mine else input.clone()
            rows, tangent = join.points.of(input), tangents.get(rule.left)
            if factors is None:
                rows.zero_() if tangent is None else rows.copy_(tangent)
            else:
                rows.mul_(_rows(factors, rows))
                if tangent is not None:
                    rows.add_(tangent)
            found = rule.gradients(node, {rule.left: input}, signals, wanted)
            wanted = [slot for slot in wanted if slot == rule.bias]
        else:
            node.rows = join.points
            found = _padded(node, rule.gradients(node, tangents, points, wanted))
        self._give(node, found, signals, False)
        if wanted:
            node.rows = join.others
            found = _padded(node, rule.vjp(node, others, wanted))
            self._give(node, found, others, False)
        if wanted and factors is not None:
            node.rows = join.points
            scaled = [None if s is None else s * _rows(factors, s).to(s.dtype) for s in points]
            found = _padded(node, rule.vjp(node, scaled, wanted))
            self._give(node, found, scaled, False)
        node.rows = None

    def _gone_over_again(self) -> set[Node]:
        """The ops that a second signal comes back through."""
        found: set[Node] = set()
        if not self.curved:
            return found
        reached: set[Value] = set()
        for node in reversed(self.tape.nodes):
            hit = node in self.curved and bool(self.signals.get(node))
            if hit or any(value in reached for value in node.outputs):
                found.add(node)
                reached.update(node.slots[slot] for slot in node.outer)
        return found

    def _zeros(self) -> None:
        """Zeros for parameters that double backward reaches, through the derivative of a mask."""
        bent: set[Value] = set()
        for node in reversed(self.tape.nodes):
            ahead = any(value in bent for value in node.outputs if value is not None)
            if ahead or (node.by_images and (node.rule.bends or node.rule.curved(node))):
                bent.update(node.slots.values())
        for value in self.tape.parameters:
            leaf = value.leaf
            if value in bent and leaf is not None and id(leaf) not in self.gradients:
                self.gradients[id(leaf)] = torch.zeros_like(leaf)

    def _give(
        self,
        node: Node,
        found: dict[Any, Tensor | None],
        grads: Iterable[Tensor | None],
        owned: bool,
    ) -> None:
        """Adds what comes back through an op to what its inputs, parameters perhaps, have."""
        alone = owned and len(found) == 1
        for slot, result in found.items():
            if result is not None:
                mine = alone or not _shares_memory(result, grads)
                self._add(node.slots[slot], result, mine and 0 not in result.stride())

    def _add(self, value: Value, signal: Tensor, owned: bool) -> None:
        if value.leaf is None:
            _add(self.extra, value, signal, owned)
            return
        key = id(value.leaf)
        earlier = self.gradients.get(key)
        if earlier is None:
            # Will be added to and scaled in place.
            self.gradients[key] = signal if owned else signal.clone()
        else:
            # Kept in half precision, which saves memory, until something is added.
            self.gradients[key] = widened(earlier).add_(widened(signal))


def _take(store: Store, node: Node) -> tuple[list[Tensor | None] | None, bool]:
    """The signals of an op's results, and whether they may be written over."""
    grads: list[Tensor | None] = []
    owned = found = False
    for value in node.outputs:
        taken = None if value is None else store.pop(value, None)
        if taken is None or value is None:
            grads.append(None)
            continue
        grad, owned = taken
        found = True
        grads.append(grad if grad.dtype == value.dtype else grad.to(value.dtype))
    if not found:
        return None, False
    return grads, owned and len(grads) == 1


def _spread(
    store: Store,
    node: Node,
    found: dict[Any, Tensor | None],
    grads: Iterable[Tensor | None],
    owned: bool,
) -> None:
    """Adds what comes back through an op to what its inputs have already."""
    alone = owned and len(found) == 1
    for slot, result in found.items():
        if result is not None:
            mine = alone or not _shares_memory(result, grads)
            _add(store, node.slots[slot], result, mine and 0 not in result.stride())


def _add(store: Store, value: Value, signal: Tensor, owned: bool) -> None:
    earlier = store.get(value)
    if earlier is None:
        store[value] = (signal, owned)
    elif earlier[1] and earlier[0].dtype == signal.dtype:
        store[value] = (earlier[0].add_(signal), True)
    else:
        store[value] = (earlier[0] + signal, True)


def _shares_memory(tensor: Tensor, others: Iterable[Tensor | None]) -> bool:
    pointer = tensor.untyped_storage().data_ptr()
    for other in others:
        if other is not None and other.untyped_storage().data_ptr() == pointer:
            return True
    return False


def _padded(node: Node, found: dict[Any, Tensor | None]) -> dict[Any, Tensor | None]:
    """Gradients of per-sample inputs, padded with zeros for the other rows."""
    for slot, result in found.items():
        shape = node.slots[slot].shape
        if result is not None and result.shape != shape:
            assert node.rows is not None
            found[slot] = result.new_zeros(shape)
            node.rows.of(found[slot]).copy_(result)  # type: ignore[arg-type]
    return found


def _rows(factors: Tensor, like: Tensor) -> Tensor:
    """A number for each sample, to be multiplied with what has as many rows, or several each."""
    if like.size(0) != factors.size(0):
        factors = factors.repeat_interleave(like.size(0) // factors.size(0))
    return factors.view(-1, *[1] * (like.dim() - 1))


def _of_rows(tensor: Tensor | None, rows: Samples) -> Tensor | None:
    return None if tensor is None else rows.of(tensor)


def _exclusive(value: Value) -> bool:
    """Whether only the tape references a value's data."""
    tensor = value.tensor
    assert tensor is not None
    storage = tensor.untyped_storage()
    alone: bool = torch._C._storage_Use_Count(storage._cdata) <= 2
    del storage
    return alone and sys.getrefcount(tensor) <= 3
