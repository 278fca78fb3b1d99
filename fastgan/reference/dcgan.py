"""The DCGAN: Radford, Metz and Chintala 2015, arXiv 1511.06434, section 3, conditional or not.

The paper's guidelines, layer by layer: fractionally strided convolutions in the generator and
strided ones in the discriminator instead of pooling; batch norm everywhere but in the
generator's output and the discriminator's input; no hidden dense layers; ReLU in the generator
with tanh at the end, leaky ReLU of slope 0.2 in the discriminator. Section 4: weights drawn
from N(0, 0.02).

Kernels are 4x4, as in the authors' and everybody's PyTorch versions (figure 1 draws 5x5). The
losses and steps are those of :mod:`fastgan.reference.gan`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.reference.conditional import append_label_planes, append_labels


@torch.no_grad()
def weights_init(module: nn.Module) -> None:
    """Section 4: convolutions N(0, 0.02), their biases 0; batch norm weights N(1, 0.02), biases 0.

    For ``network.apply(weights_init)``. Other layers keep torch's default.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.Conv2d(64, 64, 4)
        >>> _ = layer.apply(weights_init)
        >>> round(layer.weight.std().item(), 3)
        0.02
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        module.weight.normal_(0.0, 0.02)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.BatchNorm2d):
        module.weight.normal_(1.0, 0.02)
        module.bias.zero_()


class DCGANGenerator(nn.Module):
    """G(z): z becomes a 4x4 map, which doubles its size and halves its channels to the image.

    Args:
        nz: length of the noise vector.
        ngf: channels of the last hidden map, which is half the image's size.
        nc: image channels.
        image_size: a power of two, 16 or more.
        num_classes: None, or the number of labels the generator is conditioned on.

    Shapes: z (N, nz) or (N, nz, 1, 1), labels int64 (N,) -> (N, nc, image_size, image_size),
    in [-1, 1].

    Example:
        >>> DCGANGenerator(nz=5, ngf=2, nc=3, image_size=32)(torch.zeros(2, 5)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        nz: int = 100,
        ngf: int = 64,
        nc: int = 3,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        size, channels = 4, ngf * image_size // 8
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz + (num_classes or 0), channels, 4, 1, 0, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        )
        while size < image_size // 2:
            self.main.append(nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False))
            self.main.append(nn.BatchNorm2d(channels // 2))
            self.main.append(nn.ReLU())
            size, channels = size * 2, channels // 2
        self.main.append(nn.ConvTranspose2d(channels, nc, 4, 2, 1, bias=False))
        self.main.append(nn.Tanh())
        self.apply(weights_init)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(z), or G(z|y)."""
        z = z.flatten(1)
        if self.num_classes is not None and labels is not None:
            z = append_labels(z, labels, self.num_classes)
        images: Tensor = self.main(z[:, :, None, None])
        return images


class DCGANDiscriminator(nn.Module):
    """D(x): the image halves its size and doubles its channels down to 4x4, then one score.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map.
        image_size: a power of two, 16 or more.
        output: "probability" for D(x) in (0, 1), "logits" for its logit.
        num_classes: None, or the number of labels the discriminator is conditioned on.

    Shapes: images (N, nc, image_size, image_size), labels int64 (N,) -> (N,).

    Example:
        >>> DCGANDiscriminator(nc=3, ndf=2, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        output: str = "probability",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.main = nn.Sequential(
            nn.Conv2d(nc + (num_classes or 0), ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2)
        )
        size, channels = image_size // 2, ndf
        while size > 4:
            self.main.append(nn.Conv2d(channels, channels * 2, 4, 2, 1, bias=False))
            self.main.append(nn.BatchNorm2d(channels * 2))
            self.main.append(nn.LeakyReLU(0.2))
            size, channels = size // 2, channels * 2
        self.main.append(nn.Conv2d(channels, 1, 4, 1, 0, bias=False))
        if output == "probability":
            self.main.append(nn.Sigmoid())
        self.apply(weights_init)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x), or D(x|y)."""
        if self.num_classes is not None and labels is not None:
            images = append_label_planes(images, labels, self.num_classes)
        scores: Tensor = self.main(images)
        return scores.flatten()
