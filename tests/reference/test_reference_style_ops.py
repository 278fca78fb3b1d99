"""StyleGAN's operations in plain PyTorch against the definitions, written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import scipy
import torch

from fastgan.reference import style_ops

Array = npt.NDArray[np.float64]


def convolve2d(x: Array, f: Array) -> Array:
    result: Array = scipy.signal.convolve2d(x, f, "valid")
    return result


ACTIVATIONS = {
    "linear": (1, lambda z: z),
    "relu": (math.sqrt(2), lambda z: np.maximum(z, 0)),
    "lrelu": (math.sqrt(2), lambda z: np.where(z > 0, z, 0.2 * z)),
    "tanh": (1, np.tanh),
    "sigmoid": (1, lambda z: 1 / (1 + np.exp(-z))),
    "elu": (1, lambda z: np.where(z > 0, z, np.exp(z) - 1)),
    "selu": (
        1,
        lambda z: (
            1.0507009873554805
            * np.where(z > 0, z, 1.6732632423543772 * (np.exp(np.minimum(z, 0)) - 1))
        ),
    ),
    "softplus": (1, lambda z: np.log1p(np.exp(z))),
    "swish": (math.sqrt(2), lambda z: z / (1 + np.exp(-z))),
}


def random(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape)


def resampled(x: Array, f: Array, up: int, down: int, padding: int) -> Array:
    """One channel by scipy: a true convolution with zeros around."""
    for axis in (0, 1):
        size = x.shape[axis] * up
        x = scipy.signal.upfirdn(f, x, up, 1, axis=axis)  # the last value's zeros aren't inserted
        after = max(size + len(f) - 1 - x.shape[axis], 0) + padding
        x = np.pad(x, [(padding, after) if axis == a else (0, 0) for a in (0, 1)])
        x = x.take(range(len(f) - 1, size + 2 * padding, down), axis)
    return x


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_bias_act(act: str):
    gain, function = ACTIVATIONS[act]
    x, b = 2 * random(3, 4, 5), random(5, seed=1)
    y = style_ops.bias_act(torch.tensor(x), torch.tensor(b), dim=-1, act=act, clamp=1.5)
    np.testing.assert_allclose(y, np.clip(gain * function(x + b), -1.5, 1.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("up", "down", "padding"), [(1, 1, 0), (2, 1, 2), (1, 2, 1), (3, 2, 4)])
def test_upfirdn2d_is_scipys(up: int, down: int, padding: int):
    x, f = random(1, 2, 7, 6), random(4, seed=1)
    y = style_ops.upfirdn2d(
        torch.tensor(x), torch.tensor(f), (up, up), (down, down), (padding,) * 4, gain=3.0
    )
    expected = [3 * resampled(channel, f, up, down, padding) for channel in x[0]]
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-12)
    outer = torch.tensor(np.outer(f, f)).flip([0, 1])
    y = style_ops.upfirdn2d(
        torch.tensor(x), outer, (up, up), (down, down), (padding,) * 4, True, 3.0
    )
    np.testing.assert_allclose(y[0], expected, rtol=0, atol=1e-12)


def test_filters_of_two_dimensions_convolve_and_negative_padding_crops():
    x, f = random(1, 1, 7, 6), random(2, 3, seed=1)
    y = style_ops.upfirdn2d(torch.tensor(x), torch.tensor(f), padding=(-1, 2, 0, -2))
    cropped = np.pad(x[0, 0, :-2, 1:], ((0, 0), (0, 2)))
    np.testing.assert_allclose(y[0, 0], convolve2d(cropped, f), rtol=0, atol=1e-12)


def test_filtered_lrelu_is_its_parts():
    x, b, fu, fd = random(1, 2, 6, 5), random(2, seed=1), random(4, seed=2), random(3, seed=3)
    y = style_ops.filtered_lrelu(
        *map(torch.tensor, (x, fu, fd, b)), up=2, down=2, padding=(3,) * 4, gain=1.5, clamp=0.8
    )
    for channel, bias, out in zip(x[0], b, y[0], strict=True):
        wide = np.zeros((6 * 2 + 6, 5 * 2 + 6))
        wide[3:15:2, 3:13:2] = channel + bias
        z = 4 * convolve2d(convolve2d(wide, fu[:, None]), fu[None])
        z = np.clip(1.5 * np.where(z > 0, z, 0.2 * z), -0.8, 0.8)
        z = convolve2d(convolve2d(z, fd[:, None]), fd[None])[::2, ::2]
        np.testing.assert_allclose(out, z, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2)])
def test_modulated_conv2d_is_a_convolution_of_each_sample(up: int, down: int):
    x, w, s, f = random(2, 3, 6, 6), random(4, 3, 3, 3, seed=1), random(2, 3, seed=2), [1, 3, 3, 1]
    noise = random(2, 1, 6 * up // down, 6 * up // down, seed=3)
    y = style_ops.modulated_conv2d(
        *map(torch.tensor, (x, w, s, noise)),
        up,
        down,
        (1,) * 4,
        torch.tensor(f) / 8.0,
        flip_weight=False,
    )
    assert y.shape == (2, 4, *noise.shape[2:])
    fir = np.outer(f, f) / 64
    for n in range(2):
        weight = w * s[n][:, None, None]
        weight /= np.sqrt((weight**2).sum((1, 2, 3), keepdims=True) + 1e-8)
        for o in range(4):
            planes = x[n]
            before, after = (2, 2) if down == 2 else (1, 1)
            if up == 2:  # zeros after each value; the image keeps its centre
                planes = np.zeros((3, 12, 12))
                planes[:, ::2, ::2] = 4 * x[n]
                before, after = 3, 2
            planes = [np.pad(plane, (before, after)) for plane in planes]
            if up == 2:
                planes = [convolve2d(plane, fir) for plane in planes]
            z = sum(convolve2d(p, k) for p, k in zip(planes, weight[o], strict=True))
            if down == 2:
                z = convolve2d(z, fir)[::2, ::2]
            np.testing.assert_allclose(y[n, o], z + noise[n, 0], rtol=0, atol=1e-12)


def test_minibatch_stddev():
    x = random(6, 4, 2, 3)
    y = style_ops.minibatch_stddev(torch.tensor(x), group_size=3, num_channels=2).numpy()
    np.testing.assert_array_equal(y[:, :4], x)
    for n in range(6):
        group = x[[m for m in range(6) if m % 2 == n % 2]]
        deviation = np.sqrt(group.var(0) + 1e-8)
        for plane, part in zip(y[n, 4:], (deviation[:2], deviation[2:]), strict=True):
            np.testing.assert_allclose(plane, part.mean(), rtol=1e-12)


def test_unknown_activations_are_named():
    with pytest.raises(ValueError, match="act is 'gelu'; expected one of linear, relu"):
        style_ops.bias_act(torch.ones(1, 1), act="gelu")
