"""The models of martinarjovsky/WassersteinGAN (``models/dcgan.py`` and ``models/mlp.py``).

Signatures, ``state_dict`` keys (``main.initial:100-512:convt.weight``, ...), initialisation order
and outputs are that repository's. Its earliest checkpoints have ``.`` where the keys now have
``:`` (torch no longer takes a dot in a module's name); they load too, with ``strict=True``.

The critics return the mean of their scores over the batch, shape (1,), as there. ``scores``
gives one per sample, which a gradient penalty needs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastgan.errors import ConfigError, ImageSizeError
from fastgan.models.checks import check_image_size, check_images, check_positive, latent_map
from fastgan.models.compat.parallel import run
from fastgan.nn import FusedSequential

__all__ = ["DCGAN_D", "DCGAN_G", "MLP_D", "MLP_G", "DCGAN_D_nobn", "DCGAN_G_nobn"]


class _Network(nn.Module):
    """``main`` under the original's names, and the loading of its earliest checkpoints."""

    main: nn.Sequential

    def __init__(self, isize: int, nz: int, nc: int, ngpu: int) -> None:
        super().__init__()
        check_positive(nc=nc)
        self.isize = isize
        self.nz = nz
        self.nc = nc
        self.ngpu = ngpu

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        for name in self.main._modules:
            dotted = f"{prefix}main.{name.replace(':', '.')}."
            if ":" not in name:
                continue
            for key in [key for key in state_dict if key.startswith(dotted)]:
                state_dict[f"{prefix}main.{name}.{key[len(dotted) :]}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class _Generator(_Network):
    """Noise to images, with or without batch norm."""

    batch_norm: bool

    def __init__(
        self, isize: int, nz: int, nc: int, ngf: int, ngpu: int, n_extra_layers: int = 0
    ) -> None:
        super().__init__(isize, nz, nc, ngpu)
        check_image_size("isize", isize)
        _check_extra_layers(n_extra_layers)
        check_positive(nz=nz, ngf=ngf)
        if ngf < 2:
            raise ConfigError(f"ngf is {ngf}; expected at least 2, the widths start from ngf // 2")

        # ngf // 2, doubled with every doubling of the image; differs from ngf if ngf is odd.
        channels = ngf // 2 * (isize // 4)
        main = FusedSequential()
        main.add_module(
            f"initial:{nz}-{channels}:convt", nn.ConvTranspose2d(nz, channels, 4, 1, 0, bias=False)
        )
        self._add_norm(main, f"initial:{channels}", channels)
        main.add_module(f"initial:{channels}:relu", nn.ReLU(inplace=True))

        size = 4
        while size < isize // 2:
            half = channels // 2
            main.add_module(
                f"pyramid:{channels}-{half}:convt",
                nn.ConvTranspose2d(channels, half, 4, 2, 1, bias=False),
            )
            self._add_norm(main, f"pyramid:{half}", half)
            main.add_module(f"pyramid:{half}:relu", nn.ReLU(inplace=True))
            size, channels = size * 2, half

        for extra in range(n_extra_layers):
            layer = f"extra-layers-{extra}:{channels}"
            main.add_module(f"{layer}:conv", nn.Conv2d(channels, channels, 3, 1, 1, bias=False))
            self._add_norm(main, layer, channels)
            main.add_module(f"{layer}:relu", nn.ReLU(inplace=True))

        main.add_module(
            f"final:{channels}-{nc}:convt", nn.ConvTranspose2d(channels, nc, 4, 2, 1, bias=False)
        )
        main.add_module(f"final:{nc}:tanh", nn.Tanh())
        self.main = main

    def _add_norm(self, main: nn.Sequential, layer: str, channels: int) -> None:
        if self.batch_norm:
            main.add_module(f"{layer}:batchnorm", nn.BatchNorm2d(channels))

    def forward(self, input: Tensor) -> Tensor:
        """Images of noise.

        Args:
            input: z, (N, nz, 1, 1). As in the original, a larger map gives larger images.

        Returns:
            (N, nc, isize, isize), in [-1, 1].

        Raises:
            ImageSizeError: another rank or channel count (a ValueError).
        """
        if input.dim() != 4 or input.size(1) != self.nz:
            raise ImageSizeError(
                f"{type(self).__name__} got z of shape {tuple(input.shape)}; "
                f"expected (N, {self.nz}, 1, 1)"
            )
        return run(self.main, input, self.ngpu)


class _Critic(_Network):
    """Base class of the critics: the scores, and their mean over the batch."""

    def _raw_scores(self, input: Tensor) -> Tensor:
        check_images(input, self.nc, self.isize, self)
        return run(self.main, input, self.ngpu)

    def forward(self, input: Tensor) -> Tensor:
        """The mean score of a batch.

        Args:
            input: (N, nc, isize, isize).

        Returns:
            Shape (1,).

        Raises:
            ImageSizeError: images of another shape (a ValueError).
        """
        return self._raw_scores(input).mean(0).view(1)

    def scores(self, input: Tensor) -> Tensor:
        """One score per sample, whose mean ``forward`` returns.

        Args:
            input: (N, nc, isize, isize).

        Returns:
            Shape (N,).

        Raises:
            ImageSizeError: images of another shape (a ValueError).
        """
        return self._raw_scores(input).view(-1)


class _ConvolutionalCritic(_Critic):
    """Images to scores, with or without batch norm."""

    batch_norm: bool
    first_activation = "relu"

    def __init__(
        self, isize: int, nz: int, nc: int, ndf: int, ngpu: int, n_extra_layers: int = 0
    ) -> None:
        super().__init__(isize, nz, nc, ngpu)
        check_image_size("isize", isize)
        _check_extra_layers(n_extra_layers)
        check_positive(ndf=ndf)

        main = FusedSequential()
        main.add_module(f"initial:{nc}-{ndf}:conv", nn.Conv2d(nc, ndf, 4, 2, 1, bias=False))
        main.add_module(f"initial:{ndf}:{self.first_activation}", nn.LeakyReLU(0.2, inplace=True))

        for extra in range(n_extra_layers):
            layer = f"extra-layers-{extra}:{ndf}"
            main.add_module(f"{layer}:conv", nn.Conv2d(ndf, ndf, 3, 1, 1, bias=False))
            self._add_norm(main, layer, ndf)
            main.add_module(f"{layer}:relu", nn.LeakyReLU(0.2, inplace=True))

        size, channels = isize // 2, ndf
        while size > 4:
            double = channels * 2
            main.add_module(
                f"pyramid:{channels}-{double}:conv",
                nn.Conv2d(channels, double, 4, 2, 1, bias=False),
            )
            self._add_norm(main, f"pyramid:{double}", double)
            main.add_module(f"pyramid:{double}:relu", nn.LeakyReLU(0.2, inplace=True))
            size, channels = size // 2, double

        main.add_module(f"final:{channels}-1:conv", nn.Conv2d(channels, 1, 4, 1, 0, bias=False))
        self.main = main

    def _add_norm(self, main: nn.Sequential, layer: str, channels: int) -> None:
        if self.batch_norm:
            main.add_module(f"{layer}:batchnorm", nn.BatchNorm2d(channels))


class DCGAN_G(_Generator):
    """The generator with batch norm.

    Args:
        isize: image height and width, a power of two of at least 16. (The original requires a
            multiple of 16, but hangs unless it is a power of two.)
        nz: length of the noise vector.
        nc: image channels.
        ngf: channels of the last hidden map; at least 2.
        ngpu: with more than 1, a batch on a GPU is split over GPUs 0 to ngpu - 1.
        n_extra_layers: 3x3 convolutions at half the image's size.

    Shapes: z (N, nz, 1, 1) -> (N, nc, isize, isize), in [-1, 1].

    Raises:
        ImageSizeError: an unfit ``isize`` (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> import torch
        >>> netG = DCGAN_G(16, 8, 3, 4, 1)
        >>> netG(torch.zeros(2, 8, 1, 1)).shape
        torch.Size([2, 3, 16, 16])
        >>> list(netG.state_dict())[0]
        'main.initial:8-8:convt.weight'
    """

    batch_norm = True


class DCGAN_G_nobn(_Generator):
    """The generator without batch norm; arguments, shapes and errors as :class:`DCGAN_G`.

    Example:
        >>> list(DCGAN_G_nobn(16, 8, 3, 4, 1).state_dict())[:2]
        ['main.initial:8-8:convt.weight', 'main.pyramid:8-4:convt.weight']
    """

    batch_norm = False


class DCGAN_D(_ConvolutionalCritic):
    """The critic with batch norm.

    Args:
        isize: image height and width, a power of two of at least 16.
        nz: unused, as in the original.
        nc: image channels.
        ndf: channels of the first hidden map.
        ngpu: with more than 1, a batch on a GPU is split over GPUs 0 to ngpu - 1.
        n_extra_layers: 3x3 convolutions at half the image's size.

    Shapes: images (N, nc, isize, isize) -> (1,), the mean over the batch; ``scores`` -> (N,).

    Raises:
        ImageSizeError: an unfit ``isize`` (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> import torch
        >>> netD = DCGAN_D(16, 8, 3, 4, 1)
        >>> images = torch.zeros(2, 3, 16, 16)
        >>> netD(images).shape, netD.scores(images).shape
        (torch.Size([1]), torch.Size([2]))
    """

    batch_norm = True


class DCGAN_D_nobn(_ConvolutionalCritic):
    """The critic without batch norm; arguments, shapes and errors as :class:`DCGAN_D`.

    Its first activation is called ``initial:{ndf}:conv``, as in the original.

    Example:
        >>> list(DCGAN_D_nobn(16, 8, 3, 4, 1).main._modules)[:2]
        ['initial:3-4:conv', 'initial:4:conv']
    """

    batch_norm = False
    first_activation = "conv"


class MLP_G(_Network):
    """The generator of dense layers; its images aren't bounded.

    Args:
        isize: image height and width, any from 1.
        nz: length of the noise vector.
        nc: image channels.
        ngf: width of the three hidden layers.
        ngpu: with more than 1, a batch on a GPU is split over GPUs 0 to ngpu - 1.

    Shapes: z (N, nz) or (N, nz, 1, 1) -> (N, nc, isize, isize).

    Raises:
        ConfigError: an argument below 1 (a ValueError).

    Example:
        >>> import torch
        >>> MLP_G(16, 8, 3, 4, 1)(torch.zeros(2, 8, 1, 1)).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(self, isize: int, nz: int, nc: int, ngf: int, ngpu: int) -> None:
        super().__init__(isize, nz, nc, ngpu)
        check_positive(isize=isize, nz=nz, ngf=ngf)
        self.main = _dense(nz, ngf, nc * isize * isize)

    def forward(self, input: Tensor) -> Tensor:
        """Images of noise.

        Args:
            input: z, (N, nz) or (N, nz, 1, 1).

        Returns:
            (N, nc, isize, isize).

        Raises:
            ImageSizeError: a z of another shape (a ValueError).
        """
        z = latent_map(input, self.nz, self).flatten(1)
        return run(self.main, z, self.ngpu).view(-1, self.nc, self.isize, self.isize)


class MLP_D(_Critic):
    """The critic of dense layers.

    Args:
        isize: image height and width, any from 1.
        nz: unused, as in the original.
        nc: image channels.
        ndf: width of the three hidden layers.
        ngpu: with more than 1, a batch on a GPU is split over GPUs 0 to ngpu - 1.

    Shapes: images (N, nc, isize, isize) -> (1,), the mean over the batch; ``scores`` -> (N,).

    Raises:
        ConfigError: an argument below 1 (a ValueError).

    Example:
        >>> import torch
        >>> MLP_D(16, 8, 3, 4, 1)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([1])
    """

    def __init__(self, isize: int, nz: int, nc: int, ndf: int, ngpu: int) -> None:
        super().__init__(isize, nz, nc, ngpu)
        check_positive(isize=isize, ndf=ndf)
        self.main = _dense(nc * isize * isize, ndf, 1)

    def _raw_scores(self, input: Tensor) -> Tensor:
        check_images(input, self.nc, self.isize, self)
        return run(self.main, input.flatten(1), self.ngpu)


def _dense(features_in: int, hidden: int, features_out: int) -> nn.Sequential:
    return FusedSequential(
        nn.Linear(features_in, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, features_out),
    )


def _check_extra_layers(n_extra_layers: int) -> None:
    if not isinstance(n_extra_layers, int) or n_extra_layers < 0:
        raise ConfigError(f"n_extra_layers is {n_extra_layers!r}; expected an integer from 0")
