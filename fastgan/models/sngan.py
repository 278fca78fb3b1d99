"""SNGAN: Miyato et al. 2018, arXiv 1802.05957, and its projection, arXiv 1802.05637.

Residual blocks with the activation before each 3x3 convolution; the generator's have batch norm,
per class if it is conditional, and the discriminator has spectral norm:

    up      x -> conv2(relu(norm2(conv1(up(relu(norm1(x))))))) + up(shortcut(x))
    down    x -> pool(conv2(relu(conv1(relu(x))))) + shortcut(pool(x))

A 1x1 shortcut commutes with nearest upsampling and with average pooling, and runs at the smaller
size. Widths and depths at 128 pixels are from the paper's table 5. Trained with the hinge loss.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from fastgan.models.base import ImageDiscriminator, ImageGenerator
from fastgan.models.initialisation import keep_channels_last
from fastgan.nn.recorder import run_recorded
from fastgan.nn.spectral_norm import spectral_norm

__all__ = ["ClassBatchNorm2d", "DownBlock", "SNGANDiscriminator", "SNGANGenerator", "UpBlock"]


class ClassBatchNorm2d(nn.Module):
    """Batch norm with scale 1 + A y and shift B y for each sample's vector y.

    Args:
        channels: C.
        features: length of y.

    Shape:
        x (N, C, H, W), y (N, features) -> (N, C, H, W). A and B are initially zero.

    Example:
        >>> norm = ClassBatchNorm2d(4, 3)
        >>> norm(torch.randn(2, 4, 8, 8), torch.eye(3)[[0, 2]]).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.scale = nn.Linear(features, channels, bias=False)
        self.shift = nn.Linear(features, channels, bias=False)
        nn.init.zeros_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The normalised map."""
        scale, shift = 1 + self.scale(y), self.shift(y)
        return torch.addcmul(
            shift[:, :, None, None].to(x.dtype),
            self.norm(x),
            scale[:, :, None, None].to(x.dtype),
        )


class UpBlock(nn.Module):
    """A generator's residual block, which doubles the size.

    Args:
        channels: of the input.
        out: channels of the output.
        features: length of the vector that scales and shifts the norms; 0 for plain batch norm.
    """

    def __init__(self, channels: int, out: int, features: int = 0) -> None:
        super().__init__()
        self.norm1 = _norm(channels, features)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.norm2 = _norm(out, features)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1)
        self.up = nn.Upsample(scale_factor=2)
        self.act = nn.ReLU()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(N, channels, H, W), and (N, features) -> (N, out, 2 H, 2 W)."""
        condition = () if y is None else (y,)
        h = self.conv1(self.up(self.act(self.norm1(x, *condition))))
        h = self.conv2(self.act(self.norm2(h, *condition)))
        output: Tensor = h + self.up(self.shortcut(x))
        return output


class DownBlock(nn.Module):
    """A discriminator's residual block.

    Args:
        channels: of the input.
        out: channels of the output.
        first: whether it is the network's first: no activation before the first convolution.
        down: whether it halves the size.
    """

    def __init__(self, channels: int, out: int, *, first: bool = False, down: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, out, 1) if down or channels != out else nn.Identity()
        self.pool = nn.AvgPool2d(2) if down else nn.Identity()
        self.before = nn.Identity() if first else nn.ReLU()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H / 2, W / 2), or the same size."""
        h = self.pool(self.conv2(self.act(self.conv1(self.before(x)))))
        output: Tensor = h + self.shortcut(self.pool(x))
        return output


def _norm(channels: int, features: int) -> nn.Module:
    return ClassBatchNorm2d(channels, features) if features else nn.BatchNorm2d(channels)


def glorot_init(network: nn.Module) -> None:
    """Weights from Glorot's uniform, times 2^(1/2) before a ReLU or a sum; biases 0."""
    for name, module in network.named_modules():
        inner = name.endswith(("conv1", "conv2"))
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not name.endswith(("scale", "shift")):
            nn.init.xavier_uniform_(module.weight, 2**0.5 if inner else 1.0)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class SNGANGenerator(ImageGenerator):
    """G(z), or G(z|y) with batch norms scaled and shifted per class.

    Args:
        nz: length of the noise vector.
        ngf: channels of the full-size map; doubled at each smaller size down to 8x8.
        nc: image channels.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> SNGANGenerator(nz=8, ngf=4, nc=3, image_size=32)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
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
        super().__init__(image_size, num_classes, nz=nz, ngf=ngf, nc=nc)
        self._build([ngf * (image_size >> k) for k in range(3, image_size.bit_length())])
        keep_channels_last(self)

    def _build(self, widths: list[int]) -> None:
        """Makes the layers, from the channels at 8x8, 16x16, ..."""
        self.linear = nn.Linear(self.nz, 16 * widths[0])
        self.blocks = nn.ModuleList(
            UpBlock(channels, out, self.num_classes or 0)
            for channels, out in zip([widths[0], *widths], widths, strict=False)
        )
        self.norm = nn.BatchNorm2d(self.ngf)
        self.conv = nn.Conv2d(self.ngf, self.nc, 3, padding=1)
        glorot_init(self)

    def _images(self, z: Tensor, classes: Tensor | None) -> Tensor:
        images: Tensor = run_recorded(self, self._drawn, (z, classes), {})
        return images

    def _drawn(self, z: Tensor, classes: Tensor | None) -> Tensor:
        x = self.linear(z).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x, classes)
        return torch.tanh(self.conv(torch.relu(self.norm(x))))


class SNGANDiscriminator(ImageDiscriminator):
    """f(x), or f(x|y) by projection: w . h + b + e_y . h, all weights with spectral norm.

    Args:
        nc: image channels.
        ndf: channels of the map of half the image's size; doubled at each smaller size to 4x4.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> SNGANDiscriminator(nc=3, ndf=4, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
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
        self._build([ndf << k for k in range(image_size.bit_length() - 3)])
        keep_channels_last(self)
        spectral_norm(self)

    def _build(self, widths: list[int]) -> None:
        """Makes the layers, from the channels at half the image's size, a quarter, ..., 4x4."""
        last = widths[-1]
        self.blocks = nn.Sequential(
            DownBlock(self.nc, widths[0], first=True),
            *(DownBlock(*pair) for pair in itertools.pairwise(widths)),
            DownBlock(last, last, down=False),
            nn.ReLU(),
        )
        self.linear = nn.Linear(last, 1)
        if self.num_classes is not None:
            self.embedding = nn.Linear(self.num_classes, last, bias=False)
        glorot_init(self)

    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        scores: Tensor = run_recorded(self, self._judged, (images, classes), {})
        return scores

    def _judged(self, images: Tensor, classes: Tensor | None) -> Tensor:
        features = self.blocks(images).sum((2, 3))
        scores: Tensor = self.linear(features).view(-1)
        if classes is not None:
            scores = scores + (self.embedding(classes) * features).sum(1)
        return scores
