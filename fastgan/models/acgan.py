"""ACGAN's discriminator: Odena et al. 2017, arXiv 1610.09585, with the DCGAN's layers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.models.checks import check_images, check_positive
from fastgan.models.conditioning import one_hot_labels
from fastgan.models.dcgan import ImageCritic

__all__ = ["ACGANDiscriminator"]


class ACGANDiscriminator(ImageCritic):
    """The logit of P(S = real | x), and log P(C = y | x).

    The DCGAN's strided convolutions, the last of which has an output for the source and one for
    each class. Labels only select the returned class likelihood.

    Args:
        nc: image channels.
        ndf: channels of the first hidden map, see :class:`fastgan.models.DCGANDiscriminator`.
        image_size: a power of two from 16 to 256.
        norm: likewise; the paper has "batch".
        num_classes: the number of classes.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> D = ACGANDiscriminator(nc=3, ndf=4, image_size=32, num_classes=10)
        >>> D(torch.zeros(2, 3, 32, 32), torch.tensor([3, 7])).shape
        torch.Size([2, 2])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        *,
        norm: str = "batch",
        num_classes: int,
    ) -> None:
        check_positive(num_classes=num_classes)
        super().__init__(nc, ndf, image_size, norm, None, False, outputs=1 + num_classes)
        self.num_classes = num_classes

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """The source's logits and the labels' log likelihoods.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].
            labels: int64 (N,) in [0, num_classes).

        Returns:
            (N, 2): logits of P(S = real | x), and log P(C = y | x).

        Raises:
            ImageSizeError: images of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.one_hot_labels`.
        """
        check_images(images, self.nc, self.image_size, self)
        outputs = self.main(images).flatten(1)
        classes = one_hot_labels(labels, self.num_classes, images, self)
        likelihood = (outputs[:, 1:].log_softmax(1) * classes).sum(1)
        return torch.stack([outputs[:, 0].to(likelihood.dtype), likelihood], 1)
