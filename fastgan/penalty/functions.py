"""The two functions of :mod:`fastgan.penalty`, and how they choose a path."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from fastgan.errors import ConfigError, DtypeError, UnsupportedCriticError
from fastgan.fallback import warn_once
from fastgan.losses import wasserstein_critic_loss
from fastgan.penalty.data_parallel import run_within
from fastgan.penalty.double_backward import (
    penalty_by_double_backward,
    refuse_wrong_derivatives,
)
from fastgan.penalty.formula import Formula
from fastgan.penalty.node import CriticLossTask, PenaltyTask, run_fused
from fastgan.penalty.plan import Plan
from fastgan.penalty.points import Points, check_batch, check_pair, mixing_weights, points_at
from fastgan.penalty.selection import find_plan, inner_critic

__all__ = ["Critic", "CriticLoss", "gradient_penalty", "wgan_gp_critic_loss"]

Critic = Callable[..., Tensor]
"""A module or function: a batch (N, ...) to one score per sample, or with ``scores(x)``."""

Result = TypeVar("Result")
Sided = Literal["two", "one"]
Path = Literal["auto", "autograd", "fused"]


class CriticLoss(NamedTuple):
    """The critic's loss and its two parts, all scalars."""

    loss: Tensor
    """mean f(fake) - mean f(real) + penalty; the one to call ``backward`` on."""
    wasserstein: Tensor
    """mean f(real) - mean f(fake), detached."""
    penalty: Tensor
    """The gradient penalty, detached."""


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor | None,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    sided: Sided = "two",
    at: Points = "interpolates",
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    path: Path = "auto",
    critic_args: tuple[Any, ...] = (),
) -> Tensor:
    """weight * mean over samples of (||gradient|| - target)^2.

    ``target=0, at="real", weight=gamma / 2`` is R1, ``at="fake"`` R2.

    Args:
        critic: a module or function that returns one score per sample, or that offers
            ``scores(x)``, which does. Only a module can take the fused pass.
        real: floating, (N, C, H, W), or any shape with a batch dimension and at least one more;
            taken as a constant, as ``fake`` is.
        fake: same shape as ``real``; may be None where ``at`` doesn't use it.
        weight: the penalty's factor.
        target: the norm that isn't penalised.
        sided: "two", or "one" to count only norms above ``target``.
        at: the points: "interpolates" is eps * real + (1 - eps) * fake; "real"; "fake"; "dragan"
            is eps * real + (1 - eps) * (real + 0.5 * std(real) * u), u uniform per element.
        eps: shape (N, 1, ..., 1), as many dimensions as ``real``; None draws it uniformly from
            [0, 1), one for each sample.
        generator: the random stream to draw from; None is torch's default one.
        path: "fused" is the pass of :mod:`fastgan.penalty.passes`, for critics of linear and
            piecewise-linear layers; "autograd" is double backward; "auto" takes the first where
            it can, and otherwise the second with a :class:`fastgan.FallbackWarning` that says why.
            Value and gradients are the same. :func:`fastgan.explain` shows what a critic takes.
        critic_args: what the critic takes beside the images, such as ``(labels,)``.

    Returns:
        A scalar, differentiable in the critic's parameters to any order (but on autograd's path
        once only for a critic with torch's layer or instance norm, or batch norm in training mode:
        a RuntimeError says that their third derivatives are wrong); float32, or float64 where the
        gradient is. A gradient of zero has the norm 0 and the subgradient 0, never NaN.

    Raises:
        ConfigError: an unknown ``sided``, ``at`` or ``path``, or a ``weight`` or ``target`` that
            isn't a finite number (a ValueError).
        DtypeError: ``real``, ``fake`` or ``eps`` isn't a tensor, or ``critic_args`` neither tuple
            nor list (a TypeError).
        UnsupportedCriticError: ``path="fused"`` and a layer, named, that it doesn't take; or a
            critic whose output isn't one score per sample, such as a batch mean (a ValueError).
        ValueError: ``real``, ``fake`` or ``eps`` of an unfit shape or dtype.

    Example:
        A linear critic has the gradient w everywhere, so the penalty is weight * (||w|| - 1)^2.

        >>> critic = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.ones_(critic.weight)
        >>> critic.weight.data *= torch.tensor([3.0, 4.0])
        >>> gradient_penalty(critic, torch.zeros(5, 2), torch.ones(5, 2)).item()
        160.0
    """
    formula = _formula(weight, target, sided)
    _check_path(path)
    _check_arguments(critic_args)
    check_batch(real)
    plan = _choose(critic, real, critic_args, path)
    points = points_at(at, real, fake, eps, generator)
    if plan is None:
        penalty = penalty_by_double_backward(
            lambda images: _scores_per_sample(critic, images, critic_args), points, formula
        )
        return refuse_wrong_derivatives(penalty, inner_critic(critic))
    return _fused_penalty(plan, formula, critic, critic_args, points)


