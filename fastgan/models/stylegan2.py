"""StyleGAN2: Karras et al. 2020, arXiv 1912.04958, small: up to 256 pixels.

    mapping         z, or z and the label's embedding, each normalised -> layers -> w
    synthesis       a learned 4x4 map -> modulated convolutions with noise -> a sum of images
    discriminator   residual blocks behind [1, 3, 3, 1] filters, minibatch standard deviation

Weights are N(0, 1) and scaled by 1 / sqrt(fan_in) at run time; styles, inputs or biases are scaled
instead if they have fewer values. Trained with the non-saturating loss, lazy R1, path length
regularisation and style mixing (:mod:`fastgan.training.style_updates`).
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.models.base import ImageDiscriminator, ImageNetwork
from fastgan.models.checks import latent_map
from fastgan.models.conditioning import one_hot_labels
from fastgan.models.initialisation import keep_channels_last
from fastgan.models.r3gan import widths
from fastgan.nn.minibatch_stddev import MinibatchStdDev
from fastgan.ops.bias_act import bias_act
from fastgan.ops.conv2d_resample import conv2d_resample
from fastgan.ops.modulated_conv2d import modulated_conv2d
from fastgan.ops.upfirdn2d import upfirdn2d

__all__ = ["StyleGAN2Discriminator", "StyleGAN2Generator"]

#: Group size of the minibatch standard deviation.
GROUP = 4
#: Learning rate of the mapping network relative to other layers.
MAPPING_RATE = 0.01
#: Decay of w's moving average, at each forward pass in training.
W_DECAY = 0.998

_FIR = (0.125, 0.375, 0.375, 0.125)


def _drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_())


def _normalised(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class _Linear(nn.Module):
    """act(lr / sqrt(features) * W x + lr * b)."""

    def __init__(
        self, features: int, out: int, act: str = "linear", *, bias: float = 0.0, lr: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, features).normal_() / lr)
        self.bias = nn.Parameter(torch.full((out,), bias))
        self.act = act
        self.lr = lr
        self.scale = lr / math.sqrt(features)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x * self.scale, self.weight)
        bias = self.bias if self.lr == 1 else self.bias * self.lr
        return bias_act(y, bias.to(y.dtype), act=self.act)


class _Mapping(nn.Module):
    """(N, nz), and one-hot labels (N, num_classes), -> (N, nw); in training w_avg follows."""

    w_avg: Tensor

    def __init__(self, nz: int, nw: int, depth: int, num_classes: int | None) -> None:
        super().__init__()
        features = nz
        if num_classes is not None:
            self.embedding = _drawn(num_classes, nw)
            features += nw
        self.layers = nn.Sequential(
            *(
                _Linear(nw if layer else features, nw, "lrelu", lr=MAPPING_RATE)
                for layer in range(depth)
            )
        )
        self.register_buffer("w_avg", torch.zeros(nw))

    def forward(self, z: Tensor, classes: Tensor | None) -> Tensor:
        z = _normalised(z)
        if classes is not None:
            embedded = classes.to(self.embedding.dtype) @ self.embedding
            z = torch.cat([z, _normalised(embedded).to(z.dtype)], 1)
        w: Tensor = self.layers(z)
        if self.training:
            self.w_avg.lerp_(w.detach().mean(0).to(self.w_avg.dtype), 1 - W_DECAY)
        return w


class _StyledConv(nn.Module):
    """act(modulated 3x3 convolution + strength * noise + b), perhaps after upsampling by 2.

    Noise is random in training, and a buffer in eval mode, so that the same z gives the same image.
    """

    noise: Tensor

    def __init__(self, channels: int, out: int, nw: int, size: int, *, up: int) -> None:
        super().__init__()
        self.affine = _Linear(nw, channels, bias=1.0)
        self.weight = _drawn(out, channels, 3, 3)
        self.bias = nn.Parameter(torch.zeros(out))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.empty(size, size).normal_())
        self.scale = 1 / math.sqrt(9 * channels)
        self.size = size
        self.up = up

    def forward(self, x: Tensor, w: Tensor, fir: Tensor) -> Tensor:
        noise = self.noise
        if self.training:
            shape = (x.shape[0], 1, self.size, self.size)
            noise = torch.randn(shape, dtype=x.dtype, device=x.device)
        styles = self.affine(w) * self.scale
        noise = self.strength * noise
        x = modulated_conv2d(x, self.weight, styles, noise, self.up, 1, 1, fir)
        return bias_act(x, self.bias.to(x.dtype), act="lrelu")


class _ToRGB(nn.Module):
    """A modulated 1x1 convolution to an image, not demodulated."""

    def __init__(self, channels: int, nc: int, nw: int) -> None:
        super().__init__()
        self.affine = _Linear(nw, channels, bias=1.0)
        self.weight = _drawn(nc, channels, 1, 1)
        self.bias = nn.Parameter(torch.zeros(nc))
        self.scale = 1 / math.sqrt(channels)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        styles = self.affine(w) * self.scale
        y = modulated_conv2d(x, self.weight, styles, demodulate=False)
        return bias_act(y, self.bias.to(y.dtype))


class StyleGAN2Generator(ImageNetwork):
    """G(z), or G(z|y), StyleGAN2's.

    ``forward`` is ``synthesis(styles(z))``: each convolution has its own w, the same for all unless
    two are mixed. The layers' noise is random in training mode, fixed in eval mode.
    ``mapping.w_avg`` averages w in training mode, and truncation contracts towards it.

    Args:
        nz: length of the noise vector.
        ngf: channels of the full-size map; doubled at each smaller size, up to ``8 * ngf``.
        nc: image channels.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.
        nw: length of the style vectors w; None for ``nz``.
        mapping_layers: layers from z to w.

    Attributes:
        layers: the number of w per image: 2 log2(image_size) - 2.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> generator = StyleGAN2Generator(nz=8, ngf=4, nc=3, image_size=32)
        >>> generator(torch.randn(2, 8)).shape, generator.layers
        (torch.Size([2, 3, 32, 32]), 8)
    """

    nz: int
    ngf: int
    nc: int
    fir: Tensor
    path_length_mean: Tensor

    def __init__(
        self,
        nz: int = 512,
        ngf: int = 64,
        nc: int = 3,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
        nw: int | None = None,
        mapping_layers: int = 8,
    ) -> None:
        nw = nz if nw is None else nw
        counts = {"nz": nz, "ngf": ngf, "nc": nc, "nw": nw, "mapping_layers": mapping_layers}
        super().__init__(image_size, num_classes, **counts)
        self.mapping = _Mapping(nz, nw, mapping_layers, num_classes)
        channels = widths(ngf, image_size)
        self.const = _drawn(channels[0], 4, 4)
        self.convs = nn.ModuleList()
        self.to_rgb = nn.ModuleList()
        for index, width in enumerate(channels):
            size = 4 << index
            if index:
                self.convs.append(_StyledConv(channels[index - 1], width, nw, size, up=2))
            self.convs.append(_StyledConv(width, width, nw, size, up=1))
            self.to_rgb.append(_ToRGB(width, nc, nw))
        self.layers = len(self.convs) + 1
        self.register_buffer("fir", torch.tensor(_FIR), persistent=False)
        # The target path length: a of the paper's equation 4.
        self.register_buffer("path_length_mean", torch.zeros(()))
        keep_channels_last(self)

    def styles(
        self,
        z: Tensor,
        labels: Tensor | None = None,
        mixed: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Each layer's w.

        Args:
            z: as in :meth:`forward`.
            labels: likewise.
            mixed: a second z, and int64 (N,): for each sample the first layer that it styles
                (Karras et al. 2018, arXiv 1812.04948, section 3.1). None for none.

        Returns:
            (N, layers, nw).
        """
        if mixed is None:
            return self._mapped(z, labels)[:, None].expand(-1, self.layers, -1)
        second, first = mixed
        both = torch.cat([z.flatten(1), second.flatten(1)])
        w, other = self._mapped(both, None if labels is None else labels.repeat(2)).chunk(2)
        later = torch.arange(self.layers, device=z.device) >= first[:, None]
        return torch.where(later[:, :, None], other[:, None], w[:, None])

    def _mapped(self, z: Tensor, labels: Tensor | None) -> Tensor:
        z = latent_map(z, self.nz, self).flatten(1)
        w: Tensor = self.mapping(z, one_hot_labels(labels, self.num_classes, z, self))
        return w

    def synthesis(self, styles: Tensor) -> Tensor:
        """Images (N, nc, image_size, image_size) of each layer's w, (N, layers, nw)."""
        of_layers = iter(styles.unbind(1))
        x = self.const.expand(styles.shape[0], -1, -1, -1)  # len() would fix an exported batch size
        x = x.contiguous(memory_format=torch.channels_last)
        convs = iter(self.convs)
        x = next(convs)(x, next(of_layers), self.fir)
        # The w after a size's last convolution is used for its image and the next convolution.
        w = next(of_layers)
        image: Tensor = self.to_rgb[0](x, w)
        for to_rgb in self.to_rgb[1:]:
            x = next(convs)(x, w, self.fir)
            x = next(convs)(x, next(of_layers), self.fir)
            w = next(of_layers)
            image = upfirdn2d(image, self.fir, (2, 2), (1, 1), (2, 1, 2, 1), gain=4.0)
            image = image + to_rgb(x, w)
        return image

    def truncated(self, styles: Tensor, truncation: float | None) -> Tensor:
        """``w_avg + truncation * (w - w_avg)``; w itself for None.

        Raises:
            ConfigError: a ``truncation`` below 0.
        """
        if truncation is None:
            return styles
        if not 0 <= truncation < math.inf:
            raise ConfigError(f"truncation: expected a number of at least 0, got {truncation}")
        return torch.lerp(self.mapping.w_avg.to(styles.dtype), styles, truncation)

    def forward(
        self, z: Tensor, labels: Tensor | None = None, truncation: float | None = None
    ) -> Tensor:
        """Images of noise.

        Args:
            z: (N, nz) or (N, nz, 1, 1).
            labels: int64 (N,) in [0, num_classes) for a conditional generator, else None.
            truncation: psi: each w becomes ``w_avg + psi (w - w_avg)``; None for 1.

        Returns:
            (N, nc, image_size, image_size), unbounded; real images are in [-1, 1].

        Raises:
            ImageSizeError: a z of another shape (a ValueError).
            LabelError: unfit labels, see :func:`fastgan.models.conditioning.one_hot_labels`.
            ConfigError: a ``truncation`` below 0 (a ValueError).
        """
        return self.synthesis(self.truncated(self.styles(z, labels), truncation))


