"""Losses of critics and discriminators with gradient penalties.

    penalty = weight * mean over samples n of (||g_n|| - target)^2,    g_n = d f(x_n) / d x_n

with the norm over all elements of a sample. Gulrajani et al. 2017, arXiv 1704.00028, equation 3
and Algorithm 1; the points x_n and targets of R1, R2 (Mescheder et al. 2018, arXiv 1801.04406)
and DRAGAN (Kodali et al. 2017, arXiv 1705.07215) are choices of the same function.

In this room: :mod:`.functions` is what users call. :mod:`.tape` records a critic, :mod:`.critics`
runs it for that; :mod:`.rule` says what a tape has to know of an op, :mod:`.rules` is the table of
those that are known, and :mod:`.passes` computes gradients with it. :mod:`.fused` makes a loss of
these, :mod:`.node` is what autograd sees of it. :mod:`.double_backward` is the other path.
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
