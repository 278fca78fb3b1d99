"""BigGAN: Brock et al. 2018, arXiv 1809.11096, small.

:mod:`fastgan.reference.sngan`'s networks and hinge loss, with the label's embedding shared by all
norms of the generator, a part of z for each block (section 3, appendix B), self-attention (Zhang et
al. 2018, arXiv 1805.08318, section 3) at half the image's size, spectral norm in both networks, and
orthogonal initialisation. Its generator's step has ``orthogonal=1e-4``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.reference.sngan import SNGANDiscriminator, UpBlock, normalise_spectra


class SelfAttention(nn.Module):
    """x + gamma o, with o_i = W_o sum_j softmax_j(q_i . k_j) v_j over places j of a pooled map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.key = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.value = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.output = nn.Conv2d(max(1, channels // 2), channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The map, with what it attends to added."""
        query = self.query(x)
        key = F.max_pool2d(self.key(x), 2)
        value = F.max_pool2d(self.value(x), 2)
        attention = torch.einsum("nchw,ncij->nhwij", query, key).flatten(3).softmax(-1)
        seen = torch.einsum("nhwp,ncp->nchw", attention, value.flatten(2))
        output: Tensor = x + self.gamma * self.output(seen)
        return output


def orthogonal_init(network: nn.Module) -> None:
    """Orthogonal weights, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class BigGANGenerator(nn.Module):
    """G(z), or G(z|y). Arguments and shapes are :class:`SNGANGenerator`'s.

    Example:
        >>> BigGANGenerator(nz=5, ngf=2, nc=3, image_size=16)(torch.zeros(2, 5)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        nz: int = 120,
        ngf: int = 64,
        nc: int = 3,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        features = 0
        if num_classes is not None:
            self.embedding = nn.Linear(num_classes, 128, bias=False)
            features = 128
        sizes = [2**k for k in range(3, 9) if 2**k <= image_size]
        # Lengths of z's parts; the first ones are one longer where they don't come out even.
        count = len(sizes) + 1
        self.parts = [nz // count + (k < nz % count) for k in range(count)]
        last = ngf * image_size // 8
        self.linear = nn.Linear(self.parts[0], last * 4 * 4)
        self.blocks = nn.ModuleList()
        for size, part in zip(sizes, self.parts[1:], strict=True):
            width = ngf * image_size // size
            self.blocks.append(UpBlock(last, width, part + features))
            last = width
        self.attention = SelfAttention(2 * ngf)
        self.norm = nn.BatchNorm2d(ngf)
        self.conv = nn.Conv2d(ngf, nc, 3, 1, 1)
        orthogonal_init(self)
        normalise_spectra(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z), or G(z|y)."""
        first, *parts = z.flatten(1).split(self.parts, dim=1)
        if self.num_classes is not None and labels is not None:
            embedded = self.embedding(F.one_hot(labels, self.num_classes).to(z.dtype))
            parts = [torch.cat([part, embedded], dim=1) for part in parts]
        x = self.linear(first).view(len(z), -1, 4, 4)
        for block, part in zip(self.blocks, parts, strict=True):
            if block is self.blocks[-1]:
                x = self.attention(x)
            x = block(x, part)
        return torch.tanh(self.conv(F.relu(self.norm(x))))


class BigGANDiscriminator(SNGANDiscriminator):
    """D(x), or D(x|y). Arguments and shapes are :class:`SNGANDiscriminator`'s.

    Example:
        >>> BigGANDiscriminator(nc=3, ndf=2, image_size=16)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2])
    """

    def finish(self, ndf: int) -> None:
        """Adds the attention and draws the weights."""
        super().finish(ndf)
        self.blocks.insert(1, SelfAttention(ndf))
        orthogonal_init(self)
