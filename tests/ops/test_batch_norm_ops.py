"""The batch-norm ops of fastgan.ops, and their CUDA kernels run on the host.

References are plain PyTorch in float64, on the values as the op's dtype holds them. What tiles give
is compared with those of the same values cut by hand.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from host_harness import SCHEDULES, Case, SparseTensor, orders_of
from hypothesis import given, settings
from hypothesis import strategies as st

import fastgan.ops  # noqa: F401 - defines torch.ops.fastgan
from fastgan import build_info
from fastgan.activations import ACTIVATIONS
from fastgan.ops import check_op, op_paths
from fastgan.ops.define import DEFINED

OPS = torch.ops.fastgan
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
CODES = {activation.name: activation.code for activation in ACTIVATIONS.values()}
#: Activations with a derivative that is computed from the input.
KEEP_INPUT = ("silu", "gelu", "gelu_tanh")
NAMES = [
    "batch_norm_finalize",
    "batch_norm_statistics",
    "norm_act",
    "norm_act_gradient_sums",
    "norm_act_gradient_finalize",
    "norm_act_gradient",
    "norm_act_gradient_",
    "bn_act",
    "bn_act_gradient",
    "act_gradient",
    "act_gradient_",
]
#: Every layout that is taken as it lies, sizes below and above a tile's, and some that are copied.
SHAPES = {
    "channels-last": ((5, 70, 6, 7), torch.channels_last),
    "channels-last, many channels": ((3, 300, 8, 7), torch.channels_last),
    "channels-last, few channels": ((40, 3, 17, 11), torch.channels_last),
    "contiguous": ((3, 260, 8, 7), torch.contiguous_format),
    "contiguous, tiny images": ((70, 300, 1, 3), torch.contiguous_format),
    "contiguous, large images": ((2, 3, 70, 65), torch.contiguous_format),
    "two dimensions": ((150, 130), torch.contiguous_format),
    "three dimensions": ((7, 33, 40), torch.contiguous_format),
    "five dimensions": ((2, 12, 3, 5, 7), torch.channels_last_3d),
    "one channel": ((3, 1, 50, 40), torch.channels_last),
    "one value": ((1, 4, 1, 1), torch.contiguous_format),
}


def device_or_skip(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return device


def arithmetic(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def wide(vector, input):
    return vector.double().cpu().view(1, -1, *(1,) * (input.dim() - 2))


def random_image(name, dtype, device="cpu", seed=0, mean=0.0):
    shape, memory_format = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) + mean
    return values.to(dtype).to(device).contiguous(memory_format=memory_format)


def random_vectors(count, input, seed=1):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.rand((count, input.shape[1]), generator=generator) + 0.5
    return [v.to(input.device, arithmetic(input.dtype), copy=True) for v in vectors.unbind()]


def activate(name, u, slope):
    return {
        "none": lambda: u,
        "relu": lambda: u.clamp(min=0),
        "leaky_relu": lambda: torch.where(u > 0, u, slope * u),
        "tanh": lambda: u.tanh(),
        "sigmoid": lambda: 1 / (1 + (-u).exp()),
        "silu": lambda: u / (1 + (-u).exp()),
        "gelu": lambda: u * normal_share(u),
        "gelu_tanh": lambda: u / (1 + (-2 * gelu_inner(u)).exp()),
    }[name]()


def normal_share(u):
    """Phi(u); torch.special.ndtr cancels below 0."""
    return torch.erfc(-u / 2**0.5) / 2


def gelu_inner(u):
    """(1 + tanh(i)) / 2 = 1 / (1 + exp(-2 i))."""
    return (2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)


def derivative(name, u, slope):
    return {
        "none": lambda: torch.ones_like(u),
        "relu": lambda: (u > 0).double(),
        "leaky_relu": lambda: torch.where(u > 0, torch.ones_like(u), slope),
        "tanh": lambda: 1 - u.tanh() ** 2,
        "sigmoid": lambda: u.sigmoid() * (1 - u.sigmoid()),
        "silu": lambda: u.sigmoid() + u * u.sigmoid() * (-u).sigmoid(),
        "gelu": lambda: normal_share(u) + u * (-u * u / 2).exp() / (2 * torch.pi) ** 0.5,
        "gelu_tanh": lambda: gelu_tanh_derivative(u),
    }[name]()


def gelu_tanh_derivative(u):
    share = 1 / (1 + (-2 * gelu_inner(u)).exp())
    inner_slope = (2 / torch.pi) ** 0.5 * (1 + 3 * 0.044715 * u**2)
    return share + 2 * u * share * (1 - share) * inner_slope


def exact_derivative(name, u, slope):
    """In more than float64's precision, where float64's formula costs more than a unit."""
    if name != "gelu_tanh":
        return derivative(name, u, slope)
    x = u.numpy().astype(np.longdouble)
    beta = np.sqrt(2 / np.longdouble("3.14159265358979323846264338327950288"))
    kappa = np.longdouble("0.044715")
    share = 1 / (1 + np.exp(-2 * beta * (x + kappa * x**3)))
    slope = share + 2 * x * share * (1 - share) * beta * (1 + 3 * kappa * x * x)
    return torch.from_numpy(np.asarray(slope, dtype=np.float64))


def slack(dtype):
    """Sums of 16-bit values are taken in float, of float in double; float64 has no better one."""
    return 64 if dtype.itemsize == 2 else 8 if dtype == torch.float64 else 1


def assert_near(actual, expected, dtype, units=4.0, scale=1.0):
    """Within so many units of rounding of the dtype, of the larger of `scale` and the value."""
    tolerance = units * torch.finfo(dtype).eps
    torch.testing.assert_close(
        actual.double().cpu(), expected, rtol=tolerance, atol=tolerance * scale
    )


def moments_of_tiles(input, tiles):
    """Count, mean and sum of squared differences of so many tiles of each channel's values."""
    parts = input.double().movedim(1, -1).flatten(0, -2).tensor_split(tiles)
    parts = [part for part in parts if len(part)]
    return (
        torch.tensor([float(len(part)) for part in parts], dtype=torch.float64),
        torch.stack([part.mean(0) for part in parts]),
        torch.stack([((part - part.mean(0)) ** 2).sum(0) for part in parts]),
    )


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.processors
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_every_layout_are_right(device, name, dtype):
    input = random_image(name, dtype, device_or_skip(device), mean=3.0)
    rows = input.double().cpu().movedim(1, -1).flatten(0, -2)
    count, mean, m2 = (
        moments.to(device, arithmetic(dtype)) for moments in moments_of_tiles(input.cpu(), 3)
    )
    weight, running_mean, running_var = random_vectors(3, input)
    old = [running.to("cpu", torch.float64, copy=True) for running in (running_mean, running_var)]
    new_mean, invstd, scale = OPS.batch_norm_finalize(
        count, mean, m2, weight, running_mean, running_var, 0.25, 1e-3, None, None, []
    )
    variance = rows.var(0, correction=0)
    n = len(rows)
    expected_invstd = (variance + 1e-3).rsqrt()
    assert_near(new_mean, rows.mean(0), arithmetic(dtype), 2 * slack(dtype))
    assert_near(invstd, expected_invstd, arithmetic(dtype), 8 * slack(dtype))
    expected_scale = expected_invstd * weight.double().cpu()
    assert_near(scale, expected_scale, arithmetic(dtype), 8 * slack(dtype))
    assert_near(
        running_mean, 0.75 * old[0] + 0.25 * rows.mean(0), arithmetic(dtype), 2 * slack(dtype)
    )
    if n > 1:
        expected_var = 0.75 * old[1] + 0.25 * variance * n / (n - 1)
        assert_near(running_var, expected_var, arithmetic(dtype), 8 * slack(dtype))
    else:
        assert running_var.isnan().all()  # 0 / 0, as torch's
    running = torch.zeros(2, input.shape[1], dtype=arithmetic(dtype), device=device).unbind()
    at_once = OPS.batch_norm_statistics(input, weight, *running, 0.25, 1e-3)
    for actual, expected in zip(
        at_once, (rows.mean(0), expected_invstd, expected_scale), strict=True
    ):
        assert_near(actual, expected, arithmetic(dtype), 8 * slack(dtype))


