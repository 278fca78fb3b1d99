"""Losses of discriminators, critics and generators, from logits and raw scores.

A discriminator's logit l stands for the probability D = sigmoid(l), so that

    -log D       = softplus(-l)
    -log(1 - D)  = softplus(l)

never takes the logarithm of a rounded zero. Half-precision scores are converted to float32 first: a
batch's mean in bfloat16 has only two or three digits.

The hinge and least-squares losses use the same number as a score that should be beyond +1 or -1, or
near 1 or 0.

Sources: Goodfellow et al. 2014 (arXiv 1406.2661, equation 1 and section 3) for the logarithms, Lim
and Ye 2017 (arXiv 1705.02894, section 3.1) for the hinge, Mao et al. 2017 (arXiv 1611.04076,
equation 2 with a = 0, b = c = 1) for the squares, Arjovsky et al. 2017 (arXiv 1701.07875,
equation 3) for the critic's.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.ops.adversarial_loss import TERMS, adversarial_loss

__all__ = [
    "PLAYERS_LOSSES",
    "SCORES_LOSSES",
    "at_least_float32",
    "bce_discriminator_loss",
    "bce_generator_loss",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "least_squares_discriminator_loss",
    "least_squares_generator_loss",
    "loss_and_means",
    "orthogonal_regularisation",
    "relativistic_discriminator_loss",
    "relativistic_generator_loss",
    "wasserstein_critic_loss",
    "wasserstein_generator_loss",
]


def at_least_float32(input: Tensor) -> Tensor:
    """``input`` in float32 if its dtype is narrower, otherwise unchanged.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


#: Up to so many on a CPU, an op of its own costs more than the three functions that it replaces.
FEW_SCORES = 4096


def _as_of_real(loss: str, scores: Tensor) -> Tensor:
    """The mean of the terms that ``scores`` would have as real images'."""
    if scores.device.type == "cpu" and scores.numel() <= FEW_SCORES:
        return TERMS[loss][0](at_least_float32(scores)).mean()
    return adversarial_loss(loss, scores)[0]


def bce_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-mean log D(x) - mean log(1 - D(G(z))): minus equation 1 of the GAN paper.

    Args:
        real_logits: logits of real images, any floating dtype and shape.
        fake_logits: logits of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the logits' wider dtype.

    Example:
        >>> round(bce_discriminator_loss(torch.zeros(4), torch.zeros(4)).item(), 4)  # 2 log 2
        1.3863
    """
    return adversarial_loss("logistic", real_logits, fake_logits)[0]


def bce_generator_loss(
    fake_logits: Tensor, *, objective: Literal["non-saturating", "minimax"] = "non-saturating"
) -> Tensor:
    """-mean log D(G(z)), or the minimax game's mean log(1 - D(G(z))).

    Args:
        fake_logits: logits of generated images, any floating dtype and shape.
        objective: "non-saturating" (section 3 of the GAN paper) or "minimax" (equation 1), whose
            gradient vanishes while the discriminator is winning.

    Returns:
        A scalar, float32 or the logits' wider dtype.

    Raises:
        ConfigError: an unknown objective.

    Example:
        >>> sure_of_fake = torch.full((4,), -20.0, requires_grad=True)
        >>> bce_generator_loss(sure_of_fake).item()
        20.0
    """
    if objective == "non-saturating":
        return _as_of_real("logistic", fake_logits)
    if objective == "minimax":
        return -F.softplus(at_least_float32(fake_logits)).mean()
    raise ConfigError(f"objective is {objective!r}; expected 'non-saturating' or 'minimax'")


def wasserstein_critic_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean f(G(z)) - mean f(x): minus the objective of equation 3 of the WGAN paper.

    Args:
        real_scores: critic's scores of real images, any floating dtype and shape.
        fake_scores: critic's scores of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the scores' wider dtype; its negative is the Wasserstein estimate.

    Example:
        >>> wasserstein_critic_loss(torch.tensor([3.0, 5.0]), torch.tensor([1.0])).item()
        -3.0
    """
    return adversarial_loss("wasserstein", real_scores, fake_scores)[0]


def wasserstein_generator_loss(fake_scores: Tensor) -> Tensor:
    """-mean f(G(z)): line 10 of the WGAN paper's Algorithm 1.

    Args:
        fake_scores: critic's scores of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> wasserstein_generator_loss(torch.tensor([1.0, 3.0])).item()
        -2.0
    """
    return _as_of_real("wasserstein", fake_scores)


def hinge_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean max(0, 1 - f(x)) + mean max(0, 1 + f(G(z))).

    Args:
        real_scores: scores of real images, any floating dtype and shape.
        fake_scores: scores of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> hinge_discriminator_loss(torch.tensor([0.5, 3.0]), torch.tensor([-2.0])).item()
        0.25
    """
    return adversarial_loss("hinge", real_scores, fake_scores)[0]


def hinge_generator_loss(fake_scores: Tensor) -> Tensor:
    """-mean f(G(z)).

    Args:
        fake_scores: scores of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> hinge_generator_loss(torch.tensor([1.0, 3.0])).item()
        -2.0
    """
    return _as_of_real("wasserstein", fake_scores)


def least_squares_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean (f(x) - 1)^2 / 2 + mean f(G(z))^2 / 2.

    Args:
        real_scores: scores of real images, any floating dtype and shape.
        fake_scores: scores of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> least_squares_discriminator_loss(torch.tensor([3.0]), torch.tensor([1.0])).item()
        2.5
    """
    return adversarial_loss("least_squares", real_scores, fake_scores)[0]


