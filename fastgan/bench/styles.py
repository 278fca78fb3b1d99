"""Networks as other people write them: forwards by hand, in the styles of well-known repositories.

==================  ============================================================================
network             as in
==================  ============================================================================
``SnganGenerator``  Miyato et al. 2018, arXiv 1802.05957, table 4: norm and activation before each
                    convolution, upsampling in the block
``SnganCritic``     the same: spectral norm, pooling, activation before each convolution
``BigganGenerator`` Brock et al. 2019, arXiv 1809.11096: batch norm with a scale and shift per class
``UnetGenerator``   Isola et al. 2017, arXiv 1611.07004: skips by concatenation, instance norm
``CycleGenerator``  Zhu et al. 2017, arXiv 1703.10593: reflection padding, residual blocks
``DcganCritic``     Radford et al. 2016, arXiv 1511.06434, layer by layer, and ``view`` at the end
``MlpGenerator``    Goodfellow et al. 2014, arXiv 1406.2661: linear layers with batch norm
==================  ============================================================================

With ``ResNetCritic``, ``PatchCritic`` and ``GroupedCritic`` of :mod:`fastgan.bench.critics`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from fastgan.bench.critics import GroupedCritic, PatchCritic, ResNetCritic

__all__ = ["STYLES", "DcganCritic"]


class _Up(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.b1, self.b2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.c1, self.c2 = nn.Conv2d(channels, out, 3, 1, 1), nn.Conv2d(out, out, 3, 1, 1)
        self.c_sc = nn.Conv2d(channels, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.b1(x))
        h = self.c1(F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=False))
        h = self.c2(F.relu(self.b2(h)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        sum: Tensor = h + self.c_sc(x)
        return sum


class SnganGenerator(nn.Module):
    """(N, 128) -> (N, 3, 32, 32)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.l1 = nn.Linear(128, channels * 16)
        self.blocks = nn.ModuleList(_Up(channels, channels) for _ in range(3))
        self.b5, self.c5 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        """The images."""
        h = self.l1(z).view(z.shape[0], -1, 4, 4)
        for block in self.blocks:
            h = block(h)
        return torch.tanh(self.c5(F.relu(self.b5(h))))