@pytest.mark.processors
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", CODES)
@pytest.mark.parametrize("name", SHAPES)
def test_normalised_and_activated_values_and_gradients_are_right(device, name, activation):
    slope = -0.3
    code = CODES[activation]
    for dtype in DTYPES:
        input = random_image(name, dtype, device_or_skip(device))
        grad = random_image(name, dtype, device, seed=5)
        mean, scale, bias, invstd, linear, offset = random_vectors(6, input)
        x = input.double().cpu() - wide(mean, input)
        u = x * wide(scale, input) + wide(bias, input)
        slopes = exact_derivative if dtype == torch.float64 else derivative
        g = grad.double().cpu() * slopes(activation, u, slope)

        y = OPS.norm_act(input, mean, scale, bias, code, slope)
        assert y.stride() == input.stride()
        assert_near(y, activate(activation, u, slope), dtype)
        no_bias = OPS.norm_act(input, mean, scale, None, code, slope)
        assert_near(no_bias, activate(activation, u - wide(bias, input), slope), dtype)

        sums = OPS.norm_act_gradient_sums(grad, input, mean, invstd, scale, bias, code, slope)
        xhat = x * wide(invstd, input)
        dimensions = [d for d in range(input.dim()) if d != 1]
        n = input.numel() // input.shape[1]
        expected_sums = g.sum(dimensions), (g * xhat).sum(dimensions)
        for actual, expected in zip(sums, expected_sums, strict=True):
            assert_near(
                actual.double().sum(0), expected, arithmetic(dtype), 16 * slack(dtype), scale=n**0.5
            )

        finals = OPS.norm_act_gradient_finalize(*sums, scale, invstd, n)
        factor = scale.double().cpu() / n
        right = (
            -factor * invstd.double().cpu() * expected_sums[1],
            -factor * expected_sums[0],
            expected_sums[1],
            expected_sums[0],
        )
        for actual, expected in zip(finals, right, strict=True):
            assert_near(actual, expected, arithmetic(dtype), 16 * slack(dtype), scale=n**0.5)

        arguments = (input, mean, scale, bias, linear, offset, code, slope)
        expected = g * wide(scale, input) + x * wide(linear, input) + wide(offset, input)
        gradient = OPS.norm_act_gradient(grad, *arguments)
        assert gradient.stride() == input.stride()
        assert_near(gradient, expected, dtype, 16)
        OPS.norm_act_gradient_(grad, *arguments)
        assert torch.equal(grad, gradient)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", CODES)
def test_activation_gradients_are_right_for_any_shape(device, dtype, activation):
    code = CODES[activation]
    generator = torch.Generator().manual_seed(3)
    for shape in ((), (7,), (0, 3), (70, 300), (3, 5, 8, 9)):
        u = torch.randn(shape, generator=generator, dtype=torch.float64)
        kept = u if activation in KEEP_INPUT else activate(activation, u, 0.2)
        kept = kept.to(dtype).to(device_or_skip(device))
        grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)
        y = kept.double().cpu()
        by_kept = {
            "tanh": 1 - y**2,
            "sigmoid": y * (1 - y),
        }.get(activation)
        if by_kept is None:
            slopes = exact_derivative if dtype == torch.float64 else derivative
            by_kept = slopes(activation, y, 0.2)
        expected = grad.double().cpu() * by_kept
        actual = OPS.act_gradient(grad, kept, code, 0.2)
        assert_near(actual, expected, dtype)
        OPS.act_gradient_(grad, kept, code, 0.2)
        assert torch.equal(actual, grad)


