"""pix2pix: Isola et al. 2017, arXiv 1611.07004.

    L_D = (-E[log D(a, b)] - E[log(1 - D(a, G(a)))]) / 2        section 3.3: halved
    L_G = -E[log D(a, G(a))] + lambda E[||b - G(a)||_1]         equation 4, lambda = 100

D scores patches (PatchGAN, appendix 6.1.2), G is a U-Net (appendix 6.1.1). The norm is instance
norm, which is batch norm with batches of one image.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.reference.gan import descend


def norm_layer(norm: str, channels: int) -> nn.Module:
    """Instance norm or batch norm, with a scale and a shift per channel."""
    if norm == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.BatchNorm2d(channels)


def draw_weights(network: nn.Module) -> None:
    """Convolutions' weights from N(0, 0.02), batch norms' from N(1, 0.02)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.02)


class UNetGenerator(nn.Module):
    """G(a).

    Args:
        nc: image channels.
        ngf: channels at half size.
        image_size: a power of two, 16 or more.
        norm: "instance" or "batch".

    Shapes: images (N, nc, image_size, image_size), likewise out, in [-1, 1].

    Example:
        >>> UNetGenerator(nc=1, ngf=2, image_size=16)(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self, nc: int = 3, ngf: int = 64, image_size: int = 256, norm: str = "instance"
    ) -> None:
        super().__init__()
        # Encoder: C64-C128-C256-C512-C512-... until the map is one pixel, which has no norm.
        self.down = nn.ModuleList([nn.Conv2d(nc, ngf, 4, 2, 1)])
        width, size = ngf, image_size // 2
        encoder = [width]
        while size > 1:
            wider = min(2 * width, 8 * ngf)
            size //= 2
            conv = nn.Conv2d(width, wider, 4, 2, 1, bias=size == 1)
            layers = [nn.LeakyReLU(0.2), conv]
            if size > 1:
                layers.append(norm_layer(norm, wider))
            self.down.append(nn.Sequential(*layers))
            encoder.append(wider)
            width = wider
        # Decoder: CD512-CD512-CD512-C512-C256-..., each on top of the encoder's map of its size.
        self.up = nn.ModuleList()
        channels = encoder.pop()
        for out in reversed(encoder):
            layers = [
                nn.ReLU(),
                nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False),
                norm_layer(norm, out),
            ]
            if len(self.up) < 3 and out == 8 * ngf:
                layers.append(nn.Dropout(0.5))
            self.up.append(nn.Sequential(*layers))
            channels = 2 * out
        self.up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(channels, nc, 4, 2, 1)))
        draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """G(a)."""
        encoded = [images]
        for layer in self.down:
            encoded.append(layer(encoded[-1]))
        x = encoded[-1]
        for number, layer in enumerate(self.up):
            if number > 0:
                x = torch.cat([x, encoded[-1 - number]], 1)
            x = layer(x)
        return torch.tanh(x)


class PatchDiscriminator(nn.Module):
    """D(x), a logit or score for each patch.

    Args:
        nc: image channels; pix2pix's are those of a and of b.
        ndf: channels at half size.
        image_size: a power of two, 16 or more; at 64 and more patches are 70x70 pixels, at 32
            34x34, at 16 16x16.
        norm: "instance" or "batch".

    Shapes: images (N, nc, image_size, image_size) -> (N, 1, H, W).

    Example:
        >>> PatchDiscriminator(nc=1, ndf=2, image_size=64)(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self, nc: int = 3, ndf: int = 64, image_size: int = 256, norm: str = "instance"
    ) -> None:
        super().__init__()
        # C64-C128-C256-C512 with strides 2, 2, 2, 1, then one channel.
        widths = {16: [1, 2], 32: [1, 2, 4]}.get(image_size, [1, 2, 4, 8])
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2)]
        for narrow, wide in itertools.pairwise(widths):
            stride = 1 if wide == widths[-1] else 2
            layers.append(nn.Conv2d(ndf * narrow, ndf * wide, 4, stride, 1, bias=False))
            layers.append(norm_layer(norm, ndf * wide))
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv2d(ndf * widths[-1], 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)
        draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """D(x)."""
        scores: Tensor = self.main(images)
        return scores


class TranslationStep(NamedTuple):
    """What an update of both players saw, before each; detached scalars."""

    loss_d: Tensor
    """L_D, of CycleGAN the sum of both."""
    loss_g: Tensor
    """L_G."""


def pix2pix_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizer_g: torch.optim.Optimizer,
    optimizer_d: torch.optim.Optimizer,
    a: Tensor,
    b: Tensor,
    *,
    l1: float = 100.0,
) -> TranslationStep:
    """Descends L_D, then L_G on the same translations.

    Args:
        generator: G.
        discriminator: D, which returns logits.
        optimizer_g: of the generator's parameters.
        optimizer_d: of the discriminator's.
        a: images (N, C, H, W).
        b: what they are to become.
        l1: lambda.

    Example:
        >>> G, D = UNetGenerator(1, 2, 16), PatchDiscriminator(2, 2, 16)
        >>> step = pix2pix_step(G, D, torch.optim.Adam(G.parameters()),
        ...                     torch.optim.Adam(D.parameters()),
        ...                     torch.zeros(2, 1, 16, 16), torch.ones(2, 1, 16, 16))
        >>> step._fields
        ('loss_d', 'loss_g')
    """
    fake = generator(a)

    real_logits = discriminator(torch.cat([a, b], 1))
    fake_logits = discriminator(torch.cat([a, fake.detach()], 1))
    loss_d = -F.logsigmoid(real_logits).mean() / 2 - F.logsigmoid(-fake_logits).mean() / 2
    descend(optimizer_d, loss_d)
    fake_logits = discriminator(torch.cat([a, fake], 1))
    loss_g = -F.logsigmoid(fake_logits).mean() + l1 * (b - fake).abs().mean()
    descend(optimizer_g, loss_g, generator)
    return TranslationStep(loss_d.detach(), loss_g.detach())
