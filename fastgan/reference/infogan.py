"""InfoGAN: Chen et al. 2016, arXiv 1606.03657, with the DCGAN's networks.

Equations 5 and 6, of codes c beside the noise z:

    L_I(G, Q) = E_{c, x = G(z, c)}[log Q(c | x)] + H(c)
    min_{G, Q} max_D  V(D, G) - weight * L_I(G, Q)

H(c) is constant, and left out. The weight is 1 for a categorical code, and smaller for continuous
ones, whose log Q has no bound. Q shares all layers of D but the last (section 4), so one optimiser
has the parameters of both; the generator minimises the non-saturating form of V. A
continuous code's Q is a normal distribution whose standard deviation is an exponential of the
network's output (appendix C).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from fastgan.reference.dcgan import DCGANDiscriminator, weights_init
from fastgan.reference.gan import descend


class InfoGANDiscriminator(DCGANDiscriminator):
    """The DCGAN's discriminator, whose last layer has Q's outputs beside its own.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map.
        image_size: a power of two, 16 or more.
        num_classes: values of the categorical code.
        codes: the number of continuous codes.

    Shapes: images (N, nc, image_size, image_size) -> (N, 1 + num_classes + 2 * codes): D's logit,
    the categories' logits, means, log standard deviations.

    Example:
        >>> InfoGANDiscriminator(nc=1, ndf=2, image_size=16, num_classes=3, codes=2)(
        ...     torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self, nc: int = 3, ndf: int = 64, image_size: int = 64, *, num_classes: int, codes: int
    ) -> None:
        super().__init__(nc, ndf, image_size, "logits")
        outputs = 1 + num_classes + 2 * codes
        self.main[-1] = nn.Conv2d(ndf * image_size // 8, outputs, 4, bias=False)
        self.main[-1].apply(weights_init)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """All outputs of the last layer."""
        outputs: Tensor = self.main(images)
        return outputs.flatten(1)


def mutual_information(outputs: Tensor, labels: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """L_I without H(c), the mean of log Q(c | x), of the categorical and of the continuous codes.

    Args:
        outputs: of an :class:`InfoGANDiscriminator`, at generated images.
        labels: the categorical code, int64 (N,).
        codes: the continuous codes, (N, codes).

    Example:
        >>> mutual_information(torch.zeros(2, 5), torch.tensor([0, 3]), torch.zeros(2, 0))
        (tensor(-1.3863), tensor(0.))
    """
    classes = outputs.shape[1] - 1 - 2 * codes.shape[1]
    _, logits, mean, log_deviation = outputs.split([1, classes, *2 * [codes.shape[1]]], dim=1)
    continuous = Normal(mean, log_deviation.exp()).log_prob(codes).sum(1).mean()
    return -F.cross_entropy(logits, labels), continuous


class InfoGANDiscriminatorStep(NamedTuple):
    """What a discriminator's step found before its update, detached.

    Attributes:
        loss: -V(D, G) - weights * L_I(G, Q).
        d_real: mean D(x).
        d_fake: mean D(G(z, c)).
    """

    loss: Tensor
    d_real: Tensor
    d_fake: Tensor


def infogan_discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    labels: Tensor,
    codes: Tensor,
    weights: tuple[float, float] = (1.0, 0.1),
) -> InfoGANDiscriminatorStep:
    """Ascends V + weights * L_I in the parameters of D and Q.

    Args:
        generator: a conditional generator, of codes and noise, concatenated, and labels.
        discriminator: an :class:`InfoGANDiscriminator`.
        optimizer: of its parameters.
        real: x, (N, C, H, W).
        noise: z, (N, nz).
        labels: the generated images' categorical code, int64 (N,).
        codes: their continuous codes, (N, codes).
        weights: the paper's lambda, of the categorical and of the continuous codes.

    Example:
        >>> from fastgan.reference import DCGANGenerator
        >>> G = DCGANGenerator(4, 2, 1, 16, num_classes=2)
        >>> D = InfoGANDiscriminator(1, 2, 16, num_classes=2, codes=1)
        >>> step = infogan_discriminator_step(
        ...     G, D, torch.optim.Adam(D.parameters()), torch.zeros(2, 1, 16, 16),
        ...     torch.zeros(2, 3), labels=torch.tensor([0, 1]), codes=torch.zeros(2, 1))
        >>> step._fields
        ('loss', 'd_real', 'd_fake')
    """
    with torch.no_grad():
        fake = generator(torch.cat([codes, noise], 1), labels)
    of_real, of_fake = discriminator(real)[:, 0], discriminator(fake)
    value = F.logsigmoid(of_real).mean() + F.logsigmoid(-of_fake[:, 0]).mean()
    categorical, continuous = mutual_information(of_fake, labels, codes)
    loss = -(value + weights[0] * categorical + weights[1] * continuous)
    descend(optimizer, loss)
    means = (of_real.sigmoid().mean().detach(), of_fake[:, 0].sigmoid().mean().detach())
    return InfoGANDiscriminatorStep(loss.detach(), *means)


def infogan_generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    *,
    labels: Tensor,
    codes: Tensor,
    weights: tuple[float, float] = (1.0, 0.1),
) -> Tensor:
    """Descends -log D(G(z, c)) - weights * L_I in the generator's parameters.

    Args:
        generator: as in :func:`infogan_discriminator_step`.
        discriminator: an :class:`InfoGANDiscriminator`; no gradient is added to its parameters.
        optimizer: of the generator's parameters.
        noise: z, (N, nz).
        labels: as in :func:`infogan_discriminator_step`.
        codes: likewise.
        weights: likewise.

    Returns:
        The loss from before the update, a detached scalar.

    Example:
        >>> from fastgan.reference import DCGANGenerator
        >>> G = DCGANGenerator(4, 2, 1, 16, num_classes=2)
        >>> D = InfoGANDiscriminator(1, 2, 16, num_classes=2, codes=1)
        >>> infogan_generator_step(
        ...     G, D, torch.optim.Adam(G.parameters()), torch.zeros(2, 3),
        ...     labels=torch.tensor([0, 1]), codes=torch.zeros(2, 1)).shape
        torch.Size([])
    """
    of_fake = discriminator(generator(torch.cat([codes, noise], 1), labels))
    categorical, continuous = mutual_information(of_fake, labels, codes)
    loss = -F.logsigmoid(of_fake[:, 0]).mean() - weights[0] * categorical - weights[1] * continuous
    descend(optimizer, loss, generator)
    return loss.detach()