def test_every_function_of_any_float32_is_accurate():
    """exp and tanh are ours on a CPU: over all magnitudes, and at NaN and infinities."""
    exponents = torch.linspace(-45, 5, 40001, dtype=torch.float64).exp2()
    u = torch.cat([exponents, -exponents, torch.linspace(-110, 110, 40001, dtype=torch.float64)])
    u = torch.cat([u, torch.tensor([0.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30])])
    input = u.float()[:, None]
    zero, one = torch.zeros(1), torch.ones(1)
    for activation in ("tanh", "sigmoid"):
        actual = OPS.norm_act(input, zero, one, None, CODES[activation], 0.0)[:, 0]
        expected = getattr(torch, activation)(u.float().double())
        torch.testing.assert_close(actual.double(), expected, rtol=3e-7, atol=1e-38, equal_nan=True)


def test_silu_and_gelu_of_any_float32_are_accurate():
    """In both tails too, where torch's own GELU loses all digits of what lies below 0."""
    u = torch.cat([torch.linspace(-40, 40, 80001), torch.linspace(-45, 5, 4001).exp2()])
    wide_u = u.double()
    zero, one = torch.zeros(1), torch.ones(1)
    for activation, rounding in (
        ("silu", torch.ones(())),
        # exp(-u^2 / 2) has the rounding of its argument, whose absolute error is what counts.
        ("gelu", 1 + wide_u**2 / 4),
    ):
        code = CODES[activation]
        values = OPS.norm_act(u[:, None], zero, one, None, code, 0.0)[:, 0]
        gradients = OPS.act_gradient(torch.ones_like(u), u, code, 0.0)
        exact = activate(activation, wide_u, 0.0)
        terms = derivative(activation, wide_u, 0.0).abs() + wide_u.abs() * exact.abs()
        for actual, expected, size in (
            (values, exact, exact.abs()),
            (gradients, derivative(activation, wide_u, 0.0), terms + 1e-7),
        ):
            error = (actual.double() - expected).abs()
            assert (error <= 4e-7 * rounding * size + 1e-37).all(), activation
    code = CODES["gelu_tanh"]
    values = OPS.norm_act(u[:, None], zero, one, None, code, 0.0)[:, 0]
    error = (values.double() - activate("gelu_tanh", wide_u, 0.0)).abs()
    assert (error <= 3e-7 * wide_u.abs()).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", CODES)
def test_nan_infinity_and_zero_do_as_in_torch(device, dtype, activation):
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1.0, -1.0], dtype=dtype)
    input = special.repeat_interleave(7)[:, None].to(device_or_skip(device)).requires_grad_()
    grad = special.repeat(7)[:, None].to(device)
    zero, one = (torch.full((1,), v, dtype=arithmetic(dtype), device=device) for v in (0.0, 1.0))
    # In float64: torch's float32 GELU of infinity is infinite or NaN, by its place in the tensor.
    y = ACTIVATIONS[activation].forward(input.double(), 0.2).to(dtype)
    (expected,) = torch.autograd.grad(y, input, grad)
    x = input.detach()
    kept = x if activation in KEEP_INPUT else y.detach()
    ours = OPS.norm_act(x, zero, one, None, CODES[activation], 0.2)
    through = OPS.norm_act_gradient(grad, x, zero, one, None, zero, zero, CODES[activation], 0.2)
    alone = OPS.act_gradient(grad, kept, CODES[activation], 0.2)
    torch.testing.assert_close(ours, y.detach(), equal_nan=True)
    torch.testing.assert_close(alone, expected, equal_nan=True)
    # An infinite x times slope 0 is NaN, as in any batch norm.
    finite = x.isfinite()
    torch.testing.assert_close(through[finite], expected[finite], equal_nan=True)


@pytest.mark.parametrize("offset", [0.0, 1e4, -3e6])
def test_large_means_and_constant_channels_lose_nothing(offset):
    generator = torch.Generator().manual_seed(0)
    for name in ("channels-last", "contiguous, large images"):
        shape, memory_format = SHAPES[name]
        values = torch.randn(shape, generator=generator, dtype=torch.float64) + offset
        values[:, 1] = offset + 0.25
        input = values.float().contiguous(memory_format=memory_format)
        mean, invstd, _ = OPS.batch_norm_statistics(input, None, None, None, 0.0, 1e-5)
        rows = input.double().movedim(1, -1).flatten(0, -2)
        assert_near(mean, rows.mean(0), torch.float32, 0.51, scale=0)
        assert_near(invstd, (rows.var(0, correction=0) + 1e-5).rsqrt(), torch.float32, 2, scale=0)


