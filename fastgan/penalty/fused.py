"""Computes a critic's loss by recording its forward passes and running passes over the tapes.

Fakes, reals and interpolates are recorded in this order, as plain code would run them. If the
forward pass has no side effects and doesn't couple samples, later calls run all as one batch; each
such call is checked again (:class:`fastgan.penalty.critics.Joining`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastgan.ops.penalty_mix  # noqa: F401 - defines the op that is called here
from fastgan.ops.adversarial_loss import adversarial_loss, score_gradients
from fastgan.penalty.critics import Critic, Joining, Recording, joining, record, run_within
from fastgan.penalty.double_backward import TERMS, Asked, loss_by_double_backward, mean_score
from fastgan.penalty.node import Leaves, Loss, replayed
from fastgan.penalty.passes import Passes
from fastgan.penalty.points import images_of
from fastgan.penalty.rule import empty, wide
from fastgan.penalty.tape import Changed

Names = tuple[str, ...]
"""Names of batches recorded together: "fake", "real" or "points"."""
Seeds = dict[str, list[Tensor]]
"""N times the loss's gradient for each of a batch's scores; none at the points."""


def fused_loss(
    critic: Critic, asked: Asked, given: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, with a graph to the critic's parameters, and its terms without one.

    Args:
        critic: the critic.
        asked: what to compute.
        given: "real" and "fake" images, (N, ...), without a graph, and for a penalty at
            interpolates "eps", the share of real; or "points" alone.
    """
    run = _Run(critic, asked, given)
    loss, terms = run_within(critic.given, run.example, run.result)
    return loss, terms


