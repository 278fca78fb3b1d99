"""The papers in plain PyTorch: what every test of fastgan compares with.

Models, losses and single training steps of the vanilla GAN, the (conditional) DCGAN, the ACGAN,
InfoGAN, the WGAN with weight clipping, the WGAN with gradient penalty, SNGAN, BigGAN, StyleGAN2,
R3GAN, CycleGAN and pix2pix, and the compositions of torch's own functions that the fused ones must
equal. Written to be read beside the papers, not to be fast, and importing nothing else of fastgan,
so that no mistake can be shared.

======================  =====================================================================
module                  paper
======================  =====================================================================
``gan``                 Goodfellow et al. 2014, arXiv 1406.2661
``conditional``         Mirza and Osindero 2014, arXiv 1411.1784
``dcgan``               Radford, Metz and Chintala 2015, arXiv 1511.06434
``acgan``               Odena et al. 2017, arXiv 1610.09585
``infogan``             Chen et al. 2016, arXiv 1606.03657
``wgan``                Arjovsky, Chintala and Bottou 2017, arXiv 1701.07875
``wgan_gp``             Gulrajani et al. 2017, arXiv 1704.00028 (with R1, R2, DRAGAN)
``sngan``               Miyato et al. 2018, arXiv 1802.05957 and 1802.05637
``biggan``              Brock et al. 2018, arXiv 1809.11096
``stylegan2``           Karras et al. 2020, arXiv 1912.04958
``r3gan``               Huang et al. 2025, arXiv 2501.05441
``pix2pix``             Isola et al. 2017, arXiv 1611.07004
``cyclegan``            Zhu et al. 2017, arXiv 1703.10593
``functional``          batch norm: Ioffe and Szegedy 2015, arXiv 1502.03167
``style_ops``           Karras et al. 2018 to 2021, arXiv 1710.10196, 1912.04958 and 2106.12423
======================  =====================================================================

Example:
    >>> import torch
    >>> from fastgan import reference
    >>> critic = reference.WGANCritic(nc=1, ndf=4, image_size=16)
    >>> loss = reference.wgan_gp_critic_loss(
    ...     critic, torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16))
    >>> loss._fields
    ('loss', 'wasserstein', 'penalty')
"""

from __future__ import annotations

from fastgan.reference.acgan import (
    ACGANDiscriminator,
    ACGANDiscriminatorStep,
    acgan_discriminator_step,
    acgan_generator_step,
)
from fastgan.reference.biggan import BigGANDiscriminator, BigGANGenerator
from fastgan.reference.conditional import append_label_planes, append_labels
from fastgan.reference.cyclegan import (
    CycleGANDiscriminator,
    CycleGANGenerator,
    ImagePool,
    ResNetGenerator,
    cyclegan_step,
)
from fastgan.reference.dcgan import DCGANDiscriminator, DCGANGenerator, weights_init
from fastgan.reference.functional import bn_act, conv2d_bn_act, conv_transpose2d_bn_act
from fastgan.reference.gan import (
    DiscriminatorStep,
    GeneratorStep,
    MLPDiscriminator,
    MLPGenerator,
    discriminator_loss,
    discriminator_loss_with_logits,
    discriminator_step,
    generator_loss,
    generator_loss_with_logits,
    generator_step,
)
from fastgan.reference.infogan import (
    InfoGANDiscriminator,
    InfoGANDiscriminatorStep,
    infogan_discriminator_step,
    infogan_generator_step,
    mutual_information,
)
from fastgan.reference.pix2pix import (
    PatchDiscriminator,
    TranslationStep,
    UNetGenerator,
    pix2pix_step,
)
from fastgan.reference.r3gan import (
    R3GANDiscriminator,
    R3GANDiscriminatorLoss,
    R3GANGenerator,
    r3gan_discriminator_loss,
    r3gan_discriminator_step,
    r3gan_generator_step,
)
from fastgan.reference.sngan import (
    SNGANDiscriminator,
    SNGANDiscriminatorStep,
    SNGANGenerator,
    hinge_discriminator_step,
    hinge_generator_step,
)
from fastgan.reference.stylegan2 import (
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    StyleGAN2PathLength,
    stylegan2_path_length,
    stylegan2_path_length_step,
    stylegan2_r1_step,
)
from fastgan.reference.wgan import (
    WGANCritic,
    WGANCriticStep,
    clip_weights_,
    wgan_critic_loss,
    wgan_critic_step,
    wgan_generator_loss,
    wgan_generator_step,
)
from fastgan.reference.wgan_gp import (
    CriticLoss,
    gradient_penalty,
    wgan_gp_critic_loss,
    wgan_gp_critic_step,
)

__all__ = [
    "ACGANDiscriminator",
    "ACGANDiscriminatorStep",
    "BigGANDiscriminator",
    "BigGANGenerator",
    "CriticLoss",
    "CycleGANDiscriminator",
    "CycleGANGenerator",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiscriminatorStep",
    "GeneratorStep",
    "ImagePool",
    "InfoGANDiscriminator",
    "InfoGANDiscriminatorStep",
    "MLPDiscriminator",
    "MLPGenerator",
    "PatchDiscriminator",
    "R3GANDiscriminator",
    "R3GANDiscriminatorLoss",
    "R3GANGenerator",
    "ResNetGenerator",
    "SNGANDiscriminator",
    "SNGANDiscriminatorStep",
    "SNGANGenerator",
    "StyleGAN2Discriminator",
    "StyleGAN2Generator",
    "StyleGAN2PathLength",
    "TranslationStep",
    "UNetGenerator",
    "WGANCritic",
    "WGANCriticStep",
    "acgan_discriminator_step",
    "acgan_generator_step",
    "append_label_planes",
    "append_labels",
    "bn_act",
    "clip_weights_",
    "conv2d_bn_act",
    "conv_transpose2d_bn_act",
    "cyclegan_step",
    "discriminator_loss",
    "discriminator_loss_with_logits",
    "discriminator_step",
    "generator_loss",
    "generator_loss_with_logits",
    "generator_step",
    "gradient_penalty",
    "hinge_discriminator_step",
    "hinge_generator_step",
    "infogan_discriminator_step",
    "infogan_generator_step",
    "mutual_information",
    "pix2pix_step",
    "r3gan_discriminator_loss",
    "r3gan_discriminator_step",
    "r3gan_generator_step",
    "stylegan2_path_length",
    "stylegan2_path_length_step",
    "stylegan2_r1_step",
    "weights_init",
    "wgan_critic_loss",
    "wgan_critic_step",
    "wgan_generator_loss",
    "wgan_generator_step",
    "wgan_gp_critic_loss",
    "wgan_gp_critic_step",
]
