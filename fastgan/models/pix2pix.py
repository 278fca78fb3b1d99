"""pix2pix: Isola et al. 2017, arXiv 1611.07004, section 3.2 and appendix 6.1.

generator       a U-Net down to one pixel and up again, with concatenated skips
discriminator   a PatchGAN of input and output, concatenated along channels
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastgan.models.base import ImageTranslator
from fastgan.models.checks import check_choice
from fastgan.models.cyclegan import PATCH_NORMS, PatchDiscriminator
from fastgan.models.initialisation import keep_channels_last, weights_init
from fastgan.models.layers import normalisation
from fastgan.nn.recorder import run_recorded

__all__ = ["Pix2PixDiscriminator", "UNetGenerator"]


class UNetGenerator(ImageTranslator):
    """Translates images: pix2pix's generator.

    4x4 convolutions of stride 2 after leaky ReLUs of slope 0.2, transposed ones after ReLUs. At
    most three maps of ``8 * ngf`` channels on the way up have dropout of 1/2; unlike in the paper
    only in training, for deterministic translations.

    Args:
        nc: image channels, in and out.
        ngf: channels of the map of half the image's size; doubled at each smaller one, up to
            ``8 * ngf``.
        image_size: a power of two from 16 to 256.
        norm: "instance", equal to the paper's batch norm with batches of one image; "batch" or
            "none".

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument out of its range (a ValueError).

    Example:
        >>> UNetGenerator(nc=3, ngf=4, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self, nc: int = 3, ngf: int = 64, image_size: int = 256, *, norm: str = "instance"
    ) -> None:
        super().__init__(image_size, nc=nc, ngf=ngf)
        check_choice("norm", norm, PATCH_NORMS)
        widths = [ngf * min(2**level, 8) for level in range(image_size.bit_length() - 1)]
        biased = norm == "none"
        self.down = nn.ModuleList([nn.Conv2d(nc, ngf, 4, 2, 1)])
        for level in range(1, len(widths)):
            # One pixel has no statistics.
            last = level == len(widths) - 1
            self.down.append(
                nn.Sequential(
                    nn.LeakyReLU(0.2),
                    nn.Conv2d(widths[level - 1], widths[level], 4, 2, 1, bias=biased or last),
                    *normalisation("none" if last else norm, widths[level]),
                )
            )
        self.up = nn.ModuleList()
        for level in range(len(widths) - 1, 0, -1):
            wide = widths[level - 1] == 8 * ngf and len(self.up) < 3
            self.up.append(
                nn.Sequential(
                    nn.ReLU(),
                    nn.ConvTranspose2d(
                        widths[level] * (2 if self.up else 1), widths[level - 1], 4, 2, 1,
                        bias=biased,
                    ),
                    *normalisation(norm, widths[level - 1]),
                    *([nn.Dropout(0.5)] if wide else []),
                )
            )  # fmt: skip
        self.up.append(nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(2 * ngf, nc, 4, 2, 1)))
        self.apply(weights_init)
        keep_channels_last(self)

    @property
    def directions(self) -> Mapping[str, nn.Module]:
        """The translating module: ``"a2b"``."""
        return {"a2b": self}

    def _translated(self, images: Tensor) -> Tensor:
        output: Tensor = run_recorded(self, self._drawn, (images,), {})
        return output

    def _drawn(self, x: Tensor) -> Tensor:
        maps = []
        for down in self.down:
            x = down(x)
            maps.append(x)
        x = self.up[0](maps.pop())
        for up, beside in zip(self.up[1:], reversed(maps), strict=True):
            x = up(torch.cat([x, beside], dim=1))
        return torch.tanh(x)


class Pix2PixDiscriminator(PatchDiscriminator):
    """A PatchGAN of input and output together, ``torch.cat([a, b], dim=1)``.

    The arguments and errors are :class:`PatchDiscriminator`'s; ``nc`` are the channels of one
    image.

    Example:
        >>> Pix2PixDiscriminator(nc=3, ndf=4, image_size=64)(torch.zeros(2, 6, 64, 64)).shape
        torch.Size([2, 1, 6, 6])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 256,
        *,
        norm: str = "instance",
        layers: int | None = None,
    ) -> None:
        super().__init__(2 * nc, ndf, image_size, norm=norm, layers=layers)
