"""CycleGAN: Zhu et al. 2017, arXiv 1703.10593, section 4 and appendix 7.2.

    generator       7x7, halved twice, residual blocks, doubled twice, 7x7, tanh
    discriminator   a PatchGAN: one score for each patch of 70x70 pixels (Isola et al. 2017)

Padding by reflection in the generator, instance norm in both. Both generators are one module, and
so are both discriminators, for one optimiser, average and checkpoint each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastgan.errors import ImageSizeError
from fastgan.models.base import LARGEST_IMAGE, ImageTranslator
from fastgan.models.checks import check_choice, check_image_size, check_images, check_positive
from fastgan.models.initialisation import keep_channels_last, weights_init
from fastgan.models.layers import normalisation
from fastgan.nn import FusedSequential

__all__ = [
    "PATCH_NORMS",
    "CycleGANDiscriminator",
    "CycleGANGenerator",
    "ImagePool",
    "PatchDiscriminator",
    "ResNetGenerator",
]

PATCH_NORMS = ("none", "batch", "instance")


class ResidualBlock(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))): 3x3 convolutions with reflection padding.

    Args:
        channels: of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            *normalisation("instance", channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            *normalisation("instance", channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, channels, H, W)."""
        output: Tensor = x + self.main(x)
        return output


