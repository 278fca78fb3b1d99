"""Losses of critics and discriminators with gradient penalties.

    penalty = weight * mean over samples n of (||g_n|| - target)^2,    g_n = d f(x_n) / d x_n

with the norm over all elements of a sample. Gulrajani et al. 2017, arXiv 1704.00028, equation 3
and Algorithm 1; the points x_n and targets of R1, R2 (Mescheder et al. 2018, arXiv 1801.04406)
and DRAGAN (Kodali et al. 2017, arXiv 1705.07215) are choices of the same function.

:mod:`.functions` has the public functions. :mod:`.critics` runs a critic while :mod:`.tape` records
it; :mod:`.rule` defines an op's derivatives, :mod:`.rules` is the table from op to rule, and
:mod:`.passes` computes gradients with it. :mod:`.fused` assembles the loss and :mod:`.node` is its
autograd node. :mod:`.double_backward` is the plain PyTorch path.
"""

from __future__ import annotations

from fastgan.penalty.functions import (
    Critic,
    CriticLoss,
    DiscriminatorLoss,
    discriminator_loss,
    gradient_penalty,
    wgan_gp_critic_loss,
)

__all__ = [
    "Critic",
    "CriticLoss",
    "DiscriminatorLoss",
    "discriminator_loss",
    "gradient_penalty",
    "wgan_gp_critic_loss",
]
