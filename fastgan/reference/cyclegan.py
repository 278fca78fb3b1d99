"""CycleGAN: Zhu et al. 2017, arXiv 1703.10593.

With G: A -> B and F: B -> A, section 3 with the squares of section 4:

    L_D_B = (E[(D_B(b) - 1)^2] + E[D_B(G(a))^2]) / 2, and L_D_A likewise, halved as in appendix 7.1
    L_GF  = E[(D_B(G(a)) - 1)^2] + E[(D_A(F(b)) - 1)^2]
            + lambda (E[||F(G(a)) - a||_1] + E[||G(F(b)) - b||_1])               lambda = 10
            + lambda / 2 (E[||G(b) - b||_1] + E[||F(a) - a||_1])                 section 5.2.2

The discriminators see translations by way of a pool of the last 50 (Shrivastava et al. 2017, arXiv
1612.07828, section 2.3).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.reference.gan import descend
from fastgan.reference.pix2pix import PatchDiscriminator, TranslationStep, draw_weights


def norm_relu(channels: int) -> list[nn.Module]:
    """Instance norm and ReLU."""
    return [nn.InstanceNorm2d(channels, affine=True), nn.ReLU()]


class ResidualBlock(nn.Module):
    """R256: two 3x3 convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            *norm_relu(channels),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            nn.InstanceNorm2d(channels, affine=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        output: Tensor = self.main(x) + x
        return output


class ResNetGenerator(nn.Module):
    """G or F: c7s1-64, d128, d256, R256 six or nine times, u128, u64, c7s1-3.

    Args:
        nc: image channels.
        ngf: channels at full size.
        blocks: residual blocks.

    Shapes: images (N, nc, H, W), likewise out, in [-1, 1].

    Example:
        >>> ResNetGenerator(nc=1, ngf=2, blocks=1)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, nc: int = 3, ngf: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(nc, ngf, 7, bias=False),
            *norm_relu(ngf),
            nn.Conv2d(ngf, ngf * 2, 3, stride=2, padding=1, bias=False),
            *norm_relu(ngf * 2),
            nn.Conv2d(ngf * 2, ngf * 4, 3, stride=2, padding=1, bias=False),
            *norm_relu(ngf * 4),
            *[ResidualBlock(ngf * 4) for _ in range(blocks)],
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 3, 2, 1, output_padding=1, bias=False),
            *norm_relu(ngf * 2),
            nn.ConvTranspose2d(ngf * 2, ngf, 3, 2, 1, output_padding=1, bias=False),
            *norm_relu(ngf),
            nn.ReflectionPad2d(3),
            nn.Conv2d(ngf, nc, 7),
            nn.Tanh(),
        )
        draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """G(a), or F(b)."""
        output: Tensor = self.main(images)
        return output


class ImagePool:
    """The last translations of one generator.

    Args:
        size: how many.

    Example:
        >>> ImagePool(2).query(torch.ones(1, 1, 1, 1), torch.zeros(1), torch.zeros(2)).shape
        torch.Size([1, 1, 1, 1])
    """

    def __init__(self, size: int = 50) -> None:
        self.size = size
        self.images: list[Tensor] = []

    def query(self, images: Tensor, coins: Tensor, keys: Tensor) -> Tensor:
        """What a discriminator is shown for these translations.

        Args:
            images: (N, C, H, W), at most ``size``.
            coins: (N,); below 1/2 an image of a full pool is shown.
            keys: (size,): images that were in the pool before are replaced by growing keys.
        """
        before = len(self.images)
        taken = iter(sorted(range(before), key=lambda place: float(keys[place])))
        shown = []
        for image, coin in zip(images.detach(), coins.tolist(), strict=True):
            if len(self.images) < self.size:
                self.images.append(image)
                shown.append(image)
                continue
            place = next(taken)
            if coin < 0.5:
                shown.append(self.images[place])
                self.images[place] = image
            else:
                shown.append(image)
        return torch.stack(shown)


class CycleGANGenerator(nn.Module):
    """G and F, as ``a_to_b`` and ``b_to_a``; the arguments are :class:`ResNetGenerator`'s."""

    def __init__(self, nc: int = 3, ngf: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.a_to_b = ResNetGenerator(nc, ngf, blocks)
        self.b_to_a = ResNetGenerator(nc, ngf, blocks)


class CycleGANDiscriminator(nn.Module):
    """D_A and D_B, as ``a`` and ``b``; the arguments are :class:`PatchDiscriminator`'s."""

    def __init__(
        self, nc: int = 3, ndf: int = 64, image_size: int = 256, norm: str = "instance"
    ) -> None:
        super().__init__()
        self.a = PatchDiscriminator(nc, ndf, image_size, norm)
        self.b = PatchDiscriminator(nc, ndf, image_size, norm)


def cyclegan_step(
    generator: CycleGANGenerator,
    discriminator: CycleGANDiscriminator,
    optimizer_g: torch.optim.Optimizer,
    optimizer_d: torch.optim.Optimizer,
    a: Tensor,
    b: Tensor,
    *,
    pools: tuple[ImagePool, ImagePool],
    drawn: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]],
    cycle: float = 10.0,
    identity: float = 0.5,
) -> TranslationStep:
    """Descends L_D_A + L_D_B, then L_GF on the same translations.

    Args:
        generator: G and F.
        discriminator: D_A and D_B.
        optimizer_g: of both generators' parameters.
        optimizer_d: of both discriminators'.
        a: images (N, C, H, W).
        b: images (N, C, H, W), which need not belong to ``a``.
        pools: of translations into A and into B.
        drawn: coins and keys of each pool.
        cycle: lambda.
        identity: the last term's factor of lambda.

    Example:
        >>> G, D = CycleGANGenerator(1, 2, 1), CycleGANDiscriminator(1, 2, 16)
        >>> step = cyclegan_step(G, D, torch.optim.Adam(G.parameters()),
        ...                      torch.optim.Adam(D.parameters()),
        ...                      torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16),
        ...                      pools=(ImagePool(), ImagePool()),
        ...                      drawn=((torch.zeros(2), torch.zeros(50)),) * 2)
        >>> step._fields
        ('loss_d', 'loss_g')
    """
    fake_a, fake_b = generator.b_to_a(b), generator.a_to_b(a)

    loss_d = torch.zeros(())
    for critic, pool, numbers, real, fake in zip(
        (discriminator.a, discriminator.b), pools, drawn, (a, b), (fake_a, fake_b), strict=True
    ):
        shown = pool.query(fake, *numbers)
        loss_d = loss_d + (critic(real) - 1).square().mean() / 2 + critic(shown).square().mean() / 2
    descend(optimizer_d, loss_d)
    loss_g = (discriminator.a(fake_a) - 1).square().mean()
    loss_g = loss_g + (discriminator.b(fake_b) - 1).square().mean()
    loss_g = loss_g + cycle * (generator.b_to_a(fake_b) - a).abs().mean()
    loss_g = loss_g + cycle * (generator.a_to_b(fake_a) - b).abs().mean()
    if identity:
        loss_g = loss_g + cycle * identity * (generator.a_to_b(b) - b).abs().mean()
        loss_g = loss_g + cycle * identity * (generator.b_to_a(a) - a).abs().mean()
    descend(optimizer_g, loss_g, generator)
    return TranslationStep(loss_d.detach(), loss_g.detach())
