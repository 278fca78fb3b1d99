"""The critic of a WGAN or WGAN-GP; the generator is the DCGAN's.

Arjovsky et al. 2017, arXiv 1701.07875; Gulrajani et al. 2017, arXiv 1704.00028.
"""

from __future__ import annotations

from fastgan.models.dcgan import ImageCritic

__all__ = ["WGANCritic"]


class WGANCritic(ImageCritic):
    """f(x), or f(x|y): the DCGAN's discriminator without its sigmoid.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map, which is half the image's size; the last, 4x4,
            has ``ndf * image_size / 8``.
        image_size: a power of two from 16 to 256.
        norm: the norm after each hidden convolution but the first. WGAN uses "batch" (with weight
            clipping). A gradient penalty is per sample and shouldn't couple samples: "none" (with
            biases), "layer" (recommended by WGAN-GP's authors: over channels, rows and columns, one
            weight and bias per channel, ``nn.GroupNorm(1, C)``) or "instance" (affine).
        num_classes: None, or the number of classes: then ``forward`` takes labels.
        projection: see :class:`fastgan.models.DCGANDiscriminator`.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> import torch
        >>> WGANCritic(nc=1, ndf=4, image_size=16, norm="layer")(torch.zeros(2, 1, 16, 16)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        norm: str = "none",
        *,
        num_classes: int | None = None,
        projection: bool = False,
    ) -> None:
        super().__init__(nc, ndf, image_size, norm, num_classes, projection)
