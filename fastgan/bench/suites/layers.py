"""Shapes of GANs' convolutions, and the work of their passes.

A DCGAN's: Radford et al. 2015, arXiv 1511.06434, figure 1, with the usual 4x4 kernels (see
:mod:`fastgan.models.layers` for the modules) and with the paper's 5x5 ones; and 3x3 ones of a
residual network for 64x64 images: Miyato et al. 2018, arXiv 1802.05957, table 4. Separate from the
modules, so that the counted work doesn't depend on the implementation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastgan.bench.work import Work, convolution_steps


@dataclass(frozen=True)
class Layer:
    """One convolution.

    Attributes:
        transposed: whether it is a transposed one.
        channels_in: C_in.
        channels_out: C_out.
        size_in: height and width of its input.
        size_out: of its output.
        stride: 2 if the size changes by a factor, else 1.
        padding: as the module's.
        normalised: whether batch norm follows it, in a DCGAN.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        taps: height and width of its kernels.
        output_padding: of a transposed one.
    """

    transposed: bool
    channels_in: int
    channels_out: int
    size_in: int
    size_out: int
    stride: int
    padding: int
    normalised: bool
    activation: str
    taps: int = 4
    output_padding: int = 0

    @property
    def shape(self) -> str:
        """A readable name.

        Example:
            >>> generator_layers()[1].shape
            '512x4x4 to 256x8x8'
            >>> residual_layers()[0].shape
            '512x8x8 to 512x8x8, 3x3 taps'
        """
        taps = "" if self.taps == 4 else f", {self.taps}x{self.taps} taps"
        return (
            f"{self.channels_in}x{self.size_in}x{self.size_in} to"
            f" {self.channels_out}x{self.size_out}x{self.size_out}{taps}"
        )

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """The shape of the module's weight.

        Example:
            >>> generator_layers()[1].weight_shape, critic_layers()[1].weight_shape
            ((512, 256, 4, 4), (128, 64, 4, 4))
        """
        if self.transposed:
            return self.channels_in, self.channels_out, self.taps, self.taps
        return self.channels_out, self.channels_in, self.taps, self.taps

    def work(self, batch: int, dtype: str, passes: Iterable[str]) -> Work:
        """The work of these passes over a batch."""
        return convolution_steps(
            batch,
            (self.channels_in, self.size_in, self.size_in),
            (self.channels_out, self.size_out, self.size_out),
            (self.taps, self.taps),
            transposed=self.transposed,
            dtype=dtype,
            passes=passes,
        )


def generator_layers(
    nz: int = 100, ngf: int = 64, nc: int = 3, image_size: int = 64
) -> list[Layer]:
    """A generator's layers, from noise to image.

    Example:
        >>> [layer.channels_out for layer in generator_layers()]
        [512, 256, 128, 64, 3]
    """
    channels, size = ngf * image_size // 8, 4
    layers = [Layer(True, nz, channels, 1, 4, 1, 0, True, "relu")]
    while size < image_size // 2:
        layers.append(Layer(True, channels, channels // 2, size, 2 * size, 2, 1, True, "relu"))
        channels, size = channels // 2, 2 * size
    layers.append(Layer(True, channels, nc, size, image_size, 2, 1, False, "tanh"))
    return layers


def critic_layers(nc: int = 3, ndf: int = 64, image_size: int = 64) -> list[Layer]:
    """A discriminator's or critic's layers, from image to score.

    Example:
        >>> [layer.channels_out for layer in critic_layers()]
        [64, 128, 256, 512, 1]
    """
    size, channels = image_size // 2, ndf
    layers = [Layer(False, nc, ndf, image_size, size, 2, 1, False, "leaky_relu")]
    while size > 4:
        layers.append(
            Layer(False, channels, 2 * channels, size, size // 2, 2, 1, True, "leaky_relu")
        )
        channels, size = 2 * channels, size // 2
    layers.append(Layer(False, channels, 1, size, 1, 1, 0, False, "none"))
    return layers


def residual_layers() -> list[Layer]:
    """The second convolution of each block of a generator, and the first where channels halve.

    Example:
        >>> [(layer.channels_in, layer.channels_out, layer.size_in) for layer in residual_layers()]
        [(512, 512, 8), (512, 256, 16), (256, 256, 16), (128, 128, 32), (64, 64, 64)]
    """
    return [
        Layer(False, channels_in, channels_out, size, size, 1, 1, True, "relu", taps=3)
        for channels_in, channels_out, size in (
            (512, 512, 8),
            (512, 256, 16),
            (256, 256, 16),
            (128, 128, 32),
            (64, 64, 64),
        )
    ]


def paper_layers() -> list[Layer]:
    """The inner layers of a DCGAN with 5x5 kernels: the generator's, then the discriminator's.

    Example:
        >>> [layer.shape for layer in paper_layers()][2:4]
        ['256x16x16 to 128x32x32, 5x5 taps', '128x32x32 to 256x16x16, 5x5 taps']
    """
    sizes = ((1024, 512, 4), (512, 256, 8), (256, 128, 16))
    return [
        Layer(True, many, few, size, 2 * size, 2, 2, True, "relu", taps=5, output_padding=1)
        for many, few, size in sizes
    ] + [
        Layer(False, few, many, 2 * size, size, 2, 2, True, "leaky_relu", taps=5)
        for many, few, size in reversed(sizes)
    ]
