"""Networks with hand-written forwards, in the styles of well-known repositories.

==================  ============================================================================
network             as in
==================  ============================================================================
``UnetGenerator``   Isola et al. 2017, arXiv 1611.07004: skips by concatenation, instance norm
``CycleGenerator``  Zhu et al. 2017, arXiv 1703.10593: reflection padding, residual blocks
``DcganCritic``     Radford et al. 2016, arXiv 1511.06434, layer by layer, and ``view`` at the end
``MlpGenerator``    Goodfellow et al. 2014, arXiv 1406.2661: linear layers with batch norm
``R3ganGenerator``  Huang et al. 2025, arXiv 2501.05441: grouped residual blocks, added biases
==================  ============================================================================

Also uses critics of :mod:`fastgan.bench.critics` and networks of :mod:`fastgan.reference`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan import reference
from fastgan.bench.critics import GroupedCritic, PatchCritic, ResNetCritic


class UnetGenerator(nn.Module):
    """(N, 3, 32, 32) -> (N, 3, 32, 32)."""

    def __init__(self, channels: int) -> None:
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

    def __init__(self, channels: int) -> None:
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

    def __init__(self, channels: int) -> None:
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

    def __init__(self, channels: int) -> None:
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


class _R3ganBlock(nn.Module):
    """x + conv3(act(conv2(act(conv1(x))))), with biases that are added before the activations."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Conv2d(channels, wide, 1, bias=False)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, groups=wide // 16, bias=False)
        self.conv3 = nn.Conv2d(wide, channels, 1, bias=False)
        self.biases = nn.Parameter(torch.zeros(2, wide, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv1(x) + self.biases[0], 0.2)
        h = F.leaky_relu(self.conv2(h) + self.biases[1], 0.2)
        output: Tensor = x + self.conv3(h)
        return output


class R3ganGenerator(nn.Module):
    """(N, 64) -> (N, 3, 32, 32)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        c = channels
        self.basis, self.linear = nn.Parameter(torch.randn(8 * c, 4, 4)), nn.Linear(64, 8 * c)
        layers: list[nn.Module] = []
        for width in (8 * c, 4 * c, 2 * c):
            layers += [_R3ganBlock(width), _R3ganBlock(width)]
            layers += [nn.Conv2d(width, width // 2, 1, bias=False)]
            layers += [nn.Upsample(scale_factor=2, mode="bilinear")]
        layers += [_R3ganBlock(c), _R3ganBlock(c), nn.Conv2d(c, 3, 1, bias=False)]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """The images."""
        images: Tensor = self.layers(self.linear(z)[:, :, None, None] * self.basis)
        return images


#: Name -> a network for a number of channels, and its input shape without the batch.
STYLES: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "SNGANGenerator": (lambda c: reference.SNGANGenerator(128, c, image_size=32), (128,)),
    "SNGANDiscriminator": (lambda c: reference.SNGANDiscriminator(3, c, 32), (3, 32, 32)),
    "BigGANGenerator": (lambda c: reference.BigGANGenerator(128, c, image_size=32), (128,)),
    "UnetGenerator": (UnetGenerator, (3, 32, 32)),
    "CycleGenerator": (CycleGenerator, (3, 32, 32)),
    "DcganCritic": (DcganCritic, (3, 64, 64)),
    "ResNetCritic": (ResNetCritic, (3, 64, 64)),
    "PatchCritic": (PatchCritic, (3, 64, 64)),
    "GroupedCritic": (GroupedCritic, (3, 32, 32)),
    "MlpGenerator": (MlpGenerator, (100,)),
    "R3ganGenerator": (R3ganGenerator, (64,)),
}
