"""Critics in third-party style: plain modules, from image to scores, in a few lines each.

==================  ============================================================================
critic              as in
==================  ============================================================================
``WideCritic``      Radford et al. 2015, arXiv 1511.06434; Gulrajani et al. 2017, arXiv 1704.00028:
                    5x5 convolutions with stride 2
``ResNetCritic``    the same paper's residual blocks; Miyato et al. 2018, arXiv 1802.05957, table 4
``SpectralCritic``  Miyato et al., table 3: 3x3 and 4x4 convolutions by turns, spectral norm
``PatchCritic``     Isola et al. 2017, arXiv 1611.07004; Zhu et al. 2017, arXiv 1703.10593: a map of
                    scores, instance norm
``BatchNormCritic`` Radford et al., with 4x4 kernels and batch norm, in training mode
``AttentionCritic`` Zhang et al. 2018, arXiv 1805.08318: self-attention, spectral norm
``StddevCritic``    Karras et al. 2018, arXiv 1710.10196: weights scaled in the forward, and the
                    batch's standard deviation as one more map
``GroupedCritic``   Huang et al. 2024, arXiv 2501.05441 (R3GAN): residual blocks of grouped
                    convolutions, biases and leaky ReLU, no norm
==================  ============================================================================

Some have fewer channels than in the papers, whose iterations would take seconds on two cores.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class WideCritic(nn.Module):
    """(N, 3, 64, 64) -> (N,)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, 5, 2, 2)
        self.conv2 = nn.Conv2d(channels, 2 * channels, 5, 2, 2)
        self.conv3 = nn.Conv2d(2 * channels, 4 * channels, 5, 2, 2)
        self.conv4 = nn.Conv2d(4 * channels, 8 * channels, 5, 2, 2)
        self.output = nn.Linear(4 * 4 * 8 * channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        h = F.leaky_relu(self.conv1(images), 0.2)
        h = F.leaky_relu(self.conv2(h), 0.2)
        h = F.leaky_relu(self.conv3(h), 0.2)
        h = F.leaky_relu(self.conv4(h), 0.2)
        return cast(Tensor, self.output(h.flatten(1))).view(-1)


class _ResidualBlock(nn.Module):
    """Halves the map; the first block of a critic has no activation on the images."""

    def __init__(self, channels_in: int, channels_out: int, *, first: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else F.relu(x))
        h = F.avg_pool2d(self.conv2(F.relu(h)), 2)
        return cast(Tensor, h + self.shortcut(F.avg_pool2d(x, 2)))


class ResNetCritic(nn.Module):
    """(N, 3, 64, 64) -> (N, 1)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _ResidualBlock(3, channels, first=True),
            _ResidualBlock(channels, 2 * channels),
            _ResidualBlock(2 * channels, 4 * channels),
            _ResidualBlock(4 * channels, 8 * channels),
        )
        self.output = nn.Linear(8 * channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        h = F.relu(self.blocks(images)).sum(dim=(2, 3))
        return cast(Tensor, self.output(h))


class SpectralCritic(nn.Module):
    """(N, 3, 32, 32) -> (N, 1)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for width in (channels, 2 * channels, 4 * channels):
            layers += [spectral_norm(nn.Conv2d(last, width, 3, 1, 1)), nn.LeakyReLU(0.1)]
            layers += [spectral_norm(nn.Conv2d(width, width, 4, 2, 1)), nn.LeakyReLU(0.1)]
            last = width
        layers += [spectral_norm(nn.Conv2d(last, 2 * last, 3, 1, 1)), nn.LeakyReLU(0.1)]
        self.layers = nn.Sequential(*layers)
        self.output = spectral_norm(nn.Linear(4 * 4 * 2 * last, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return cast(Tensor, self.output(self.layers(images).flatten(1)))


class PatchCritic(nn.Module):
    """(N, 3, 64, 64) -> (N, 1, 6, 6)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        for number, stride in enumerate((2, 2, 1)):
            width = channels << number
            layers += [
                nn.Conv2d(width, 2 * width, 4, stride, 1),
                nn.InstanceNorm2d(2 * width),
                nn.LeakyReLU(0.2, True),
            ]
        self.model = nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 4, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """A map of scores."""
        return cast(Tensor, self.model(images))


class BatchNormCritic(nn.Module):
    """(N, 3, 64, 64) -> (N,)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for width in (channels, 2 * channels, 4 * channels):
            layers += [
                nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(8 * channels, 1, 4, 1, 0, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return cast(Tensor, self.main(images)).view(-1)


class _SelfAttention(nn.Module):
    """x + gamma * attention over all positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = spectral_norm(nn.Conv2d(channels, channels // 8, 1))
        self.key = spectral_norm(nn.Conv2d(channels, channels // 8, 1))
        self.value = spectral_norm(nn.Conv2d(channels, channels, 1))
        # Initially zero in the paper; here nonzero, as after some training, so that gradients flow.
        self.gamma = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        query = self.query(x).view(n, -1, height * width).permute(0, 2, 1)
        key = self.key(x).view(n, -1, height * width)
        attention = F.softmax(torch.bmm(query, key), dim=-1)
        value = self.value(x).view(n, -1, height * width)
        taken = torch.bmm(value, attention.permute(0, 2, 1)).view(n, c, height, width)
        return self.gamma * taken + x


class AttentionCritic(nn.Module):
    """(N, 3, 64, 64) -> (N,)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for width in (channels, 2 * channels, 4 * channels, 8 * channels):
            layers += [spectral_norm(nn.Conv2d(last, width, 4, 2, 1)), nn.LeakyReLU(0.1)]
            if width == 2 * channels:
                layers.append(_SelfAttention(width))
            last = width
        self.layers = nn.Sequential(*layers, spectral_norm(nn.Conv2d(last, 1, 4)))

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return cast(Tensor, self.layers(images)).view(-1)


class _EqualConv2d(nn.Module):
    """Weights of variance 1, scaled as He et al. would draw them in each forward."""

    def __init__(self, channels_in: int, channels_out: int, size: int, padding: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels_out, channels_in, size, size))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.scale = (2 / (channels_in * size * size)) ** 0.5
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class _MinibatchStddev(nn.Module):
    """Appends the standard deviation within groups of 4 samples, averaged over all else."""

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        groups = x.view(4, n // 4, *x.shape[1:])
        deviation = torch.sqrt(groups.var(0, unbiased=False) + 1e-8)
        mean = deviation.mean(dim=(1, 2, 3), keepdim=True)
        return torch.cat([x, mean.repeat(4, 1, height, width)], 1)


class StddevCritic(nn.Module):
    """(N, 3, 32, 32) -> (N, 1), N a multiple of 4."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [_EqualConv2d(3, channels, 1, 0), nn.LeakyReLU(0.2)]
        for width in (channels, 2 * channels, 4 * channels):
            layers += [_EqualConv2d(width, width, 3, 1), nn.LeakyReLU(0.2)]
            layers += [_EqualConv2d(width, 2 * width, 3, 1), nn.LeakyReLU(0.2), nn.AvgPool2d(2)]
        width = 8 * channels
        layers += [_MinibatchStddev(), _EqualConv2d(width + 1, width, 3, 1), nn.LeakyReLU(0.2)]
        layers += [_EqualConv2d(width, width, 4, 0), nn.LeakyReLU(0.2), nn.Flatten()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return cast(Tensor, self.layers(images))


class _BiasedActivation(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x + self.bias.view(1, -1, 1, 1), 0.2)


class _GroupedBlock(nn.Module):
    """1x1 to twice the channels, 3x3 in groups of 16, 1x1 back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = 2 * channels
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=inner // 16, bias=False)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.act1 = _BiasedActivation(inner)
        self.act2 = _BiasedActivation(inner)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.act1(self.conv1(x)))
        return cast(Tensor, x + self.conv3(self.act2(h)))


class GroupedCritic(nn.Module):
    """(N, 3, 32, 32) -> (N,)."""

    def __init__(self, channels: int = 48) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 1)]
        for width in (channels, 2 * channels, 4 * channels):
            layers += [_GroupedBlock(width), _GroupedBlock(width)]
            layers += [nn.AvgPool2d(2), nn.Conv2d(width, 2 * width, 1, bias=False)]
        width = 8 * channels
        layers += [_GroupedBlock(width), nn.Conv2d(width, width, 4, groups=width, bias=False)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, 1))

    def forward(self, images: Tensor) -> Tensor:
        """The scores."""
        return cast(Tensor, self.layers(images)).view(-1)
