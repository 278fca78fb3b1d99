"""The passes over a tape: output gradients backward, tangents forward, gradients backward.

With S the sum of the scores, and J_i the derivative of op i by its inputs that depend on the
images,

    output gradients  d = dS/da, from the scores back to the images: g = dS/dx
    penalty           P(g), and its tangent v = dP/dg
    tangents          u = J v, from the images to the scores
    gradients         of <v, g> = <d_i, J_i u> at every op i, with d and u held fixed there: in the
                      parameters directly, and in the activations if J_i depends on them. These
                      start a second gradient e, which goes back through the earlier ops:
                      e = J^T e + d/da <d, J u>

which is reverse mode over the tangent. It holds for any tape. If every J is piecewise constant
(convolutions, leaky ReLU) there is no e: the penalty's gradient takes one weight gradient per
layer, and no second backward pass.

**Adding an adversarial loss.** If c = dL/ds is the gradient of a loss of the scores, starting with
e = c at the scores adds that loss's gradient. If samples aren't coupled and each has one score, the
loss's output gradient is c_n d_n, and one product computes both gradients of a layer:

    dL/dW + dP/dW = weight gradient of (input c_n a + u, output gradient d)

**Joined batches.** Rows without a penalty start with c_n instead of 1. Once their output gradients
are known, the tape is narrowed to the penalised rows; the other rows' inputs a join the tangents u
in one weight gradient.

All gradients are computed times N, the number of samples: values then start near 1, and half
precision doesn't underflow for large batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.losses import at_least_float32
from fastgan.penalty.entries import Node, Samples, Value
from fastgan.penalty.formula import Formula
from fastgan.penalty.rule import LINEAR, Grads, Slots, empty
from fastgan.penalty.tape import Tape

Store = dict[Value, tuple[Tensor, bool]]
"""Value -> (output gradient or tangent, whether it may be overwritten)."""
Second = dict[Node, tuple[Slots, Grads]]
"""Smooth op -> (its inputs' tangents, its results' output gradients)."""


class Passes:
    """The passes over one tape; they consume it.

    Args:
        tape: a recording.
        scores: the values that the critic returned.
        gradients: N times each parameter's gradient, by ``id``; results are added to these, in the
            dtype in which they were computed.
    """

    def __init__(self, tape: Tape, scores: Sequence[Value], gradients: dict[int, Tensor]) -> None:
        self.tape, self.scores, self.gradients = tape, scores, gradients
        self.rows = Samples(0, tape.root.shape[0], tape.root.shape[0])
        self.factors: Tensor | None = None
        self.grad_outputs: dict[Node, Grads] = {}
        self.inputs: dict[Node, Tensor] = {}
        #: Pending gradients on the way back.
        self.waiting: Store = {}
        self.again: set[Node] = set()
        # The ops that start a second gradient, which reaches parameters.
        self.smooth = {
            node
            for node in tape.nodes
            if len(node.outer) > len(node.own) and node.rule.smooth(node)
        }

    # Plain backpropagation ----------------------------------------------------------------------

    def backpropagate(self, seeds: Sequence[Tensor], second: Second | None = None) -> None:
        """Adds the gradients of <seeds, scores> and of the pending second gradients.

        Args:
            seeds: one for each score; none for the second gradients alone.
            second: the second gradients to start with.
        """
        for value, seed in zip(self.scores, seeds, strict=False):
            if value.by_parameters:
                self._add(value, seed.to(value.dtype), False)
        for node in reversed(self.tape.nodes):
            if self.waiting or second:
                grads, owned = self._take(node)
                starting = second.pop(node, None) if second else None
                if grads is not None:
                    node.overwrite = owned and starting is None and len(node.outer) == 1
                    self._give(node, node.rule.vjp(node, grads, node.outer), grads, owned)
                if starting is not None:
                    tangents, grad_outputs = starting
                    results = node.rule.gradients(node, tangents, grad_outputs, node.outer)
                    self._give(node, results, grad_outputs)
            node.released()

    # The penalty --------------------------------------------------------------------------------

    def penalty(
        self,
        formulas: Sequence[tuple[Samples, Formula]],
        *,
        seeds: Sequence[Tensor] | None = None,
        factors: Tensor | None = None,
        starts: Sequence[Tensor] | None = None,
        learning: bool = True,
    ) -> list[Tensor]:
        """P of each formula and, if ``learning``, the gradient of their sum.

        Args:
            formulas: the penalties, each with its samples.
            seeds: for each score tensor, N times another loss's gradient for all samples; that
                loss's gradient is added.
            factors: instead of ``seeds``, if samples aren't coupled and have one score each: a
                number for each sample.
            starts: if there is one formula, for some of the samples: for each score tensor, ones
                for these samples and, for the others, these gradients.
            learning: whether gradients are needed.
        """
        if starts is None:
            starts = [torch.ones(v.shape, dtype=v.dtype, device=v.device) for v in self.scores]
        else:
            ((self.rows, formula),) = formulas
            formulas = [(Samples(0, len(self.rows), len(self.rows)), formula)]
            starts = [s.to(v.dtype) for v, s in zip(self.scores, starts, strict=True)]
        self.factors = factors
        gradient = self._output_gradients(starts, learning)
        tangent = empty(gradient.shape, self.tape.root)
        values = [
            formula.value_and_tangent(rows.of(gradient), rows.of(tangent))
            for rows, formula in formulas
        ]
        del gradient
        if not learning:
            return values
        if not self.rows.whole:
            # The inputs of all rows, if the other rows join the tangents.
            for node, grad_outputs in self.grad_outputs.items():
                if grad_outputs and node.own and self._merges(node):
                    self.inputs[node] = node.arg(node.rule.left)
        with self.tape.narrowed(self.rows):
            second = self._tangents(tangent, everywhere=seeds is not None)
            self.backpropagate(seeds or (), second)
        if seeds is None and factors is None:
            self._zeros()
        return values

    def _output_gradients(self, starts: Sequence[Tensor], learning: bool) -> Tensor:
        """Returns g; keeps the output gradients that parameters need in :attr:`grad_outputs`."""
        root, divided = self.tape.root, not self.rows.whole
        for value, start in zip(self.scores, starts, strict=True):
            if value.by_images:
                self._add(value, start, True)
        for node in reversed(self.tape.nodes):
            if not node.by_images:
                continue
            grads, owned = self._take(node)
            if grads is None:
                continue
            kept = learning and (bool(node.own) or node in self.smooth)
            self.grad_outputs[node] = grads if kept else []
            if learning and node.own and divided:
                self._of_others(node, grads)
            node.overwrite = owned and not kept and len(node.inner) == 1
            if divided and all(node.slots[slot] is root for slot in node.inner):
                # The other images' gradient isn't needed.
                results = self._vjp_of_rows(node, grads, node.inner)
            else:
                results = node.rule.vjp(node, grads, node.inner)
            self._give(node, results, grads, owned and not kept)
        if root not in self.waiting:
            return empty(self.rows.shape(root.shape), root).zero_()
        return self.waiting.pop(root)[0]

    def _vjp_of_rows(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        """J^T d of :attr:`rows` alone."""
        with self.tape.narrowed(self.rows, node):
            return node.rule.vjp(node, self._narrowed(grads), wanted)

    def _of_others(self, node: Node, grads: Grads) -> None:
        """Gradients of an op's own parameters from rows without a penalty."""
        wanted = node.own
        if self._merges(node):  # only the bias: the others will join the tangents
            wanted = [slot for slot in wanted if slot == node.rule.bias]
        if wanted:
            penalised, self.rows = self.rows, self.rows.others
            self._give(node, self._vjp_of_rows(node, grads, wanted), grads)
            self.rows = penalised

    def _merges(self, node: Node) -> bool:
        """Whether one product computes the gradients of both the loss and the penalty."""
        rule = node.rule
        if not rule.merges or node.own == [rule.bias] or node in self.smooth:
            return False
        if self.rows.whole:
            return self.factors is not None
        return not rule.broadcasts  # a factor may have a row per sample

    def _tangents(self, tangent: Tensor, *, everywhere: bool) -> Second:
        """Adds gradients of parameters; returns the second gradients of smooth ops."""
        nodes = [node for node in self.tape.nodes if node.by_images]
        last = -1
        uses: dict[Value, int] = {}
        for index, node in enumerate(nodes):
            if self.grad_outputs.get(node):
                last = index
            for slot in node.inner:
                uses[node.slots[slot]] = index
        self.again = set(nodes)
        if not everywhere:  # ops that a second gradient passes through
            starts = {node for node in self.smooth if self.grad_outputs.get(node)}
            self.again = self._before(starts.__contains__)[0] if starts else set()
        store: Store = {self.tape.root: (tangent, True)}
        del tangent
        second: Second = {}
        for index, node in enumerate(nodes):
            if index <= last and node in self.grad_outputs:
                grad_outputs = self.grad_outputs.pop(node)
                values = [node.slots[slot] for slot in node.inner]
                given = [store.get(value) for value in values]
                tangents = {s: t and t[0] for s, t in zip(node.inner, given, strict=True)}
                if grad_outputs:
                    if node in self.smooth:
                        second[node] = (tangents, self._narrowed(grad_outputs))
                    if node.own:
                        self._of_parameters(node, tangents, grad_outputs)
                del grad_outputs
                owned = len(values) == 1 and given[0] is not None and given[0][1]
                owned = owned and uses[values[0]] == index and node not in second
                del given
                for value in values:
                    if uses[value] == index:
                        store.pop(value, None)
                if index < last:
                    node.overwrite = owned
                    results = node.rule.jvp(node, tangents)
                    for output, result in zip(node.outputs, results, strict=False):
                        if output is not None and result is not None:
                            result = result.to(output.dtype)
                            is_own = owned or not _shares_memory(result, tangents.values())
                            store[output] = (result, is_own and 0 not in result.stride())
            if node not in self.again:
                node.released()
        return second

    def _narrowed(self, grads: Grads) -> Grads:
        return [None if grad is None else self.rows.of(grad) for grad in grads]

    def _of_parameters(self, node: Node, tangents: Slots, grad_outputs: Grads) -> None:
        """Gradients of an op's own parameters, except those that wait for a second gradient."""
        wanted, rule, factors = node.own, node.rule, self.factors
        penalised = self._narrowed(grad_outputs)
        if self._merges(node):
            with self._mixed(node, tangents.get(rule.left)) as mixed:
                results = rule.gradients(node, {rule.left: mixed}, grad_outputs, wanted)
                self._give(node, results, grad_outputs)
            wanted = [slot for slot in wanted if slot == rule.bias]
        elif node not in self.smooth:
            self._give(node, rule.gradients(node, tangents, penalised, wanted), penalised)
        if wanted and factors is not None:
            scaled = [None if s is None else s * _rows(factors, s).to(s.dtype) for s in penalised]
            self._give(node, rule.vjp(node, scaled, wanted), scaled)

    @contextlib.contextmanager
    def _mixed(self, node: Node, tangent: Tensor | None) -> Iterator[Tensor]:
        """A merged product's input: c_n a + u in penalised rows, a in the others."""
        value = node.slots[node.rule.left]
        input = self.inputs.pop(node, value.tensor)
        assert input is not None
        # After its tangent is known, only an activation's mask is needed.
        read_again = node in self.again or value.readers > 1
        if not _exclusive(input, value.tensor) or (read_again and self.rows.whole):
            input, read_again = input.clone(), False
        penalised = self.rows.of(input)
        saved = penalised.clone() if read_again else None
        if self.factors is not None:
            penalised.mul_(_rows(self.factors, penalised))
            if tangent is not None:
                penalised.add_(tangent)
        elif tangent is None:
            penalised.zero_()
        else:
            penalised.copy_(tangent)
        yield input
        if saved is not None:
            penalised.copy_(saved)

    def _before(self, starts: Callable[[Node], bool]) -> tuple[set[Node], set[Value]]:
        """The ops where ``starts``, all ops before them, and these ops' inputs."""
        nodes, reached = set[Node](), set[Value]()
        for node in reversed(self.tape.nodes):
            if starts(node) or not reached.isdisjoint(node.outputs):
                nodes.add(node)
                reached.update(node.slots[slot] for slot in node.outer)
        return nodes, reached

    def _zeros(self) -> None:
        """Adds zeros for parameters that double backward reaches through a mask's derivative."""
        _, reached = self._before(lambda n: n.by_images and n.rule.kind_of(n) != LINEAR)
        for value in self.tape.parameters:
            if value in reached and id(value.leaf) not in self.gradients:
                assert value.leaf is not None
                self.gradients[id(value.leaf)] = torch.zeros_like(value.leaf)

    # Pending gradients --------------------------------------------------------------------------

    def _take(self, node: Node) -> tuple[Grads | None, bool]:
        """The output gradients of an op's results, and whether they may be overwritten."""
        taken = [self.waiting.pop(v, None) if v is not None else None for v in node.outputs]
        if not any(taken):
            return None, False
        grads = [
            (entry[0] if node.rule.keeps_dtype(node) else entry[0].to(value.dtype))
            if entry and value
            else None
            for entry, value in zip(taken, node.outputs, strict=True)
        ]
        return grads, len(taken) == 1 and bool(taken[0] and taken[0][1])

    def _give(self, node: Node, results: Slots, grads: Grads, owned: bool = False) -> None:
        """Adds an op's input gradients to the pending ones, or to the parameters'."""
        alone = owned and len(results) == 1
        for slot, result in results.items():
            if result is not None:
                is_own = alone or not _shares_memory(result, grads)
                self._add(node.slots[slot], result, is_own and 0 not in result.stride())

    def _add(self, value: Value, grad: Tensor, owned: bool) -> None:
        leaf = value.leaf
        if leaf is None:
            if value is self.tape.root and grad.size(0) != len(self.rows):
                grad = self.rows.of(grad)
            earlier = self.waiting.get(value)
            if earlier is None:
                self.waiting[value] = (grad, owned)
            elif earlier[1] and earlier[0].dtype == grad.dtype:
                earlier[0].add_(grad)
            else:
                self.waiting[value] = (earlier[0] + grad, True)
            return
        if grad.shape != leaf.shape:  # a parameter with a row per sample
            part, grad, owned = grad, grad.new_zeros(leaf.shape), True
            self.rows.of(grad).copy_(part)
        if id(leaf) not in self.gradients:
            # It will be added to and scaled in place.
            self.gradients[id(leaf)] = grad if owned else grad.clone()
        else:
            # Kept in half precision, to save memory, until something is added.
            wide = at_least_float32(self.gradients[id(leaf)])
            self.gradients[id(leaf)] = wide.add_(at_least_float32(grad))


def _shares_memory(tensor: Tensor, others: Iterable[Tensor | None]) -> bool:
    pointer = tensor.untyped_storage().data_ptr()
    return any(
        other is not None and other.untyped_storage().data_ptr() == pointer for other in others
    )


def _rows(factors: Tensor, like: Tensor) -> Tensor:
    """A number per sample, shaped to multiply a tensor with one or several rows per sample."""
    if like.size(0) != factors.size(0):
        factors = factors.repeat_interleave(like.size(0) // factors.size(0))
    return factors.view(-1, *[1] * (like.dim() - 1))


def _exclusive(tensor: Tensor, kept: Tensor | None) -> bool:
    """Whether only the tape references a tensor's data (as ``kept``, or rows of it)."""
    storage = tensor.untyped_storage()  # counts as well
    alone: bool = torch._C._storage_Use_Count(storage._cdata) <= (2 if kept is tensor else 3)
    return alone
