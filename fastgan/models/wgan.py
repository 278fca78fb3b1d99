"""The critic of a WGAN or WGAN-GP; the generator is the DCGAN's.

Arjovsky et al. 2017, arXiv 1701.07875; Gulrajani et al. 2017, arXiv 1704.00028.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.models.checks import check_choice, check_image_size, check_images, check_positive
from fastgan.models.conditioning import check_num_classes, with_labels
from fastgan.models.dcgan import LARGEST_IMAGE
from fastgan.models.initialisation import keep_channels_last, weights_init
from fastgan.models.layers import critic_layers
from fastgan.nn import FusedSequential

__all__ = ["WGANCritic"]


class WGANCritic(nn.Module):
    """f(x), or f(x|y): the DCGAN's discriminator without its sigmoid.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map, which is half the image's size; the last, 4x4,
            has ``ndf * image_size / 8``.
        image_size: a power of two from 16 to 256.
        norm: what follows each hidden convolution but the first. "batch" is the WGAN's choice
            (weight clipping). A gradient penalty is per sample and wants no coupling between
            samples: "none" (the convolutions then have a bias), "layer" (what the WGAN-GP's
            authors recommend: over channels, rows and columns, one weight and bias per channel,
            ``nn.GroupNorm(1, C)``) or "instance" (affine).
        num_classes: None, or the number of classes: then ``forward`` takes labels.

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
    ) -> None:
        super().__init__()
        check_image_size("image_size", image_size, LARGEST_IMAGE)
        check_positive(nc=nc, ndf=ndf)
        check_choice("norm", norm, ("none", "batch", "instance", "layer"))
        self.nc = nc
        self.ndf = ndf
        self.image_size = image_size
        self.norm = norm
        self.num_classes = num_classes
        channels_in = nc + check_num_classes(num_classes)
        self.main = FusedSequential(*critic_layers(channels_in, ndf, image_size, norm))
        self.apply(weights_init)
        keep_channels_last(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The critic's scores.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].
            labels: int64 (N,) in [0, num_classes) for a conditional critic, else None.

        Returns:
            (N,): one real number per sample.

        Raises:
            ImageSizeError: images of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.with_labels`.
        """
        check_images(images, self.nc, self.image_size, self)
        scores: Tensor = self.main(with_labels(images, labels, self.num_classes, self))
        return scores.view(-1)
