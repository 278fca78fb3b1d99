"""The DCGAN of pytorch/examples (``dcgan/main.py``), for 64x64 images, by changing one import.

Layers, ``state_dict`` keys (``main.0.weight``, ...), initialisation order and outputs are that
script's, so ``netG.apply(weights_init)`` after the same seed gives the same weights. The script
reads ``nz``, ``ngf``, ``ndf`` and ``nc`` from its own options: pass what differs from the defaults.
"""

from __future__ import annotations

from torch import Tensor, nn

from fastgan.errors import ImageSizeError
from fastgan.models.checks import check_images, check_positive
from fastgan.models.compat.parallel import run
from fastgan.models.initialisation import weights_init
from fastgan.models.layers import critic_layers, generator_layers
from fastgan.nn import FusedSequential

__all__ = ["Discriminator", "Generator", "weights_init"]

IMAGE_SIZE = 64


class Generator(nn.Module):
    """Noise to images; 3,576,704 parameters by default.

    Args:
        ngpu: with more than 1, a batch on a GPU is split over GPUs 0 to ngpu - 1.
        nz: length of the noise vector.
        ngf: channels of the last hidden map.
        nc: image channels.

    Raises:
        ConfigError: ``nz``, ``ngf`` or ``nc`` below 1 (a ValueError).

    Example:
        >>> import torch
        >>> netG = Generator(0, nz=8, ngf=4)
        >>> _ = netG.apply(weights_init)
        >>> netG(torch.zeros(2, 8, 1, 1)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(self, ngpu: int, nz: int = 100, ngf: int = 64, nc: int = 3) -> None:
        super().__init__()
        check_positive(nz=nz, ngf=ngf, nc=nc)
        self.ngpu = ngpu
        self.nz = nz
        self.main = FusedSequential(*generator_layers(nz, ngf, nc, IMAGE_SIZE))

    def forward(self, input: Tensor) -> Tensor:
        """Images of noise.

        Args:
            input: z, (N, nz, 1, 1). As in the original, a larger map gives larger images.

        Returns:
            (N, nc, 64, 64), in [-1, 1].

        Raises:
            ImageSizeError: another rank or channel count (a ValueError).
        """
        if input.dim() != 4 or input.size(1) != self.nz:
            raise ImageSizeError(
                f"Generator got z of shape {tuple(input.shape)}; expected (N, {self.nz}, 1, 1)"
            )
        return run(self.main, input, self.ngpu)


class Discriminator(nn.Module):
    """64x64 images to probabilities of being real; 2,765,568 parameters by default.

    Args:
        ngpu: with more than 1, a batch on a GPU is split over GPUs 0 to ngpu - 1.
        ndf: channels of the first hidden map.
        nc: image channels.

    Raises:
        ConfigError: ``ndf`` or ``nc`` below 1 (a ValueError).

    Example:
        >>> import torch
        >>> netD = Discriminator(0, ndf=4)
        >>> _ = netD.apply(weights_init)
        >>> netD(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2])
    """

    def __init__(self, ngpu: int, ndf: int = 64, nc: int = 3) -> None:
        super().__init__()
        check_positive(ndf=ndf, nc=nc)
        self.ngpu = ngpu
        self.nc = nc
        self.main = FusedSequential(*critic_layers(nc, ndf, IMAGE_SIZE, "batch"), nn.Sigmoid())

    def forward(self, input: Tensor) -> Tensor:
        """How real images look.

        Args:
            input: (N, nc, 64, 64).

        Returns:
            (N,): probabilities.

        Raises:
            ImageSizeError: images of another shape (a ValueError). The original gives several
                scores per image for larger ones, which its own loss then refuses.
        """
        check_images(input, self.nc, IMAGE_SIZE, self)
        return run(self.main, input, self.ngpu).view(-1, 1).squeeze(1)
