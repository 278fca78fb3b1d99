"""The WGAN with gradient penalty: Gulrajani et al. 2017, arXiv 1704.00028.

Equation 3:    L = E[f(x~)] - E[f(x)] + weight * E[(||grad f(x^)||_2 - 1)^2]

with x~ = G(z) and x^ = eps x + (1 - eps) x~, eps ~ U[0, 1]. Algorithm 1 draws *one* eps for each
sample i and takes the norm of that sample's *whole* gradient: one number per sample, over
channels, rows and columns together. Its defaults: weight 10, n_critic = 5, Adam with learning
rate 0.0001 and betas (0, 0.9).

The same term with other points and targets: R1 and R2 (Mescheder, Geiger and Nowozin 2018,
arXiv 1801.04406, section 4.1; target 0 at real or generated images, weight = gamma / 2) and
DRAGAN (Kodali et al. 2017, arXiv 1705.07215; around real images).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastgan.reference.conditional import call
from fastgan.reference.gan import descend

Critic = Callable[[Tensor], Tensor]


class CriticLoss(NamedTuple):
    """The critic's loss and its two parts, all scalars."""

    loss: Tensor
    """mean f(fake) - mean f(real) + penalty; the one to call ``backward`` on."""
    wasserstein: Tensor
    """mean f(real) - mean f(fake), detached."""
    penalty: Tensor
    """The gradient penalty, detached."""


def _scores(critic: Critic, x: Tensor) -> Tensor:
    """f(x), one score per sample, shape (N,)."""
    output = getattr(critic, "scores", critic)(x)
    if output.dim() == 0 or output.size(0) != x.size(0) or output.numel() != x.size(0):
        raise ValueError(
            f"the critic returned shape {tuple(output.shape)} for {x.size(0)} samples; expected "
            "one score per sample (a critic that averages over the batch needs a scores(x))"
        )
    return output.flatten()


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor | None,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    sided: str = "two",
    at: str = "interpolates",
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """weight * mean_i (||grad f(x^_i)|| - target)^2: line 7 of Algorithm 1.

    Args:
        critic: f; returns one score per sample, or offers ``scores(x)`` that does.
        real: (N, C, H, W), or (N, D) for vectors; detached.
        fake: as ``real``; detached. May be None where ``at`` doesn't use it.
        weight: lambda.
        target: what the norm is drawn to; 0 for R1 and R2.
        sided: "two", or "one" to count only norms above the target (section 4).
        at: x^: "interpolates" (line 6), "real", "fake", or "dragan": between the real image x
            and x + 0.5 std(real) u, with u uniform in [0, 1) per element.
        eps: shape (N, 1, 1, 1) (as many ones as ``real`` needs); None draws it uniformly.
        generator: the random stream that ``eps`` and then u are drawn from.

    Returns:
        A scalar, differentiable in the critic's parameters. Where a gradient is zero, its norm
        is given the subgradient zero.

    Raises:
        ValueError: an unknown ``sided`` or ``at``, or a critic without one score per sample.

    Example:
        A linear critic has the gradient w everywhere, so the penalty is (||w|| - 1)^2 * weight.

        >>> w = torch.tensor([3.0, 4.0])
        >>> gradient_penalty(lambda x: x @ w, torch.zeros(5, 2), torch.ones(5, 2)).item()
        160.0
    """
    real = real.detach()
    per_sample = (real.size(0),) + (1,) * (real.dim() - 1)
    if eps is None and at in ("interpolates", "dragan"):
        eps = torch.rand(per_sample, dtype=real.dtype, device=real.device, generator=generator)

    if at == "interpolates" and fake is not None and eps is not None:
        points = eps * real + (1 - eps) * fake.detach()
    elif at == "real":
        points = real
    elif at == "fake" and fake is not None:
        points = fake.detach()
    elif at == "dragan" and eps is not None:
        u = torch.rand(real.shape, dtype=real.dtype, device=real.device, generator=generator)
        points = eps * real + (1 - eps) * (real + 0.5 * real.std() * u)
    else:
        raise ValueError(
            f"at is {at!r} with fake={'None' if fake is None else 'given'}; expected "
            "'interpolates', 'real', 'fake' or 'dragan', and fake where it is used"
        )

    points = points.clone().requires_grad_()
    scores = _scores(critic, points)
    # Each score depends on its own sample alone, so the gradient of their sum holds the
    # gradients of all, one per row.
    (gradients,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    norms = torch.linalg.vector_norm(gradients.flatten(1), dim=1)

    difference = norms - target
    if sided == "one":
        difference = difference.clamp(min=0)
    elif sided != "two":
        raise ValueError(f"sided is {sided!r}; expected 'two' or 'one'")
    penalty: Tensor = weight * (difference**2).mean()
    return penalty


def wgan_gp_critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    weight: float = 10.0,
    eps: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> CriticLoss:
    """L of equation 3.

    Args:
        critic: f; returns one score per sample, or offers ``scores(x)`` that does.
        real: x, (N, C, H, W).
        fake: x~ = G(z), as ``real``; detached.
        weight: lambda.
        eps: shape (N, 1, 1, 1); None draws it uniformly.
        generator: the random stream that ``eps`` is drawn from.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: a critic without one score per sample.

    Example:
        >>> w = torch.tensor([0.6, 0.8])
        >>> result = wgan_gp_critic_loss(lambda x: x @ w, torch.ones(5, 2), torch.zeros(5, 2))
        >>> round(result.wasserstein.item(), 4), round(abs(result.penalty.item()), 4)
        (1.4, 0.0)
    """
    fake_score = _scores(critic, fake.detach()).mean()
    real_score = _scores(critic, real).mean()
    penalty = gradient_penalty(critic, real, fake, weight=weight, eps=eps, generator=generator)
    return CriticLoss(
        loss=fake_score - real_score + penalty,
        wasserstein=(real_score - fake_score).detach(),
        penalty=penalty.detach(),
    )


def wgan_gp_critic_step(
    generator: nn.Module,
    critic: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    weight: float = 10.0,
    eps: Tensor | None = None,
    random: torch.Generator | None = None,
    labels: Tensor | None = None,
) -> CriticLoss:
    """Lines 4 to 9 of Algorithm 1. The generator's step is :func:`wgan_generator_step`.

    Args:
        generator: G, left as it is but for its batch norms' running statistics.
        critic: f.
        optimizer: of the critic's parameters.
        real: x, (N, C, H, W).
        noise: z, the generator's input.
        weight: lambda.
        eps: shape (N, 1, 1, 1); None draws it uniformly.
        random: the random stream that ``eps`` is drawn from.
        labels: None, or int64 (N,): real, generated and interpolated images share them.

    Returns:
        The loss and its parts from before the update, detached.

    Raises:
        ValueError: a critic without one score per sample.

    Example:
        >>> from fastgan.reference import DCGANGenerator, WGANCritic
        >>> G, f = DCGANGenerator(3, 2, 1, 16), WGANCritic(1, 2, 16)
        >>> step = wgan_gp_critic_step(G, f, torch.optim.Adam(f.parameters(), lr=1e-4),
        ...                            torch.zeros(2, 1, 16, 16), torch.zeros(2, 3))
        >>> step.loss.requires_grad
        False
    """
    with torch.no_grad():
        fake = call(generator, noise, labels)
    conditioned = critic if labels is None else (lambda x: call(critic, x, labels))
    result = wgan_gp_critic_loss(conditioned, real, fake, weight=weight, eps=eps, generator=random)
    descend(optimizer, result.loss)
    return CriticLoss(result.loss.detach(), result.wasserstein, result.penalty)
