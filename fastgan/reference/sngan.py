"""SNGAN: Miyato et al. 2018, arXiv 1802.05957; conditional: Miyato and Koyama 2018, 1802.05637.

Residual networks of the paper's tables 4 and 5, with spectral norm (torch's own) on all of the
discriminator's weights. The hinge loss, equations 16 and 17:

    L_D = E[max(0, 1 - D(x))] + E[max(0, 1 + D(G(z)))]
    L_G = -E[D(G(z))]

Conditional: the generator's batch norms have a scale and a shift per class, and the discriminator
adds the inner product of the class's embedding with its features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastgan.reference.conditional import call
from fastgan.reference.gan import descend


class ClassBatchNorm2d(nn.Module):
    """Batch norm, then scale 1 + A y and shift B y of a vector y."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Linear(features, channels, bias=False)
        self.shift = nn.Linear(features, channels, bias=False)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The normalised map."""
        scale = self.scale(y)[:, :, None, None]
        shift = self.shift(y)[:, :, None, None]
        output: Tensor = self.norm(x) * (1 + scale) + shift
        return output


class UpBlock(nn.Module):
    """conv2(relu(norm2(conv1(up(relu(norm1 x)))))) + shortcut(up(x))."""

    def __init__(self, channels: int, out: int, features: int = 0) -> None:
        super().__init__()
        self.conditional = features > 0
        norm: Any = ClassBatchNorm2d if features else lambda width, _: nn.BatchNorm2d(width)
        self.norm1 = norm(channels, features)
        self.conv1 = nn.Conv2d(channels, out, 3, 1, 1)
        self.norm2 = norm(out, features)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The block's output."""
        given = (y,) if self.conditional else ()
        h = F.relu(self.norm1(x, *given))
        h = self.conv1(F.interpolate(h, scale_factor=2))
        h = self.conv2(F.relu(self.norm2(h, *given)))
        output: Tensor = h + self.shortcut(F.interpolate(x, scale_factor=2))
        return output


class DownBlock(nn.Module):
    """pool(conv2(relu(conv1(relu x)))) + pool(shortcut(x)); the first block has no outer relu."""

    def __init__(self, channels: int, out: int, *, first: bool = False, down: bool = True) -> None:
        super().__init__()
        self.first = first
        self.down = down
        self.conv1 = nn.Conv2d(channels, out, 3, 1, 1)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1)
        self.shortcut = nn.Conv2d(channels, out, 1) if down else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        h = x if self.first else F.relu(x)
        h = self.conv2(F.relu(self.conv1(h)))
        output: Tensor = h + self.shortcut(x)
        return F.avg_pool2d(output, 2) if self.down else output


