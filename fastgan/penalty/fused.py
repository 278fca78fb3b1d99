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
from typing import Any

import torch
from torch import Tensor

import fastgan.ops.penalty_mix  # noqa: F401 - defines the op that is called here
from fastgan.losses import widened
from fastgan.penalty.critics import Critic, Joining, Recording, record
from fastgan.penalty.data_parallel import run_within
from fastgan.penalty.double_backward import penalty_by_double_backward
from fastgan.penalty.entries import Samples
from fastgan.penalty.formula import Formula
from fastgan.penalty.node import Leaves, attached, replayed
from fastgan.penalty.passes import Passes
from fastgan.penalty.points import interpolate_into
from fastgan.penalty.rule import layout_of
from fastgan.penalty.tape import Changed

__all__ = ["Asked", "ScoresLoss", "fused_loss", "fused_penalty", "summed"]

ScoresLoss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""(real scores, fake scores) -> a scalar; each the tensors that the critic returned."""
Names = tuple[str, ...]
"""The batches that are recorded together: "fake", "real" or "points"."""


@dataclass(frozen=True)
class Asked:
    """What to compute.

    Attributes:
        loss: of the scores; None for a penalty alone.
        gp: the penalty at interpolates (or the given points), or None.
        r1: that at real images, or None.
        r2: that at fake images, or None.
        linear: for a loss that is linear in the scores: its gradient in each real and each fake
            score, times their number. Each batch can then be finished before the next one starts.
    """

    loss: ScoresLoss | None
    gp: Formula | None = None
    r1: Formula | None = None
    r2: Formula | None = None
    linear: tuple[float, float] | None = None

    def penalty(self, name: str) -> Formula | None:
        """The penalty at a batch."""
        return {"points": self.gp, "real": self.r1, "fake": self.r2}[name]


@dataclass
class _Batch:
    """One recording.

    Attributes:
        names: of the batches in it, one after the other.
        recording: of them.
        count: the size of each.
    """

    names: Names
    recording: Recording
    count: int

    def rows(self, name: str) -> Samples:
        """The samples of one batch."""
        start = self.names.index(name) * self.count
        return Samples(start, start + self.count, len(self.names) * self.count)

    def scores(self, name: str) -> list[Tensor]:
        """The scores of one batch."""
        return [self.rows(name).of(score) for score in self.recording.scores]

    def replay(self, name: str, leaves: Leaves, images: Tensor) -> list[Tensor]:
        """The scores at other images, differentiable to any order."""
        # Samples aren't coupled, so the other rows may hold any images.
        whole = images if len(self.names) == 1 else torch.cat([images] * len(self.names))
        recording = self.recording
        found = replayed(recording.tape, recording.values, whole, leaves)
        return [self.rows(name).of(score) for score in found]


@dataclass
class _Gradients:
    """What is accumulated.

    Attributes:
        of: N times each leaf's gradient, by identity.
        leaves: the parameters, in the order in which they were met.
    """

    of: dict[int, Tensor] = field(default_factory=dict)
    leaves: dict[int, Tensor] = field(default_factory=dict)


def fused_penalty(critic: Critic, points: Tensor, formula: Formula) -> Tensor:
    """The penalty at ``points``, with a graph to the critic's parameters.

    Args:
        critic: the critic.
        points: (N, ...), without a graph.
        formula: what the penalty is.
    """
    run = _Run(critic, Asked(None, gp=formula), {"points": points})
    penalty: Tensor = run_within(critic.given, points, run.result)[0]
    return penalty


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
    given = {"real": real, "fake": fake}
    if eps is not None:
        given["eps"] = eps
    loss, terms = run_within(critic.given, real, _Run(critic, asked, given).result)
    return loss, terms


class _Run:
    """One computation of a loss.

    Args:
        critic: the critic.
        asked: what to compute.
        given: "real" and "fake" images, and "eps" for a penalty at interpolates; or "points".
    """

    def __init__(self, critic: Critic, asked: Asked, given: dict[str, Tensor]) -> None:
        self.critic = critic
        self.asked = asked
        self.given = given
        self.example = next(iter(given.values()))
        self.count = len(self.example)
        self.watching = False
        self._start()

    def _start(self) -> None:
        self.total = _Gradients()
        self.terms: dict[str, Tensor] = {}
        self.batches: dict[str, _Batch] = {}

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms."""
        loss = self._loss()
        if self.learning:
            held, names = list(self.given.values()), tuple(self.given)
            composed = partial(self._composed, names)
            leaves = list(self.total.leaves.values())
            loss = attached(loss, self.total.of, leaves, self.count, held, composed)
        return loss, {name: value.detach() for name, value in self.terms.items()}

    @property
    def learning(self) -> bool:
        """Whether gradients are needed."""
        return bool(self.total.leaves) and torch.is_grad_enabled()

    # What runs when -----------------------------------------------------------------------------

    def _loss(self) -> Tensor:
        if self.asked.loss is None:
            return self._passes(self._record(("points",)), {})
        apart: list[Names] = [("fake",), ("real",)]
        at_images = self.asked.r1 is not None or self.asked.r2 is not None
        together: Names = ("fake", "real")
        if self.asked.gp is not None and not at_images:
            together = ("fake", "real", "points")
        joining = Joining(self.critic, self.example, together)
        self.watching = not joining.known
        if joining.joined:
            try:
                return self._of(self._joined_plan(joining))
            except Changed:
                joining.remember(joined=False)
                self._start()
        return self._of(apart, joining)

    def _joined_plan(self, joining: Joining) -> list[Names]:
        """The batches to record together, in order."""
        names = joining.names
        if "points" in names and joining.large and self.asked.linear is not None:
            # The loss is finished before the interpolates take memory.
            return [names[:-1], names[-1:]]
        return [names]

    def _of(self, plan: Sequence[Names], joining: Joining | None = None) -> Tensor:
        """The loss, from batches recorded in this order."""
        asked = self.asked
        early = asked.linear is not None and not (asked.r1 or asked.r2) and not self.watching
        scored = []
        penalties = torch.zeros((), device=self.example.device)
        for names in plan:
            batch = self._record(names)
            scored.append(batch)
            if early and len(plan) > 1:  # before the next batch takes memory
                penalties = penalties + self._passes(batch, self._linear_seeds(batch))
        if self.watching and joining is not None and (whole := self._learn(joining)) is not None:
            # As in every later call, so that a resumed run repeats this one to the bit.
            later = self._joined_plan(joining)
            if later != [whole.names]:
                del whole, scored
                self.watching = False
                self._start()
                return self._of(later)
            scored = [whole]
            self.batches = dict.fromkeys(whole.names, whole)
        loss, seeds = self._of_scores()
        loss = loss + penalties
        if asked.gp is not None and all("points" not in batch.names for batch in scored):
            points = self.batches.get("points") or self._record(("points",))
            loss = loss + self._passes(points, {})
            del points
        if not early or len(plan) == 1:
            # The last recorded batch goes first, while its activations are in the cache.
            while scored:
                loss = loss + self._passes(scored.pop(), seeds)
        return loss

    def _learn(self, joining: Joining) -> _Batch | None:
        """Finds out whether calls may join the batches; the joined batch, if they may."""
        if all(batch.recording.tape.moves is None for batch in self.batches.values()):
            for name in joining.names:
                if name not in self.batches:
                    self._record((name,))
        batches = [self.batches[name] for name in joining.names if name in self.batches]
        if not joining.learn([batch.recording for batch in batches]):
            return None
        try:
            whole = self._recorded(joining.names)
        except Changed:
            return None
        scores = [batch.recording.scores for batch in batches]
        apart = [torch.cat(each) for each in zip(*scores, strict=True)]
        if not all(bool(each.isfinite().all()) for each in apart):
            return None  # NaN agrees with nothing, infinity with all: another call will tell
        joining.remember(joined=_agree(whole.recording.scores, apart), size=whole.recording.size)
        return whole if joining.joined else None

    def _divided(self, names: Names) -> bool:
        """Whether only some of the batches are penalised."""
        return len({self.asked.penalty(name) is None for name in names}) > 1

    def _recorded(self, names: Names) -> _Batch:
        several = len(names) > 1
        recording = record(
            self.critic,
            self._images(names),
            times=len(names),
            divided=self._divided(names),
            watching=self.watching or several,
        )
        for value in recording.tape.parameters:
            assert value.leaf is not None
            self.total.leaves.setdefault(id(value.leaf), value.leaf)
        return _Batch(names, recording, self.count)

    def _record(self, names: Names) -> _Batch:
        batch = self._recorded(names)
        self.batches.update(dict.fromkeys(names, batch))
        return batch

    def _images(self, names: Names) -> Tensor:
        """Fakes, reals, interpolates or the given points, one after the other."""
        given = self.given
        if len(names) == 1:
            (name,) = names
            if name in given:
                return given[name]
            real = given["real"]
            return interpolate_into(torch.empty_like(real), real, given["fake"], given["eps"])
        return _joined(given["real"], given["fake"], given.get("eps") if len(names) > 2 else None)

    # The loss of the scores ---------------------------------------------------------------------

    def _of_scores(self) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """The loss of the scores, and N times its gradient in them."""
        loss_of = self.asked.loss
        assert loss_of is not None
        scores = {name: self.batches[name].scores(name) for name in ("real", "fake")}
        with _without_autocast(self.example):
            if self.asked.linear is not None:
                loss = loss_of(scores["real"], scores["fake"])
                seeds = {
                    name: [torch.full_like(s, self._weight(name) / s.numel()) for s in each]
                    for name, each in scores.items()
                }
            else:
                loss, seeds = self._differentiated(loss_of, scores)
        self.terms["adversarial"] = loss
        for name, each in scores.items():
            self.terms[name] = torch.cat([widened(s).flatten() for s in each]).mean()
        return loss, seeds

    def _weight(self, name: str) -> float:
        assert self.asked.linear is not None
        return self.asked.linear[name == "fake"] * self.count

    def _linear_seeds(self, batch: _Batch) -> dict[str, list[Tensor]]:
        return {
            name: [torch.full_like(s, self._weight(name) / s.numel()) for s in batch.scores(name)]
            for name in batch.names
            if name != "points"
        }

    def _differentiated(
        self, loss_of: ScoresLoss, scores: dict[str, list[Tensor]]
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        with torch.enable_grad():
            leaves = {n: [s.detach().requires_grad_() for s in each] for n, each in scores.items()}
            loss = loss_of(leaves["real"], leaves["fake"])
        flat = [leaf for each in leaves.values() for leaf in each]
        if loss.requires_grad:
            found = torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True)
        else:
            found = tuple(torch.zeros_like(leaf) for leaf in flat)
        gradients = iter(found)
        seeds = {n: [next(gradients) * self.count for _ in each] for n, each in scores.items()}
        return loss.detach(), seeds

    # The passes ---------------------------------------------------------------------------------

    def _passes(self, batch: _Batch, seeds: dict[str, list[Tensor]]) -> Tensor:
        """Runs a recording's passes; returns its penalties' sum.

        Args:
            batch: the recording.
            seeds: N times the loss's gradient in the scores, by batch; none at the interpolates.
        """
        asked, names, recording = self.asked, batch.names, batch.recording
        penalised = [name for name in names if asked.penalty(name) is not None]
        learning = self.learning
        passes = Passes(recording.tape, recording.values, self.total.of)
        if not penalised:
            if learning:
                with torch.no_grad(), _without_autocast(self.example):
                    passes.backpropagate(_stacked(names, seeds) or ())
            return torch.zeros((), device=self.example.device)
        formulas = [
            (batch.rows(name), formula)
            for name in penalised
            if (formula := asked.penalty(name)) is not None
        ]
        own = _stacked(penalised, seeds)
        factors = None
        if own is not None and recording.one_score_each:
            factors, own = own[0].reshape(-1), None
        divided = len(penalised) < len(names)
        others = None
        if divided:
            blank = dict.fromkeys(penalised, batch.scores(penalised[0]))
            others = _stacked(names, {**seeds, **blank})
        with torch.no_grad(), _without_autocast(self.example):
            values = passes.penalty(
                formulas, seeds=own, factors=factors, others=others, learning=learning
            )
        total = torch.zeros((), device=self.example.device)
        for name, value in zip(penalised, values, strict=True):
            self.terms[{"points": "gp", "real": "r1", "fake": "r2"}[name]] = value
            total = total + value
        return total

    # Derivatives of higher order ----------------------------------------------------------------

    def _composed(self, names: Names, held: Sequence[Tensor], leaves: Leaves) -> Tensor:
        """The loss in differentiable functions."""
        self.given = dict(zip(names, held, strict=True))
        asked, loss = self.asked, torch.zeros((), device=self.example.device)
        sources = {
            name: partial(batch.replay, name, leaves) for name, batch in self.batches.items()
        }
        if asked.loss is not None:
            real, fake = (sources[name](self.given[name]) for name in ("real", "fake"))
            loss = asked.loss(real, fake)
        for name, source in sources.items():
            formula = asked.penalty(name)
            if formula is not None:
                scores = partial(_summed_of, source)
                loss = loss + penalty_by_double_backward(scores, self._images((name,)), formula)
        return loss


