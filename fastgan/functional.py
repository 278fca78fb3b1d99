"""The library's functions, as ``torch.nn.functional`` is for torch's."""

from __future__ import annotations

from fastgan.penalty import gradient_penalty, wgan_gp_critic_loss
from fastgan.weight_clipping import clip_weights_

__all__ = ["clip_weights_", "gradient_penalty", "wgan_gp_critic_loss"]