def glorot_init(network: nn.Module) -> None:
    """Glorot's uniform, with a gain of sqrt 2 inside of residual blocks."""
    for name, module in network.named_modules():
        if (
            isinstance(module, nn.Conv2d | nn.Linear)
            and "scale" not in name
            and "shift" not in name
        ):
            inside = "conv1" in name or "conv2" in name
            nn.init.xavier_uniform_(module.weight, 2**0.5 if inside else 1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def normalise_spectra(network: nn.Module) -> None:
    """torch's spectral norm on every convolution and linear layer."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            spectral_norm(module)


class SNGANGenerator(nn.Module):
    """G(z), or G(z|y).

    Args:
        nz: length of the noise vector.
        ngf: channels at full size.
        nc: image channels.
        image_size: a power of two, 16 or more.
        num_classes: None, or the number of labels the generator is conditioned on.

    Shapes: z (N, nz) or (N, nz, 1, 1), labels int64 (N,) -> (N, nc, image_size, image_size),
    in [-1, 1].

    Example:
        >>> SNGANGenerator(nz=5, ngf=2, nc=3, image_size=16)(torch.zeros(2, 5)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        nz: int = 128,
        ngf: int = 64,
        nc: int = 3,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        last = ngf * image_size // 8
        self.linear = nn.Linear(nz, last * 4 * 4)
        self.blocks = nn.ModuleList()
        size = 8
        while size <= image_size:
            width = ngf * image_size // size
            self.blocks.append(UpBlock(last, width, num_classes or 0))
            last, size = width, 2 * size
        self.norm = nn.BatchNorm2d(ngf)
        self.conv = nn.Conv2d(ngf, nc, 3, 1, 1)
        glorot_init(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z), or G(z|y)."""
        y = None
        if self.num_classes is not None and labels is not None:
            y = F.one_hot(labels, self.num_classes).to(z.dtype)
        x = self.linear(z.flatten(1)).view(len(z), -1, 4, 4)
        for block in self.blocks:
            x = block(x, y)
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class SNGANDiscriminator(nn.Module):
    """D(x), or D(x|y).

    Args:
        nc: image channels.
        ndf: channels at half the image's size.
        image_size: a power of two, 16 or more.
        num_classes: None, or the number of labels the discriminator is conditioned on.

    Shapes: images (N, nc, image_size, image_size), labels int64 (N,) -> (N,).

    Example:
        >>> SNGANDiscriminator(nc=3, ndf=2, image_size=16)(torch.zeros(2, 3, 16, 16)).shape
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
        self.blocks = nn.Sequential(DownBlock(nc, ndf, first=True))
        size, last = image_size // 2, ndf
        while size > 4:
            self.blocks.append(DownBlock(last, 2 * last))
            size, last = size // 2, 2 * last
        self.blocks.append(DownBlock(last, last, down=False))
        self.blocks.append(nn.ReLU())
        self.linear = nn.Linear(last, 1)
        if num_classes is not None:
            self.embedding = nn.Linear(num_classes, last, bias=False)
        self.finish(ndf)
        normalise_spectra(self)

    def finish(self, ndf: int) -> None:
        """Draws the weights."""
        glorot_init(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x), or D(x|y)."""
        h = self.blocks(images).sum((2, 3))
        scores: Tensor = self.linear(h).squeeze(1)
        if self.num_classes is not None and labels is not None:
            y = F.one_hot(labels, self.num_classes).to(h.dtype)
            scores = scores + (self.embedding(y) * h).sum(1)
        return scores


class SNGANDiscriminatorStep(NamedTuple):
    """What a discriminator step saw, before its update; detached scalars."""

    loss: Tensor
    """L_D."""
    real_score: Tensor
    """mean D(x)."""
    fake_score: Tensor
    """mean D(G(z))."""


def hinge_discriminator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    noise: Tensor,
    *,
    labels: Tensor | None = None,
) -> SNGANDiscriminatorStep:
    """Descends L_D in the discriminator's parameters, seeing the real images first.

    Args:
        generator: G, left as it is but for its norms' running statistics.
        discriminator: D.
        optimizer: of the discriminator's parameters.
        real: x, (N, C, H, W).
        noise: z, the generator's input, (N, ...).
        labels: None, or int64 (N,), of both real and generated images.

    Returns:
        Loss and scores from before the update, detached.

    Example:
        >>> G, D = SNGANGenerator(3, 2, 1, 16), SNGANDiscriminator(1, 2, 16)
        >>> step = hinge_discriminator_step(G, D, torch.optim.Adam(D.parameters()),
        ...                                 torch.zeros(2, 1, 16, 16), torch.zeros(2, 3))
        >>> step._fields
        ('loss', 'real_score', 'fake_score')
    """
    with torch.no_grad():
        fake = call(generator, noise, labels)
    real_score = call(discriminator, real, labels)
    fake_score = call(discriminator, fake, labels)
    loss = (1 - real_score).clamp(min=0).mean() + (1 + fake_score).clamp(min=0).mean()
    descend(optimizer, loss)
    return SNGANDiscriminatorStep(
        loss.detach(), real_score.detach().mean(), fake_score.detach().mean()
    )


def hinge_generator_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    *,
    labels: Tensor | None = None,
    orthogonal: float = 0.0,
) -> Tensor:
    """Descends L_G, and BigGAN's orthogonal regularisation, in the generator's parameters.

    Args:
        generator: G.
        discriminator: D; no gradient is added to its parameters.
        optimizer: of the generator's parameters.
        noise: z, the generator's input, (N, ...).
        labels: None, or int64 (N,).
        orthogonal: beta of BigGAN's equation 3: adds beta sum ||W W^T * (1 - I)||^2 over the
            weights W, a row for each output, the labels' embedding excepted.

    Returns:
        L_G from before the update, a detached scalar.

    Example:
        >>> G, D = SNGANGenerator(3, 2, 1, 16), SNGANDiscriminator(1, 2, 16)
        >>> hinge_generator_step(G, D, torch.optim.Adam(G.parameters()), torch.zeros(2, 3)).shape
        torch.Size([])
    """
    loss = -call(discriminator, call(generator, noise, labels), labels).mean()
    total = loss
    for name, parameter in generator.named_parameters():
        if orthogonal and parameter.dim() > 1 and not name.startswith("embedding"):
            rows = parameter.flatten(1)
            others = 1 - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
            total = total + orthogonal * (rows @ rows.T * others).square().sum()
    descend(optimizer, total, generator)
    return loss.detach()
