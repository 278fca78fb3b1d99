"""The vanilla GAN's networks: Goodfellow et al. 2014, arXiv 1406.2661, section 5.

Two hidden layers each. Departures: tanh instead of a sigmoid at the end, since images here are
in [-1, 1]; leaky ReLU instead of maxout in the discriminator. The paper's dropout is kept: without
it the discriminator wins, and the generator collapses to one image. The generator is initialised by
He et al. 2015 (arXiv 1502.01852): with torch's default its images hardly depend on z, even after
training.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.models.checks import check_choice, check_images, check_positive, latent_map
from fastgan.models.conditioning import check_num_classes, with_labels
from fastgan.nn import FusedSequential

__all__ = ["MLPDiscriminator", "MLPGenerator"]

# Dropout of the input and of each hidden layer: Srivastava et al. 2014, section 4 and appendix A,
# as in the GAN authors' code.
INPUT_DROPOUT = 0.2
HIDDEN_DROPOUT = 0.5


class MLPGenerator(nn.Module):
    """G(z), or G(z|y): dense layers from noise to an image in [-1, 1].

    Args:
        nz: length of the noise vector.
        hidden: width of both hidden layers.
        nc: image channels.
        image_size: image height and width, any from 1.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ConfigError: an argument below 1 (a ValueError).

    Example:
        >>> import torch
        >>> MLPGenerator(nz=8, hidden=16, nc=1, image_size=28)(torch.zeros(2, 8)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        nz: int = 100,
        hidden: int = 512,
        nc: int = 1,
        image_size: int = 28,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(nz=nz, hidden=hidden, nc=nc, image_size=image_size)
        self.nz = nz
        self.nc = nc
        self.image_size = image_size
        self.num_classes = num_classes
        self.main = FusedSequential(
            nn.Linear(nz + check_num_classes(num_classes), hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, nc * image_size * image_size),
            nn.Tanh(),
        )
        for layer in self.main:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Images of noise.

        Args:
            z: (N, nz) or (N, nz, 1, 1).
            labels: int64 (N,) in [0, num_classes) for a conditional generator, else None.

        Returns:
            (N, nc, image_size, image_size), in [-1, 1].

        Raises:
            ImageSizeError: a z of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.with_labels`.
        """
        z = with_labels(latent_map(z, self.nz, self), labels, self.num_classes, self)
        images: Tensor = self.main(z.flatten(1))
        return images.view(-1, self.nc, self.image_size, self.image_size)


class MLPDiscriminator(nn.Module):
    """D(x), or D(x|y): dense layers from an image to one score per sample; dropout in training.

    Args:
        nc: image channels.
        hidden: width of both hidden layers.
        image_size: image height and width, any from 1.
        output: "probability" ends in a sigmoid, "logits" doesn't. The ``state_dict`` is the same.
        num_classes: None, or the number of classes: then ``forward`` takes labels, concatenated
            one-hot.

    Raises:
        ConfigError: an argument out of its range (a ValueError).

    Example:
        >>> import torch
        >>> MLPDiscriminator(nc=1, hidden=16, image_size=28)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 1,
        hidden: int = 512,
        image_size: int = 28,
        output: str = "probability",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(nc=nc, hidden=hidden, image_size=image_size)
        check_choice("output", output, ("probability", "logits"))
        self.nc = nc
        self.image_size = image_size
        self.output = output
        self.num_classes = num_classes
        pixels = nc * image_size * image_size
        self.main = FusedSequential(
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(pixels + check_num_classes(num_classes), hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(HIDDEN_DROPOUT),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(HIDDEN_DROPOUT),
            nn.Linear(hidden, 1),
        )
        if output == "probability":
            self.main.append(nn.Sigmoid())

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """How real images look.

        Args:
            images: (N, nc, image_size, image_size), in [-1, 1].
            labels: int64 (N,) in [0, num_classes) for a conditional discriminator, else None.

        Returns:
            (N,): probabilities or logits (``output``).

        Raises:
            ImageSizeError: images of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.with_labels`.
        """
        check_images(images, self.nc, self.image_size, self)
        pixels = images.flatten(1)[:, :, None, None]
        pixels = with_labels(pixels, labels, self.num_classes, self)
        scores: Tensor = self.main(pixels.flatten(1))
        return scores.view(-1)
