"""ACGAN: Odena, Olah and Shlens 2017, arXiv 1610.09585, section 3, with the DCGAN's networks.

    L_S = E[log P(S = real | x)] + E[log P(S = fake | G(c, z))]
    L_C = E[log P(C = c | x)] + E[log P(C = c | G(c, z))]

The discriminator, which gives a distribution over sources and one over classes, maximises
L_S + L_C; the generator maximises L_C - L_S, of which the non-saturating form for the source (the
GAN paper's) is taken here, as by everybody.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.reference.dcgan import DCGANDiscriminator, weights_init
from fastgan.reference.gan import descend


class ACGANDiscriminator(DCGANDiscriminator):
    """The DCGAN's discriminator, whose last layer has an output for each class beside its own.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map.
        image_size: a power of two, 16 or more.
        num_classes: the number of classes.

    Shapes: images (N, nc, image_size, image_size) -> (N, 1 + num_classes), logits.

    Example:
        >>> ACGANDiscriminator(nc=1, ndf=2, image_size=16, num_classes=3)(
        ...     torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self, nc: int = 3, ndf: int = 64, image_size: int = 64, *, num_classes: int
    ) -> None:
        super().__init__(nc, ndf, image_size, "logits")
        self.main[-1] = nn.Conv2d(ndf * image_size // 8, 1 + num_classes, 4, bias=False)
        self.main[-1].apply(weights_init)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of the source being real, and of the classes."""
        outputs: Tensor = self.main(images)
        return outputs.flatten(1)


class ACGANDiscriminatorStep(NamedTuple):
    """What a discriminator's step found before its update, detached.

    Attributes:
        loss: -(L_S + L_C).
        d_real: mean P(S = real | x).
        d_fake: mean P(S = real | G(c, z)).
    """

    loss: Tensor
    d_real: Tensor
    d_fake: Tensor


def acgan_discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    labels: Tensor,
) -> ACGANDiscriminatorStep:
    """Ascends L_S + L_C in the discriminator's parameters.

    Args:
        generator: G(z, c).
        discriminator: an :class:`ACGANDiscriminator`.
        optimizer: of its parameters.
        real: x, (N, C, H, W).
        noise: z, the generator's input, (N, ...).
        labels: c, int64 (N,), of both real and generated images.

    Example:
        >>> from fastgan.reference import DCGANGenerator
        >>> G = DCGANGenerator(3, 2, 1, 16, num_classes=2)
        >>> D = ACGANDiscriminator(1, 2, 16, num_classes=2)
        >>> step = acgan_discriminator_step(
        ...     G, D, torch.optim.Adam(D.parameters()), torch.zeros(2, 1, 16, 16),
        ...     torch.zeros(2, 3), labels=torch.tensor([0, 1]))
        >>> step._fields
        ('loss', 'd_real', 'd_fake')
    """
    with torch.no_grad():
        fake = generator(noise, labels)
    of_real, of_fake = discriminator(real), discriminator(fake)
    p_real, p_fake = of_real[:, 0].sigmoid(), of_fake[:, 0].sigmoid()
    source = F.logsigmoid(of_real[:, 0]).mean() + F.logsigmoid(-of_fake[:, 0]).mean()
    classes = -F.cross_entropy(of_real[:, 1:], labels) - F.cross_entropy(of_fake[:, 1:], labels)
    loss = -(source + classes)
    descend(optimizer, loss)
    return ACGANDiscriminatorStep(loss.detach(), p_real.detach().mean(), p_fake.detach().mean())


def acgan_generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    *,
    labels: Tensor,
) -> Tensor:
    """Ascends L_C - L_S, non-saturating, in the generator's parameters.

    Args:
        generator: G(z, c).
        discriminator: an :class:`ACGANDiscriminator`; no gradient is added to its parameters.
        optimizer: of the generator's parameters.
        noise: z, the generator's input, (N, ...).
        labels: c, int64 (N,).

    Returns:
        The loss from before the update, a detached scalar.

    Example:
        >>> from fastgan.reference import DCGANGenerator
        >>> G = DCGANGenerator(3, 2, 1, 16, num_classes=2)
        >>> D = ACGANDiscriminator(1, 2, 16, num_classes=2)
        >>> acgan_generator_step(G, D, torch.optim.Adam(G.parameters()), torch.zeros(2, 3),
        ...                      labels=torch.tensor([0, 1])).shape
        torch.Size([])
    """
    of_fake = discriminator(generator(noise, labels))
    loss = -F.logsigmoid(of_fake[:, 0]).mean() + F.cross_entropy(of_fake[:, 1:], labels)
    descend(optimizer, loss, generator)
    return loss.detach()
