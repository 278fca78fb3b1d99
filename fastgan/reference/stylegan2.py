"""StyleGAN2: Karras et al. 2020, arXiv 1912.04958.

    w = f(z)                                   f: layers with lr multiplier 0.01, of normalised z
    w'_oikl = s_i w_oikl                       equation 1: modulation, s = A w
    w''_oikl = w'_oikl / sqrt(sum w'^2 + eps)  equation 3: demodulation
    L_pl = E_{w, y}[(||J_w^T y||_2 - a)^2]     equation 4: path length, a its moving average

Section 3.1 (lazy regularisation): every k updates the penalty is descended in a step of its own,
times k. Figure 7: the generator sums images of all sizes (skip connections), the discriminator's
blocks are residual. Weights are N(0, 1), scaled by 1 / sqrt(fan_in) where they are used (Karras et
al. 2017, arXiv 1710.10196, section 4.1). Style mixing and truncation are Karras et al. 2018's,
arXiv 1812.04948, section 3.1 and appendix B.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.reference.conditional import call
from fastgan.reference.style_ops import bias_act, minibatch_stddev, upfirdn2d

Mixed = tuple[Tensor, Tensor]


def normalised(x: Tensor) -> Tensor:
    """x / sqrt(mean x^2 + 1e-8), row by row."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def filtered(x: Tensor, up: int = 1, down: int = 1, before: int = 0, after: int = 0) -> Tensor:
    """The filter [1, 3, 3, 1], which keeps the mean, between up- and downsampling."""
    f = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device) / 8
    padding = (before, after, before, after)
    return upfirdn2d(x, f, (up, up), (down, down), padding, gain=float(up * up))


class Linear(nn.Module):
    """act(lr / sqrt(features) * W x + lr * b)."""

    def __init__(
        self, features: int, out: int, act: str = "linear", *, bias: float = 0.0, lr: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, features) / lr)
        self.bias = nn.Parameter(torch.full((out,), bias))
        self.act = act
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        """(N, features) -> (N, out)."""
        scale = self.lr / self.weight.shape[1] ** 0.5
        y = F.linear(x, self.weight * scale)
        return bias_act(y, (self.bias * self.lr).to(y.dtype), act=self.act)


