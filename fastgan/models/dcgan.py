"""The DCGAN's generator and discriminator, conditional or not.

Radford et al. 2015, arXiv 1511.06434; conditioning by Mirza and Osindero 2014, arXiv 1411.1784.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.models.base import ImageDiscriminator, ImageGenerator
from fastgan.models.checks import check_choice
from fastgan.models.conditioning import LabelProjection, with_planes
from fastgan.models.initialisation import keep_channels_last, weights_init
from fastgan.models.layers import NORMS, critic_layers, generator_layers
from fastgan.nn import FusedSequential

__all__ = ["DCGANDiscriminator", "DCGANGenerator"]


class DCGANGenerator(ImageGenerator):
    """G(z), or G(z|y): transposed convolutions from noise to an image in [-1, 1].

    At 64 pixels the layers, keys and parameters are those of pytorch/examples' generator.

    Args:
        nz: length of the noise vector.
        ngf: channels of the last hidden map, which is half the image's size; the first, 4x4,
            has ``ngf * image_size / 8``.
        nc: image channels.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> import torch
        >>> DCGANGenerator(nz=8, ngf=4, nc=3, image_size=32)(torch.zeros(2, 8, 1, 1)).shape
        torch.Size([2, 3, 32, 32])
        >>> G = DCGANGenerator(nz=8, ngf=4, nc=1, image_size=16, num_classes=10)
        >>> G(torch.zeros(2, 8), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 16, 16])
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
        super().__init__(image_size, num_classes, nz=nz, ngf=ngf, nc=nc)
        channels_in = nz + (num_classes or 0)
        self.main = FusedSequential(*generator_layers(channels_in, ngf, nc, image_size))
        self.apply(weights_init)
        keep_channels_last(self)

    def _images(self, z: Tensor, classes: Tensor | None) -> Tensor:
        images: Tensor = self.main(with_planes(z[:, :, None, None], classes))
        return images


class ImageCritic(ImageDiscriminator):
    """Base class of discriminators: strided convolutions from an image to one score per sample.

    The arguments, shapes and errors are :class:`DCGANDiscriminator`'s.
    """

    def __init__(
        self,
        nc: int,
        ndf: int,
        image_size: int,
        norm: str,
        num_classes: int | None,
        projection: bool,
        outputs: int = 1,
    ) -> None:
        super().__init__(image_size, num_classes, nc=nc, ndf=ndf)
        check_choice("norm", norm, NORMS)
        self.norm = norm
        planes = num_classes or 0
        self.projection: LabelProjection | None = None
        if projection:
            if num_classes is None:
                raise ConfigError("projection is True, num_classes None; expected a number")
            planes, outputs = 0, LabelProjection.FEATURES
            self.projection = LabelProjection(num_classes)
        self.main = FusedSequential(*critic_layers(nc + planes, ndf, image_size, norm, outputs))
        self.apply(weights_init)
        keep_channels_last(self)

    @property
    def is_plain(self) -> bool:
        """Whether a forward casts its images first under autocast, and writes no weight.

        So 16-bit images have the scores of the same images in float32, and two passes may share
        the weights' casts.
        """
        return self.projection is None and type(self).__module__.startswith("fastgan.")

    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        if self.projection is None:
            scores: Tensor = self.main(with_planes(images, classes))
        else:
            assert classes is not None
            scores = self.projection(self.main(images).flatten(1), classes)
        return scores.view(-1)


class DCGANDiscriminator(ImageCritic):
    """D(x), or D(x|y): strided convolutions from an image to one score per sample.

    At 64 pixels the layers, keys and parameters are those of pytorch/examples' discriminator,
    and so is the output's shape, (N,).

    Args:
        nc: image channels.
        ndf: channels of the first hidden map, which is half the image's size; the last, 4x4,
            has ``ndf * image_size / 8``.
        image_size: a power of two from 16 to 256.
        output: "probability" ends in a sigmoid, for ``BCELoss``; "logits" doesn't, for
            ``BCEWithLogitsLoss``. The ``state_dict`` is the same.
        norm: the norm after each hidden convolution but the first, see
            :class:`fastgan.models.WGANCritic`; the paper has "batch".
        num_classes: None, or the number of classes: then ``forward`` takes labels.
        projection: take labels by :class:`fastgan.models.conditioning.LabelProjection`, instead
            of as further channels of the image.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> import torch
        >>> DCGANDiscriminator(nc=3, ndf=4, image_size=32)(torch.zeros(2, 3, 32, 32))
        tensor([0.5000, 0.5000], grad_fn=<ViewBackward0>)
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        output: str = "probability",
        *,
        norm: str = "batch",
        num_classes: int | None = None,
        projection: bool = False,
    ) -> None:
        check_choice("output", output, ("probability", "logits"))
        super().__init__(nc, ndf, image_size, norm, num_classes, projection)
        self.output = output
        if output == "probability" and not projection:
            self.main.append(nn.Sigmoid())

    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        scores = super()._scores(images, classes)
        if self.output == "probability" and self.projection is not None:
            return torch.sigmoid(scores)
        return scores
