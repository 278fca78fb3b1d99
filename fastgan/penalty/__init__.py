"""The gradient penalty and the WGAN-GP critic loss.

    penalty = weight * mean over samples n of (||g_n|| - target)^2,    g_n = d f(x_n) / d x_n

with the norm over all elements of a sample. Gulrajani et al. 2017, arXiv 1704.00028, equation 3
and Algorithm 1; the points x_n and targets of R1, R2 (Mescheder et al. 2018, arXiv 1801.04406)
and DRAGAN (Kodali et al. 2017, arXiv 1705.07215) are choices of the same function.

In this room: :mod:`.functions` is what users call; :mod:`.selection`, :mod:`.tracing` and
:mod:`.conversion` turn a critic into a :mod:`.plan` of :mod:`.steps`, and :mod:`.passes` computes
the penalty's gradient with it, without a second backward pass; :mod:`.node` is what autograd sees
of that. :mod:`.double_backward` is the other path.
"""

from __future__ import annotations

from fastgan.penalty.functions import Critic, CriticLoss, gradient_penalty, wgan_gp_critic_loss

__all__ = ["Critic", "CriticLoss", "gradient_penalty", "wgan_gp_critic_loss"]
