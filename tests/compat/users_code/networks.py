"""A small generator and discriminator, in the style of code with ``torch_utils/ops``."""

from __future__ import annotations

import numpy as np
import torch
from torch_utils import misc
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, fma, own, upfirdn2d


def modulated(x, weight, styles, noise=None, up=1, padding=0, f=None, demodulate=True):
    misc.assert_shape(styles, [x.shape[0], weight.shape[1]])
    d = None
    if demodulate:
        w = weight.unsqueeze(0) * styles.reshape(x.shape[0], 1, -1, 1, 1)
        d = (w.square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt().reshape(x.shape[0], -1, 1, 1)
    x = x * styles.reshape(x.shape[0], -1, 1, 1)
    x = conv2d_resample.conv2d_resample(
        x=x, w=weight, f=f, up=up, padding=padding, flip_weight=(up == 1)
    )
    if d is None:
        return x
    return x * d if noise is None else fma.fma(x, d, noise)


class FullyConnected(torch.nn.Module):
    def __init__(self, size_in, size_out, activation="linear", bias=0.0):
        super().__init__()
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn(size_out, size_in))
        self.bias = torch.nn.Parameter(torch.full([size_out], bias))

    def forward(self, x):
        w = self.weight / np.sqrt(self.weight.shape[1])
        return bias_act.bias_act(x.matmul(w.t()), self.bias, act=self.activation)


class SynthesisLayer(torch.nn.Module):
    def __init__(self, size_in, size_out, w_dim, resolution, up=1):
        super().__init__()
        self.up, self.padding = up, 1
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))
        self.affine = FullyConnected(w_dim, size_in, bias=1.0)
        self.weight = torch.nn.Parameter(torch.randn(size_out, size_in, 3, 3))
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros(size_out))
        self.act_gain = bias_act.activation_funcs["lrelu"].def_gain

    def forward(self, x, w, gain=1.0):
        noise = self.noise_const * self.noise_strength
        x = modulated(
            x, self.weight, self.affine(w), noise, self.up, self.padding, self.resample_filter
        )
        return bias_act.bias_act(
            x, self.bias.to(x.dtype), act="lrelu", gain=self.act_gain * gain, clamp=256 * gain
        )


class Generator(torch.nn.Module):
    def __init__(self, z_dim=16, channels=8, resolution=16):
        super().__init__()
        self.mapping = FullyConnected(z_dim, z_dim, "lrelu")
        self.const = torch.nn.Parameter(torch.randn(channels, 4, 4))
        sizes = [2**i for i in range(3, resolution.bit_length())]
        self.up = torch.nn.ModuleList(
            SynthesisLayer(channels, channels, z_dim, size, up=2) for size in sizes
        )
        self.same = torch.nn.ModuleList(
            SynthesisLayer(channels, channels, z_dim, size) for size in sizes
        )
        self.affine = FullyConnected(z_dim, channels, bias=1.0)
        self.rgb = torch.nn.Parameter(torch.randn(3, channels, 1, 1))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))

    def synthesis(self, w):
        x, image = self.const.unsqueeze(0).repeat(w.shape[0], 1, 1, 1), None
        for up, same in zip(self.up, self.same, strict=True):
            x = same(up(x, w), w)
            if image is not None:
                image = upfirdn2d.upsample2d(image, self.resample_filter)
            y = modulated(x, self.rgb, self.affine(w) / x.shape[1] ** 0.5, demodulate=False)
            image = y if image is None else image.add_(y)
        return image

    def forward(self, z):
        return self.synthesis(self.mapping(z))


class Conv2dLayer(torch.nn.Module):
    def __init__(self, size_in, size_out, kernel_size, down=1, activation="lrelu"):
        super().__init__()
        self.down, self.padding, self.activation = down, kernel_size // 2, activation
        self.weight = torch.nn.Parameter(torch.randn(size_out, size_in, kernel_size, kernel_size))
        self.bias = torch.nn.Parameter(torch.zeros(size_out))
        self.register_buffer("resample_filter", upfirdn2d.setup_filter([1, 3, 3, 1]))

    def forward(self, x, gain=1.0):
        w = self.weight / np.sqrt(self.weight[0].numel())
        x = conv2d_resample.conv2d_resample(
            x, w.to(x.dtype), self.resample_filter, down=self.down, padding=self.padding
        )
        gain *= bias_act.activation_funcs[self.activation].def_gain
        return bias_act.bias_act(x, self.bias.to(x.dtype), act=self.activation, gain=gain)


class Discriminator(torch.nn.Module):
    def __init__(self, channels=8, resolution=16):
        super().__init__()
        self.rgb = Conv2dLayer(3, channels, 1)
        depth = resolution.bit_length() - 3
        self.first = torch.nn.ModuleList(Conv2dLayer(channels, channels, 3) for _ in range(depth))
        self.down = torch.nn.ModuleList(
            Conv2dLayer(channels, channels, 3, down=2) for _ in range(depth)
        )
        self.skip = torch.nn.ModuleList(
            Conv2dLayer(channels, channels, 1, down=2, activation="linear") for _ in range(depth)
        )
        self.fc = FullyConnected(channels * 16, channels, "lrelu")
        self.out = FullyConnected(channels, 1)

    def forward(self, image):
        x = self.rgb(image)
        for first, down, skip in zip(self.first, self.down, self.skip, strict=True):
            y = skip(x, gain=np.sqrt(0.5))
            x = down(first(x), gain=np.sqrt(0.5))
            x = y + x
        return own.halved(self.out(self.fc(x.flatten(1))))


def r1_penalty(discriminator, real):
    real = real.detach().requires_grad_(True)
    logits = discriminator(real)
    with conv2d_gradfix.no_weight_gradients():
        (gradient,) = torch.autograd.grad([logits.sum()], [real], create_graph=True)
    return gradient.square().sum([1, 2, 3]).mean()


def path_length_penalty(generator, z, noise):
    w = generator.mapping(z)
    image = generator.synthesis(w)
    with conv2d_gradfix.no_weight_gradients():
        (gradient,) = torch.autograd.grad([(image * noise).sum()], [w], create_graph=True)
    return gradient.square().sum(1).sqrt().mean()
