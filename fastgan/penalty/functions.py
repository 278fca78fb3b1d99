"""The public functions, and the choice between the fused and autograd's path."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import ConfigError, UnsupportedCriticError
from fastgan.explaining.fallback import warn_once
from fastgan.losses import SCORES_LOSSES
from fastgan.ops.adversarial_loss import TERMS as TERMS_OF_SCORES
from fastgan.penalty.critics import Critic as _Critic
from fastgan.penalty.critics import Scores
from fastgan.penalty.double_backward import (
    TERMS,
    Asked,
    loss_by_double_backward,
    refuse_wrong_derivatives,
)
from fastgan.penalty.formula import Formula
from fastgan.penalty.fused import fused_loss
from fastgan.penalty.points import (
    Points,
    check_batch,
    check_pair,
    images_of,
    mixing_weights,
    points_at,
)
from fastgan.penalty.tape import Unrecordable

__all__ = [
    "Critic",
    "CriticLoss",
    "DiscriminatorLoss",
    "discriminator_loss",
    "gradient_penalty",
    "wgan_gp_critic_loss",
]

Critic = Callable[..., Any]
"""A module or function that maps a batch (N, ...) to scores with a row for each sample."""

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


class DiscriminatorLoss(NamedTuple):
    """A discriminator's loss, a scalar, and its parts."""

    loss: Tensor
    """The sum of the adversarial loss and the penalties; the one to call ``backward`` on."""
    terms: dict[str, Tensor]
    """Detached scalars: ``adversarial``; ``real`` and ``fake``, the mean scores; ``gp``, ``r1`` and
    ``r2`` if requested."""


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
    scores: Scores | None = None,
) -> Tensor:
    """weight * mean over samples of (||gradient|| - target)^2.

    The norm is taken per sample over all elements of the gradient of the summed scores. ``target=0,
    at="real", weight=gamma / 2`` is R1, ``at="fake"`` R2.

    Args:
        critic: a module or function that returns a tensor of scores with a row for each sample
            (one score each, or a map), or a tuple, list or dict of such; if its class has a method
            ``scores``, that is called instead.
        real: floating, (N, C, H, W), or any shape with a batch dimension and at least one more;
            a constant, like ``fake``.
        fake: same shape as ``real``; may be None where ``at`` doesn't use it.
        weight: the penalty's factor.
        target: the gradient norm at which the penalty is zero.
        sided: "two", or "one" to count only norms above ``target``.
        at: the points: "interpolates" is eps * real + (1 - eps) * fake; "real"; "fake"; "dragan"
            is eps * real + (1 - eps) * (real + 0.5 * std(real) * u), u uniform per element.
        eps: shape (N, 1, ..., 1), as many dimensions as ``real``; None draws it uniformly from
            [0, 1), one for each sample.
        generator: the random generator; None is torch's default one.
        path: "fused" records the critic and computes the gradient from the recording; "autograd" is
            double backward, with the same result; "auto" takes "fused" if the critic can be
            recorded, otherwise "autograd" with a :class:`fastgan.FallbackWarning` that says why.
            :func:`fastgan.explain` shows the path of a critic.
        critic_args: the critic's arguments after the images, such as ``(labels,)``.
        scores: a function that selects the scores from the critic's output; None takes all tensors
            in it.

    Returns:
        A scalar, float32, or float64 if the gradient is. It is differentiable in the critic's
        parameters to any order; on autograd's path only once if the critic has torch's layer or
        instance norm, or batch norm in training mode, since their third derivatives are wrong (a
        RuntimeError says so). A gradient of zero has the norm 0 and the subgradient 0, never NaN.

    Raises:
        ConfigError: an unknown option, or a number that isn't finite (a ValueError).
        DtypeError: ``real``, ``fake`` or ``eps`` isn't a tensor, or ``critic_args`` neither tuple
            nor list (a TypeError).
        UnsupportedCriticError: ``path="fused"`` and a critic that can't be recorded, with the
            reason; or an output without a row for each sample, such as a batch mean (a ValueError).
        ValueError: ``real``, ``fake`` or ``eps`` has the wrong shape or dtype.

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
    asked = _Critic(critic, critic_args, scores)
    check_batch(real)
    points = points_at(at, real, fake, eps, generator)
    return _computed(path, asked, Asked(None, {"points": formula}), {"points": points})[0]


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
    scores: Scores | None = None,
) -> CriticLoss:
    """mean f(fake) - mean f(real) + penalty, at interpolates and with target 1.

    :func:`discriminator_loss` with ``loss="wasserstein", gp=weight``: it documents the other
    arguments and the errors.

    Args:
        weight: the penalty's factor.

    Returns:
        ``CriticLoss(loss, wasserstein, penalty)``; only ``loss`` carries a graph.

    Example:
        >>> critic = torch.nn.Linear(2, 1)
        >>> _ = torch.nn.init.ones_(critic.weight)
        >>> critic.weight.data *= torch.tensor([0.6, 0.8])
        >>> result = wgan_gp_critic_loss(critic, torch.ones(5, 2), torch.zeros(5, 2))
        >>> result.loss.backward()
        >>> round(result.wasserstein.item(), 4)
        1.4
    """
    _check_number("weight", weight)
    beside: Any = {"critic_args": critic_args, "scores": scores, "eps": eps, "generator": generator}
    loss, terms = discriminator_loss(critic, real, fake, gp=weight, path=path, **beside)
    return CriticLoss(loss, -terms["adversarial"], terms["gp"])


def discriminator_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    loss: str | Callable[[Any, Any], Tensor] = "wasserstein",
    gp: float | None = None,
    r1: float = 0.0,
    r2: float = 0.0,
    critic_args: tuple[Any, ...] = (),
    scores: Scores | None = None,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    path: Path = "auto",
) -> DiscriminatorLoss:
    """A discriminator's loss with its gradient penalties, in one pass.

        adversarial loss  +  gp * mean (||grad f(x^)|| - 1)^2        x^ interpolates
                          +  r1 / 2 * mean ||grad f(real)||^2  +  r2 / 2 * mean ||grad f(fake)||^2

    If each sample has one score and no samples are coupled, a step with R1 and R2 takes four
    convolutions a layer: forward, output gradient, tangent and weight gradient.

    On autograd's path the critic runs on fakes, then reals, then interpolates. The fused path does
    the same if a forward pass changes state (spectral norm, batch norm, counters, random numbers);
    otherwise it may run them as one batch, with the same result.

    :func:`gradient_penalty` documents the other arguments and errors. ``critic_args`` apply to
    fakes, reals and interpolates alike.

    Args:
        loss: with real scores a, fake scores b: "wasserstein" is mean b - mean a; "logistic" mean
            softplus(-a) + mean softplus(b); "hinge" mean relu(1 - a) + mean relu(1 + b);
            "least_squares" (mean (a - 1)^2 + mean b^2) / 2; "relativistic" mean softplus(b - a),
            R3GAN's. If the critic returns several tensors (scales), their losses are summed. Or a
            function of (real scores, fake scores) that returns a scalar; it gets a tensor, or a
            list where the critic returns several.
        gp: weight of the penalty at interpolates; None or 0 for none (Gulrajani et al. 2017,
            arXiv 1704.00028).
        r1: gamma of the penalty at real images (Mescheder et al. 2018, arXiv 1801.04406).
        r2: gamma of the penalty at fake images.

    Returns:
        ``DiscriminatorLoss(loss, terms)``; only ``loss`` carries a graph. float32, or float64 where
        the scores are.

    Raises:
        ValueError: a ``loss`` function that returns no scalar.

    Example:
        >>> critic = torch.nn.Linear(2, 1)
        >>> real, fake = torch.ones(5, 2), torch.zeros(5, 2)
        >>> loss, terms = discriminator_loss(critic, real, fake, loss="logistic", r1=1.0, r2=1.0)
        >>> loss.backward()
        >>> sorted(terms)
        ['adversarial', 'fake', 'r1', 'r2', 'real']
    """
    _check_path(path)
    asked = _Critic(critic, critic_args, scores)
    check_batch(real)
    check_pair(real, fake)
    wanted = _asked(loss, gp, r1, r2)
    given = {"real": real.detach(), "fake": fake.detach().to(real.dtype)}
    if "points" in wanted.penalties:
        given["eps"] = mixing_weights(real, eps, generator)
    return DiscriminatorLoss(*_computed(path, asked, wanted, given))


def _asked(
    loss: str | Callable[[Any, Any], Tensor], gp: float | None, r1: float, r2: float
) -> Asked:
    if isinstance(loss, str):
        if loss not in SCORES_LOSSES:
            names = ", ".join(map(repr, SCORES_LOSSES))
            raise ConfigError(f"loss is {loss!r}; expected {names}, or a function")
    elif not callable(loss):
        raise ConfigError(f"loss is {type(loss).__name__}; expected a name or a function")

    def of_scores(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
        if isinstance(loss, str):
            parts = [SCORES_LOSSES[loss](a, b) for a, b in zip(real, fake, strict=True)]
            return sum(parts[1:], parts[0])
        value = loss(real[0], fake[0]) if len(real) == 1 else loss(list(real), list(fake))
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError("loss returned no scalar; expected a tensor of one number")
        return value.reshape(())

    penalties = {}
    for name, weight in (("points", gp), ("real", r1 or None), ("fake", r2 or None)):
        if weight is not None:
            _check_number(TERMS[name], weight)
            at_points = name == "points"
            penalties[name] = Formula(weight * (1 if at_points else 0.5), float(at_points), False)
    in_one_launch = loss if isinstance(loss, str) and loss in TERMS_OF_SCORES else None
    return Asked(of_scores, penalties, in_one_launch)


def _computed(
    path: str, critic: _Critic, asked: Asked, given: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and its terms, by the fused path, or by autograd if requested or unavoidable."""
    if torch.compiler.is_compiling():  # a pass that records the critic can't be traced
        disabled: Any = torch.compiler.disable(_computed)
        result: tuple[Tensor, dict[str, Tensor]] = disabled(path, critic, asked, given)
        return result
    if path != "autograd":
        try:
            return fused_loss(critic, asked, given)
        except Unrecordable as refusal:
            reason = str(refusal)
        if path == "fused":
            raise UnsupportedCriticError(
                f"path is 'fused', but critic {critic.name} can't be recorded: {reason}; expected "
                "another critic, or path='auto' or 'autograd'"
            )
        warn_once(
            f"critic {critic.name} takes autograd's path for the gradient penalty: {reason}",
            stacklevel=3,
        )

    loss, terms = loss_by_double_backward(
        asked, lambda name, images: critic(images), lambda name: images_of(name, given)
    )
    if asked.penalties:
        loss = refuse_wrong_derivatives(loss, critic.inner)
    return loss, terms


def _formula(weight: float, target: float, sided: str) -> Formula:
    _check_number("weight", weight)
    _check_number("target", target)
    if sided not in ("two", "one"):
        raise ConfigError(f"sided is {sided!r}; expected 'two' or 'one'")
    return Formula(weight, target, sided == "one")


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; expected a finite number")


def _check_path(path: str) -> None:
    if path not in ("auto", "autograd", "fused"):
        raise ConfigError(f"path is {path!r}; expected 'auto', 'autograd' or 'fused'")
