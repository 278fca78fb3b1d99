"""R3GAN: Huang et al. 2025, arXiv 2501.05441, section 4 and appendix.

Both networks are pyramids of residual blocks without norms:

    block         x + conv3(act(conv2(act(conv1(x)))))      1x1, 3x3 in groups of 16, 1x1
    transition    bilinear resampling by 2, and a 1x1 convolution if the width changes

act is a leaky ReLU of slope 0.2. The generator starts from a learned 4x4 map with channels scaled
by z; the discriminator ends in a 4x4 depthwise convolution and a linear layer. Trained with the
relativistic loss, R1 and R2 (:func:`fastgan.discriminator_loss`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastgan.models.base import ImageDiscriminator, ImageGenerator
from fastgan.models.initialisation import keep_channels_last
from fastgan.nn import FusedSequential

__all__ = ["R3GANDiscriminator", "R3GANGenerator"]

#: Residual blocks at each image size.
BLOCKS = 2
#: Ratio of the 3x3 convolution's width to the block's.
EXPANSION = 2
#: Channels per group of the 3x3 convolution.
GROUP = 16
#: Ratio of the widest map's channels to the full-size map's.
WIDEST = 8
#: Length of a label's embedding.
EMBEDDING = 64


def widths(width: int, image_size: int) -> list[int]:
    """Channels at 4x4, 8x8, ..., image_size: doubled from ``width`` downwards, at most eightfold.

    Example:
        >>> widths(64, 64)
        [512, 512, 256, 128, 64]
    """
    return [width * min(WIDEST, image_size >> k) for k in range(2, image_size.bit_length())]


class _Block(nn.Module):
    """x + conv3(act(conv2(act(conv1(x))))), with the last convolution initially zero."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        hidden = EXPANSION * channels
        groups = hidden // math.gcd(hidden, GROUP)
        # Zhang et al. 2019, arXiv 1901.09321 (Fixup): blocks ** (-1 / (2 m - 2)), m = 3 layers.
        gain = nn.init.calculate_gain("leaky_relu", 0.2) * blocks**-0.25
        self.conv1 = _drawn(nn.Conv2d(channels, hidden, 1), gain)
        self.conv2 = _drawn(nn.Conv2d(hidden, hidden, 3, padding=1, groups=groups), gain)
        self.conv3 = _drawn(nn.Conv2d(hidden, channels, 1, bias=False), 0.0)
        self.act = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        return x + h


def _drawn(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """A convolution or linear layer with weights from N(0, gain^2 / fan_in) and biases 0."""
    for name, value in layer.named_parameters():
        std = gain / math.sqrt(value.numel() // len(value)) if name == "weight" else 0.0
        nn.init.normal_(value, 0.0, std)
    return layer


def _resized(channels: int, out: int, *, up: bool) -> list[nn.Module]:
    """A transition: the 1x1 convolution runs at the smaller of both sizes."""
    change = [] if channels == out else [_drawn(nn.Conv2d(channels, out, 1, bias=False))]
    if up:
        return [*change, nn.Upsample(scale_factor=2, mode="bilinear")]
    return [nn.AvgPool2d(2), *change]


class _Basis(nn.Module):
    """(N, nz) -> (N, C, 4, 4): a learned map with channels scaled by W z."""

    def __init__(self, nz: int, channels: int) -> None:
        super().__init__()
        self.basis = nn.Parameter(torch.empty(channels, 4, 4).normal_())
        self.linear = _drawn(nn.Linear(nz, channels, bias=False))

    def forward(self, z: Tensor) -> Tensor:
        scales: Tensor = self.linear(z)
        maps = scales[:, :, None, None] * self.basis
        return maps.contiguous(memory_format=torch.channels_last)


class R3GANGenerator(ImageGenerator):
    """G(z), or G(z|y), R3GAN's; a conditional one concatenates an embedding of the label to z.

    Args:
        nz: length of the noise vector.
        ngf: channels of the full-size map; doubled at each smaller size, up to ``8 * ngf``.
        nc: image channels.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> import torch
        >>> R3GANGenerator(nz=8, ngf=4, nc=3, image_size=32)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
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
        super().__init__(image_size, num_classes, nz=nz, ngf=ngf, nc=nc)
        channels = widths(ngf, image_size)
        length = nz
        if num_classes is not None:
            self.embedding = _drawn(nn.Linear(num_classes, EMBEDDING, bias=False))
            length += EMBEDDING
        layers: list[nn.Module] = [_Basis(length, channels[0])]
        for index, width in enumerate(channels):
            if index:
                layers += _resized(channels[index - 1], width, up=True)
            layers += [_Block(width, BLOCKS * len(channels)) for _ in range(BLOCKS)]
        layers.append(_drawn(nn.Conv2d(ngf, nc, 1, bias=False)))
        self.main = FusedSequential(*layers)
        keep_channels_last(self)

    def _images(self, z: Tensor, classes: Tensor | None) -> Tensor:
        if classes is not None:
            z = torch.cat([z, self.embedding(classes).to(z.dtype)], 1)
        images: Tensor = self.main(z)
        return images


class R3GANDiscriminator(ImageDiscriminator):
    """f(x), or f(x|y), R3GAN's; a conditional one projects its features on the label's embedding.

    Args:
        nc: image channels.
        ndf: channels of the full-size map; doubled at each smaller size, up to ``8 * ndf``.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> import torch
        >>> R3GANDiscriminator(nc=3, ndf=4, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
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
        super().__init__(image_size, num_classes, nc=nc, ndf=ndf)
        channels = widths(ndf, image_size)[::-1]
        layers = [_drawn(nn.Conv2d(nc, ndf, 1, bias=False))]
        for index, width in enumerate(channels):
            if index:
                layers += _resized(channels[index - 1], width, up=False)
            layers += [_Block(width, BLOCKS * len(channels)) for _ in range(BLOCKS)]
        outputs = 1 if num_classes is None else EMBEDDING
        last = channels[-1]
        layers += [
            _drawn(nn.Conv2d(last, last, 4, groups=last, bias=False)),
            nn.Flatten(),
            _drawn(nn.Linear(last, outputs, bias=False)),
        ]
        self.main = FusedSequential(*layers)
        if num_classes is not None:
            self.embedding = _drawn(nn.Linear(num_classes, EMBEDDING, bias=False))
        keep_channels_last(self)

    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        features: Tensor = self.main(images)
        if classes is not None:
            features = (features * self.embedding(classes)).sum(1)
        return features.view(-1)
