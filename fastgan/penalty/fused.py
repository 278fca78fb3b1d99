"""Computes a critic's loss from recordings: forward passes, the loss's gradient in the scores, then
the passes over the tapes.

Fakes, reals and interpolates are recorded one after the other, in this order, as plain code would
run them. If a critic's forward turns out to have no side effects and doesn't couple samples, later
calls run all as one batch; each such call is checked again
(:class:`fastgan.penalty.critics.Joining`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

import fastgan.ops.penalty_mix  # noqa: F401 - defines the op that is called here
from fastgan.losses import widened
from fastgan.penalty.critics import Critic, Joined, Joining, Recording, record
from fastgan.penalty.data_parallel import run_within
from fastgan.penalty.double_backward import penalty_by_double_backward
from fastgan.penalty.entries import Samples
from fastgan.penalty.formula import Formula
from fastgan.penalty.node import Leaves, Replay, attached
from fastgan.penalty.passes import Join, Passes, second_signals
from fastgan.penalty.points import interpolate_into
from fastgan.penalty.rule import layout_of
from fastgan.penalty.tape import Changed

__all__ = ["Asked", "ScoresLoss", "fused_loss", "fused_penalty"]

Result = TypeVar("Result")
ScoresLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(real scores, fake scores) -> a scalar; each the tensors that the critic returned."""


Computed = tuple[Recording, "str | Sequence[str]", Callable[[], object]]
"""A recording, the names of its batches, and the function that runs its passes."""


@dataclass(frozen=True)
class Asked:
    """What to compute.

    Attributes:
        loss: of the scores.
        gp: the penalty at interpolates, or None.
        r1: that at real images, or None.
        r2: that at fake images, or None.
        linear: for a loss that is linear in the scores: its gradient in each real and each fake
            score, times their number. Each batch can then be finished before the next one starts.
    """

    loss: ScoresLoss
    gp: Formula | None = None
    r1: Formula | None = None
    r2: Formula | None = None
    linear: tuple[float, float] | None = None


@dataclass
class _Sum:
    """Accumulated gradients.

    Attributes:
        gradients: of the leaves, by identity.
        leaves: in the order in which they were met.
    """

    gradients: dict[int, Tensor] = field(default_factory=dict)
    leaves: dict[int, Tensor] = field(default_factory=dict)

    def meet(self, recording: Recording) -> bool:
        """Adds a recording's parameters; returns whether gradients are needed."""
        wanted = False
        for value in recording.tape.parameters:
            leaf = value.leaf
            assert leaf is not None
            wanted = True
            self.leaves.setdefault(id(leaf), leaf)
        return wanted and torch.is_grad_enabled()


#: Batch -> name of the penalty taken there.
_TERMS = {"points": "gp", "real": "r1", "fake": "r2"}


def fused_penalty(critic: Critic, points: Tensor, formula: Formula) -> Tensor:
    """The penalty at ``points``, with a graph to the critic's parameters.

    Args:
        critic: the critic.
        points: (N, ...), without a graph.
        formula: what the penalty is.
    """

    def run() -> tuple[Tensor]:
        recording = record(critic, points)
        total = _Sum()
        learning = total.meet(recording)
        count = len(points)

        def compute(into: _Sum) -> Tensor:
            with torch.no_grad(), _without_autocast(points):
                passes = Passes(recording.tape, recording.values, into.gradients)
                (value,) = passes.penalty([(None, formula)], learning=learning)
            return value

        value = compute(total)
        replay = Replay(recording.tape, recording.values)

        def composed(held: Sequence[Tensor], leaves: Leaves) -> Tensor:
            return penalty_by_double_backward(
                lambda images: _summed(replay(images, leaves)), held[0], formula
            )

        def again(held: Sequence[Tensor]) -> dict[int, Tensor]:
            refill(recording, held[0])
            compute(anew := _Sum())
            return anew.gradients

        return (_finished(value, total, learning, count, [points], again, composed),)

    result: Tensor = run_within(critic.given, points, run)[0]
    return result


