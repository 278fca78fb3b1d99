"""The fused pass against double backward of the plain reference, critic by critic."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penalty_critics import (
    CRITICS,
    assert_as_exact_as_autograd,
    assert_same,
    gradients,
    images,
    make,
    sequential,
    trained_statistics,
)
from torch import Tensor, nn

import fastgan
from fastgan import reference


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", CRITICS)
def test_penalty_matches_double_backward(name: str, n: int) -> None:
    critic, shape = make(name)
    twin = copy.deepcopy(critic)
    real, fake, eps = images(shape, n)
    value = fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")
    expected = reference.gradient_penalty(twin, real, fake, eps=eps)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-15)
    assert_same(gradients(critic, value), gradients(twin, expected))


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("name", CRITICS)
def test_critic_loss_matches_double_backward(name: str, n: int) -> None:
    critic, shape = make(name)
    twin = copy.deepcopy(critic)
    real, fake, eps = images(shape, n, seed=1)
    ours = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused")
    theirs = reference.wgan_gp_critic_loss(twin, real, fake, eps=eps)
    for name_of, expected in theirs._asdict().items():
        torch.testing.assert_close(getattr(ours, name_of), expected, rtol=1e-9, atol=1e-12)
    assert_same(gradients(critic, ours.loss), gradients(twin, theirs.loss))
    for ours_buffer, theirs_buffer in zip(critic.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours_buffer, theirs_buffer)


@pytest.mark.parametrize(
    "asked",
    [
        {"sided": "one", "target": 0.4},
        {"target": 0.0, "at": "real", "weight": 2.5},
        {"target": 0.0, "at": "fake"},
        {"at": "dragan", "weight": 3.0},
        {"target": 0.0, "sided": "one"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["dcgan-16", "residual", "mlp"])
def test_every_kind_of_penalty_matches(name: str, asked: dict[str, Any]) -> None:
    critic, shape = make(name)
    twin = copy.deepcopy(critic)
    real, fake, _ = images(shape, 5, seed=2)
    streams = [torch.Generator().manual_seed(3) for _ in range(2)]
    value = fastgan.gradient_penalty(
        critic, real, fake, generator=streams[0], path="fused", **asked
    )
    expected = reference.gradient_penalty(twin, real, fake, generator=streams[1], **asked)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-15)
    assert_same(gradients(critic, value), gradients(twin, expected))
    # Both have drawn as much.
    assert torch.equal(streams[0].get_state(), streams[1].get_state())


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.LayerNorm(5),
        lambda: nn.LayerNorm([4, 5]),
        lambda: nn.LayerNorm([6, 4, 5]),
        lambda: ChannelNorm(6),
    ],
    ids=["width", "height and width", "whole maps", "channels"],
)
def test_layer_norm_over_any_dimensions_of_channels_last_maps(
    norm: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    critic = sequential(
        nn.Conv2d(3, 6, 3, 2, 1), norm(), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(120, 1)
    ).double()
    real, fake, eps = images((3, 8, 10), 4)
    assert_as_exact_as_autograd(critic, real, fake, eps, floor=1e-6)


@pytest.mark.parametrize(
    "name",
    ["dcgan-32", "residual", "grouped-dilated", "mlp", "dcgan-layer-norm", "dcgan-instance-norm"],
)
def test_float32_is_as_exact_as_autograd(name: str) -> None:
    exact, shape = make(name)
    real, fake, eps = images(shape, 6, seed=4)
    expected = gradients(exact, reference.wgan_gp_critic_loss(exact, real, fake, eps=eps).loss)
    in_float32 = copy.deepcopy(exact).float()
    errors = {}
    for path in ("fused", "autograd"):
        loss = fastgan.wgan_gp_critic_loss(
            in_float32, real.float(), fake.float(), eps=eps.float(), path=path
        ).loss
        found = gradients(in_float32, loss)
        errors[path] = max(
            float((found[k].double() - g).norm() / g.norm())  # type: ignore[union-attr]
            for k, g in expected.items()
            if g is not None and g.norm() > 1e-9
        )
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-7


KINDS = """conv strided grouped transposed prelu relu leaky hardtanh abs
    average maximum upsample norm layernorm rownorm groupnorm instancenorm tanh softplus
    identity"""
LAYERS = st.sampled_from(KINDS.split())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(LAYERS, min_size=1, max_size=7),
    seed=st.integers(0, 2**20),
    height=st.integers(4, 7),
    width=st.integers(4, 7),
    channels=st.sampled_from([1, 2, 3]),
    n=st.integers(1, 3),
    float32=st.booleans(),
)
def test_random_critics_match_double_backward(
    kinds: list[str], seed: int, height: int, width: int, channels: int, n: int, float32: bool
) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    example = torch.zeros(1, channels, height, width)
    for kind in kinds:
        c = example.size(1)
        layer: nn.Module = {
            "conv": lambda c=c: nn.Conv2d(c, 4, 3, padding=1),
            "strided": lambda c=c: nn.Conv2d(c, 2, 2, stride=2, padding=1, bias=False),
            "grouped": lambda c=c: nn.Conv2d(c, 2 * c, 3, padding=2, dilation=2, groups=c),
            "transposed": lambda c=c: nn.ConvTranspose2d(c, 2, 3, stride=2, padding=1),
            "prelu": lambda c=c: nn.PReLU(c),
            "relu": lambda: nn.ReLU(inplace=True),
            "leaky": lambda: nn.LeakyReLU(0.3),
            "hardtanh": lambda: nn.Hardtanh(-1.2, 0.9),
            "abs": lambda: Absolute(),
            "average": lambda: nn.AvgPool2d(2, 1, 1),
            "maximum": lambda: nn.MaxPool2d(2, 1, 1),
            "upsample": lambda: nn.Upsample(scale_factor=(2, 1)),
            "norm": lambda c=c: nn.BatchNorm2d(c),
            "layernorm": lambda s=example.shape: nn.LayerNorm(s[2 - s.numel() % 2 :]),
            "rownorm": lambda s=example.shape: nn.LayerNorm(s[3]),
            "groupnorm": lambda c=c: nn.GroupNorm(c if c % 2 else c // 2, c),
            "instancenorm": lambda c=c: nn.InstanceNorm2d(c, affine=True),
            "tanh": lambda: nn.Tanh(),
            "softplus": lambda: nn.Softplus(),
            "identity": lambda: nn.Identity(),
        }[kind]()
        if kind == "relu" and not (layers and isinstance(layers[-1], nn.Conv2d)):
            layer = nn.ReLU()  # in place on images or on a mask's source, autograd itself refuses
        layers.append(layer)
        with torch.no_grad():
            example = layer.eval()(example)
    critic = nn.Sequential(*layers, nn.Flatten(), nn.Linear(example[0].numel(), 1))
    for parameter in critic.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    critic = trained_statistics(critic).double()
    twin = copy.deepcopy(critic)
    real, fake, eps = images((channels, height, width), n, seed)
    if float32:  # only then are maps channels-last
        assert_as_exact_as_autograd(critic, real, fake, eps, floor=1e-4)
        return
    ours = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused")
    theirs = reference.wgan_gp_critic_loss(twin, real, fake, eps=eps)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-9, atol=1e-12)
    ours_found = gradients(critic, ours.loss)
    theirs_found = gradients(twin, theirs.loss)
    largest = max(float(g.abs().max()) for g in theirs_found.values() if g is not None)
    for name, expected in theirs_found.items():
        found = ours_found[name]
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * largest + 1e-13)


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


def test_a_run_follows_autograds_trajectory() -> None:
    torch.manual_seed(0)
    start, shape = make("dcgan-16")
    data = torch.Generator().manual_seed(1)
    batches = [torch.randn(2, 6, *shape, generator=data, dtype=torch.float64) for _ in range(300)]
    ends = []
    for path in ("fused", "autograd"):
        critic = copy.deepcopy(start)
        optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
        stream = torch.Generator().manual_seed(2)
        for real, fake in batches:
            optimizer.zero_grad()
            loss = fastgan.wgan_gp_critic_loss(
                critic, real + 0.5, fake, generator=stream, path=path
            ).loss
            loss.backward()
            optimizer.step()
        ends.append((loss.item(), torch.cat([p.detach().flatten() for p in critic.parameters()])))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-6)
    torch.testing.assert_close(ends[0][1], ends[1][1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ends[0][1], torch.cat([p.flatten() for p in start.parameters()]))
