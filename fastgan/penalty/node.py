"""The autograd node of the fused passes: parameters in, a loss out.

Loss and gradients are computed together, in the forward; backward hands the gradients out, scaled
by the incoming gradient (which under a GradScaler is the scale). If they have to be differentiable
themselves, backward composes them anew from differentiable functions instead, so that derivatives
of any order come out right, at double backward's price.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastgan.ops.penalty_mix  # noqa: F401 - defines the op that is called here
from fastgan.losses import wasserstein_critic_loss, widened
from fastgan.penalty.double_backward import penalty_by_double_backward
from fastgan.penalty.formula import Formula
from fastgan.penalty.passes import Passes
from fastgan.penalty.plan import Plan
from fastgan.penalty.points import interpolate_into

__all__ = ["CriticLossTask", "PenaltyTask", "run_fused"]


@dataclass
class _Task:
    plan: Plan
    formula: Formula
    autocast: torch.dtype | None
    device: str

    def ambient(self) -> AbstractContextManager[Any]:
        """Autocast as it was when the task was made."""
        return torch.autocast(self.device, dtype=self.autocast, enabled=self.autocast is not None)

    def scores(self, images: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The critic in plain, differentiable functions of its parameters."""
        values = [images]
        for planned in self.plan.steps:
            taken = [None if slot is None else parameters[slot] for slot in planned.parameters]
            values.append(planned.step.apply([values[v] for v in planned.inputs], taken))
        return values[-1].reshape(images.size(0))


@dataclass
class PenaltyTask(_Task):
    """The penalty at ``points``."""

    points: Tensor

    def held(self) -> list[Tensor]:
        """What a later differentiable composition needs."""
        return [self.points]

    @property
    def count(self) -> int:
        """N."""
        return self.points.size(0)

    def run(self, passes: Passes) -> tuple[Tensor, ...]:
        """The loss first, then whatever else."""
        layout = _layout(self.plan, self.points)
        return (passes.penalty(self.points.contiguous(memory_format=layout), self.formula),)

    def composed(self, parameters: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
        """The loss by differentiable functions."""
        return penalty_by_double_backward(
            lambda images: self.scores(images, parameters), held[0], self.formula
        )


@dataclass
class CriticLossTask(_Task):
    """The whole loss of the critic."""

    real: Tensor
    fake: Tensor
    eps: Tensor

    def held(self) -> list[Tensor]:
        """What a later differentiable composition needs: the user's own tensors."""
        return [self.real, self.fake, self.eps]

    @property
    def count(self) -> int:
        """N."""
        return self.real.size(0)

    def run(self, passes: Passes) -> tuple[Tensor, ...]:
        """Loss, Wasserstein estimate, penalty."""
        real, fake = self.real, self.fake.to(self.real.dtype)
        count = self.count

        def empty(thirds: int) -> Tensor:
            return torch.empty(
                (thirds * count, *real.shape[1:]),
                dtype=passes.dtype_of_images(real.dtype),
                device=real.device,
                memory_format=_layout(self.plan, real),
            )

        def whole_batch() -> Tensor:
            batch = empty(3)
            wide = torch.float64 if real.dtype == torch.float64 else torch.float32
            eps = self.eps.to(wide).contiguous()
            torch.ops.fastgan.penalty_mix_(batch, real, fake, eps)
            return batch

        def fakes_and_reals() -> Tensor:
            images = empty(2)
            images[:count].copy_(fake)
            images[count:].copy_(real)
            return images

        return passes.critic_loss(whole_batch, fakes_and_reals, self.formula)

    def composed(self, parameters: Sequence[Tensor], held: Sequence[Tensor]) -> Tensor:
        """The loss by differentiable functions."""
        real, fake, eps = held
        points = interpolate_into(torch.empty_like(real), real, fake, eps)

        def critic(images: Tensor) -> Tensor:
            return self.scores(images, parameters)

        penalty = penalty_by_double_backward(critic, points, self.formula)
        return wasserstein_critic_loss(critic(real), critic(fake)) + penalty


def _layout(plan: Plan, images: Tensor) -> torch.memory_format:
    if plan.channels_last and images.dim() == 4:
        return torch.channels_last
    return torch.contiguous_format


def run_fused(
    task: PenaltyTask | CriticLossTask, parameters: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The task's results, the first with a graph if any parameter asks for one.

    Args:
        task: what to compute.
        parameters: the critic's effective parameters, as its plan gives them.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        results: tuple[Tensor, ...] = _Fused.apply(task, *parameters)  # type: ignore[no-untyped-call]
        return results
    with torch.no_grad(), torch.autocast(task.device, enabled=False):
        passes = Passes(task.plan, parameters, [False] * len(parameters), task.autocast)
        return task.run(passes)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, task: PenaltyTask | CriticLossTask, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        with torch.autocast(task.device, enabled=False):
            wanted = ctx.needs_input_grad[1:]
            passes = Passes(task.plan, parameters, wanted, task.autocast)
            results = task.run(passes)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[1:])
        ctx.save_for_backward(*parameters, *task.held())
        ctx.task = task
        ctx.gradients = passes.gradients
        ctx.reached = [g is not None for g in passes.gradients]
        return results

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        grad_output = grad_outputs[0]
        count = len(ctx.reached)
        parameters, held = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        if grad_output is None:
            return (None, *[None] * count)
        if not torch.is_grad_enabled():
            # Scaled in place and handed out: a copy of them would be the peak of the memory. Who
            # asks a second time (retain_graph) has them computed a second time.
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                gradients = _gradients_again(ctx.task, parameters, ctx.needs_input_grad[1:])
            factor = grad_output / ctx.task.count
            return (
                None,
                *(
                    None if g is None else widened(g).mul_(factor).to(p.dtype)
                    for g, p in zip(gradients, parameters, strict=True)
                ),
            )
        asked = [i for i, reached in enumerate(ctx.reached) if reached]
        with torch.enable_grad(), ctx.task.ambient():
            loss = ctx.task.composed(parameters, held)
            found = torch.autograd.grad(
                loss,
                [parameters[i] for i in asked],
                grad_output,
                create_graph=True,
                materialize_grads=True,
            )
        results: list[Tensor | None] = [None] * count
        for i, gradient in zip(asked, found, strict=True):
            results[i] = gradient
        return (None, *results)


def _gradients_again(
    task: PenaltyTask | CriticLossTask, parameters: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    with torch.no_grad(), torch.autocast(task.device, enabled=False):
        passes = Passes(task.plan, parameters, wanted, task.autocast)
        task.run(passes)
    return passes.gradients
