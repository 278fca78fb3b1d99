"""fastgan's results have torch's layout, so that ``view`` works."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan import functional
from fastgan.models.compat import pytorch_examples, wasserstein_gan
from fastgan.ops.backends import BACKENDS
from fastgan.ops.memory_format import is_channels_last
from fastgan.ops.stages import Stage

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
EACH = [pytest.param(value, id=name) for name, value in FORMATS.items()]


def drawn(*size: int, memory_format: torch.memory_format, dtype: Any = torch.float32) -> Tensor:
    """With the format's own strides, those of dimensions of size 1 included."""
    generator = torch.Generator().manual_seed(sum(size))
    values = torch.randn(size, generator=generator, dtype=torch.float64)
    return torch.empty(size, dtype=dtype, memory_format=memory_format).copy_(values)


def with_weights(module: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    for parameter in module.parameters():
        if parameter.dim() == 4:
            shape = parameter.shape
            parameter.data = drawn(*shape, memory_format=memory_format).mul_(0.05)
    return module


def layout(map: Tensor) -> object:
    """The strides; of a map that both formats fit (one channel, or one place), only that they do.

    There torch's own depend on more: its activations out of place, for one, make them contiguous.
    """
    fits = [map.dim() == 4 and map.is_contiguous(memory_format=each) for each in FORMATS.values()]
    return "both" if all(fits) else map.stride()


def layouts(function: Callable[[Tensor], Any], input: Tensor) -> dict[str, Any]:
    """Of the output, and of the input's gradient at first order and with ``create_graph``."""
    found = {}
    for create_graph in (False, True):
        leaf = input.detach().requires_grad_()
        output = function(leaf)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=create_graph)
        found["output"] = layout(output)
        found[f"gradient, {create_graph=}"] = layout(gradient)
        if create_graph:
            (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
            found["second gradient"] = layout(second)
    return found


def generator(nz: int = 8, ngf: int = 32, nc: int = 3, *, norm: bool = True) -> nn.Sequential:
    def inner(made: int) -> list[nn.Module]:
        return [nn.BatchNorm2d(made)] if norm else []

    return nn.Sequential(
        nn.ConvTranspose2d(nz, 2 * ngf, 4, 1, 0, bias=False),
        *inner(2 * ngf),
        nn.ReLU(),
        nn.ConvTranspose2d(2 * ngf, ngf, 4, 2, 1, bias=False),
        *inner(ngf),
        nn.ReLU(),
        nn.ConvTranspose2d(ngf, nc, 4, 2, 1),
        nn.Tanh(),
    )


def critic(nc: int = 3, ndf: int = 32, *, norm: bool = False) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(nc, ndf, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(ndf, 2 * ndf, 4, 2, 1),
        *([nn.BatchNorm2d(2 * ndf)] if norm else []),
        nn.LeakyReLU(0.2),
        nn.Conv2d(2 * ndf, 1, 4, 1, 0),
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "generator": (generator, (8, 1, 1)),
    "generator of one channel": (lambda: generator(nc=1), (8, 1, 1)),
    "generator without norms": (lambda: generator(norm=False), (8, 1, 1)),
    "generator from maps": (lambda: generator()[3:], (64, 4, 4)),
    "ends in a norm": (lambda: generator()[:5], (8, 1, 1)),
    "one layer": (lambda: generator()[6:], (32, 8, 8)),
    "critic": (critic, (3, 16, 16)),
    "critic with a norm": (lambda: critic(norm=True), (3, 16, 16)),
    "critic of one channel": (lambda: critic(nc=1), (1, 16, 16)),
    "critic's last layers": (lambda: critic()[4:], (64, 4, 4)),
    "critic's first layer": (lambda: critic()[:2], (3, 16, 16)),
    "one value": (
        lambda: nn.Sequential(nn.Conv2d(1, 1, 4), nn.Tanh(), nn.Conv2d(1, 2, 1), nn.Tanh()),
        (1, 4, 4),
    ),
    "groups, 3x3": (
        lambda: nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1, groups=2), nn.BatchNorm2d(16), nn.ReLU()),
        (8, 5, 5),
    ),
    "with layers that run alone": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.Softplus(), nn.Conv2d(8, 3, 3), nn.ReLU()),
        (3, 8, 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("of_weights", EACH)
@pytest.mark.parametrize("of_input", EACH)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_fused_networks_keep_torch_s_layout(
    name: str, of_input: Any, of_weights: Any, batch: int, training: bool
) -> None:
    make, size = NETWORKS[name]
    plain = with_weights(make(), of_weights).train(training)
    fused = fastgan.fuse(copy.deepcopy(plain))
    input = drawn(batch, *size, memory_format=of_input)
    assert layouts(fused, input) == layouts(plain, input)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("of_weights", EACH)
@pytest.mark.parametrize("of_input", EACH)
@pytest.mark.parametrize("name", ["generator", "critic with a norm"])
def test_other_dtypes_too(name: str, of_input: Any, of_weights: Any, dtype: Any) -> None:
    make, size = NETWORKS[name]
    plain = with_weights(make(), of_weights).to(dtype)
    fused = fastgan.fuse(copy.deepcopy(plain))
    input = drawn(4, *size, memory_format=of_input, dtype=dtype)
    assert layouts(fused, input) == layouts(plain, input)


@pytest.mark.parametrize("of_input", EACH)
@pytest.mark.parametrize("of_weights", EACH)
def test_models_keep_the_layout_of_their_layers(of_input: Any, of_weights: Any) -> None:
    models: list[tuple[nn.Module, tuple[int, ...]]] = [
        (fastgan.models.DCGANGenerator(8, 32, 3, 16), (8, 1, 1)),
        (fastgan.models.DCGANDiscriminator(3, 32, 16), (3, 16, 16)),
        *(
            (fastgan.models.WGANCritic(3, 32, 16, norm), (3, 16, 16))
            for norm in ("none", "batch", "layer", "instance")
        ),
        (pytorch_examples.Generator(1, 8, 4), (8, 1, 1)),
        (pytorch_examples.Discriminator(1, 4), (3, 64, 64)),
        (wasserstein_gan.DCGAN_G(16, 8, 3, 32, 1), (8, 1, 1)),
        (wasserstein_gan.DCGAN_D(16, 8, 3, 32, 1), (3, 16, 16)),
    ]
    for fused, size in models:
        with_weights(fused, of_weights)
        plain = copy.deepcopy(fused)
        for module in plain.modules():
            if type(module) is fastgan.nn.FusedSequential:
                module.__class__ = nn.Sequential
        input = drawn(4, *size, memory_format=of_input)
        assert layouts(fused, input) == layouts(plain, input), type(fused).__name__


def test_a_critic_may_view_what_a_fused_generator_draws() -> None:
    """The flattening critic and the gradient's norm of scripts for the WGAN-GP."""
    draws = fastgan.fuse(generator())
    judges = fastgan.fuse(critic())
    fake = draws(torch.randn(6, 8, 1, 1))
    assert fake.view(6, -1).shape == (6, 3 * 16 * 16)
    between = torch.lerp(torch.randn(6, 3, 16, 16), fake.detach(), torch.rand(6, 1, 1, 1))
    between.requires_grad_()
    scores = judges(between)
    (gradient,) = torch.autograd.grad(scores.sum(), between, create_graph=True)
    (gradient.view(6, -1).norm(2, dim=1) - 1).square().mean().backward()
    assert all(p.grad is not None for p in judges[0].parameters() if p.dim() == 4)


# --- Functions and ops ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 32, 8, 8), (1, 32, 8, 8), (4, 32, 1, 1), (4, 1, 6, 6)])
@pytest.mark.parametrize("of_input", EACH)
@pytest.mark.parametrize("of_weights", EACH)
@pytest.mark.parametrize("training", [True, False])
def test_functions_keep_torch_s_layout(
    size: tuple[int, ...], of_input: Any, of_weights: Any, training: bool
) -> None:
    channels, input = size[1], drawn(*size, memory_format=of_input)

    def norm(x: Tensor) -> Tensor:
        mean, variance = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        return torch.relu(F.batch_norm(x, mean, variance, None, None, training))

    def settings(channels: int) -> dict[str, Any]:
        return {
            "bn_weight": None,
            "bn_bias": None,
            "running_mean": torch.zeros(channels),
            "running_var": torch.ones(channels),
            "training": training,
        }

    ours = layouts(lambda x: functional.bn_act(x, **settings(channels)), input)
    assert ours == layouts(norm, input)
    up = drawn(channels, 16, 4, 4, memory_format=of_weights)
    ours = layouts(
        lambda x: functional.conv_transpose2d_bn_act(x, up, stride=2, padding=1, **settings(16)),
        input,
    )
    assert ours == layouts(lambda x: norm(F.conv_transpose2d(x, up, None, 2, 1)), input)
    down = drawn(16, channels, 4, 4, memory_format=of_weights)
    if size[2] > 1:
        ours = layouts(
            lambda x: functional.conv2d_bn_act(x, down, stride=2, padding=1, **settings(16)), input
        )
        assert ours == layouts(lambda x: norm(F.conv2d(x, down, None, 2, 1)), input)


@pytest.mark.parametrize("of_input", EACH)
@pytest.mark.parametrize("of_weights", EACH)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_convolution_ops_keep_torch_s_layout(
    of_input: Any, of_weights: Any, batch: int, device: str
) -> None:
    small = drawn(batch, 64, 4, 4, memory_format=of_input)
    wide = drawn(batch, 32, 8, 8, memory_format=of_input)
    weight = drawn(64, 32, 4, 4, memory_format=of_weights)
    ops: Any = torch.ops.fastgan

    def on(*tensors: Tensor) -> list[Tensor]:
        return [tensor.to(device) for tensor in tensors]

    found = ops.winograd_gather(*on(wide, weight), None, 2, 1, 1, 4, 4)
    assert found.stride() == F.conv2d(wide, weight, None, 2, 1).stride()
    found = ops.winograd_scatter(*on(small, weight), None, 2, 1, 1, 8, 8)
    assert found.stride() == F.conv_transpose2d(small, weight, None, 2, 1).stride()
    for channels in (1, 3):
        weight = drawn(64, channels, 4, 4, memory_format=of_weights)
        expected = F.conv_transpose2d(small, weight, None, 2, 1)
        found = ops.patch_scatter(*on(small, weight), None, 2, 2, 1, 1, 8, 8)
        assert found.stride() == expected.stride()
        if device == "cpu":
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
        for channels_last in (False, True):
            found = ops.patch_scatter(*on(small, weight), None, 2, 2, 1, 1, 8, 8, channels_last)
            memory_format = FORMATS["channels_last" if channels_last else "contiguous"]
            assert found.stride() == drawn(*found.shape, memory_format=memory_format).stride()
            if device == "cpu":
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


BY_NAME = {backend.name: backend for backend in BACKENDS}
CONVOLUTIONS = {
    "one place, out": ("matrix_product", Stage("conv_transpose2d"), (64, 32, 4, 4), (64, 1, 1)),
    "one place, in": ("matrix_product", Stage("conv2d"), (64, 32, 4, 4), (32, 4, 4)),
    "one value": ("matrix_product", Stage("conv2d"), (1, 32, 4, 4), (32, 4, 4)),
    "one tap": ("matrix_product", Stage("conv2d"), (64, 32, 1, 1), (32, 1, 1)),
    "image out": (
        "patches",
        Stage("conv_transpose2d", (2, 2), (1, 1)),
        (32, 3, 4, 4),
        (32, 8, 8),
    ),
    "image in": ("patches", Stage("conv2d", (2, 2), (1, 1)), (32, 1, 4, 4), (1, 8, 8)),
}


@pytest.mark.parametrize("of_input", EACH)
@pytest.mark.parametrize("of_weights", EACH)
@pytest.mark.parametrize("of_gradient", EACH)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_each_way_to_convolve_keeps_torch_s_layout(
    name: str, of_input: Any, of_weights: Any, of_gradient: Any, batch: int
) -> None:
    backend, stage, weight_size, input_size = CONVOLUTIONS[name]
    convolution = BY_NAME[backend]
    weight = drawn(*weight_size, memory_format=of_weights)
    input = drawn(batch, *input_size, memory_format=of_input).requires_grad_()
    function = F.conv2d if stage.kind == "conv2d" else F.conv_transpose2d
    expected = function(input, weight, None, stage.stride, stage.padding)
    grad_output = drawn(*expected.shape, memory_format=of_gradient)
    (expected_gradient,) = torch.autograd.grad(expected, input, grad_output)
    passes = ["forward", "input_gradient"]
    if backend == "patches":
        passes = ["input_gradient" if stage.kind == "conv2d" else "forward"]
    with torch.no_grad():
        if "forward" in passes:
            found = convolution.forward(stage, input, weight, None)
            assert found.stride() == expected.stride()
            torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-3)
        if "input_gradient" in passes:
            found = convolution.input_gradient(stage, grad_output, input, weight)
            assert found.stride() == expected_gradient.stride()
            torch.testing.assert_close(found, expected_gradient, rtol=1e-4, atol=1e-3)