class _Run:
    """One computation of a loss; the arguments are those of :func:`fused_loss`."""

    def __init__(self, critic: Critic, asked: Asked, given: dict[str, Tensor]) -> None:
        self.critic, self.asked, self.given = critic, asked, given
        self.example = next(iter(given.values()))
        self.count = self.example.size(0)
        self.together: Names = ("fake", "real")
        if set(asked.penalties) == {"points"}:
            self.together = ("fake", "real", "points")
        self.joining = Joining()
        if asked.loss is not None:
            self.joining = joining(critic, self.example, self.together)
        learnt = self.joining.joined or self.joining.tries == 0
        self.watching = asked.loss is not None and not learnt
        self._start()

    def _start(self) -> None:
        #: N times each leaf's gradient, and the leaves in order of first use.
        self.gradients: dict[int, Tensor] = {}
        self.leaves: dict[int, Tensor] = {}
        self.terms: dict[str, Tensor] = {}
        self.batches: dict[str, Recording] = {}

    def result(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms."""
        loss = self._loss()
        if self.learning:
            composed = partial(self._composed, tuple(self.given))
            gradients = [self.gradients.pop(name, None) for name in self.leaves]
            tensors = (*self.leaves.values(), *self.given.values())
            loss = Loss.apply(loss, gradients, self.count, composed, *tensors)  # type: ignore[no-untyped-call]
        elif self.asked.penalties and torch.is_grad_enabled():
            loss.requires_grad_()  # as by autograd, whose graph leads to the images
        return loss, {name: value.detach() for name, value in self.terms.items()}

    @property
    def learning(self) -> bool:
        """Whether gradients are needed."""
        return bool(self.leaves) and torch.is_grad_enabled()

    # Schedule -----------------------------------------------------------------------------------

    def _loss(self) -> Tensor:
        if self.asked.loss is None:
            return self._sum(self._passes(self._record(("points",)), {}))
        while True:
            plan = [self.together] if self.joining.joined else [("fake",), ("real",)]
            try:
                return self._of(plan)
            except Changed:
                self.joining.joined = not self.joining.joined
                self._start()

    def _of(self, plan: Sequence[Names]) -> Tensor:
        """The loss from batches recorded in this order."""
        wanted = self.asked.penalties
        apart = len(plan) > 1 and not self.watching
        early = self.asked.name == "wasserstein" and set(wanted) <= {"points"} and apart
        scored = []
        for names in plan:
            batch = self._record(names)
            scored.append(batch)
            if early:  # before the next batch takes memory
                self._passes(batch, self._wasserstein_seeds(*names))
        if self.watching:
            self._learn()
        total, seeds = self._of_scores()
        penalties: list[Tensor] = []
        if "points" in wanted and all("points" not in batch.names for batch in scored):
            points = self.batches.get("points") or self._record(("points",))
            penalties = self._passes(points, {})
            del points
        while scored and not early:
            # The last recorded batch first: its activations are still in the cache.
            penalties += self._passes(scored.pop(), seeds)
        return self._sum([total, *penalties])

    def _learn(self) -> None:
        """Raises :class:`Changed` if the batches can be joined.

        Then this call joins them as well, so that a resumed run repeats it bit by bit.
        """
        if all(batch.tape.moves is None for batch in self.batches.values()):
            for name in self.together:
                if name not in self.batches:
                    self._record((name,))
        batches = [self.batches[name] for name in self.together if name in self.batches]
        self.joining.tries -= 1
        self.watching = False
        if any(batch.tape.moves is not None or not batch.apart for batch in batches):
            return
        try:
            whole = self._record(self.together, keep=False)
        except Changed:
            return
        apart = [torch.cat(s) for s in zip(*(batch.scores for batch in batches), strict=True)]
        # NaN equals nothing and infinity everything: decide in another call.
        if all(bool(s.isfinite().all()) for s in apart) and _agree(whole.scores, apart):
            raise Changed("each sample's score is the same in a larger batch")

    def _record(self, names: Names, *, keep: bool = True) -> Recording:
        batch = record(
            self.critic,
            self._images(names),
            names,
            divided=len({name in self.asked.penalties for name in names}) > 1,
            watching=self.watching or len(names) > 1,
            casts=self.joining.casts,
        )
        for value in batch.tape.parameters:
            assert value.leaf is not None
            self.leaves.setdefault(id(value.leaf), value.leaf)
        if keep:
            self.batches.update(dict.fromkeys(names, batch))
        return batch

    def _images(self, names: Names) -> Tensor:
        """The images of one batch, or of several batches concatenated."""
        given = self.given
        if len(names) == 1:
            return images_of(names[0], given)
        real, fake = given["real"], given["fake"]
        batch = empty((len(names) * real.size(0), *real.shape[1:]), real)
        if "points" not in names:
            return torch.cat([fake, real], out=batch)
        eps = given["eps"].to(wide(real)).contiguous()
        torch.ops.fastgan.penalty_mix_(batch, real, fake, eps)
        return batch

    # Loss of the scores -------------------------------------------------------------------------

    def _of_scores(self) -> tuple[Tensor, Seeds]:
        """The loss of the scores, and its gradients for the scores."""
        loss_of = self.asked.loss
        assert loss_of is not None
        scores = {name: self.batches[name].scores_of(name) for name in ("real", "fake")}
        if self.asked.name is not None and len(scores["real"]) == 1:
            return self._of_single_scores(self.asked.name, scores["real"][0], scores["fake"][0])
        real, fake = ([s.detach().requires_grad_() for s in outputs] for outputs in scores.values())
        with torch.enable_grad(), _without_autocast(self.example):
            loss = loss_of(real, fake)
            grads: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in real + fake]
            if loss.requires_grad:
                grads = torch.autograd.grad(
                    loss, real + fake, allow_unused=True, materialize_grads=True
                )
        seeded = [grad * self.count for grad in grads]
        shown = {name: mean_score(outputs).detach() for name, outputs in scores.items()}
        self.terms |= {"adversarial": loss.detach(), **shown}
        return loss.detach(), {"real": seeded[: len(real)], "fake": seeded[len(real) :]}

    def _of_single_scores(self, loss: str, real: Tensor, fake: Tensor) -> tuple[Tensor, Seeds]:
        """The same for a named loss of one tensor of scores each, in two launches on a GPU."""
        value, shown = adversarial_loss(loss, real.detach(), fake.detach())
        self.terms |= {"adversarial": value, "real": shown[0], "fake": shown[1]}
        of_real, of_fake = score_gradients(loss, real.detach(), fake.detach(), self.count)
        return value, {"real": [of_real], "fake": [of_fake]}

    def _wasserstein_seeds(self, name: str) -> Seeds:
        """The gradients of a batch's scores, which don't depend on the other batch's."""
        total = self.count if name == "fake" else -self.count
        return {name: [torch.full_like(s, total / s.numel()) for s in self.batches[name].scores]}

    # The passes ---------------------------------------------------------------------------------

    def _passes(self, batch: Recording, seeds: Seeds) -> list[Tensor]:
        """Runs a recording's passes; returns its penalties."""
        names, learning = batch.names, self.learning
        formulas = {n: f for n in names if (f := self.asked.penalties.get(n)) is not None}
        passes = Passes(batch.tape, batch.values, self.gradients)
        with torch.no_grad(), _without_autocast(self.example):
            if not formulas:
                if learning:
                    passes.backpropagate(_stacked(names, seeds) or ())
                return []
            own = _stacked(formulas, seeds)
            factors = starts = None
            if own is not None and batch.one_score_each:
                factors, own = own[0].reshape(-1), None
            if len(formulas) < len(names):
                ones = {n: [s.new_ones(s.shape) for s in batch.scores_of(n)] for n in formulas}
                starts = _stacked(names, {**seeds, **ones})
            values = passes.penalty(
                [(batch.rows(name), formula) for name, formula in formulas.items()],
                seeds=own,
                factors=factors,
                starts=starts,
                learning=learning,
            )
        self.terms |= {TERMS[name]: value for name, value in zip(formulas, values, strict=True)}
        return values

    @staticmethod
    def _sum(terms: Sequence[Tensor]) -> Tensor:
        return sum(terms[1:], terms[0])

    def _composed(self, names: Names, held: Sequence[Tensor], leaves: Leaves) -> Tensor:
        """The loss in differentiable functions."""
        self.given = dict(zip(names, held, strict=True))

        def scores(name: str, images: Tensor) -> list[Tensor]:
            batch = self.batches[name]
            # Samples aren't coupled, so the other rows may be any images.
            whole = torch.cat([images] * len(batch.names))
            outputs = replayed(batch.tape, batch.values, whole, leaves)
            return [batch.rows(name).of(score) for score in outputs]

        return loss_by_double_backward(self.asked, scores, lambda name: self._images((name,)))[0]


def _stacked(names: Any, seeds: Seeds) -> list[Tensor] | None:
    """Several batches' gradients for each score, concatenated; None if there are none."""
    given = [seeds[name] for name in names if name in seeds]
    if len(given) < 2:
        return given[0] if given else None
    return [torch.cat(parts) for parts in zip(*given, strict=True)]


def _agree(joined: Sequence[Tensor], apart: Sequence[Tensor]) -> bool:
    """Whether scores are equal up to rounding."""
    for actual, expected in zip(joined, apart, strict=True):
        relative = {torch.float64: 1e-10, torch.float32: 1e-3}.get(actual.dtype, 1e-2)
        scale = relative * float(expected.abs().max())
        if actual.shape != expected.shape or not torch.allclose(actual, expected, relative, scale):
            return False
    return True


def _without_autocast(images: Tensor) -> Any:
    device = images.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)