def wgan_gp_critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    weight: float = 10.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    path: Path = "auto",
    critic_args: tuple[Any, ...] = (),
) -> CriticLoss:
    """mean f(fake) - mean f(real) + penalty, at interpolates and with target 1.

    By autograd's path the critic sees fakes, reals and interpolates as three batches, in this
    order. So it does where a forward pass moves the parameters (spectral norm in training mode).
    The fused pass runs them together, which changes nothing: no sample sees another.

    Args:
        critic: as in :func:`gradient_penalty`.
        real: floating, (N, C, H, W), or any shape with a batch dimension and at least one more;
            taken as a constant, as ``fake`` is.
        fake: same shape as ``real``.
        weight: the penalty's factor.
        eps: as in :func:`gradient_penalty`.
        generator: as in :func:`gradient_penalty`.
        path: as in :func:`gradient_penalty`.
        critic_args: as in :func:`gradient_penalty`; fakes, reals and interpolates share them.

    Returns:
        ``CriticLoss(loss, wasserstein, penalty)``; only ``loss`` carries a graph.

    Raises:
        ConfigError: an unknown ``path``, or a ``weight`` that isn't a finite number (a ValueError).
        DtypeError: as in :func:`gradient_penalty` (a TypeError).
        UnsupportedCriticError: as in :func:`gradient_penalty` (a ValueError).
        ValueError: ``real``, ``fake`` or ``eps`` of an unfit shape or dtype.

    Example:
        >>> critic = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.ones_(critic.weight)
        >>> critic.weight.data *= torch.tensor([0.6, 0.8])
        >>> result = wgan_gp_critic_loss(critic, torch.ones(5, 2), torch.zeros(5, 2))
        >>> result.loss.backward()
        >>> round(result.wasserstein.item(), 4)
        1.4
    """
    _check_path(path)
    _check_arguments(critic_args)
    check_batch(real)
    check_pair(real, fake)
    formula = _formula(weight, 1.0, "two")
    plan = _choose(critic, real, critic_args, path)
    if plan is not None and plan.moving is None:
        eps = mixing_weights(real, eps, generator)
        return _fused_critic_loss(plan, formula, critic, critic_args, real, fake, eps)
    negative_wasserstein = wasserstein_critic_loss(
        fake_scores=_scores_per_sample(critic, fake.detach(), critic_args),
        real_scores=_scores_per_sample(critic, real.detach(), critic_args),
    )
    penalty = gradient_penalty(
        critic,
        real,
        fake,
        weight=weight,
        eps=eps,
        generator=generator,
        path="autograd" if plan is None else path,
        critic_args=critic_args,
    )
    return CriticLoss(
        loss=negative_wasserstein + penalty,
        wasserstein=-negative_wasserstein.detach(),
        penalty=penalty.detach(),
    )


