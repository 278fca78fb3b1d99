"""The compositions of torch functions against the definitions, written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastgan import reference

Array = npt.NDArray[np.float64]

ACTIVATIONS = {
    "none": lambda z, slope: z,
    "relu": lambda z, slope: np.where(z > 0, z, 0.0),
    "leaky_relu": lambda z, slope: np.where(z > 0, z, slope * z),
    "tanh": lambda z, slope: np.tanh(z),
    "sigmoid": lambda z, slope: 1 / (1 + np.exp(-z)),
    "silu": lambda z, slope: z / (1 + np.exp(-z)),
    "gelu": lambda z, slope: z * (1 + np.vectorize(math.erf)(z / 2**0.5)) / 2,
    "gelu_tanh": lambda z, slope: z * (1 + np.tanh((2 / np.pi) ** 0.5 * (z + 0.044715 * z**3))) / 2,
}


def convolve(x: Array, w: Array, stride: int, padding: int, dilation: int, groups: int) -> Array:
    """Each output element as a sum over its window of the padded input."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    n, _, height, width = x.shape
    channels_out, channels_in, kernel, _ = w.shape
    reach = dilation * (kernel - 1) + 1
    out = np.zeros((n, channels_out, (height - reach) // stride + 1, (width - reach) // stride + 1))
    for o in range(channels_out):
        first = o // (channels_out // groups) * channels_in
        for i, j in np.ndindex(*out.shape[2:]):
            top, left = i * stride, j * stride
            window = x[:, first : first + channels_in, top : top + reach, left : left + reach]
            window = window[:, :, ::dilation, ::dilation]
            out[:, o, i, j] = (window * w[o]).sum(axis=(1, 2, 3))
    return out


def convolve_transposed(
    x: Array,
    w: Array,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    groups: int,
) -> Array:
    """Each input element spread over its window of the padded output."""
    n, channels_in, height, width = x.shape
    _, channels_out, kernel, _ = w.shape
    reach = dilation * (kernel - 1) + 1
    size = [(length - 1) * stride + reach + output_padding for length in (height, width)]
    out = np.zeros((n, channels_out * groups, *size))
    for c in range(channels_in):
        first = c // (channels_in // groups) * channels_out
        for o in range(channels_out):
            for i, j in np.ndindex(height, width):
                for a, b in np.ndindex(kernel, kernel):
                    row, column = i * stride + a * dilation, j * stride + b * dilation
                    out[:, first + o, row, column] += x[:, c, i, j] * w[c, o, a, b]
    return out[:, :, padding : size[0] - padding, padding : size[1] - padding]


def per_channel(values: Array) -> Array:
    return values[None, :, None, None]


@pytest.mark.parametrize("seed", range(12))
def test_chain_equals_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    transposed = bool(random.integers(2))
    activation = list(ACTIVATIONS)[seed % len(ACTIVATIONS)]
    training = bool(random.integers(2))
    groups = int(random.integers(1, 3))
    kernel, stride, dilation = (int(v) for v in random.integers(1, [5, 4, 3]))
    padding = int(random.integers(0, min(2, dilation * (kernel - 1) + 1)))
    channels_in, channels_out = (groups * int(v) for v in random.integers(1, 4, size=2))
    slope, momentum, eps = 0.3, 0.25, 1e-3

    x = random.normal(size=(3, channels_in, *random.integers(9, 12, size=2)))
    bias = random.normal(size=channels_out)
    bn_weight, bn_bias = random.normal(size=(2, channels_out))
    running_mean, running_var = random.normal(size=channels_out), random.random(channels_out) + 0.5
    mean_after, var_after = torch.tensor(running_mean), torch.tensor(running_var)
    arguments = {
        "bn_weight": torch.tensor(bn_weight),
        "bn_bias": torch.tensor(bn_bias),
        "running_mean": mean_after,
        "running_var": var_after,
        "training": training,
        "momentum": momentum,
        "eps": eps,
        "stride": stride,
        "padding": padding,
        "groups": groups,
        "dilation": dilation,
        "activation": activation,
        "negative_slope": slope,
    }
    if transposed:
        output_padding = int(random.integers(0, max(stride, dilation)))
        w = random.normal(size=(channels_in, channels_out // groups, kernel, kernel))
        y = convolve_transposed(x, w, stride, padding, output_padding, dilation, groups)
        function = reference.conv_transpose2d_bn_act
        arguments["output_padding"] = output_padding
    else:
        w = random.normal(size=(channels_out, channels_in // groups, kernel, kernel))
        y = convolve(x, w, stride, padding, dilation, groups)
        function = reference.conv2d_bn_act
    actual = function(torch.tensor(x), torch.tensor(w), torch.tensor(bias), **arguments)

    y = y + per_channel(bias)
    mean, var = y.mean(axis=(0, 2, 3)), y.var(axis=(0, 2, 3))
    if training:
        unbiased = y.var(axis=(0, 2, 3), ddof=1)
        np.testing.assert_allclose(mean_after, 0.75 * running_mean + 0.25 * mean, rtol=1e-10)
        np.testing.assert_allclose(var_after, 0.75 * running_var + 0.25 * unbiased, rtol=1e-10)
    else:
        mean, var = running_mean, running_var
        np.testing.assert_array_equal(mean_after, running_mean)
        np.testing.assert_array_equal(var_after, running_var)
    z = (y - per_channel(mean)) / np.sqrt(per_channel(var) + eps)
    z = z * per_channel(bn_weight) + per_channel(bn_bias)
    np.testing.assert_allclose(actual, ACTIVATIONS[activation](z, slope), rtol=1e-8, atol=1e-10)


def test_everything_optional_may_be_none() -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    actual = reference.bn_act(
        x,
        bn_weight=None,
        bn_bias=None,
        running_mean=None,
        running_var=None,
        training=True,
        activation="none",
    )
    spread = ((x - x.mean((0, 2), keepdim=True)) ** 2).mean((0, 2), keepdim=True)
    expected = (x - x.mean((0, 2), keepdim=True)) / (spread + 1e-5).sqrt()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("activation", ["none", "leaky_relu", "tanh", "silu", "gelu"])
def test_gradients_of_first_and_second_order(activation: str) -> None:
    def chain(
        x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
    ) -> torch.Tensor:
        return reference.conv_transpose2d_bn_act(
            x,
            w,
            bn_weight=scale,
            bn_bias=shift,
            running_mean=None,
            running_var=None,
            training=True,
            stride=2,
            padding=1,
            activation=activation,
        )

    torch.manual_seed(0)
    inputs = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in [(2, 2, 3, 2), (2, 2, 4, 4), (2,), (2,)]
    ]
    assert torch.autograd.gradcheck(chain, inputs)
    assert torch.autograd.gradgradcheck(chain, inputs)


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match=r"'swish'.*'leaky_relu'"):
        reference.bn_act(
            torch.ones(2, 2),
            bn_weight=None,
            bn_bias=None,
            running_mean=None,
            running_var=None,
            training=True,
            activation="swish",
        )