def test_channels_last_is_what_torch_takes_for_it() -> None:
    """``torch.empty_like(..., torch.preserve_format)`` of a gappy tensor goes by the same rule."""
    sizes = list(itertools.product((1, 2), (1, 3), (1, 4), (1, 5)))
    for size in sizes:
        for memory_format in FORMATS.values():
            map = torch.empty(size, memory_format=memory_format)
            weight = torch.zeros(3, size[1], 1, 1)  # contiguous in torch's eyes
            with torch.no_grad():
                convolved = F.conv2d(map, weight)
            expected = torch.empty(
                convolved.shape,
                memory_format=torch.channels_last
                if is_channels_last(map)
                else torch.contiguous_format,
            )
            assert convolved.stride() == expected.stride(), (size, map.stride())


@pytest.mark.parametrize("size", [(2, 4, 6, 6), (2, 1, 6, 6), (1, 4, 3, 6), (2, 4, 3, 5, 6)])
@pytest.mark.parametrize("positions", ["turned", "with gaps", "with gaps, contiguous"])
def test_a_norm_of_a_view_is_laid_out_as_torchs(size: tuple[int, ...], positions: str) -> None:
    """Channels may be innermost while the positions are in another order."""
    x = torch.randn(size)
    if positions != "with gaps, contiguous":
        last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
        x = x.contiguous(memory_format=last)
    x = (x.transpose(-2, -1) if positions == "turned" else x[..., ::2]).requires_grad_()
    plain = F.relu(F.batch_norm(x, None, None, training=True))
    ours = functional.bn_act(
        x,
        bn_weight=None,
        bn_bias=None,
        running_mean=None,
        running_var=None,
        training=True,
        activation="relu",
    )
    torch.testing.assert_close(ours, plain)
    assert ours.stride() == plain.stride()
    found = [torch.autograd.grad(y.square().sum(), x)[0].stride() for y in (ours, plain)]
    assert found[0] == found[1]