class _Conv(nn.Module):
    """act(conv(x) + b) with a scaled weight, perhaps filtered and downsampled by 2."""

    fir: Tensor

    def __init__(
        self, channels: int, out: int, taps: int, *, down: int = 1, bias: bool = True, gain: float
    ) -> None:
        super().__init__()
        self.weight = _drawn(out, channels, taps, taps)
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.register_buffer("fir", torch.tensor(_FIR), persistent=False)
        self.scale = 1 / math.sqrt(channels * taps * taps)
        self.down = down
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        # A leaky ReLU's gain can't move into the convolution, because of the bias; a skip's can.
        gain = 1.0 if self.bias is not None else self.gain
        weight = (self.weight * (self.scale * gain)).to(x.dtype)
        padding = weight.shape[2] // 2
        y = conv2d_resample(x, weight, self.fir, 1, self.down, padding)
        if self.bias is None:
            return y
        return bias_act(y, self.bias.to(y.dtype), act="lrelu", gain=self.gain)


class _Down(nn.Module):
    """(conv2(conv1(x)) + skip(x)) / sqrt(2), downsampled by 2; the factor is applied to each
    summand."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = _Conv(channels, channels, 3, gain=math.sqrt(2))
        self.conv2 = _Conv(channels, out, 3, down=2, gain=1.0)
        self.skip = _Conv(channels, out, 1, down=2, bias=False, gain=math.sqrt(0.5))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.conv2(self.conv1(x)) + self.skip(x)
        return output


class StyleGAN2Discriminator(ImageDiscriminator):
    """f(x), or f(x|y), StyleGAN2's; a conditional one projects its features on the label's
    embedding.

    It uses the standard deviation over groups of 4 samples: 4 must divide larger batches.

    Args:
        nc: image channels.
        ndf: channels of the full-size map; doubled at each smaller size, up to ``8 * ndf``.
        image_size: a power of two from 16 to 256.
        num_classes: None, or the number of classes: then ``forward`` takes labels.

    Raises:
        ImageSizeError: an ``image_size`` that isn't such a power of two (a ValueError).
        ConfigError: another argument below 1 (a ValueError).

    Example:
        >>> StyleGAN2Discriminator(nc=3, ndf=4, image_size=32)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        nc: int = 3,
        ndf: int = 64,
        image_size: int = 64,
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(image_size, num_classes, nc=nc, ndf=ndf)
        channels = widths(ndf, image_size)[::-1]
        last = channels[-1]
        root = math.sqrt(2)
        self.from_rgb = _Conv(nc, ndf, 1, gain=root)
        self.blocks = nn.Sequential(*(_Down(*pair) for pair in itertools.pairwise(channels)))
        self.spread = MinibatchStdDev(GROUP)
        self.conv = _Conv(last + 1, last, 3, gain=root)
        self.hidden = _Linear(16 * last, last, "lrelu")
        self.output = _Linear(last, 1 if num_classes is None else last)
        if num_classes is not None:
            self.embedding = _drawn(num_classes, last)
        keep_channels_last(self)

    def _scores(self, images: Tensor, classes: Tensor | None) -> Tensor:
        x = self.conv(self.spread(self.blocks(self.from_rgb(images))))
        features: Tensor = self.output(self.hidden(x.flatten(1)))
        if classes is None:
            return features.view(-1)
        vectors = classes.to(features.dtype) @ self.embedding.to(features.dtype)
        return (features * vectors).sum(1) / math.sqrt(features.shape[1])
