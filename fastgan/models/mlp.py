"""The vanilla GAN's networks: Goodfellow et al. 2014, arXiv 1406.2661, section 5.

Two hidden layers each. Departures: tanh instead of a sigmoid at the end, since images here are
in [-1, 1]; leaky ReLU instead of maxout in the discriminator. The paper's dropout is kept: without
it the discriminator wins, and the generator collapses to one image. The generator is initialised by
He et al. 2015 (arXiv 1502.01852): with torch's default its images hardly depend on z, even after
training.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.models.base import ImageDiscriminator, ImageGenerator
from fastgan.models.checks import check_choice
from fastgan.nn import FusedSequential

__all__ = ["MLPDiscriminator", "MLPGenerator"]

# Dropout of the input and of each hidden layer: Srivastava et al. 2014, section 4 and appendix A,
# as in the GAN authors' code.
INPUT_DROPOUT = 0.2
HIDDEN_DROPOUT = 0.5


class MLPGenerator(ImageGenerator):
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

    any_size = True

    def __init__(
        self,
        nz: int = 100,
        hidden: int = 512,
        nc: int = 1,
        image_size: int = 28,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(image_size, num_classes, nz=nz, nc=nc, hidden=hidden)
        self.main = FusedSequential(
            nn.Linear(nz + (num_classes or 0), hidden),
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

    def _images(self, z: Tensor, classes: Tensor | None) -> Tensor:
        images: Tensor = self.main(z if classes is None else torch.cat([z, classes], 1))
        return images.view(-1, self.nc, self.image_size, self.image_size)


class MLPDiscriminator(ImageDiscriminator):
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

    any_size = True

    def __init__(
        self,
        nc: int = 1,
        hidden: int = 512,
        image_size: int = 28,
        output: str = "probability",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(image_size, num_classes, nc=nc, hidden=hidden)
        check_choice("output", output, ("probability", "logits"))
        self.output = output
        pixels = nc * image_size * image_size
        self.main = FusedSequential(
            nn.Dropout(INPUT_DROPOUT),
            nn.Linear(pixels + (num_classes or 0), hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(HIDDEN_DROPOUT),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Dropout(HIDDEN_DROPOUT),
            nn.Linear(hidden, 1),
        )
        if output == "probability":
            self.main.append(nn.Sigmoid())

    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        pixels = images.flatten(1)
        scores: Tensor = self.main(pixels if classes is None else torch.cat([pixels, classes], 1))
        return scores.view(-1)