def _joined(real: Tensor, fake: Tensor, eps: Tensor | None) -> Tensor:
    """Fakes, reals and, with ``eps``, interpolates, one after the other."""
    batch = torch.empty(
        ((2 if eps is None else 3) * len(real), *real.shape[1:]),
        dtype=real.dtype,
        device=real.device,
        memory_format=layout_of(real.shape, real.dtype),
    )
    if eps is None:
        batch[: len(real)].copy_(fake)
        batch[len(real) :].copy_(real)
    else:
        wide = torch.float64 if real.dtype == torch.float64 else torch.float32
        torch.ops.fastgan.penalty_mix_(batch, real, fake, eps.to(wide).contiguous())
    return batch


def _stacked(names: Sequence[str], seeds: dict[str, list[Tensor]]) -> list[Tensor] | None:
    """The seeds of several batches, for each score; None if there are none."""
    found = [seeds[name] for name in names if name in seeds]
    if len(found) < 2:
        return found[0] if found else None
    return [torch.cat(each) for each in zip(*found, strict=True)]


def _agree(joined: Sequence[Tensor], apart: Sequence[Tensor]) -> bool:
    """Whether scores are the same but for rounding."""
    for ours, expected in zip(joined, apart, strict=True):
        relative = {torch.float64: 1e-10, torch.float32: 1e-3}.get(ours.dtype, 1e-2)
        scale = relative * float(expected.abs().max())
        if ours.shape != expected.shape or not torch.allclose(ours, expected, relative, scale):
            return False
    return True


def _summed_of(source: Callable[[Tensor], list[Tensor]], images: Tensor) -> Tensor:
    return summed(source(images))


def summed(scores: Sequence[Tensor]) -> Tensor:
    """The sum of all scores."""
    return sum((s.sum() for s in scores[1:]), scores[0].sum())


def _without_autocast(images: Tensor) -> Any:
    device = images.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