class _Down(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.c1 = spectral_norm(nn.Conv2d(channels, out, 3, 1, 1))
        self.c2 = spectral_norm(nn.Conv2d(out, out, 3, 1, 1))
        self.c_sc = spectral_norm(nn.Conv2d(channels, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.c2(F.relu(self.c1(F.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.c_sc(x), 2)


class SnganCritic(nn.Module):
    """(N, 3, 32, 32) -> (N, 1)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Down(each, channels) for each in (3, channels, channels))
        self.l5 = spectral_norm(nn.Linear(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.l5(F.relu(x).sum((2, 3)))
        return scores


class _ClassNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain, self.bias = nn.Linear(32, channels), nn.Linear(32, channels)
        self.bn = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gain, bias = 1 + self.gain(y)[:, :, None, None], self.bias(y)[:, :, None, None]
        scaled: Tensor = self.bn(x) * gain + bias
        return scaled


class BigganGenerator(nn.Module):
    """(N, 32) -> (N, 3, 32, 32)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.linear = nn.Linear(32, channels * 16)
        self.norms = nn.ModuleList(_ClassNorm(channels) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(3))
        self.out_norm, self.out = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3, 3, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        """The images."""
        h = self.linear(z).view(len(z), -1, 4, 4)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(F.interpolate(F.relu(norm(h, z)), scale_factor=2))
        return torch.tanh(self.out(F.relu(self.out_norm(h))))


class UnetGenerator(nn.Module):
    """(N, 3, 32, 32) -> (N, 3, 32, 32)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        c = channels
        self.down1, self.down2 = nn.Conv2d(3, c, 4, 2, 1), nn.Conv2d(c, 2 * c, 4, 2, 1)
        self.down3 = nn.Conv2d(2 * c, 4 * c, 4, 2, 1)
        self.up3 = nn.ConvTranspose2d(4 * c, 2 * c, 4, 2, 1)
        self.up2 = nn.ConvTranspose2d(4 * c, c, 4, 2, 1)
        self.up1 = nn.ConvTranspose2d(2 * c, 3, 4, 2, 1)
        self.norms = nn.ModuleList(nn.InstanceNorm2d(n) for n in (2 * c, 2 * c, c))

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        d1 = F.leaky_relu(self.down1(x), 0.2)
        d2 = F.leaky_relu(self.norms[0](self.down2(d1)), 0.2)
        d3 = F.relu(self.down3(d2))
        u3 = torch.cat([F.relu(self.norms[1](self.up3(d3))), d2], 1)
        u2 = torch.cat([F.relu(self.norms[2](self.up2(u3))), d1], 1)
        return torch.tanh(self.up1(u2))


class CycleGenerator(nn.Module):
    """(N, 3, 32, 32) -> (N, 3, 32, 32)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        c = channels

        def block() -> list[nn.Module]:
            half = [nn.ReflectionPad2d(1), nn.Conv2d(4 * c, 4 * c, 3), nn.InstanceNorm2d(4 * c)]
            again = [nn.ReflectionPad2d(1), nn.Conv2d(4 * c, 4 * c, 3), nn.InstanceNorm2d(4 * c)]
            return [*half, nn.ReLU(inplace=True), *again]

        self.head = nn.Sequential(
            *[nn.ReflectionPad2d(3), nn.Conv2d(3, c, 7), nn.InstanceNorm2d(c), nn.ReLU(True)],
            *[nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU(True)],
            *[nn.Conv2d(2 * c, 4 * c, 3, 2, 1), nn.InstanceNorm2d(4 * c), nn.ReLU(True)],
        )
        self.blocks = nn.ModuleList(nn.Sequential(*block()) for _ in range(2))
        self.tail = nn.Sequential(
            *[nn.ConvTranspose2d(4 * c, 2 * c, 3, 2, 1, 1), nn.InstanceNorm2d(2 * c)],
            *[nn.ReLU(True), nn.ConvTranspose2d(2 * c, c, 3, 2, 1, 1), nn.InstanceNorm2d(c)],
            *[nn.ReLU(True), nn.ReflectionPad2d(3), nn.Conv2d(c, 3, 7), nn.Tanh()],
        )

    def forward(self, x: Tensor) -> Tensor:
        """The images."""
        h = self.head(x)
        for block in self.blocks:
            h = h + block(h)
        images: Tensor = self.tail(h)
        return images


class DcganCritic(nn.Module):
    """(N, 3, 64, 64) -> (N, 1)."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        c = channels
        self.conv1 = nn.Conv2d(3, c, 4, 2, 1, bias=False)
        self.conv2 = nn.Conv2d(c, 2 * c, 4, 2, 1, bias=False)
        self.conv3 = nn.Conv2d(2 * c, 4 * c, 4, 2, 1, bias=False)
        self.conv4 = nn.Conv2d(4 * c, 8 * c, 4, 2, 1, bias=False)
        self.bn2, self.bn3 = nn.BatchNorm2d(2 * c), nn.BatchNorm2d(4 * c)
        self.bn4, self.fc = nn.BatchNorm2d(8 * c), nn.Linear(8 * c * 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The scores."""
        x = F.leaky_relu(self.conv1(x), 0.2, True)
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.2, True)
        x = F.leaky_relu(self.bn3(self.conv3(x)), 0.2, True)
        x = F.leaky_relu(self.bn4(self.conv4(x)), 0.2, True)
        scores: Tensor = self.fc(x.view(x.size(0), -1))
        return scores


class MlpGenerator(nn.Module):
    """(N, 100) -> (N, 1, 28, 28)."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        c = channels

        def block(features: int, out: int) -> list[nn.Module]:
            return [nn.Linear(features, out), nn.BatchNorm1d(out, 0.8), nn.LeakyReLU(0.2, True)]

        layers = [*block(100, c), *block(c, 2 * c), *block(2 * c, 4 * c), nn.Linear(4 * c, 784)]
        self.model = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        """The images."""
        images: Tensor = self.model(z)
        return images.view(len(z), 1, 28, 28)


#: Network -> the shape of what it takes, without the batch.
STYLES: dict[type[nn.Module], tuple[int, ...]] = {
    SnganGenerator: (128,),
    SnganCritic: (3, 32, 32),
    BigganGenerator: (32,),
    UnetGenerator: (3, 32, 32),
    CycleGenerator: (3, 32, 32),
    DcganCritic: (3, 64, 64),
    ResNetCritic: (3, 64, 64),
    PatchCritic: (3, 64, 64),
    GroupedCritic: (3, 32, 32),
    MlpGenerator: (100,),
}