class ResNetGenerator(ImageTranslator):
    """Translates images: CycleGAN's generator, in one direction.

    Args:
        nc: image channels, in and out.
        ngf: channels of the full-size maps; the residual blocks have four times as many.
        image_size: a power of two from 16 to 256.
        blocks: residual blocks; None: 9 from 256 pixels on, else 6.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> ResNetGenerator(nc=3, ngf=4, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, nc: int = 3, ngf: int = 64, image_size: int = 256, *, blocks: int | None = None
    ) -> None:
        blocks = (9 if image_size >= 256 else 6) if blocks is None else blocks
        super().__init__(image_size, nc=nc, ngf=ngf, blocks=blocks)
        # Before a norm a bias would cancel.
        layers: list[nn.Module] = [
            nn.ReflectionPad2d(3),
            nn.Conv2d(nc, ngf, 7, bias=False),
            *normalisation("instance", ngf),
            nn.ReLU(inplace=True),
        ]
        for channels in (ngf, 2 * ngf):
            layers += [
                nn.Conv2d(channels, 2 * channels, 3, 2, 1, bias=False),
                *normalisation("instance", 2 * channels),
                nn.ReLU(inplace=True),
            ]
        layers += [ResidualBlock(4 * ngf) for _ in range(blocks)]
        for channels in (2 * ngf, ngf):
            layers += [
                nn.ConvTranspose2d(2 * channels, channels, 3, 2, 1, 1, bias=False),
                *normalisation("instance", channels),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(ngf, nc, 7), nn.Tanh()]
        self.main = FusedSequential(*layers)
        self.apply(weights_init)
        keep_channels_last(self)

    def _translated(self, images: Tensor) -> Tensor:
        output: Tensor = self.main(images)
        return output


class CycleGANGenerator(nn.Module):
    """Both generators of a CycleGAN, ``a_to_b`` and ``b_to_a``.

    The arguments and errors are :class:`ResNetGenerator`'s.

    Example:
        >>> generator = CycleGANGenerator(nc=1, ngf=4, image_size=16, blocks=1)
        >>> generator.directions["b2a"](torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self, nc: int = 3, ngf: int = 64, image_size: int = 256, *, blocks: int | None = None
    ) -> None:
        super().__init__()
        self.a_to_b = ResNetGenerator(nc, ngf, image_size, blocks=blocks)
        self.b_to_a = ResNetGenerator(nc, ngf, image_size, blocks=blocks)

    @property
    def directions(self) -> Mapping[str, nn.Module]:
        """The translating modules, by ``"a2b"`` and ``"b2a"``."""
        return {"a2b": self.a_to_b, "b2a": self.b_to_a}

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Images of A as of B, and images of B as of A.

        Args:
            a: (N, nc, image_size, image_size), in [-1, 1].
            b: likewise.

        Returns:
            Translations of ``a`` and of ``b``, of the same shapes.

        Raises:
            ImageSizeError: images of another shape (a ValueError).
        """
        return self.a_to_b(a), self.b_to_a(b)


class PatchDiscriminator(nn.Module):
    """A score for each of the overlapping patches of an image.

    4x4 convolutions, norms and leaky ReLUs of slope 0.2; the first has no norm. Isola et al. 2017,
    arXiv 1611.07004, appendix 6.1.2.

    Args:
        nc: image channels.
        ndf: channels of the first map, which is half the image's size.
        image_size: a power of two from 16 to 256.
        norm: "instance", "batch" or "none".
        layers: convolutions with a norm: 3 see patches of 70x70, 2 of 34x34, 1 of 16x16. None: 3,
            but 2 at 32 pixels and 1 at 16.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two, or whose map ``layers``
            shrink to nothing (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> PatchDiscriminator(nc=3, ndf=4, image_size=64)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 256,
        *,
        norm: str = "instance",
        layers: int | None = None,
    ) -> None:
        super().__init__()
        check_image_size("image_size", image_size, LARGEST_IMAGE)
        most = image_size.bit_length() - 4
        layers = min(3, most) if layers is None else layers
        check_positive(nc=nc, ndf=ndf, layers=layers)
        check_choice("norm", norm, PATCH_NORMS)
        if layers > most:
            raise ImageSizeError(
                f"layers is {layers}; expected at most {most} for images of {image_size} pixels"
            )
        self.nc = nc
        self.image_size = image_size
        parts: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        channels = ndf
        for layer in range(1, layers + 1):
            before, channels = channels, ndf * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            parts += [
                nn.Conv2d(before, channels, 4, stride, 1, bias=norm == "none"),
                *normalisation(norm, channels),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.main = FusedSequential(*parts, nn.Conv2d(channels, 1, 4, 1, 1))
        self.apply(weights_init)
        keep_channels_last(self)

    def forward(self, images: Tensor) -> Tensor:
        """The patches' scores.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].

        Returns:
            (N, 1, H, W), H and W ``image_size / 2 ** layers - 2``.

        Raises:
            ImageSizeError: images of another shape (a ValueError).
        """
        check_images(images, self.nc, self.image_size, self)
        output: Tensor = self.main(images)
        return output


class ImagePool(nn.Module):
    """A buffer of a generator's images, of which its discriminator sees half later.

    Shrivastava et al. 2017, arXiv 1612.07828, section 2.3, as in CycleGAN: until the pool is full,
    an image is kept and returned. After that it is returned with probability 1/2; otherwise a
    random image of the pool is returned and replaced by it. Images of one batch replace different
    ones.

    The pool is in buffers, for checkpoints and CUDA graphs.

    Args:
        nc: image channels.
        image_size: their side.
        size: images in the pool.

    Example:
        >>> pool = ImagePool(1, 16, size=2)
        >>> shown = pool(torch.ones(2, 1, 16, 16), torch.zeros(2), torch.rand(2))
        >>> bool((shown == 1).all()), int(pool.count)
        (True, 2)
    """

    images: Tensor
    count: Tensor

    def __init__(self, nc: int, image_size: int, size: int = 50) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("images", torch.zeros(size, nc, image_size, image_size))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, fake: Tensor, coins: Tensor, keys: Tensor) -> Tensor:
        """Images to show the discriminator.

        Args:
            fake: (N, nc, image_size, image_size).
            coins: (N,), uniform in [0, 1): below 1/2 an image of the pool is returned.
            keys: (size,), uniform in [0, 1): a batch takes empty places first, then those of the
                smallest keys.

        Returns:
            (N, nc, image_size, image_size), without gradients.
        """
        fake = fake.detach().to(self.images.dtype)
        pooled = fake[: self.size]
        filled = torch.arange(self.size, device=keys.device) < self.count
        # Empty places first, in order.
        order = torch.where(filled, keys, torch.arange(-self.size, 0, device=keys.device))
        places = order.argsort()[: len(pooled)]
        kept = self.images[places]
        swapped = (filled[places] & (coins[: len(pooled)] < 0.5))[:, None, None, None]
        shown = torch.where(swapped, kept, pooled)
        stays = filled[places][:, None, None, None] & ~swapped
        self.images.index_copy_(0, places, torch.where(stays, kept, pooled))
        self.count.add_(len(pooled)).clamp_(max=self.size)
        return torch.cat([shown, fake[self.size :]])


class CycleGANDiscriminator(nn.Module):
    """Both discriminators of a CycleGAN, ``a`` and ``b``, with their pools of images.

    The arguments and errors are :class:`PatchDiscriminator`'s.

    Example:
        >>> discriminator = CycleGANDiscriminator(nc=1, ndf=4, image_size=32)
        >>> discriminator.a(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 256,
        *,
        norm: str = "instance",
        layers: int | None = None,
    ) -> None:
        super().__init__()
        self.a = PatchDiscriminator(nc, ndf, image_size, norm=norm, layers=layers)
        self.b = PatchDiscriminator(nc, ndf, image_size, norm=norm, layers=layers)
        self.pool_a = ImagePool(nc, image_size)
        self.pool_b = ImagePool(nc, image_size)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of images of A and of images of B.

        Args:
            a: (N, nc, image_size, image_size), in [-1, 1].
            b: likewise.

        Returns:
            Two maps of scores, see :meth:`PatchDiscriminator.forward`.

        Raises:
            ImageSizeError: images of another shape (a ValueError).
        """
        return self.a(a), self.b(b)
