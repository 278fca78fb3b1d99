"""Networks that are ready to train, conditional or not: DCGAN, WGAN, R3GAN, StyleGAN2 and others.

Their layers are plain ``torch.nn`` modules in the paper's order, and run fused; ``apply``, hooks,
``deepcopy`` and ``pickle`` work as for any ``nn.Module``. DCGAN's and WGAN's layers are one
:class:`fastgan.nn.FusedSequential` called ``main``: ``state_dict`` keys read ``main.0.weight``,
.... All have their papers' initialisation; convolutional ones have channels-last weights, and
therefore channels-last images. :mod:`fastgan.models.compat` has the classes of two well-known
repositories, for changing one import line.

Example:
    >>> import torch
    >>> from fastgan.models import DCGANGenerator
    >>> generator = DCGANGenerator(nz=8, ngf=4, nc=3, image_size=32)
    >>> generator(torch.randn(2, 8)).shape
    torch.Size([2, 3, 32, 32])
"""

from __future__ import annotations

from fastgan.models.acgan import ACGANDiscriminator
from fastgan.models.biggan import BigGANDiscriminator, BigGANGenerator
from fastgan.models.cyclegan import (
    CycleGANDiscriminator,
    CycleGANGenerator,
    ImagePool,
    PatchDiscriminator,
    ResNetGenerator,
)
from fastgan.models.dcgan import DCGANDiscriminator, DCGANGenerator
from fastgan.models.infogan import InfoGANDiscriminator
from fastgan.models.initialisation import weights_init
from fastgan.models.mlp import MLPDiscriminator, MLPGenerator
from fastgan.models.pix2pix import Pix2PixDiscriminator, UNetGenerator
from fastgan.models.r3gan import R3GANDiscriminator, R3GANGenerator
from fastgan.models.sngan import SNGANDiscriminator, SNGANGenerator
from fastgan.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from fastgan.models.wgan import WGANCritic

__all__ = [
    "ACGANDiscriminator",
    "BigGANDiscriminator",
    "BigGANGenerator",
    "CycleGANDiscriminator",
    "CycleGANGenerator",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "ImagePool",
    "InfoGANDiscriminator",
    "MLPDiscriminator",
    "MLPGenerator",
    "PatchDiscriminator",
    "Pix2PixDiscriminator",
    "R3GANDiscriminator",
    "R3GANGenerator",
    "ResNetGenerator",
    "SNGANDiscriminator",
    "SNGANGenerator",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "UNetGenerator",
    "WGANCritic",
    "weights_init",
]
