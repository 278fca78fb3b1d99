"""R3GAN: Huang et al. 2025, arXiv 2501.05441.

Equation 2, with f(a) = log(1 + exp(-a)), D's output a real number:

    L_D = E[f(D(x) - D(G(z)))] + gamma / 2 E ||grad D(x)||^2 + gamma / 2 E ||grad D(G(z))||^2
    L_G = E[f(D(G(z)) - D(x))]

Section 4: pyramids of ResNeXt blocks (1x1, 3x3 in groups of 16, 1x1; twice as wide inside) without
norms, bilinear resampling, Fixup's initialisation (Zhang et al. 2019, arXiv 1901.09321).
"""

from __future__ import annotations

from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.reference.conditional import call
from fastgan.reference.gan import descend


def scaled(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Weight N(0, gain^2 / fan_in), bias 0."""
    for name, parameter in layer.named_parameters():
        fan_in = parameter[0].numel()
        nn.init.normal_(parameter, 0.0, gain / fan_in**0.5 if name == "weight" else 0.0)
    return layer


class Block(nn.Module):
    """x + conv3(lrelu(conv2(lrelu(conv1(x)))))."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        gain = (2 / (1 + 0.2**2)) ** 0.5 * blocks ** (-1 / 4)
        wide = 2 * channels
        self.conv1 = scaled(nn.Conv2d(channels, wide, 1), gain)
        self.conv2 = scaled(nn.Conv2d(wide, wide, 3, 1, 1, groups=wide // gcd(wide, 16)), gain)
        self.conv3 = scaled(nn.Conv2d(wide, channels, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        h = F.leaky_relu(self.conv1(x), 0.2)
        h = F.leaky_relu(self.conv2(h), 0.2)
        output: Tensor = x + self.conv3(h)
        return output


class Basis(nn.Module):
    """A learned 4x4 map, scaled channel by channel by W z."""

    def __init__(self, nz: int, channels: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.randn(channels, 4, 4))
        self.linear = scaled(nn.Linear(nz, channels, bias=False))

    def forward(self, z: Tensor) -> Tensor:
        """(N, nz) -> (N, channels, 4, 4)."""
        output: Tensor = self.basis * self.linear(z)[:, :, None, None]
        return output


def widths(width: int, image_size: int) -> list[int]:
    """Channels at 4x4, 8x8, ..., image_size."""
    channels = []
    size = 4
    while size <= image_size:
        channels.append(width * min(8, image_size // size))
        size *= 2
    return channels


class R3GANGenerator(nn.Module):
    """G(z), or G(z|y).

    Args:
        nz: length of the noise vector.
        ngf: channels at full size.
        nc: image channels.
        image_size: a power of two, 16 or more.
        num_classes: None, or the number of labels the generator is conditioned on.

    Shapes: z (N, nz) or (N, nz, 1, 1), labels int64 (N,) -> (N, nc, image_size, image_size).

    Example:
        >>> R3GANGenerator(nz=5, ngf=2, nc=3, image_size=16)(torch.zeros(2, 5)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        nz: int = 64,
        ngf: int = 64,
        nc: int = 3,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = widths(ngf, image_size)
        if num_classes is not None:
            self.embedding = scaled(nn.Linear(num_classes, 64, bias=False))
            nz = nz + 64
        self.main = nn.Sequential(Basis(nz, channels[0]))
        last = channels[0]
        for index, width in enumerate(channels):
            if width != last:
                self.main.append(scaled(nn.Conv2d(last, width, 1, bias=False)))
            if index > 0:
                self.main.append(nn.Upsample(scale_factor=2, mode="bilinear"))
            self.main.append(Block(width, 2 * len(channels)))
            self.main.append(Block(width, 2 * len(channels)))
            last = width
        self.main.append(scaled(nn.Conv2d(last, nc, 1, bias=False)))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z), or G(z|y)."""
        z = z.flatten(1)
        if self.num_classes is not None and labels is not None:
            y = F.one_hot(labels, self.num_classes).to(z.dtype)
            z = torch.cat([z, self.embedding(y)], dim=1)
        images: Tensor = self.main(z)
        return images


class R3GANDiscriminator(nn.Module):
    """D(x), or D(x|y).

    Args:
        nc: image channels.
        ndf: channels at full size.
        image_size: a power of two, 16 or more.
        num_classes: None, or the number of labels the discriminator is conditioned on.

    Shapes: images (N, nc, image_size, image_size), labels int64 (N,) -> (N,).

    Example:
        >>> R3GANDiscriminator(nc=3, ndf=2, image_size=16)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        channels = widths(ndf, image_size)[::-1]
        last = ndf
        self.main = nn.Sequential(scaled(nn.Conv2d(nc, ndf, 1, bias=False)))
        for index, width in enumerate(channels):
            if index > 0:
                self.main.append(nn.AvgPool2d(2))
            if width != last:
                self.main.append(scaled(nn.Conv2d(last, width, 1, bias=False)))
            self.main.append(Block(width, 2 * len(channels)))
            self.main.append(Block(width, 2 * len(channels)))
            last = width
        self.main.append(scaled(nn.Conv2d(last, last, 4, groups=last, bias=False)))
        self.main.append(nn.Flatten())
        outputs = 1 if num_classes is None else 64
        self.main.append(scaled(nn.Linear(last, outputs, bias=False)))
        if num_classes is not None:
            self.embedding = scaled(nn.Linear(num_classes, 64, bias=False))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x), or D(x|y)."""
        features: Tensor = self.main(images)
        if self.num_classes is None or labels is None:
            return features.squeeze(1)
        y = F.one_hot(labels, self.num_classes).to(features.dtype)
        scores: Tensor = (features * self.embedding(y)).sum(dim=1)
        return scores


class R3GANDiscriminatorLoss(NamedTuple):
    """L_D and its penalties, scalars; a step returns them detached, from before its update."""

    loss: Tensor
    """L_D."""
    r1: Tensor
    """gamma / 2 E ||grad D(x)||^2."""
    r2: Tensor
    """gamma / 2 E ||grad D(G(z))||^2."""


def r3gan_discriminator_loss(
    discriminator: nn.Module,
    real: Tensor,
    fake: Tensor,
    *,
    gamma: float,
    labels: Tensor | None = None,
) -> R3GANDiscriminatorLoss:
    """L_D.

    Args:
        discriminator: D.
        real: x, (N, C, H, W).
        fake: G(z), likewise.
        gamma: the weight of R1 and of R2.
        labels: None, or int64 (N,), of both real and generated images.

    Returns:
        The loss and its penalties, detached but for the loss.

    Example:
        >>> D = R3GANDiscriminator(1, 2, 16)
        >>> images = torch.zeros(2, 1, 16, 16)
        >>> r3gan_discriminator_loss(D, images, images, gamma=1)._fields
        ('loss', 'r1', 'r2')
    """
    real_score, r1 = penalised(discriminator, real, gamma, labels)
    fake_score, r2 = penalised(discriminator, fake, gamma, labels)
    loss = F.softplus(-(real_score - fake_score)).mean() + r1 + r2
    return R3GANDiscriminatorLoss(loss, r1.detach(), r2.detach())


def penalised(
    discriminator: nn.Module, images: Tensor, gamma: float, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """D(x), and gamma / 2 E ||grad D(x)||^2."""
    images = images.detach().clone().requires_grad_()
    score = call(discriminator, images, labels)
    (gradient,) = torch.autograd.grad(score.sum(), images, create_graph=True)
    return score, gamma / 2 * gradient.square().sum((1, 2, 3)).mean()


def r3gan_discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    gamma: float,
    labels: Tensor | None = None,
) -> R3GANDiscriminatorLoss:
    """Descends L_D in the discriminator's parameters.

    Args:
        generator: G.
        discriminator: D.
        optimizer: of the discriminator's parameters.
        real: x, (N, C, H, W).
        noise: z, the generator's input, (N, ...).
        gamma: the weight of R1 and of R2.
        labels: None, or int64 (N,), of both real and generated images.

    Returns:
        The loss and its penalties from before the update, detached.

    Example:
        >>> G, D = R3GANGenerator(3, 2, 1, 16), R3GANDiscriminator(1, 2, 16)
        >>> step = r3gan_discriminator_step(G, D, torch.optim.Adam(D.parameters()),
        ...                                 torch.zeros(2, 1, 16, 16), torch.zeros(2, 3), gamma=1)
        >>> step._fields
        ('loss', 'r1', 'r2')
    """
    with torch.no_grad():
        fake = call(generator, noise, labels)
    result = r3gan_discriminator_loss(discriminator, real, fake, gamma=gamma, labels=labels)
    descend(optimizer, result.loss)
    return result._replace(loss=result.loss.detach())


def r3gan_generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    labels: Tensor | None = None,
) -> Tensor:
    """Descends L_G in the generator's parameters.

    Args:
        generator: G.
        discriminator: D; no gradient is added to its parameters.
        optimizer: of the generator's parameters.
        real: x, (N, C, H, W), which the generated images are compared with, one by one.
        noise: z, the generator's input, (N, ...).
        labels: None, or int64 (N,), of both real and generated images.

    Returns:
        The loss from before the update, a detached scalar.

    Example:
        >>> G, D = R3GANGenerator(3, 2, 1, 16), R3GANDiscriminator(1, 2, 16)
        >>> r3gan_generator_step(G, D, torch.optim.Adam(G.parameters()),
        ...                      torch.zeros(2, 1, 16, 16), torch.zeros(2, 3)).shape
        torch.Size([])
    """
    fake_score = call(discriminator, call(generator, noise, labels), labels)
    real_score = call(discriminator, real, labels)
    loss = F.softplus(-(fake_score - real_score)).mean()
    descend(optimizer, loss, generator)
    return loss.detach()
