"""InfoGAN's discriminator: Chen et al. 2016, arXiv 1606.03657, with the DCGAN's layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastgan.errors import LabelError
from fastgan.models.checks import check_images, check_positive
from fastgan.models.conditioning import one_hot_labels
from fastgan.models.dcgan import ImageCritic

__all__ = ["InfoGANDiscriminator"]


class InfoGANDiscriminator(ImageCritic):
    """The logit of P(S = real | x), and log Q(c | x) of a categorical and of continuous codes.

    The DCGAN's strided convolutions, the last of which has an output for the source, one for each
    category, and a mean and a log standard deviation for each continuous code. D and Q share all
    other layers (section 4). Q of a continuous code is a normal distribution (appendix C).

    Args:
        nc: image channels.
        ndf: channels of the first hidden map, see :class:`fastgan.models.DCGANDiscriminator`.
        image_size: a power of two from 16 to 256.
        norm: likewise; the paper has "batch".
        num_classes: the number of categories.
        codes: the number of continuous codes, 0 or more.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> D = InfoGANDiscriminator(nc=3, ndf=4, image_size=32, num_classes=10, codes=2)
        >>> D(torch.zeros(2, 3, 32, 32), torch.tensor([3, 7]), torch.zeros(2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        *,
        norm: str = "batch",
        num_classes: int,
        codes: int = 2,
    ) -> None:
        check_positive(num_classes=num_classes)
        if codes:
            check_positive(codes=codes)
        outputs = 1 + num_classes + 2 * codes
        super().__init__(nc, ndf, image_size, norm, None, False, outputs=outputs)
        self.num_classes = num_classes
        self.codes = codes

    def forward(
        self, images: Tensor, labels: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """The source's logits and the codes' log likelihoods.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].
            labels: the categorical code, int64 (N,) in [0, num_classes).
            codes: the continuous codes, floating-point (N, codes).

        Returns:
            (N, 3): logits of P(S = real | x), log Q(label | x), and the sum of log Q(code | x) over
            the continuous codes.

        Raises:
            ImageSizeError: images of another shape (a ValueError).
            LabelError: codes of another shape, or unfit labels, see
                :func:`fastgan.models.conditioning.one_hot_labels`.
        """
        check_images(images, self.nc, self.image_size, self)
        if codes is None or tuple(codes.shape) != (len(images), self.codes):
            got = "none" if codes is None else f"shape {tuple(codes.shape)}"
            raise LabelError(
                f"{type(self).__name__} got codes: {got}; expected ({len(images)}, {self.codes})"
            )
        outputs = self.main(images).flatten(1)
        categories = one_hot_labels(labels, self.num_classes, images, self)
        sizes = [1, self.num_classes, self.codes, self.codes]
        source, logits, mean, log_deviation = outputs.split(sizes, dim=1)
        # In bfloat16 an exponential has the absolute error of its argument as its relative one.
        mean, log_deviation = (
            each.to(torch.promote_types(each.dtype, torch.float32))
            for each in (mean, log_deviation)
        )
        deviations = (codes - mean) * (-log_deviation).exp()
        gaussian = -0.5 * (deviations.square() + math.log(2 * math.pi)) - log_deviation
        category = (logits.log_softmax(1) * categories).sum(1)
        dtype = torch.promote_types(category.dtype, torch.float32)
        scores = (source[:, 0], category, gaussian.sum(1))
        return torch.stack([score.to(dtype) for score in scores], 1)
