"""Fastgan's functions, like ``torch.nn.functional``."""

from __future__ import annotations

from fastgan.ops import bn_act
from fastgan.ops.conv_bn_act import conv2d_bn_act, conv_transpose2d_bn_act
from fastgan.ops.modulated_conv2d import modulated_conv2d
from fastgan.optim.weight_clipping import clip_weights_
from fastgan.penalty import discriminator_loss, gradient_penalty, wgan_gp_critic_loss

__all__ = [
    "bn_act",
    "clip_weights_",
    "conv2d_bn_act",
    "conv_transpose2d_bn_act",
    "discriminator_loss",
    "gradient_penalty",
    "modulated_conv2d",
    "wgan_gp_critic_loss",
]
