"""What discriminators, critics and generators descend, on logits and raw scores.

A discriminator's logit l stands for the probability D = sigmoid(l), so that

    -log D       = softplus(-l)
    -log(1 - D)  = softplus(l)

never takes the logarithm of a rounded zero. Half-precision scores are widened to float32 first:
a mean over a batch in bfloat16 keeps no more than two or three digits.

Sources: Goodfellow et al. 2014 (arXiv 1406.2661, equation 1 and section 3) for the first two,
Arjovsky et al. 2017 (arXiv 1701.07875, equation 3) for the others.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError

__all__ = [
    "bce_discriminator_loss",
    "bce_generator_loss",
    "wasserstein_critic_loss",
    "wasserstein_generator_loss",
    "widened",
]


def widened(input: Tensor) -> Tensor:
    """``input`` in float32 if its dtype is narrower, else as it is.

    Example:
        >>> widened(torch.zeros(1, dtype=torch.bfloat16)).dtype, widened(torch.zeros(1)).dtype
        (torch.float32, torch.float32)
    """
    return input.float() if input.dtype in (torch.float16, torch.bfloat16) else input


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
    return F.softplus(-widened(real_logits)).mean() + F.softplus(widened(fake_logits)).mean()


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
        return F.softplus(-widened(fake_logits)).mean()
    if objective == "minimax":
        return -F.softplus(widened(fake_logits)).mean()
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
    return widened(fake_scores).mean() - widened(real_scores).mean()


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
    return -widened(fake_scores).mean()
