"""Base classes of generators and discriminators: settings, checks and labels."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from fastgan.models.checks import check_image_size, check_images, check_positive, latent_map
from fastgan.models.conditioning import one_hot_labels

__all__ = [
    "LARGEST_IMAGE",
    "ImageDiscriminator",
    "ImageGenerator",
    "ImageNetwork",
    "ImageTranslator",
]

LARGEST_IMAGE = 256


class ImageNetwork(nn.Module, ABC):
    """A network with an image size, which by default is a power of two, and perhaps classes."""

    any_size = False

    def __init__(self, image_size: int, num_classes: int | None = None, **counts: int) -> None:
        super().__init__()
        if not self.any_size:
            check_image_size("image_size", image_size, LARGEST_IMAGE)
        check_positive(**counts, image_size=image_size)
        if num_classes is not None:
            check_positive(num_classes=num_classes)
        for name, count in counts.items():
            setattr(self, name, count)
        self.image_size = image_size
        self.num_classes = num_classes


class ImageGenerator(ImageNetwork):
    """Base class of generators; a subclass has ``_images``, of noise (N, nz) and one-hot labels.

    The arguments and errors are :class:`fastgan.models.DCGANGenerator`'s.
    """

    nz: int
    ngf: int
    nc: int

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of noise.

        Args:
            z: (N, nz) or (N, nz, 1, 1).
            labels: int64 (N,) in [0, num_classes) for a conditional generator, else None.

        Returns:
            (N, nc, image_size, image_size), in [-1, 1]; R3GAN's are unbounded.

        Raises:
            ImageSizeError: a z of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.one_hot_labels`.
        """
        z = latent_map(z, self.nz, self).flatten(1)
        return self._images(z, one_hot_labels(labels, self.num_classes, z, self))

    @abstractmethod
    def _images(self, z: Tensor, classes: Tensor | None) -> Tensor:
        """The images of checked arguments."""


class ImageTranslator(ImageNetwork):
    """Base class of generators whose input is an image; a subclass has ``_translated``."""

    nc: int
    ngf: int

    def forward(self, images: Tensor) -> Tensor:
        """The translated images.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].

        Returns:
            Of the same shape, in [-1, 1].

        Raises:
            ImageSizeError: images of another shape (a ValueError).
        """
        check_images(images, self.nc, self.image_size, self)
        return self._translated(images)

    @abstractmethod
    def _translated(self, images: Tensor) -> Tensor:
        """The translated ones of checked images."""


class ImageDiscriminator(ImageNetwork):
    """Base class of discriminators; a subclass has ``_scores``, of images and one-hot labels.

    The arguments and errors are :class:`fastgan.models.DCGANDiscriminator`'s.
    """

    nc: int
    ndf: int

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """How real images look.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].
            labels: int64 (N,) in [0, num_classes) for a conditional network, else None.

        Returns:
            (N,): one real number per sample; with ``output="probability"`` probabilities.

        Raises:
            ImageSizeError: images of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.one_hot_labels`.
        """
        check_images(images, self.nc, self.image_size, self)
        return self._scores(images, one_hot_labels(labels, self.num_classes, images, self))

    @abstractmethod
    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        """The scores of checked arguments."""
