"""The gradient penalty and the WGAN-GP critic loss.

    penalty = weight * mean over samples n of (||g_n|| - target)^2,    g_n = d f(x_n) / d x_n

with the norm over all elements of a sample. Gulrajani et al. 2017, arXiv 1704.00028, equation 3
and Algorithm 1; the points x_n and targets of R1, R2 (Mescheder et al. 2018, arXiv 1801.04406)
and DRAGAN (Kodali et al. 2017, arXiv 1705.07215) are choices of the same function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import ConfigError, UnsupportedCriticError
from fastgan.losses import wasserstein_critic_loss, widened

__all__ = ["Critic", "CriticLoss", "gradient_penalty", "wgan_gp_critic_loss"]

Critic = Callable[[Tensor], Tensor]
"""A module or function: a batch (N, ...) to one score per sample, or with ``scores(x)``."""

Sided = Literal["two", "one"]
Points = Literal["interpolates", "real", "fake", "dragan"]
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
) -> Tensor:
    """weight * mean over samples of (||gradient|| - target)^2.

    ``target=0, at="real", weight=gamma / 2`` is R1, ``at="fake"`` R2.

    Args:
        critic: a module or function that returns one score per sample, or that offers
            ``scores(x)``, which does. For a conditional critic, a closure over its labels.
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
        path: "autograd" is double backward; "auto" takes the fused pass where one exists for
            the critic, and otherwise "autograd"; "fused" insists. No fused pass exists yet.

    Returns:
        A scalar, differentiable in the critic's parameters; float32, or float64 where the
        gradient is. A gradient of zero has the norm 0 and the subgradient 0, never NaN.

    Raises:
        ConfigError: an unknown ``sided``, ``at`` or ``path`` (a ValueError).
        UnsupportedCriticError: ``path="fused"`` without a fused pass for this critic; or a critic
            whose output isn't one score per sample, such as a batch mean (a ValueError).
        ValueError: ``real``, ``fake`` or ``eps`` of an unfit shape or dtype.

    Example:
        A linear critic has the gradient w everywhere, so the penalty is weight * (||w|| - 1)^2.

        >>> w = torch.tensor([3.0, 4.0])
        >>> gradient_penalty(lambda x: x @ w, torch.zeros(5, 2), torch.ones(5, 2)).item()
        160.0
    """
    if sided not in ("two", "one"):
        raise ConfigError(f"sided is {sided!r}; expected 'two' or 'one'")
    _check_path(path, critic)
    points = _penalty_points(real, fake, at, eps, generator)
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        points.requires_grad_()
        scores = _scores_per_sample(critic, points)
        if scores.requires_grad:
            (gradient,) = torch.autograd.grad(
                scores,
                points,
                torch.ones_like(scores),
                create_graph=keep_graph,
                materialize_grads=True,
            )
        else:  # the critic is constant
            gradient = torch.zeros_like(points)
    elements = tuple(range(1, gradient.dim()))
    squared_norm = widened(gradient).square().sum(dim=elements)
    if target == 0:
        # Without the root nothing is singular at zero, in any order of derivative.
        return weight * squared_norm.mean()
    excess = _safe_root(squared_norm) - target
    if sided == "one":
        excess = excess.relu()
    return weight * excess.square().mean()


def wgan_gp_critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    weight: float = 10.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
    path: Path = "auto",
) -> CriticLoss:
    """mean f(fake) - mean f(real) + penalty, at interpolates and with target 1.

    The critic sees fakes, reals and interpolates as three batches, in this order.

    Args:
        critic: as in :func:`gradient_penalty`.
        real: floating, (N, C, H, W), or any shape with a batch dimension and at least one more;
            taken as a constant, as ``fake`` is.
        fake: same shape as ``real``.
        weight: the penalty's factor.
        eps: as in :func:`gradient_penalty`.
        generator: as in :func:`gradient_penalty`.
        path: as in :func:`gradient_penalty`.

    Returns:
        ``CriticLoss(loss, wasserstein, penalty)``; only ``loss`` carries a graph.

    Raises:
        ConfigError: an unknown ``path`` (a ValueError).
        UnsupportedCriticError: as in :func:`gradient_penalty` (a ValueError).
        ValueError: ``real``, ``fake`` or ``eps`` of an unfit shape or dtype.

    Example:
        >>> w = torch.tensor([0.6, 0.8], requires_grad=True)
        >>> result = wgan_gp_critic_loss(lambda x: x @ w, torch.ones(5, 2), torch.zeros(5, 2))
        >>> result.loss.backward()
        >>> round(result.wasserstein.item(), 4)
        1.4
    """
    _check_path(path, critic)
    _check_pair(real, fake)
    negative_wasserstein = wasserstein_critic_loss(
        fake_scores=_scores_per_sample(critic, fake.detach()),
        real_scores=_scores_per_sample(critic, real.detach()),
    )
    penalty = gradient_penalty(
        critic, real, fake, weight=weight, eps=eps, generator=generator, path=path
    )
    return CriticLoss(
        loss=negative_wasserstein + penalty,
        wasserstein=-negative_wasserstein.detach(),
        penalty=penalty.detach(),
    )


def _check_path(path: str, critic: Critic) -> None:
    if path not in ("auto", "autograd", "fused"):
        raise ConfigError(f"path is {path!r}; expected 'auto', 'autograd' or 'fused'")
    if path == "fused":
        raise UnsupportedCriticError(
            f"path is 'fused', but no fused gradient-penalty pass exists for critic "
            f"{_name(critic)}; expected path='auto' or 'autograd'"
        )


def _check_pair(real: Tensor, fake: Tensor) -> None:
    if real.shape != fake.shape:
        raise ValueError(
            f"real has shape {tuple(real.shape)} and fake {tuple(fake.shape)}; expected the same"
        )


def _penalty_points(
    real: Tensor,
    fake: Tensor | None,
    at: str,
    eps: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:
    """The points of the penalty: a fresh leaf of ``real``'s shape that shares no memory."""
    if real.dim() < 2 or real.size(0) == 0 or not real.is_floating_point():
        raise ValueError(
            f"real has shape {tuple(real.shape)} and dtype {real.dtype}; expected a floating "
            "tensor with a non-empty batch dimension and at least one more"
        )
    if at not in ("interpolates", "real", "fake", "dragan"):
        raise ConfigError(f"at is {at!r}; expected 'interpolates', 'real', 'fake' or 'dragan'")
    real = real.detach()
    if at == "real":
        return real.clone()
    if at == "dragan":
        eps = _mixing_weights(real, eps, generator)
        # x eps + (1 - eps)(x + noise) is x + (1 - eps) noise.
        noise = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
        return real + (1 - eps) * (0.5 * real.std()) * noise
    if fake is None:
        raise ValueError(f"fake is None; at={at!r} needs a batch of shape {tuple(real.shape)}")
    _check_pair(real, fake)
    fake = fake.detach()
    if at == "fake":
        return fake.clone()
    return fake + _mixing_weights(real, eps, generator) * (real - fake)


def _mixing_weights(real: Tensor, eps: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """One eps per sample, broadcastable over its elements: given, or uniform in [0, 1)."""
    shape = (real.size(0),) + (1,) * (real.dim() - 1)
    if eps is None:
        return torch.rand(shape, dtype=real.dtype, device=real.device, generator=generator)
    if tuple(eps.shape) != shape:
        # Anything else that broadcasts would share eps between samples, or split a sample.
        raise ValueError(f"eps has shape {tuple(eps.shape)}; expected {shape}, one per sample")
    return eps.detach().to(device=real.device, dtype=real.dtype)


def _scores_per_sample(critic: Critic, input: Tensor) -> Tensor:
    """``critic.scores(input)`` if it has that, else ``critic(input)``, checked: shape (N,)."""
    scores = getattr(critic, "scores", critic)(input)
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


def _safe_root(squared: Tensor) -> Tensor:
    """The square root, with derivative 0 at 0 in every order (sqrt alone gives inf, then NaN)."""
    is_zero = squared == 0
    return squared.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def _name(critic: Critic) -> str:
    return getattr(critic, "__name__", type(critic).__name__)