def least_squares_generator_loss(fake_scores: Tensor) -> Tensor:
    """mean (f(G(z)) - 1)^2 / 2.

    Args:
        fake_scores: scores of generated images, any floating dtype and shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> least_squares_generator_loss(torch.tensor([3.0])).item()
        2.0
    """
    return _as_of_real("least_squares", fake_scores)


def relativistic_discriminator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean softplus(-(f(x) - f(G(z)))): real image n against generated image n.

    Jolicoeur-Martineau 2018 (arXiv 1807.00734), in the paired form of Huang et al. 2025 (R3GAN,
    arXiv 2501.05441, equation 2).

    Args:
        real_scores: scores of real images, any floating dtype and shape.
        fake_scores: scores of generated images, of the same shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> round(relativistic_discriminator_loss(torch.zeros(4), torch.zeros(4)).item(), 4)
        0.6931
    """
    return F.softplus(at_least_float32(fake_scores) - at_least_float32(real_scores)).mean()


def relativistic_generator_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """mean softplus(-(f(G(z)) - f(x))): :func:`relativistic_discriminator_loss`, roles swapped.

    Args:
        real_scores: scores of real images, any floating dtype and shape.
        fake_scores: scores of generated images, of the same shape.

    Returns:
        A scalar, float32 or the scores' wider dtype.

    Example:
        >>> fake_scores = torch.tensor([-20.0], requires_grad=True)
        >>> relativistic_generator_loss(torch.tensor([10.0]), fake_scores).item()
        30.0
    """
    return F.softplus(at_least_float32(real_scores) - at_least_float32(fake_scores)).mean()


def orthogonal_regularisation(network: nn.Module) -> Tensor:
    """sum over weights W of sum_{i != j} (W_i . W_j)^2, a row W_i for each output channel.

    Brock et al. 2018 (BigGAN, arXiv 1809.11096, equation 3). Lengths are free. Excludes biases,
    scales and a child named ``embedding``; for parametrised weights, such as by spectral norm, the
    parameter counts.

    Args:
        network: the generator.

    Returns:
        A scalar of the parameters' dtype.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> layer.weight.data = torch.tensor([[1.0, 0.0], [3.0, 1.0]])
        >>> orthogonal_regularisation(layer).item()
        18.0
    """
    total = torch.zeros(())
    for name, weight in network.named_parameters():
        if weight.dim() > 1 and not name.startswith("embedding."):
            total = total.to(weight) + _products_of_rows(weight.flatten(1))
    return total


def _products_of_rows(rows: Tensor) -> Tensor:
    """sum_{i != j} (W_i . W_j)^2."""
    count, length = rows.shape
    if count <= 2 * length:
        return (rows @ rows.mT).fill_diagonal_(0).square().sum()
    # |W W^T| = |W^T W|, which is smaller. As so many rows can't all be orthogonal, little cancels:
    # for rows of one length at most length / count of the first term.
    return (rows.mT @ rows).square().sum() - rows.square().sum(1).square().sum()


def loss_and_means(loss: str, real_scores: Tensor, fake_scores: Tensor) -> tuple[Tensor, Tensor]:
    """A discriminator's or critic's loss, and its scores' means for a log, in one launch on a GPU.

    Args:
        loss: a name of :data:`PLAYERS_LOSSES`.
        real_scores: scores of real images, any floating dtype and shape.
        fake_scores: scores of generated images, any floating dtype and shape.

    Returns:
        The loss, a scalar; and without a graph, shape (3,), the means of real and fake scores and
        their difference, for "bce" of the probabilities.

    Example:
        >>> loss_and_means("bce", torch.zeros(4), torch.zeros(4))[1]
        tensor([0.5000, 0.5000, 0.0000])
    """
    if loss in _FUSED:
        return adversarial_loss(_FUSED[loss], real_scores, fake_scores, squash=loss == "bce")
    means = [at_least_float32(scores.detach()).mean() for scores in (real_scores, fake_scores)]
    value = PLAYERS_LOSSES[loss][0](real_scores, fake_scores)
    return value, torch.stack([*means, means[0] - means[1]])


#: Losses that :mod:`fastgan.ops.adversarial_loss` computes, by their names there.
_FUSED = {
    "bce": "logistic",
    "hinge": "hinge",
    "least-squares": "least_squares",
    "wasserstein": "wasserstein",
}

DiscriminatorLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
GeneratorLoss: TypeAlias = Callable[..., Tensor]

PLAYERS_LOSSES: Mapping[str, tuple[DiscriminatorLoss, GeneratorLoss]] = types.MappingProxyType(
    {
        "bce": (bce_discriminator_loss, bce_generator_loss),
        "hinge": (hinge_discriminator_loss, hinge_generator_loss),
        "least-squares": (least_squares_discriminator_loss, least_squares_generator_loss),
        "relativistic": (relativistic_discriminator_loss, relativistic_generator_loss),
        "wasserstein": (wasserstein_critic_loss, wasserstein_generator_loss),
    }
)
"""The discriminator's or critic's loss and the generator's, by name.

Real scores come before fake ones; the generator's loss takes only the fake ones, except
"relativistic", which takes both.
"""


SCORES_LOSSES: Mapping[str, DiscriminatorLoss] = types.MappingProxyType(
    {
        "wasserstein": wasserstein_critic_loss,
        "logistic": bce_discriminator_loss,
        "hinge": hinge_discriminator_loss,
        "least_squares": least_squares_discriminator_loss,
        "relativistic": relativistic_discriminator_loss,
    }
)
"""The named losses of :func:`fastgan.discriminator_loss`, functions of (real scores, fake
scores)."""