def test_an_outlier_as_first_value_costs_no_accuracy():
    """The tile's first value is what the others are taken relative to."""
    for dtype in (torch.float32, torch.bfloat16):
        input = torch.randn((64, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
        input[0] = 1e5
        _, invstd, _ = OPS.batch_norm_statistics(input, None, None, None, 0.1, 0.0)
        expected = input.double().var(0, correction=0).rsqrt()
        assert_near(invstd, expected, torch.float32, 8 * slack(dtype), scale=0)


@pytest.mark.processors
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("half_way", [True, False])
def test_sums_that_cancel_keep_what_is_left(memory_format, half_way):
    """Large gradients of either sign, alternating or the one half after the other.

    The bound is a few roundings, each of one term, adding up at random: twice what tiles' sums
    rounded to float lose. Channels-last tiles summed in float all through lose three times it.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (64, 40, 16, 16)
    values, small = torch.randn((2, *shape), generator=generator, dtype=torch.float64)
    place = torch.arange(64 * 16 * 16).view(64, 1, 16, 16)
    negative = place >= 64 * 16 * 8 if half_way else place % 2 == 1
    large = 1000 * (1 + torch.rand(1, 40, 1, 1, generator=generator, dtype=torch.float64))
    input, grad = (
        t.float().contiguous(memory_format=memory_format)
        for t in (values + 2, small + torch.where(negative, -large, large))
    )
    mean, invstd = values.mean((0, 2, 3)).float() + 2, torch.full((40,), 0.75)
    x = input.double() - wide(mean, input)
    terms = grad.double(), grad.double() * x * 0.75
    for activation in ("none", "relu"):
        # All are beyond 0, so that relu lets all through.
        bias = torch.full((40,), 10.0)
        sums = OPS.norm_act_gradient_sums(
            grad, input, mean, invstd, invstd, bias, CODES[activation], 0.0
        )
        for actual, term in zip(sums, terms, strict=True):
            error = (actual.double().sum(0) - term.sum((0, 2, 3))).square().mean().sqrt()
            rounding = torch.finfo(torch.float32).eps * term.square().sum((0, 2, 3)).mean().sqrt()
            assert error <= 8 * rounding, (activation, error / rounding)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["columns", "images", "one channel"])
def test_errors_of_sums_do_not_grow_with_the_rows(device, dtype, layout):
    """A million rows, the second half's gradients cancelling the first's.

    The terms of a half are alike, so that where a sum grows, its roundings all go one way. The
    bounds are those that csrc/cpu/batch_norm_loops.cpp and csrc/cuda/batch_norm_statistics.cu give.
    """
    device_or_skip(device)
    generator = torch.Generator().manual_seed(0)
    channels, half = 1 if layout == "one channel" else 4, 500_000
    of_halves = 1 + torch.rand((4, channels), generator=generator, dtype=torch.float64)
    kind = arithmetic(dtype)

    def rows_of(first, second):
        return torch.cat([first.expand(half, -1), second.expand(half, -1)]).to(dtype)

    def image(rows):
        rows = rows.view(4000, 250, channels).movedim(1, 2) if layout == "images" else rows
        return rows.contiguous().to(device)

    def exact_sum(terms):
        terms = terms.double().cpu()
        if kind == torch.float32:  # whose roundings are 2^29 times float64's
            return terms.sum(0)
        return torch.tensor([math.fsum(column.tolist()) for column in terms.T], dtype=kind)

    x, g = rows_of(*of_halves[:2]), rows_of(of_halves[2], -of_halves[3])
    mean = (torch.rand(channels, generator=generator) - 1).to(device, kind)
    invstd = torch.full_like(mean, 0.75)
    sums = OPS.norm_act_gradient_sums(image(g), image(x), mean, invstd, invstd, None, 0, 0.0)
    u = torch.finfo(kind).eps / 2
    xhat = (x.double() - mean.double().cpu()) * 0.75
    for actual, terms in zip(sums, (g.double(), g.double() * xhat), strict=True):
        error = (exact_sum(actual) - exact_sum(terms)).abs()
        assert (error <= 24 * u * exact_sum(terms.abs())).all(), error / exact_sum(terms.abs()) / u

    # Every 16th value is another: also the first of each tile, which the others are taken from.
    x[::16] = 3 * x[0]
    _, actual, _ = OPS.batch_norm_statistics(image(x), None, None, None, 0.0, 1e-5)
    variance = exact_sum((x.double() - exact_sum(x) / len(x)) ** 2) / len(x)
    error = (actual.double().cpu() * (variance + 1e-5).sqrt() - 1).abs()
    assert (error <= 100 * u).all(), error / u


@settings(max_examples=25, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    dtype=st.sampled_from(DTYPES),
    order=st.randoms(use_true_random=False),
    step=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_any_strides_give_what_contiguous_ones_give(shape, dtype, order, step, seed):
    dimensions = list(range(len(shape)))
    order.shuffle(dimensions)
    generator = torch.Generator().manual_seed(seed)

    def strided():
        base = torch.randn([shape[d] * step for d in dimensions], generator=generator).to(dtype)
        base = base[tuple(slice(None, None, step) for _ in dimensions)]
        return base.permute([dimensions.index(d) for d in range(len(shape))])

    input, grad = strided(), strided()
    mean, scale, bias, slope, offset, invstd = random_vectors(6, input)
    plain_input, plain_grad = input.contiguous(), grad.contiguous()
    expected = OPS.batch_norm_statistics(plain_input, None, None, None, 0.0, 1e-5)
    actual = OPS.batch_norm_statistics(input, None, None, None, 0.0, 1e-5)
    assert_near(actual[0], expected[0].double(), arithmetic(dtype), 2)
    assert_near(actual[1], expected[1].double(), arithmetic(dtype), 64)
    arguments = (mean, scale, bias, 2, 0.2)
    assert torch.equal(OPS.norm_act(input, *arguments), OPS.norm_act(plain_input, *arguments))
    arguments = (mean, scale, bias, slope, offset, 2, 0.2)
    expected = OPS.norm_act_gradient(plain_grad, plain_input, *arguments)
    assert torch.equal(OPS.norm_act_gradient(grad, input, *arguments), expected)
    sums = [
        OPS.norm_act_gradient_sums(g, x, mean, invstd, scale, bias, 3, 0.2)
        for g, x in ((grad, input), (plain_grad, plain_input))
    ]
    for actual, right in zip(*sums, strict=True):
        scale_of_sums = input.numel() // input.shape[1]
        assert_near(actual.sum(0), right.sum(0).double(), arithmetic(dtype), 8, scale=scale_of_sums)
    expected_act = OPS.act_gradient(plain_grad, plain_input, 1, 0.0)
    assert torch.equal(OPS.act_gradient(grad, input, 1, 0.0), expected_act)
    OPS.act_gradient_(grad, input, 1, 0.0)
    assert torch.equal(grad, expected_act)
    OPS.norm_act_gradient_(grad, input, *arguments)
    again = OPS.norm_act_gradient(expected_act, plain_input, *arguments)
    assert torch.equal(grad, again)


def test_expanded_gradients_are_read_and_never_written():
    input = random_image("channels-last", torch.float32)
    mean, scale, bias, slope, offset = random_vectors(5, input)
    grad = torch.tensor(2.0).expand(input.shape)
    arguments = (input, mean, scale, bias, slope, offset, 1, 0.0)
    expected = OPS.norm_act_gradient(grad.contiguous(), *arguments)
    assert torch.equal(OPS.norm_act_gradient(grad, *arguments), expected)
    with pytest.raises(RuntimeError, match=r"grad_output is expanded.*clone\(\)"):
        OPS.norm_act_gradient_(grad, *arguments)
    with pytest.raises(RuntimeError, match=r"grad_output is expanded.*clone\(\)"):
        OPS.act_gradient_(grad, input, 1, 0.0)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4), (0, 0)])
def test_empty_tensors_leave_the_running_statistics(shape):
    input = torch.zeros(shape)
    running_mean, running_var = torch.full((2, shape[1]), 7.0).unbind()
    mean, _, _ = OPS.batch_norm_statistics(input, None, running_mean, running_var, 0.5, 1e-5)
    assert torch.equal(mean, torch.zeros(shape[1]))
    assert running_mean.eq(7).all()
    assert running_var.eq(7).all()
    mean, scale = torch.ones(2, shape[1]).unbind()
    assert OPS.norm_act(input, mean, scale, None, 1, 0.0).shape == shape
    gradients = OPS.bn_act_gradient(input, input, None, None, mean, scale, True, 1, 0.0)
    assert gradients[0].shape == shape
    assert gradients[1].eq(0).all()
    assert gradients[2].eq(0).all()


def test_running_statistics_of_any_stride_and_dtype_are_written():
    input = random_image("channels-last", torch.bfloat16)
    base = torch.ones((70, 3), dtype=torch.bfloat16)
    running_var = torch.ones(70, dtype=torch.float16)
    mean, _, _ = OPS.batch_norm_statistics(input, None, base[:, 1], running_var, 1.0, 1e-5)
    assert torch.equal(base[:, 1], mean.bfloat16())
    assert base[:, ::2].eq(1).all()
    variance = input.double().movedim(1, -1).flatten(0, -2).var(0)
    assert_near(running_var, variance, torch.float16, 1)


# --- The same results, whatever runs them ---------------------------------------------------------

_EVERYTHING = """
import hashlib, sys, torch, fastgan.ops
O = torch.ops.fastgan
for threads in map(int, sys.argv[1:]):
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
        for memory_format in (torch.channels_last, torch.contiguous_format):
            g = torch.Generator().manual_seed(0)
            x, grad = torch.randn((2, 40, 70, 9, 11), generator=g).to(dtype)
            x, grad = (t.contiguous(memory_format=memory_format) for t in (x, grad))
            m, s, b = torch.rand((3, 70), generator=g).to(arithmetic)
            results = [
                *O.batch_norm_statistics(x, s, None, None, 0.0, 1e-5),
                O.norm_act(x, m, s, b, 1, 0.0),
                *O.bn_act_gradient(grad, x, s, b, m, s, True, 2, 0.1),
                O.act_gradient(grad, x, 4, 0.0),
            ]
            for result in results:
                digest.update(result.contiguous().view(torch.uint8).numpy().tobytes())
    print(torch.get_num_threads(), digest.hexdigest())
"""


def _digests(*threads, **environment):
    done = subprocess.run(
        [sys.executable, "-c", _EVERYTHING, *map(str, threads)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


def test_results_are_the_same_bits_for_any_number_of_threads_and_wide_instruction_set():
    one, many = _digests(1, 5)
    (narrower,) = _digests(2, FASTGAN_CPU_INSTRUCTION_SET="avx2")
    assert [one[0], many[0]] == ["1", "5"]
    assert one[1] == many[1]
    if build_info().cpu_instruction_set != "baseline":  # which rounds twice; see docs/building.md
        assert one[1] == narrower[1]


# --- What the ops refuse --------------------------------------------------------------------------


def test_bad_arguments_are_refused_by_name():
    x, v = torch.randn(2, 3, 4), torch.ones(3)
    call = OPS.norm_act
    for arguments, message in (
        ((x.long(), v, v, None, 1, 0.0), r"input has dtype torch\.int64; expected float64"),
        ((x[0, 0], v, v, None, 1, 0.0), r"input has shape \(4\); expected \(N, C\)"),
        ((x, v.double(), v, None, 1, 0.0), r"mean has dtype torch\.float64; expected torch\.f"),
        ((x, v, v[:2], None, 1, 0.0), r"scale has shape \(2\); expected \(3\)"),
        ((x, v, v, v[:2], 1, 0.0), r"bias has shape \(2\); expected \(3\)"),
        ((x, v, v, None, 9, 0.0), r"activation is 9; expected a code from 0 to 7"),
    ):
        with pytest.raises(RuntimeError, match=rf"fastgan::norm_act: {message}"):
            call(*arguments)
    with pytest.raises(RuntimeError, match=r"grad_output has shape \(1, 3, 4\); expected \(2, 3,"):
        OPS.norm_act_gradient(x[:1], x, v, v, None, v, v, 1, 0.0)
    with pytest.raises(RuntimeError, match=r"grad_output has dtype torch\.float16; expected torch"):
        OPS.act_gradient(x.half(), x, 1, 0.0)
    tiles = torch.ones(2, 3)
    with pytest.raises(RuntimeError, match=r"count has shape \(3\); expected \(2\)"):
        OPS.batch_norm_finalize(v, tiles, tiles, None, None, None, 0.1, 1e-5, None, None, [])
    with pytest.raises(RuntimeError, match=r"running_var has shape \(2\); expected \(3\)"):
        OPS.batch_norm_finalize(v[:2], tiles, tiles, None, None, v[:2], 0.1, 1e-5, None, None, [])
    with pytest.raises(RuntimeError, match="bias_copy goes with a bias"):
        OPS.batch_norm_finalize(v[:2], tiles, tiles, None, None, None, 0.1, 1e-5, None, v, [])
    with pytest.raises(RuntimeError, match="count is -1; expected at least 0"):
        OPS.norm_act_gradient_finalize(tiles, tiles, v, v, -1)


def _calls(input, grad):
    mean, scale, bias, slope, offset = random_vectors(5, input)
    count, means, m2 = moments_of_tiles(input.detach().double(), 5)
    count, means, m2 = (moments.float() for moments in (count, means, m2))
    sums = OPS.norm_act_gradient_sums(
        grad.detach(), input.detach(), mean, scale, scale, bias, 1, 0.0
    )
    return {
        "batch_norm_finalize": (count, means, m2, scale, mean, bias, 0.1, 1e-5, None, None, []),
        "batch_norm_statistics": (input, scale, mean, None, 0.1, 1e-5),
        "norm_act": (input, mean, scale, bias, 2, 0.2),
        "norm_act_gradient_sums": (grad, input, mean, scale, scale, None, 3, 0.2),
        "norm_act_gradient_finalize": (*sums, scale, mean, 10),
        "norm_act_gradient": (grad, input, mean, scale, bias, slope, offset, 4, 0.2),
        "norm_act_gradient_": (grad, input, mean, scale, bias, slope, offset, 1, 0.2),
        "bn_act": (input, scale, bias, mean, scale, True, 1, 0.2),
        "bn_act_gradient": (grad, input, scale, None, mean, scale, True, 2, 0.2),
        "act_gradient": (grad, input, 4, 0.2),
        "act_gradient_": (grad, input, 1, 0.2),
    }


@pytest.mark.parametrize("name", [name for name in NAMES if name != "bn_act"])
def test_no_gradient_is_lost_in_silence(name):
    input = random_image("channels-last", torch.float32).requires_grad_()
    grad = random_image("channels-last", torch.float32, seed=2)
    arguments = list(_calls(input, grad)[name])
    if not any(isinstance(a, torch.Tensor) and a.requires_grad for a in arguments):
        arguments[0] = arguments[0].clone().requires_grad_()
    op = getattr(OPS, name)
    with pytest.raises(RuntimeError, match=rf"fastgan::{name}: a tensor requires grad"):
        op(*arguments)
    with torch.no_grad():
        op(*arguments)
    detached = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    with torch.autograd.forward_ad.dual_level():
        detached[0] = torch.autograd.forward_ad.make_dual(detached[0], detached[0])
        with pytest.raises(RuntimeError, match="forward-mode tangent"):
            op(*detached)


def test_writes_are_counted():
    input = random_image("channels-last", torch.float32)
    running_mean, running_var = random_vectors(2, input)
    before = running_mean._version, running_var._version
    OPS.batch_norm_statistics(input, None, running_mean, running_var, 0.1, 1e-5)
    assert (running_mean._version, running_var._version) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("device", DEVICES)
def test_paths_are_reported_and_checks_pass(device):
    device_or_skip(device)
    paths = {row.op: row.path for row in op_paths() if row.device == device}
    for name in NAMES:
        assert paths[name] in (device, "aten")
        check_op(name, device)


@pytest.mark.parametrize("name", NAMES)
def test_the_fallback_in_plain_pytorch_gives_what_the_kernels_give(name):
    """As an install without the compiled part runs it; with the same warnings as any fallback."""
    for shape in ("channels-last, few channels", "contiguous, tiny images"):
        for dtype in (torch.float64, torch.bfloat16):
            runs = []
            for call in (getattr(OPS, name), DEFINED[name].reference):
                input = random_image(shape, dtype)
                arguments = _calls(input, random_image(shape, dtype, seed=2))[name]
                results = call(*arguments)
                results = (results,) if isinstance(results, torch.Tensor) else (results or ())
                tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
                runs.append([*results, *tensors])
            for actual, expected in zip(*runs, strict=True):
                assert actual.stride() == expected.stride()
                scale = expected.abs().max().item()
                assert_near(actual, expected.double(), expected.dtype, 64, scale=max(scale, 1))


# --- The CUDA kernels, run on the host ------------------------------------------------------------

#: images, channels, image_size: columns and runs, with vectors and without, some of several tiles.
LAYOUTS = [
    (130, 16, 1),
    (70, 45, 1),
    (66, 264, 1),
    (3, 16, 32),
    (3, 7, 5),
    (1, 1, 4200),
    (3, 20, 300),
]


def tiles_of(images, channels, image_size):
    """As csrc/math/batch_norm.h cuts them; known from the op, which is tested above."""
    input, vector = torch.empty(images, channels, image_size), torch.ones(channels)
    sums = OPS.norm_act_gradient_sums(input, input, vector, vector, vector, None, 0, 0.0)
    return len(sums[0])


def host_case(entry, layout, dtype, seed, **more):
    """With tensors of random values: as (images, channels, image_size), without gaps."""
    images, channels, image_size = layout
    generator = torch.Generator().manual_seed(seed)
    shape = (images, channels, image_size)
    names = ("input", "grad") if entry == "norm_act_gradient" else ("input",)
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name in names}
    kind = arithmetic(dtype)
    for name in more.pop("vectors", ()):
        tensors[name] = (torch.rand(channels, generator=generator) + 0.5).to(kind)
    outputs = {name: torch.zeros(size, dtype=d) for name, (size, d) in more.pop("outputs").items()}
    return Case(
        entry,
        tensors | outputs,
        numbers=more.pop("numbers"),
        integers={"images": images, "channels": channels, "image_size": image_size}
        | more.pop("integers", {}),
        uninitialised=frozenset(outputs),
        misalignment=dict.fromkeys(names, more["misalignment"] * dtype.itemsize),
        label=f"{entry} of {layout}, {dtype}, {more['misalignment']} elements after a boundary",
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_kernels_on_the_host(harness, dtype):
    kind = arithmetic(dtype)
    cases = []
    for i, layout in enumerate(LAYOUTS):
        tiles, channels = tiles_of(*layout), layout[1]
        outputs = {"count": (tiles, kind)}
        outputs |= dict.fromkeys(("mean", "m2"), ((tiles, channels), kind))
        outputs |= dict.fromkeys(("total_mean", "invstd", "scale"), (channels, kind))
        cases.append(
            host_case(
                "batch_norm_statistics",
                layout,
                dtype,
                i,
                vectors=("weight", "running_mean", "running_var"),
                outputs=outputs,
                numbers={"momentum": 0.25, "eps": 1e-3},
                misalignment=i % 2,
            )
        )
    for case, result in zip(
        cases,
        harness.kernels("batch_norm_statistics").check(cases, schedules=orders_of(dtype)),
        strict=True,
    ):
        given_, got = case.tensors, result.tensors
        rows = given_["input"].double().movedim(1, -1).flatten(0, -2)
        mean, variance, n = rows.mean(0), rows.var(0, correction=0), len(rows)
        assert got["count"].sum() == n
        assert_near(got["total_mean"], mean, kind, 8)
        assert_near(got["invstd"], (variance + 1e-3).rsqrt(), kind, 16)
        expected = given_["weight"].double() * (variance + 1e-3).rsqrt()
        assert_near(got["scale"], expected, kind, 16)
        expected = 0.75 * given_["running_mean"].double() + 0.25 * mean
        assert_near(got["running_mean"], expected, kind, 8)
        expected = 0.75 * given_["running_var"].double() + 0.25 * variance * n / (n - 1)
        assert_near(got["running_var"], expected, kind, 16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_normalising_kernels_on_the_host(harness, dtype):
    cases = []
    for i, layout in enumerate(LAYOUTS):
        for j, code in enumerate(CODES.values()):
            if (i + j) % 2:
                continue
            cases.append(
                host_case(
                    "norm_act",
                    layout,
                    dtype,
                    i,
                    vectors=("mean", "scale", "bias", "weight")[: 2 + (i + code) % 3],
                    outputs={"result": (layout, dtype)},
                    numbers={"negative_slope": -0.3},
                    integers={"activation": code},
                    misalignment=i % 2,
                )
            )
    generator = torch.Generator().manual_seed(0)
    for count in (1, 15, 1029, 5000):
        for code in CODES.values():
            output, grad = torch.rand((2, count), generator=generator).to(dtype)
            tensors = {"output": output, "grad": grad}
            if code % 2:
                tensors["result"] = torch.zeros_like(grad)
            cases.append(
                Case(
                    "act_gradient",
                    tensors,
                    numbers={"negative_slope": 0.3},
                    integers={"activation": code},
                    misalignment={"grad": dtype.itemsize * (count == 5000)},
                    label=f"act_gradient of {count}, activation {code}",
                )
            )
    results = harness.kernels("norm_act").check(cases, schedules=orders_of(dtype))
    for case, result in zip(cases, results, strict=True):
        tensors = case.tensors
        name = next(n for n, code in CODES.items() if code == case.integers["activation"])
        if case.entry == "act_gradient":
            y = tensors["output"].double()
            factor = {"tanh": 1 - y**2, "sigmoid": y * (1 - y)}.get(name, derivative(name, y, 0.3))
            got = result.tensors["result" if "result" in tensors else "grad"]
            assert_near(got, tensors["grad"].double() * factor, dtype)
            continue
        x = tensors["input"].double()
        u = (x - wide(tensors["mean"], x)) * wide(tensors["scale"], x)
        if "weight" in tensors:
            u = u * wide(tensors["weight"], x)
        if "bias" in tensors:
            u = u + wide(tensors["bias"], x)
        assert_near(result.tensors["result"], activate(name, u, -0.3), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_kernels_on_the_host(harness, dtype):
    kind = arithmetic(dtype)
    cases = []
    for i, layout in enumerate(LAYOUTS):
        for j, code in enumerate(CODES.values()):
            if (i + j) % 3:
                continue
            tiles, channels = tiles_of(*layout), layout[1]
            sums = dict.fromkeys(("grad_sum", "grad_xhat_sum"), ((tiles, channels), kind))
            finals = ("slope", "offset", "grad_weight", "grad_bias")
            outputs = sums | dict.fromkeys(finals, (channels, kind))
            if code % 2:
                outputs["result"] = (layout, dtype)
            cases.append(
                host_case(
                    "norm_act_gradient",
                    layout,
                    dtype,
                    i,
                    vectors=("mean", "invstd", "scale", "bias"),
                    outputs=outputs,
                    numbers={"negative_slope": -0.3},
                    integers={"activation": code, "count": 0 if j == 2 else layout[0] * layout[2]},
                    misalignment=i % 2,
                )
            )
    results = harness.kernels("norm_act_gradient").check(cases, schedules=orders_of(dtype))
    for case, result in zip(cases, results, strict=True):
        tensors, got = case.tensors, result.tensors
        name = next(n for n, code in CODES.items() if code == case.integers["activation"])
        x = tensors["input"].double()
        scale, invstd = wide(tensors["scale"], x), wide(tensors["invstd"], x)
        centred = x - wide(tensors["mean"], x)
        u = centred * scale + wide(tensors["bias"], x)
        g = tensors["grad"].double() * derivative(name, u, -0.3)
        n = case.integers["count"]
        size = (x.numel() / x.shape[1]) ** 0.5
        grad_bias = g.sum((0, 2), keepdim=True)
        grad_weight = (g * centred * invstd).sum((0, 2), keepdim=True)
        assert_near(got["grad_bias"], grad_bias.flatten(), kind, 16, scale=size)
        assert_near(got["grad_weight"], grad_weight.flatten(), kind, 32, scale=size)
        expected = scale * g
        if n:
            expected = (
                expected - scale * (grad_bias + centred * invstd**2 * grad_weight / invstd) / n
            )
        actual = got["result" if "result" in tensors else "grad"]
        assert_near(actual, expected, dtype, 16)


def test_merged_tiles_of_a_million_rows_keep_the_kernels_bounds(harness):
    """A mean of 10^7 deviations; a first tile far away; an infinite tile; an empty one."""
    tiles, channels, u = 2**14, 5, 2.0**-24
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([1.0, 1e-3, 1.0, 1.0, 0.0])
    mean = torch.randn((tiles, channels), generator=generator) * spread
    mean += torch.tensor([0.0, 1e4, 0.0, 3.0, 1e30])
    mean[0, 2], mean[77, 3] = 1e6, math.inf
    m2 = 64 * torch.rand((tiles, channels), generator=generator) * spread**2
    count = torch.full((tiles,), 64.0)
    count[-1], count[5] = 5.0, 0.0
    mean[5] = m2[5] = math.nan
    totals = ("total_mean", "invstd", "scale", "running_mean", "running_var")
    bias = torch.randn(channels, generator=generator)
    beside = {"bias": bias, "bias_copy": torch.zeros(channels)}
    batches = [torch.tensor([number]) for number in (0, 2**40)]
    case = Case(
        "batch_norm_finalize",
        {"count": count, "mean": mean, "m2": m2, "counters": batches}
        | beside
        | {name: torch.zeros(channels) for name in totals},
        numbers={"momentum": 1.0, "eps": 1e-3},
        integers={"tiles": tiles, "channels": channels},
        uninitialised=frozenset({*totals[:3], "bias_copy"}),
    )
    (result,) = harness.kernels("batch_norm_statistics").check([case], schedules=SCHEDULES[-1:])
    assert result.error == ""
    assert torch.equal(result.tensors["bias_copy"], bias)
    assert [counter.item() for counter in result.tensors["counters"]] == [1, 2**40 + 1]
    kept, got = count > 0, result.tensors
    n, m, squares = count[kept].double()[:, None], mean[kept].double(), m2[kept].double()
    expected = (n * m).sum(0) / n.sum()
    expected_m2 = (squares + n * (m - expected).square()).sum(0)
    bound = 6 * u * (n * (m - m[0]).abs()).sum(0) / n.sum() + 2 * u * expected.abs()
    finite = [0, 1, 2, 4]
    error = (got["total_mean"].double() - expected).abs()
    assert (error[finite] <= bound[finite]).all()
    variance = expected_m2 / (n.sum() - 1)
    error = (got["running_var"].double() - variance).abs()
    bound = 10 * u * variance + (u**2 * expected).square()
    assert (error[finite] <= bound[finite]).all()
    assert got["total_mean"][3] == math.inf
    assert got["running_var"][3].isnan()

    # Pairs that cancel, far apart, leave sums of a billionth of their terms.
    sums = 1e6 * torch.randn((2, tiles, channels), generator=generator)
    sums[:, tiles // 2 :] = torch.randn(sums[:, tiles // 2 :].shape, generator=generator) / 16
    sums[:, tiles // 2 :] -= sums[:, : tiles // 2]
    finals = ("slope", "offset", "grad_weight", "grad_bias")
    vectors = {name: torch.ones(channels) for name in ("scale", "invstd", *finals)}
    case = Case(
        "norm_act_gradient_finalize",
        {"grad_sum": sums[0], "grad_xhat_sum": sums[1]} | vectors,
        integers={"tiles": tiles, "channels": channels, "count": 64 * tiles},
        uninitialised=frozenset(finals),
    )
    (result,) = harness.kernels("norm_act_gradient").check([case], schedules=SCHEDULES[-1:])
    assert result.error == ""
    for name, terms in (("grad_bias", sums[0].double()), ("grad_weight", sums[1].double())):
        error = (result.tensors[name].double() - terms.sum(0)).abs()
        bound = ((tiles / 32 + 5) * u) ** 2 * terms.abs().sum(0) + u * terms.sum(0).abs()
        assert (error <= bound).all(), name


def test_errors_of_a_threads_sums_do_not_grow_with_its_rows(harness):
    """The first block alone, of 2^18 rows of 8 channels; a thread has 1024 of them."""
    rows, channels, tile = 2**28, 8, 2**18
    generator = torch.Generator().manual_seed(0)
    x, g = (1 + torch.rand((2, channels), generator=generator)).bfloat16().unbind()
    vectors = {"mean": -torch.rand(channels, generator=generator)}
    vectors |= {name: torch.ones(channels) for name in ("invstd", "scale", "bias")}
    whole = {
        name: SparseTensor(torch.bfloat16, rows * channels, {0: v.expand(tile, -1).flatten()})
        for name, v in (("input", x), ("grad", g))
    }
    sums = {name: torch.zeros(1024, channels) for name in ("grad_sum", "grad_xhat_sum")}
    finals = ("slope", "offset", "grad_weight", "grad_bias")
    case = Case(
        "norm_act_gradient",
        whole | vectors | sums | {name: torch.zeros(channels) for name in finals},
        numbers={"negative_slope": 0.0},
        integers={"images": rows, "channels": channels, "image_size": 1}
        | {"activation": 0, "count": rows},
        only_blocks=(0,),
    )
    kernels = harness.kernels("norm_act_gradient")
    (result,) = kernels.check([case], builds=["sanitized"], schedules=SCHEDULES[-1:])
    exact = tile * g.double(), tile * g.double() * (x.double() - vectors["mean"].double())
    for name, expected in zip(sums, exact, strict=True):
        error = (result.tensors[name][0].double() / expected - 1).abs()
        assert (error <= 24 * 2.0**-24).all(), (name, error * 2**24)


def test_kernels_count_elements_beyond_two_to_the_31(harness):
    """The first and last block alone, of bfloat16 with 16 channels; only what they touch exists."""
    rows = 2**28 + 64
    ones = torch.ones(16 * 8192, dtype=torch.bfloat16)
    count = rows * 16
    sparse = SparseTensor(torch.bfloat16, count, {0: ones, count - len(ones): ones})
    vectors = {"mean": torch.zeros(16), "scale": torch.ones(16)}
    case = Case(
        "norm_act",
        {"input": sparse, "result": sparse, **vectors, "bias": torch.full((16,), 2.0)},
        numbers={"negative_slope": 0.0},
        integers={"images": rows, "channels": 16, "image_size": 1, "activation": 0},
        only_blocks=(0, -1),
    )
    kernels = harness.kernels("norm_act")
    (result,) = kernels.check([case], builds=["sanitized"], schedules=SCHEDULES[-1:])
    first, last = result.tensors["result"].values()
    assert first[:16].eq(3).all()
    assert last[-16:].eq(3).all()