def _eager(function: Callable[..., Result]) -> Callable[..., Result]:
    """``torch.compiler.disable``, whose import takes a second, only once something is compiled.

    A pass that reads the critic's structure and computes its own gradients isn't for torch.compile
    to trace: it breaks the graph there.
    """

    @functools.wraps(function)
    def call(*args: Any) -> Result:
        if torch.compiler.is_compiling():
            disabled: Callable[..., Result] = torch.compiler.disable(function)
            return disabled(*args)
        return function(*args)

    return call


@_eager
def _choose(critic: Critic, real: Tensor, critic_args: tuple[Any, ...], path: str) -> Plan | None:
    """The fused pass's plan, or None for autograd's path."""
    if path == "autograd":
        return None
    found = find_plan(inner_critic(critic), real, critic_args)
    if isinstance(found, Plan):
        return found
    name = _name(critic)
    if path == "fused":
        raise UnsupportedCriticError(
            f"path is 'fused', but critic {name} can't take the fused gradient-penalty pass: "
            f"{found}; expected another critic, or path='auto' or 'autograd'"
        )
    warn_once(
        f"critic {name} takes autograd's path for the gradient penalty: {found}", stacklevel=4
    )
    return None


@_eager
def _fused_penalty(
    plan: Plan, formula: Formula, critic: Any, critic_args: tuple[Any, ...], points: Tensor
) -> Tensor:
    dtype, device = _autocast_dtype(points)
    task = PenaltyTask(plan, formula, dtype, device, points=points)
    return run_within(
        critic, points, lambda: run_fused(task, plan.parameters(inner_critic(critic), critic_args))
    )[0]


@_eager
def _fused_critic_loss(
    plan: Plan,
    formula: Formula,
    critic: Any,
    critic_args: tuple[Any, ...],
    real: Tensor,
    fake: Tensor,
    eps: Tensor,
) -> CriticLoss:
    dtype, device = _autocast_dtype(real)
    task = CriticLossTask(
        plan, formula, dtype, device, real=real.detach(), fake=fake.detach(), eps=eps
    )
    return CriticLoss(
        *run_within(
            critic,
            real,
            lambda: run_fused(task, plan.parameters(inner_critic(critic), critic_args)),
        )
    )


def _autocast_dtype(images: Tensor) -> tuple[torch.dtype | None, str]:
    device = images.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device), device
    return None, device


def _formula(weight: float, target: float, sided: str) -> Formula:
    given: dict[str, object] = {"weight": weight, "target": target}
    for name, value in given.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ConfigError(f"{name} is {value!r}; expected a finite number")
    if sided not in ("two", "one"):
        raise ConfigError(f"sided is {sided!r}; expected 'two' or 'one'")
    return Formula(weight, target, sided == "one")


def _check_arguments(critic_args: object) -> None:
    if not isinstance(critic_args, (tuple, list)):
        # A tensor would be taken apart, sample by sample.
        raise DtypeError(
            f"critic_args is of type {type(critic_args).__name__}; expected a tuple of what the "
            "critic takes beside the images, such as (labels,)"
        )


def _check_path(path: str) -> None:
    if path not in ("auto", "autograd", "fused"):
        raise ConfigError(f"path is {path!r}; expected 'auto', 'autograd' or 'fused'")


def _scores_per_sample(critic: Critic, input: Tensor, critic_args: tuple[Any, ...]) -> Tensor:
    """``critic.scores(input)`` if it has that, else ``critic(input)``, checked: shape (N,)."""
    scores = getattr(critic, "scores", critic)(input, *critic_args)
    batch = input.size(0)
    if scores.dim() == 0 or scores.size(0) != batch or scores.numel() != batch:
        raise UnsupportedCriticError(
            f"critic {_name(critic)} returned shape {tuple(scores.shape)} for {batch} samples; "
            f"expected one score per sample, shape ({batch},) or ({batch}, 1), or a scores(x) "
            "method that gives it: an output without the batch dimension, such as a batch mean, "
            "has no per-sample gradient"
        )
    flat: Tensor = scores.reshape(batch)
    return flat


def _name(critic: Critic) -> str:
    return getattr(critic, "__name__", type(inner_critic(critic)).__name__)