def fused_loss(
    critic: Critic, asked: Asked, real: Tensor, fake: Tensor, eps: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, with a graph to the critic's parameters, and its terms without one.

    Args:
        critic: a critic.
        asked: what to compute.
        real: (N, ...), without a graph.
        fake: the same.
        eps: the share of real in the interpolates, where there is a penalty at them.
    """

    loss, terms = run_within(
        critic.given, real, lambda: _Run(critic, asked, real, fake, eps).result()
    )
    return loss, terms


class _Run:
    """One computation of a loss."""

    def __init__(
        self, critic: Critic, asked: Asked, real: Tensor, fake: Tensor, eps: Tensor | None
    ) -> None:
        self.critic = critic
        self.asked = asked
        self.real = real
        self.fake = fake
        self.eps = eps
        self.count = len(real)
        self.total = _Sum()
        self.learning = False
        self.watching = False
        self.terms: dict[str, Tensor] = {}
        self.computed: list[Computed] = []
        self.sources: dict[str, Callable[[Tensor, Leaves], list[Tensor]]] = {}

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms."""
        joining = Joining(self.critic, self.real, self._ways())
        self.watching = not joining.known
        if joining.way is None:
            loss = self._apart(joining)
        else:
            try:
                loss = self._joined(joining.way)
            except Changed:
                joining.remember(None)
                self._start_again()
                loss = self._apart(joining)
        held = [t for t in (self.real, self.fake, self.eps) if t is not None]
        # These closures reference self, so self must not keep them (a cycle would delay freeing
        # memory).
        computed, self.computed = self.computed, []
        again = partial(self._again, computed)
        loss = _finished(loss, self.total, self.learning, self.count, held, again, self._composed)
        return loss, {name: value.detach() for name, value in self.terms.items()}

    def _start_again(self) -> None:
        self.total = _Sum()
        self.learning = False
        self.terms.clear()
        self.computed.clear()
        self.sources.clear()

    def _ways(self) -> list[Joined]:
        """How batches might be joined: a penalty at some of them alone takes rows apart."""
        asked = self.asked
        at_images = (asked.r1 is not None) + (asked.r2 is not None)
        ways = [Joined(("fake", "real"), at_images == 1)]
        if asked.gp is not None and not at_images:
            ways.insert(0, Joined(("fake", "real", "points"), True))
        return ways

    def _points(self) -> Tensor:
        assert self.eps is not None
        return interpolate_into(torch.empty_like(self.real), self.real, self.fake, self.eps)

    def _add(self, name: str, value: Tensor) -> Tensor:
        self.terms[name] = value
        return value

    # One batch after the other ------------------------------------------------------------------

    def _apart(self, joining: Joining) -> Tensor:
        asked = self.asked
        # Finish each batch early, unless it's still unknown whether batches can be joined.
        early = joining.known and asked.linear is not None and not (asked.r1 or asked.r2)
        recordings: dict[str, Recording] = {}
        for name in ("fake", "real"):
            each = recordings[name] = self._record(name)
            if early and asked.linear is not None:
                weight = asked.linear[name == "fake"] * self.count
                seeds = [torch.full_like(s, weight / s.numel()) for s in each.scores]
                self._pass(name, each, None, seeds)
        still = all(each.tape.moves is None for each in recordings.values())
        if asked.gp is not None and still and not joining.known:
            recordings["points"] = self._record("points")
        if not joining.known and (way := joining.learn(list(recordings.values()))) is not None:
            joined = self._tried(way, recordings)
            joining.remember(way if joined is not None else None)
            if joined is not None:
                return joined
            for name, each in recordings.items():
                self._meet(name, each)
        return self._of_recordings(recordings, early=early)

    def _of_recordings(self, recordings: dict[str, Recording], *, early: bool) -> Tensor:
        asked = self.asked
        loss, (reals, fakes) = self._of_scores(recordings["real"].scores, recordings["fake"].scores)
        if asked.gp is not None:
            points = recordings.pop("points", None) or self._record("points")
            loss = loss + self._pass("points", points, asked.gp, None)
            del points
        if not early:
            # The last recorded batch goes first, while its activations are in the cache.
            for name, formula, seeds in (("real", asked.r1, reals), ("fake", asked.r2, fakes)):
                loss = loss + self._pass(name, recordings.pop(name), formula, seeds)
        return loss

    def _tried(self, way: Joined, recordings: dict[str, Recording]) -> Tensor | None:
        """The loss by a joined batch, if the scores in it are those of batches run one by one."""
        apart = [
            torch.cat([recordings[name].scores[position] for name in way.batches])
            for position in range(len(recordings["real"].scores))
        ]
        self._start_again()
        try:
            return self._joined(way, apart)
        except Changed:
            self._start_again()
            return None

    def _record(self, name: str) -> Recording:
        images = self._points() if name == "points" else getattr(self, name)
        recording = record(self.critic, images, watching=self.watching)
        self._meet(name, recording)
        return recording

    def _meet(self, name: str, recording: Recording, rows: Samples | None = None) -> None:
        self.learning |= self.total.meet(recording)
        self._source(name, recording, rows)

    def _pass(
        self,
        name: str,
        recording: Recording,
        formula: Formula | None,
        seeds: Sequence[Tensor] | None,
    ) -> Tensor:
        """The gradients of one recording; returns its penalty."""
        zero = torch.zeros((), device=self.real.device)
        if formula is None and not self.learning:
            return zero
        factors = None
        if seeds is not None and formula is not None and recording.one_score_each:
            factors, seeds = seeds[0].reshape(-1), None

        def compute() -> Tensor:
            passes = Passes(recording.tape, recording.values, self.total.gradients)
            value = zero
            if formula is None:
                assert seeds is not None
                passes.backpropagate(seeds)
            else:
                (value,) = passes.penalty([(None, formula)], seeds, factors, learning=self.learning)
            return value

        value = self._compute(recording, name, compute)
        return zero if formula is None else self._add(_TERMS[name], value)

    def _compute(
        self, recording: Recording, images: str | Sequence[str], compute: Callable[[], Result]
    ) -> Result:
        """Runs passes, and remembers how: for a second backward pass."""
        self.computed.append((recording, images, compute))
        with torch.no_grad(), _without_autocast(self.real):
            return compute()

    def _again(self, computed: Sequence[Computed], held: Sequence[Tensor]) -> dict[int, Tensor]:
        """Computes the gradients again, for a second backward."""
        self.total = _Sum()
        for recording, name, compute in computed:
            if not isinstance(name, str):
                images = self._batch(name)
            else:
                images = self._points() if name == "points" else getattr(self, name)
            refill(recording, images)
            with torch.no_grad(), _without_autocast(self.real):
                compute()
        return self.total.gradients

    def _of_scores(
        self, real: Sequence[Tensor], fake: Sequence[Tensor]
    ) -> tuple[Tensor, tuple[list[Tensor], list[Tensor]]]:
        """The loss of the scores, and N times its gradient in the real and in the fake ones."""
        linear = self.asked.linear
        if linear is not None:
            with _without_autocast(self.real):
                loss = self.asked.loss(real, fake)
            gradients = [
                torch.full_like(s, weight * self.count / s.numel())
                for weight, each in zip(linear, (real, fake), strict=True)
                for s in each
            ]
            return self._noted(loss, real, fake), (
                gradients[: len(real)],
                gradients[len(real) :],
            )
        with torch.enable_grad(), _without_autocast(self.real):
            leaves = [[s.detach().requires_grad_() for s in each] for each in (real, fake)]
            loss = self.asked.loss(*leaves)
            flat = [*leaves[0], *leaves[1]]
            found = (
                torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
                if loss.requires_grad
                else [torch.zeros_like(s) for s in flat]
            )
        gradients = [g * self.count for g in found]
        reals, fakes = gradients[: len(real)], gradients[len(real) :]
        return self._noted(loss.detach(), real, fake), (reals, fakes)

    def _noted(self, loss: Tensor, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        """Records the adversarial terms and returns ``loss``."""
        self._add("adversarial", loss)
        for name, scores in (("real", real), ("fake", fake)):
            self._add(name, _mean(scores))
        return loss

    # Several in one batch -----------------------------------------------------------------------

    def _batch(self, names: Sequence[str]) -> Tensor:
        """Fakes, reals and perhaps interpolates, one after the other."""
        real, fake = self.real, self.fake
        batch = torch.empty(
            (len(names) * self.count, *real.shape[1:]),
            dtype=real.dtype,
            device=real.device,
            memory_format=layout_of(real.shape, real.dtype),
        )
        if "points" in names:
            assert self.eps is not None
            wide = torch.float64 if real.dtype == torch.float64 else torch.float32
            torch.ops.fastgan.penalty_mix_(batch, real, fake, self.eps.to(wide).contiguous())
        else:
            batch[: self.count].copy_(fake)
            batch[self.count :].copy_(real)
        return batch

    def _joined(self, way: Joined, expected: Sequence[Tensor] | None = None) -> Tensor:
        asked, count, names = self.asked, self.count, way.batches
        whole = record(
            self.critic, self._batch(names), times=len(names), divided=way.divided, watching=True
        )
        if expected is not None:
            _compare(whole.scores, expected)
        # Before the loss function is called, which may draw random numbers.
        if way.divided and second_signals(whole.tape):
            raise Changed("a second signal can't start from some rows alone")
        if way.divided and "points" not in names and not whole.one_score_each:
            raise Changed("a sample has several scores")
        batch = len(names) * count
        rows = {n: Samples(i * count, (i + 1) * count, batch) for i, n in enumerate(names)}
        for name, part in rows.items():
            self._meet(name, whole, part)
        real, fake = ([rows[name].of(s) for s in whole.scores] for name in ("real", "fake"))
        loss, (reals, fakes) = self._of_scores(real, fake)
        seeds = [
            torch.cat([f, r, *[torch.zeros_like(r)] * (len(names) - 2)])
            for f, r in zip(fakes, reals, strict=True)
        ]
        join, factors, named = self._roles(whole, rows, seeds)

        def compute() -> Sequence[Tensor]:
            passes = Passes(whole.tape, whole.values, self.total.gradients, join)
            values: Sequence[Tensor] = ()
            if named:
                values = passes.penalty(
                    [(rows[name], formula) for _, name, formula in named],
                    None if factors is not None and join is None else seeds,
                    factors,
                    learning=self.learning,
                )
            elif self.learning:
                passes.backpropagate(seeds)
            return values

        values = self._compute(whole, names, compute)
        for (term, _, _), value in zip(named, values, strict=True):
            loss = loss + self._add(term, value)
        if asked.gp is not None and "points" not in names:
            loss = loss + self._pass("points", self._record("points"), asked.gp, None)
        return loss

    def _roles(
        self, whole: Recording, rows: dict[str, Samples], seeds: Sequence[Tensor]
    ) -> tuple[Join | None, Tensor | None, list[tuple[str, str, Formula]]]:
        """Which rows are penalised alone; the factors of those that have another loss as well."""
        asked, count = self.asked, self.count
        every = (("gp", "points", asked.gp), ("r1", "real", asked.r1), ("r2", "fake", asked.r2))
        named = [
            (term, name, formula)
            for term, name, formula in every
            if formula is not None and name in rows
        ]
        if not named:
            return None, None, named
        if "points" in rows:
            return Join(Samples(0, 2 * count, 3 * count), rows["points"]), None, named
        factors = seeds[0].reshape(-1) if whole.one_score_each else None
        if len(named) == 2:
            return None, factors, named
        assert factors is not None
        ((_, name, _),) = named
        other = rows["fake" if name == "real" else "real"]
        return Join(other, rows[name]), rows[name].of(factors), named

    # Derivatives of higher order ----------------------------------------------------------------

    def _source(self, name: str, recording: Recording, rows: Samples | None = None) -> None:
        """Stores how to replay a batch."""
        replay = Replay(recording.tape, recording.values)

        def run(images: Tensor, leaves: Leaves) -> list[Tensor]:
            if rows is None:
                return replay(images, leaves)
            # Samples aren't coupled, so the other rows may hold any images.
            whole = torch.cat([images] * (recording.tape.root.shape[0] // len(images)))
            return [rows.of(scores) for scores in replay(whole, leaves)]

        self.sources[name] = run

    def _composed(self, held: Sequence[Tensor], leaves: Leaves) -> Tensor:
        asked = self.asked
        real, fake = held[:2]
        scores = [self.sources[name](x, leaves) for name, x in (("real", real), ("fake", fake))]
        loss = asked.loss(*scores)
        for formula, name, images in (
            (asked.r1, "real", real),
            (asked.r2, "fake", fake),
            (asked.gp, "points", None),
        ):
            if formula is None:
                continue
            if images is None:
                images = interpolate_into(torch.empty_like(real), real, fake, held[2])
            summed = partial(_summed_at, self.sources[name], leaves)
            loss = loss + penalty_by_double_backward(summed, images, formula)
        return loss


def _mean(scores: Sequence[Tensor]) -> Tensor:
    if len(scores) == 1:
        return widened(scores[0]).mean()
    return torch.cat([widened(s).flatten() for s in scores]).mean()


def _compare(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Raises :class:`Changed` unless the scores are the same but for rounding."""
    for ours, apart in zip(found, expected, strict=True):
        relative = {torch.float64: 1e-10, torch.float32: 1e-3}.get(ours.dtype, 1e-2)
        scale = relative * float(apart.abs().max())
        if ours.shape != apart.shape or not torch.allclose(ours, apart, relative, scale):
            raise Changed("scores differ in a larger batch")


def _summed_at(
    source: Callable[[Tensor, Leaves], list[Tensor]], leaves: Leaves, images: Tensor
) -> Tensor:
    return _summed(source(images, leaves))


def _summed(scores: Sequence[Tensor]) -> Tensor:
    return sum((s.sum() for s in scores[1:]), scores[0].sum())


def refill(recording: Recording, images: Tensor) -> None:
    """Computes again what the passes have consumed."""
    images = recording.tape.empty_images(len(images)).copy_(images)
    with torch.no_grad(), _without_autocast(images):
        recording.tape.refill(images)


def _finished(
    loss: Tensor,
    total: _Sum,
    learning: bool,
    count: int,
    held: Sequence[Tensor],
    again: Callable[[Sequence[Tensor]], dict[int, Tensor]],
    composed: Callable[[Sequence[Tensor], Leaves], Tensor],
) -> Tensor:
    if not learning:
        return loss
    leaves = list(total.leaves.values())
    return attached(loss, total.gradients, leaves, count, held, again, composed)


def _without_autocast(images: Tensor) -> Any:
    device = images.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
