"""The layers of the DCGAN's generator and critic.

    generator   z -> 4x4 map of 8 * ngf channels -> 8x8 of 4 * ngf -> ... -> image     (64 pixels)
    critic      image -> 32x32 map of ndf channels -> ... -> 4x4 of 8 * ndf -> 1x1     (64 pixels)

Radford et al. 2015, arXiv 1511.06434, section 3. Layers are made in the order they run, which is
also the order of their random initialisation.
"""

from __future__ import annotations

from torch import nn

__all__ = ["NORMS", "critic_layers", "generator_layers", "normalisation"]

NORMS = ("none", "batch", "instance", "layer")


def generator_layers(nz: int, ngf: int, nc: int, image_size: int) -> list[nn.Module]:
    """Noise to image: transposed convolutions, batch norms and ReLUs, then tanh.

    Args:
        nz: channels of the noise, labels' channels included.
        ngf: channels of the map of half the image's size.
        nc: image channels.
        image_size: a power of two of at least 16.

    Example:
        >>> [type(layer).__name__ for layer in generator_layers(100, 64, 3, 16)][-5:]
        ['ConvTranspose2d', 'BatchNorm2d', 'ReLU', 'ConvTranspose2d', 'Tanh']
    """
    channels = ngf * (image_size // 8)
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(nz, channels, 4, 1, 0, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
    ]
    while channels > ngf:
        layers += [
            nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels // 2),
            nn.ReLU(inplace=True),
        ]
        channels //= 2
    return [*layers, nn.ConvTranspose2d(ngf, nc, 4, 2, 1, bias=False), nn.Tanh()]


def critic_layers(
    nc: int, ndf: int, image_size: int, norm: str = "batch", outputs: int = 1
) -> list[nn.Module]:
    """Image to one score: strided convolutions, normalisations and leaky ReLUs.

    Args:
        nc: channels of the image, labels' channels included.
        ndf: channels of the map of half the image's size.
        image_size: a power of two of at least 16.
        norm: one of :data:`NORMS`, after every hidden convolution but the
            first. With "none" the hidden convolutions have a bias instead, initially zero. The last
            has none, as a constant cancels in a critic's loss.
        outputs: numbers for each image.

    Example:
        >>> [type(layer).__name__ for layer in critic_layers(3, 64, 16, "layer")]
        ['Conv2d', 'LeakyReLU', 'Conv2d', 'GroupNorm', 'LeakyReLU', 'Conv2d']
    """
    biased = norm == "none"
    layers: list[nn.Module] = [
        nn.Conv2d(nc, ndf, 4, 2, 1, bias=biased),
        nn.LeakyReLU(0.2, inplace=True),
    ]
    channels = ndf
    while channels < ndf * (image_size // 8):
        layers.append(nn.Conv2d(channels, channels * 2, 4, 2, 1, bias=biased))
        channels *= 2
        layers += normalisation(norm, channels)
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return [*layers, nn.Conv2d(channels, outputs, 4, 1, 0, bias=False)]


def normalisation(norm: str, channels: int) -> list[nn.Module]:
    """The layers of a norm, one of :data:`NORMS`, that has a scale and a shift for each channel.

    Args:
        norm: its name.
        channels: of the map.

    Example:
        >>> [type(layer).__name__ for layer in normalisation("instance", 4)]
        ['InstanceNorm2d']
    """
    if norm == "batch":
        return [nn.BatchNorm2d(channels)]
    if norm == "instance":
        return [nn.InstanceNorm2d(channels, affine=True)]
    if norm == "layer":
        # As in the WGAN-GP authors' code: per-sample statistics over channels, rows and columns,
        # but one weight and bias per channel, which is a group norm with one group.
        return [nn.GroupNorm(1, channels)]
    return []