class Mapping(nn.Module):
    """f: z, or z and an embedding of y, to w."""

    w_avg: Tensor

    def __init__(self, nz: int, nw: int, depth: int, num_classes: int | None) -> None:
        super().__init__()
        self.num_classes = num_classes
        if num_classes is not None:
            self.embedding = nn.Parameter(torch.randn(num_classes, nw))
        width = nz if num_classes is None else nz + nw
        self.layers = nn.Sequential()
        for _ in range(depth):
            self.layers.append(Linear(width, nw, "lrelu", lr=0.01))
            width = nw
        self.register_buffer("w_avg", torch.zeros(nw))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(N, nz) -> (N, nw); in training the average follows."""
        z = normalised(z)
        if self.num_classes is not None and labels is not None:
            z = torch.cat([z, normalised(self.embedding[labels])], dim=1)
        w: Tensor = self.layers(z)
        if self.training:
            mean = w.detach().mean(0).to(self.w_avg.dtype)
            self.w_avg.copy_(0.998 * self.w_avg + 0.002 * mean)
        return w


class StyledConv(nn.Module):
    """lrelu(modulated convolution + strength * noise + b), perhaps behind an upsampling by 2."""

    noise: Tensor

    def __init__(self, channels: int, out: int, nw: int, size: int, *, up: bool) -> None:
        super().__init__()
        self.affine = Linear(nw, channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(out, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out))
        self.strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise", torch.randn(size, size))
        self.up = up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Random noise in training, else the fixed one."""
        styles = self.affine(w)
        weight = self.weight / self.weight[0].numel() ** 0.5
        # One convolution serves all samples: s scales its input, and the norm its output.
        norms = (styles.square() @ weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        x = x * styles.to(x.dtype)[:, :, None, None]
        if self.up:
            x = F.conv_transpose2d(x, weight.transpose(0, 1).flip([2, 3]), stride=2)
            x = filtered(x, before=1, after=1) * 4
        else:
            x = F.conv2d(x, weight, padding=1)
        x = x * norms.to(x.dtype)[:, :, None, None]
        noise = self.noise
        if self.training:
            noise = torch.randn(len(x), 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        x = x + (self.strength * noise).to(x.dtype)
        return bias_act(x, self.bias.to(x.dtype), act="lrelu")


class ToRGB(nn.Module):
    """A modulated 1x1 convolution, not demodulated."""

    def __init__(self, channels: int, nc: int, nw: int) -> None:
        super().__init__()
        self.affine = Linear(nw, channels, bias=1.0)
        self.weight = nn.Parameter(torch.randn(nc, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(nc))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """The image that a map of features adds."""
        x = x * self.affine(w).to(x.dtype)[:, :, None, None]
        y = F.conv2d(x, self.weight / self.weight.shape[1] ** 0.5)
        return bias_act(y, self.bias.to(y.dtype))


def widths(width: int, image_size: int) -> list[int]:
    """Channels at 4x4, 8x8, ..., image_size."""
    channels = []
    size = 4
    while size <= image_size:
        channels.append(width * min(8, image_size // size))
        size *= 2
    return channels


class StyleGAN2Generator(nn.Module):
    """G(z), or G(z|y): a mapping network, and a synthesis network that it styles.

    Args:
        nz: length of the noise vector.
        ngf: channels at full size; doubled at each smaller size, up to ``8 * ngf``.
        nc: image channels.
        image_size: a power of two, 8 or more.
        num_classes: None, or the number of labels the generator is conditioned on.
        nw: length of w; None for ``nz``.
        mapping_layers: of the mapping network.

    Shapes: z (N, nz) or (N, nz, 1, 1), labels int64 (N,) -> (N, nc, image_size, image_size).

    Example:
        >>> StyleGAN2Generator(nz=5, ngf=2, nc=3, image_size=16)(torch.zeros(2, 5)).shape
        torch.Size([2, 3, 16, 16])
    """

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
        super().__init__()
        nw = nz if nw is None else nw
        self.mapping = Mapping(nz, nw, mapping_layers, num_classes)
        channels = widths(ngf, image_size)
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.convs = nn.ModuleList()
        self.to_rgb = nn.ModuleList()
        last = channels[0]
        for index, width in enumerate(channels):
            size = 4 << index
            if index > 0:
                self.convs.append(StyledConv(last, width, nw, size, up=True))
            self.convs.append(StyledConv(width, width, nw, size, up=False))
            self.to_rgb.append(ToRGB(width, nc, nw))
            last = width
        self.register_buffer("path_length_mean", torch.zeros(()))

    def styles(self, z: Tensor, labels: Tensor | None = None, mixed: Mixed | None = None) -> Tensor:
        """w of each layer: (N, nz) -> (N, layers, nw).

        ``mixed`` is a second z, and for each sample the first layer that has it (style mixing).
        """
        layers = len(self.convs) + 1
        z = z.flatten(1)
        if mixed is None:
            w = call(self.mapping, z, labels)
            return w[:, None].repeat(1, layers, 1)
        second, first_layer = mixed
        both = torch.cat([z, second.flatten(1)])
        w, other = call(self.mapping, both, None if labels is None else labels.repeat(2)).chunk(2)
        later = torch.arange(layers, device=z.device)[None] >= first_layer[:, None]
        return torch.where(later[:, :, None], other[:, None], w[:, None])

    def synthesis(self, styles: Tensor) -> Tensor:
        """The images of styles (N, layers, nw)."""
        x = self.const[None].repeat(len(styles), 1, 1, 1)
        x = self.convs[0](x, styles[:, 0])
        image: Tensor = self.to_rgb[0](x, styles[:, 1])
        for index in range(1, len(self.to_rgb)):
            x = self.convs[2 * index - 1](x, styles[:, 2 * index - 1])
            x = self.convs[2 * index](x, styles[:, 2 * index])
            image = filtered(image, up=2, before=2, after=1)
            image = image + self.to_rgb[index](x, styles[:, 2 * index + 1])
        return image

    def forward(
        self, z: Tensor, labels: Tensor | None = None, truncation: float | None = None
    ) -> Tensor:
        """G(z), or G(z|y); truncated, each w is ``w_avg + truncation * (w - w_avg)``."""
        styles = self.styles(z, labels)
        if truncation is not None:
            average = self.mapping.w_avg
            styles = average + truncation * (styles - average)
        return self.synthesis(styles)


class Conv(nn.Module):
    """A convolution with a scaled weight, perhaps in front of a downsampling by 2."""

    def __init__(
        self, channels: int, out: int, taps: int, *, down: bool = False, act: bool = True
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, channels, taps, taps))
        if act:
            self.bias = nn.Parameter(torch.zeros(out))
        self.down = down
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """lrelu(conv(x) + b), or conv(x)."""
        weight = self.weight / self.weight[0].numel() ** 0.5
        taps = weight.shape[2]
        if not self.down:
            x = F.conv2d(x, weight, padding=taps // 2)
        elif taps == 1:
            x = F.conv2d(filtered(x, down=2, before=1, after=1), weight)
        else:
            x = F.conv2d(filtered(x, before=2, after=2), weight, stride=2)
        return bias_act(x, self.bias.to(x.dtype), act="lrelu") if self.act else x


class Down(nn.Module):
    """(conv2(conv1(x)) + skip(x)) / sqrt(2), of half the size."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 3)
        self.conv2 = Conv(channels, out, 3, down=True)
        self.skip = Conv(channels, out, 1, down=True, act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, out, H / 2, W / 2)."""
        output: Tensor = (self.conv2(self.conv1(x)) + self.skip(x)) / 2**0.5
        return output


class StyleGAN2Discriminator(nn.Module):
    """D(x), or D(x|y): residual, with the minibatch standard deviation before its end.

    Args:
        nc: image channels.
        ndf: channels at full size; doubled at each smaller size, up to ``8 * ndf``.
        image_size: a power of two, 8 or more.
        num_classes: None, or the number of labels the discriminator is conditioned on.

    Shapes: images (N, nc, image_size, image_size), labels int64 (N,) -> (N,).

    Example:
        >>> StyleGAN2Discriminator(nc=3, ndf=2, image_size=16)(torch.zeros(2, 3, 16, 16)).shape
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
        super().__init__()
        self.num_classes = num_classes
        channels = widths(ndf, image_size)[::-1]
        last = channels[-1]
        self.from_rgb = Conv(nc, ndf, 1)
        self.blocks = nn.Sequential(
            *(Down(channels[k], channels[k + 1]) for k in range(len(channels) - 1))
        )
        self.conv = Conv(last + 1, last, 3)
        self.hidden = Linear(16 * last, last, "lrelu")
        self.output = Linear(last, 1 if num_classes is None else last)
        if num_classes is not None:
            self.embedding = nn.Parameter(torch.randn(num_classes, last))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x), or D(x|y)."""
        x = self.blocks(self.from_rgb(images))
        x = self.conv(minibatch_stddev(x, 4))
        features: Tensor = self.output(self.hidden(x.flatten(1)))
        if self.num_classes is None or labels is None:
            return features.squeeze(1)
        scores: Tensor = (features * self.embedding[labels]).sum(1) / features.shape[1] ** 0.5
        return scores


# --- The penalties' steps -------------------------------------------------------------------------


class StyleGAN2PathLength(NamedTuple):
    """The path length penalty, scalars; a step returns them detached, from before its update."""

    penalty: Tensor
    """weight * L_pl."""
    length: Tensor
    """The mean path length."""


def step(network: nn.Module, optimizer: torch.optim.Optimizer, penalty: Tensor) -> None:
    """Descends a penalty; weights that it doesn't depend on have the gradient 0."""
    optimizer.zero_grad()
    penalty.backward()
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def stylegan2_r1_step(
    discriminator: nn.Module,
    optimizer: torch.optim.Optimizer,
    real: Tensor,
    *,
    weight: float,
    labels: Tensor | None = None,
) -> Tensor:
    """Descends weight / 2 E ||grad D(x)||^2 in the discriminator's parameters.

    Args:
        discriminator: D.
        optimizer: of the discriminator's parameters.
        real: x, (N, C, H, W).
        weight: gamma times the updates from one such step to the next.
        labels: None, or int64 (N,).

    Returns:
        The penalty from before the update, detached.

    Example:
        >>> D = StyleGAN2Discriminator(1, 2, 16)
        >>> stylegan2_r1_step(D, torch.optim.Adam(D.parameters()), torch.zeros(2, 1, 16, 16),
        ...                   weight=160.0).shape
        torch.Size([])
    """
    images = real.detach().clone().requires_grad_()
    scores = call(discriminator, images, labels)
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    penalty = weight / 2 * gradient.square().sum((1, 2, 3)).mean()

    step(discriminator, optimizer, penalty)
    return penalty.detach()


def stylegan2_path_length(
    generator: StyleGAN2Generator,
    noise: Tensor,
    directions: Tensor,
    *,
    weight: float = 2.0,
    decay: float = 0.01,
    labels: Tensor | None = None,
    mixed: Mixed | None = None,
) -> StyleGAN2PathLength:
    """weight * E[(||J_w^T y|| - a)^2], and a's update.

    The norm is the root of the mean over layers of ||J_l^T y||^2, J_l by layer l's own w, and y has
    the variance 1 / (H W): with weight 2 that is appendix B's gamma_pl.

    Args:
        generator: G; its ``path_length_mean`` is a.
        noise: z, the generator's input, (N, ...).
        directions: N(0, 1), of the images' shape.
        weight: factor of the penalty.
        decay: a <- a + decay * (length - a), after the penalty.
        labels: None, or int64 (N,).
        mixed: as in :meth:`StyleGAN2Generator.styles`.

    Example:
        >>> G = StyleGAN2Generator(3, 2, 1, 16)
        >>> penalty = stylegan2_path_length(G, torch.randn(2, 3), torch.randn(2, 1, 16, 16))
        >>> penalty._fields
        ('penalty', 'length')
    """
    styles = generator.styles(noise, labels, mixed)
    images = generator.synthesis(styles)
    y = directions / (images.shape[2] * images.shape[3]) ** 0.5
    (gradient,) = torch.autograd.grad((images * y).sum(), styles, create_graph=True)
    lengths = gradient.square().sum(2).mean(1).sqrt()
    a = generator.path_length_mean
    penalty = weight * (lengths - a.clone()).square().mean()
    length = lengths.detach().mean()
    a.copy_(a + decay * (length - a))
    return StyleGAN2PathLength(penalty, length)


def stylegan2_path_length_step(
    generator: StyleGAN2Generator,
    optimizer: torch.optim.Optimizer,
    noise: Tensor,
    directions: Tensor,
    *,
    weight: float,
    decay: float = 0.01,
    labels: Tensor | None = None,
    mixed: Mixed | None = None,
) -> StyleGAN2PathLength:
    """Descends :func:`stylegan2_path_length` in the generator's parameters.

    Args:
        generator: G.
        optimizer: of the generator's parameters.
        noise: as there, and so the next ones.
        directions: see ``noise``.
        weight: the penalty's weight times the updates from one such step to the next.
        decay: see ``noise``.
        labels: see ``noise``.
        mixed: see ``noise``.

    Example:
        >>> G = StyleGAN2Generator(3, 2, 1, 16)
        >>> step = stylegan2_path_length_step(G, torch.optim.Adam(G.parameters()),
        ...     torch.randn(2, 3), torch.randn(2, 1, 16, 16), weight=8.0)
        >>> step.penalty.shape
        torch.Size([])
    """
    result = stylegan2_path_length(
        generator, noise, directions, weight=weight, decay=decay, labels=labels, mixed=mixed
    )
    step(generator, optimizer, result.penalty)
    return result._replace(penalty=result.penalty.detach())
