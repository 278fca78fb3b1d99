"""BigGAN: Brock et al. 2018, arXiv 1809.11096, small: SNGAN's blocks and

- one embedding of the label for all of the generator's norms, concatenated with a part of z for
  each (section 3 and appendix B);
- self-attention at half the image's size (Zhang et al. 2018, arXiv 1805.08318);
- spectral norm in both networks, and orthogonal initialisation.

Trained with the hinge loss and :func:`fastgan.losses.orthogonal_regularisation`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.models.sngan import SNGANDiscriminator, SNGANGenerator, UpBlock
from fastgan.nn.spectral_norm import spectral_norm

__all__ = ["BigGANDiscriminator", "BigGANGenerator", "SelfAttention"]

#: Length of the labels' shared embedding.
EMBEDDING = 128


class SelfAttention(nn.Module):
    """x + gamma * output(softmax(query(x)^T key(x)) value(x)), keys and values pooled by 2.

    Args:
        channels: C; queries and keys have C / 8 channels, values C / 2. gamma is initially zero.

    Shape:
        (N, C, H, W) -> (N, C, H, W)

    Example:
        >>> SelfAttention(16)(torch.ones(1, 16, 4, 4)).shape
        torch.Size([1, 16, 4, 4])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        few, half = max(1, channels // 8), max(1, channels // 2)
        self.query = nn.Conv2d(channels, few, 1, bias=False)
        self.key = nn.Conv2d(channels, few, 1, bias=False)
        self.value = nn.Conv2d(channels, half, 1, bias=False)
        self.output = nn.Conv2d(half, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The map plus the attention's output."""
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        seen = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        output: Tensor = x + self.gamma * self.output(seen)
        return output


def orthogonal_init(network: nn.Module) -> None:
    """Orthogonal weights (Saxe et al. 2013, arXiv 1312.6120), biases 0."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            if not module.weight.is_meta:  # on the meta device, where torch's takes seconds
                nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BigGANGenerator(SNGANGenerator):
    """G(z), or G(z|y), BigGAN's.

    The arguments, shapes and errors are :class:`SNGANGenerator`'s.

    Example:
        >>> BigGANGenerator(nz=8, ngf=4, nc=3, image_size=32)(torch.zeros(2, 8)).shape
        torch.Size([2, 3, 32, 32])
    """

    def _build(self, widths: list[int]) -> None:
        embedded = 0
        if self.num_classes is not None:
            self.embedding = nn.Linear(self.num_classes, EMBEDDING, bias=False)
            embedded = EMBEDDING
        # z is split into parts for the first layer and each block.
        cuts = len(widths) + 1
        if self.nz < cuts:
            raise ConfigError(f"nz is {self.nz}; expected at least {cuts}, one for each part of z")
        first, *parts = (
            part.numel() for part in torch.arange(self.nz, device="cpu").tensor_split(cuts)
        )
        self.linear = nn.Linear(first, 16 * widths[0])
        self.blocks = nn.ModuleList(
            UpBlock(channels, out, part + embedded)
            for channels, out, part in zip([widths[0], *widths], widths, parts, strict=False)
        )
        self.attention = SelfAttention(widths[-2])
        self.norm = nn.BatchNorm2d(self.ngf)
        self.conv = nn.Conv2d(self.ngf, self.nc, 3, padding=1)
        orthogonal_init(self)
        spectral_norm(self)

    def _drawn(self, z: Tensor, classes: Tensor | None) -> Tensor:
        first, *parts = z.tensor_split(len(self.blocks) + 1, dim=1)
        if classes is not None:
            embedded = self.embedding(classes).to(z.dtype)
            parts = [torch.cat([part, embedded], 1) for part in parts]
        x = self.linear(first).unflatten(1, (-1, 4, 4))
        x = x.contiguous(memory_format=torch.channels_last)
        for index, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            x = block(x, part)
            if index == len(self.blocks) - 2:
                x = self.attention(x)
        return torch.tanh(self.conv(torch.relu(self.norm(x))))


class BigGANDiscriminator(SNGANDiscriminator):
    """f(x), or f(x|y) by projection, BigGAN's.

    The arguments, shapes and errors are :class:`SNGANDiscriminator`'s.

    Example:
        >>> BigGANDiscriminator(nc=3, ndf=4, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def _build(self, widths: list[int]) -> None:
        super()._build(widths)
        self.blocks.insert(1, SelfAttention(widths[0]))
        orthogonal_init(self)
