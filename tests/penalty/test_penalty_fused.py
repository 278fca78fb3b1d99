"""The fused pass against double backward of the plain reference, critic by critic."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastgan
from fastgan import reference
from fastgan.models import DCGANDiscriminator, MLPDiscriminator, WGANCritic
from fastgan.models.compat.wasserstein_gan import DCGAN_D, MLP_D, DCGAN_D_nobn


class Residual(nn.Module):
    """Two blocks with shortcuts, pooling and a mean over positions."""

    def __init__(self, channels: int = 2, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.a = nn.Conv2d(width, width, 3, padding=1)
        self.b = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(width, width, 1)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = h + 0.5 * self.b(F.leaky_relu(self.a(h), 0.1))
        h = F.avg_pool2d(self.skip(h) - h / 3, 2)
        h += self.b(F.relu(h))
        h = 1.5 * F.interpolate(h, scale_factor=2, mode="nearest") + 0.25
        return self.head(h.relu().mean((2, 3))).squeeze(1)


class NormedResidual(nn.Module):
    """A shortcut around a norm, and one norm used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.inner(F.relu(self.norm(h)))
        h = F.avg_pool2d(F.leaky_relu(self.norm(h), 0.2), 2) - F.instance_norm(F.avg_pool2d(h, 2))
        h = F.layer_norm(h, h.shape[1:]) * torch.sigmoid(self.head.bias)
        return self.head(F.group_norm(h, 4).tanh().mean((2, 3)) + h.sum((2, 3)) / 24).squeeze(1)


class Bound(nn.Module):
    """Scaled weights, a norm-like buffer, permutation, indexing and a constant map."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 2, 3, 3))
        self.shift = nn.Parameter(torch.randn(5, 1, 1))
        self.gain = nn.Parameter(torch.randn(5, 1, 1))
        self.places = nn.Parameter(torch.randn(1, 2, 6, 8))
        self.register_buffer("scale", torch.tensor(0.7))
        self.head = nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :1], -x[:, 1:]], 1) + self.places
        h = F.conv2d(x, self.weight * self.scale, padding=1) * self.gain + self.shift
        h = F.hardtanh(h, -0.8, 1.1).abs()
        h = F.max_pool2d(h, 2).permute(0, 2, 3, 1)
        return self.head(h).flatten(1).sum(1)


class Projection(nn.Module):
    """A label's embedding meets the features, and another one is laid beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.beside = nn.Embedding(3, 16)
        self.embedding = nn.Embedding(3, 6)
        self.conv = nn.Conv2d(3, 6, 4, 2, 1)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        plane = self.beside(labels).view(-1, 1, 4, 4)
        h = F.leaky_relu(self.conv(torch.cat([x, plane], 1)), 0.2).sum((2, 3))
        return self.head(h).view(-1) + (h * self.embedding(labels)).sum(1)


def scaled(critic: nn.Module) -> nn.Module:
    """Weights large enough that every layer bends somewhere and no norm is tiny."""
    for parameter in critic.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return critic


def spectral(critic: nn.Module) -> nn.Module:
    for module in list(critic.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.utils.parametrizations.spectral_norm(module)
    return critic


def old_spectral(critic: nn.Module) -> nn.Module:
    for module in list(critic.modules()):
        if isinstance(module, nn.Conv2d):
            nn.utils.spectral_norm(module)
    return critic


def weight_normed(critic: nn.Module) -> nn.Module:
    for module in list(critic.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.utils.parametrizations.weight_norm(module)
    return critic


def frozen_first(critic: nn.Module) -> nn.Module:
    first = next(m for m in critic.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    first.requires_grad_(False)
    return critic


def frozen_norms(critic: nn.Module) -> nn.Module:
    for module in critic.modules():
        if isinstance(module, nn.GroupNorm):
            module.requires_grad_(False)
    return critic


def sequential(*layers: nn.Module) -> nn.Module:
    return scaled(nn.Sequential(*layers))


def trained_statistics(critic: nn.Module) -> nn.Module:
    for module in critic.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return critic.eval()


CRITICS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: scaled(MLPDiscriminator(1, 9, 7, output="logits").eval()), (1, 7, 7)),
    "vectors": (lambda: sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)), (5,)),
    "linear": (lambda: sequential(nn.Flatten(), nn.Linear(12, 1)), (3, 2, 2)),
    "dcgan-16": (lambda: scaled(WGANCritic(1, 4, 16)), (1, 16, 16)),
    "dcgan-32": (lambda: scaled(WGANCritic(3, 3, 32)), (3, 32, 32)),
    "dcgan-64": (lambda: scaled(WGANCritic(3, 2, 64)), (3, 64, 64)),
    "dcgan-128": (lambda: WGANCritic(1, 1, 128), (1, 128, 128)),
    "dcgan-eval-batch-norm": (
        lambda: trained_statistics(scaled(WGANCritic(2, 4, 16, norm="batch"))),
        (2, 16, 16),
    ),
    "compat": (lambda: scaled(DCGAN_D_nobn(16, 8, 3, 4, 1, 1)), (3, 16, 16)),
    "compat-eval-batch-norm": (
        lambda: trained_statistics(scaled(DCGAN_D(16, 8, 1, 4, 1))),
        (1, 16, 16),
    ),
    "compat-mlp": (lambda: scaled(MLP_D(6, 8, 2, 7, 1)), (2, 6, 6)),
    "residual": (lambda: scaled(Residual()), (2, 6, 8)),
    "bound": (Bound, (2, 6, 8)),
    "spectral-eval": (lambda: spectral(WGANCritic(1, 4, 16)).eval(), (1, 16, 16)),
    "spectral": (lambda: spectral(WGANCritic(1, 4, 16)), (1, 16, 16)),
    "spectral-hook": (lambda: old_spectral(WGANCritic(1, 4, 16)), (1, 16, 16)),
    "weight-norm": (lambda: weight_normed(scaled(WGANCritic(1, 4, 16))), (1, 16, 16)),
    "frozen-first": (lambda: frozen_first(scaled(WGANCritic(1, 4, 16))), (1, 16, 16)),
    "grouped-dilated": (
        lambda: sequential(
            nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(6, 6, (3, 2), stride=(2, 3), padding=(1, 0), groups=6, bias=False),
            nn.PReLU(6),
            nn.Conv2d(6, 3, 3, dilation=(1, 2), padding="same"),
            nn.PReLU(),
            nn.AdaptiveAvgPool2d((2, 1)),
            nn.Flatten(),
            nn.Dropout(0.0),
            nn.Linear(6, 1),
        ),
        (4, 7, 9),
    ),
    "transposed": (
        lambda: sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.ReLU6(),
            nn.ConvTranspose2d(4, 2, 2, dilation=3, stride=2, output_padding=2),
            nn.Hardtanh(-0.5, 2.0),
            nn.MaxPool2d(3, 2, 1),
            nn.ReLU(),
            nn.AvgPool2d(2, ceil_mode=True),
            nn.Upsample(scale_factor=2),
            nn.Flatten(),
            nn.Linear(240, 1),
        ),
        (2, 4, 5),
    ),
    "dcgan-layer-norm": (lambda: scaled(WGANCritic(3, 3, 32, norm="layer")), (3, 32, 32)),
    "dcgan-instance-norm": (lambda: scaled(WGANCritic(1, 4, 16, norm="instance")), (1, 16, 16)),
    "group-norm": (
        lambda: sequential(
            nn.GroupNorm(1, 2),
            nn.Conv2d(2, 6, 3, 2, 1, bias=False),
            nn.GroupNorm(3, 6),
            nn.PReLU(6),
            nn.Conv2d(6, 4, 2),
            nn.LayerNorm([4, 2, 3]),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 1),
        ),
        (2, 5, 7),
    ),
    "norms-without-weights": (
        lambda: sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.InstanceNorm2d(4),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.GroupNorm(2, 4, affine=False),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.LayerNorm(24, elementwise_affine=False),
            nn.Linear(24, 1),
        ),
        (2, 4, 6),
    ),
    "layer-norm-mlp": (
        lambda: sequential(
            nn.Linear(5, 6), nn.LayerNorm(6, bias=False), nn.ReLU(), nn.Linear(6, 1)
        ),
        (5,),
    ),
    "frozen-norms": (lambda: frozen_norms(scaled(WGANCritic(1, 3, 16, norm="layer"))), (1, 16, 16)),
    "residual-norm": (lambda: scaled(NormedResidual()), (2, 6, 8)),
    "smooth": (
        lambda: sequential(
            nn.Conv2d(2, 4, 3, 2, 1),
            nn.Tanh(),
            nn.Conv2d(4, 3, 3),
            nn.Softplus(2.0, 1.0),
            nn.Flatten(),
            nn.Linear(6, 5),
            nn.Sigmoid(),
            nn.Linear(5, 1),
            nn.Softplus(),
        ),
        (2, 6, 8),
    ),
    "silu-and-gelu": (
        lambda: sequential(
            nn.Conv2d(2, 4, 3, 2, 1),
            nn.SiLU(inplace=True),
            nn.Conv2d(4, 3, 3),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(6, 5),
            nn.GELU(approximate="tanh"),
            nn.Linear(5, 1),
        ),
        (2, 6, 8),
    ),
    "negative-slope": (
        lambda: sequential(nn.Flatten(), nn.Linear(6, 5), nn.LeakyReLU(-0.4), nn.Linear(5, 1)),
        (1, 2, 3),
    ),
}


def make(name: str, seed: int = 0) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    build, shape = CRITICS[name]
    critic = build()
    return critic.double(), shape


def images(
    shape: tuple[int, ...], n: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    real = torch.randn(n, *shape, generator=random, dtype=dtype)
    fake = torch.randn(n, *shape, generator=random, dtype=dtype)
    return real, fake, torch.rand(n, *[1] * len(shape), generator=random, dtype=dtype)


def gradients(critic: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    critic.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in critic.named_parameters()}


def assert_same(
    ours: dict[str, Tensor | None], theirs: dict[str, Tensor | None], rtol: float = 1e-9
) -> None:
    for name, expected in theirs.items():
        found = ours[name]
        assert (found is None) == (expected is None), name
        if found is None or expected is None:
            continue
        error = (found - expected).abs().max()
        assert error <= rtol * expected.abs().max() + 1e-13, (name, error.item())


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


def assert_as_exact_as_autograd(
    exact: nn.Module, real: Tensor, fake: Tensor, eps: Tensor, floor: float
) -> None:
    """In float32, all gradients together are at most twice as far from float64's."""
    expected = gradients(exact, reference.wgan_gp_critic_loss(exact, real, fake, eps=eps).loss)
    wanted = [name for name, g in expected.items() if g is not None]
    target = torch.cat([expected[name].flatten() for name in wanted])  # type: ignore[union-attr]
    single = copy.deepcopy(exact).float()
    errors = {}
    for path in ("fused", "autograd"):
        found = gradients(
            single,
            fastgan.wgan_gp_critic_loss(
                single, real.float(), fake.float(), eps=eps.float(), path=path
            ).loss,
        )
        flat = torch.cat([found[name].flatten().double() for name in wanted])  # type: ignore[union-attr]
        errors[path] = float((flat - target).norm() / target.norm().clamp_min(1))
    assert errors["fused"] <= 2 * errors["autograd"] + floor, errors


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
    single = copy.deepcopy(exact).float()
    errors = {}
    for path in ("fused", "autograd"):
        loss = fastgan.wgan_gp_critic_loss(
            single, real.float(), fake.float(), eps=eps.float(), path=path
        ).loss
        found = gradients(single, loss)
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
    single=st.booleans(),
)
def test_random_critics_match_double_backward(
    kinds: list[str], seed: int, height: int, width: int, channels: int, n: int, single: bool
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
    if single:  # only then are maps channels-last
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


def agree(critic: Any, shape: tuple[int, ...], args: tuple[Any, ...] = (), n: int = 4) -> None:
    """The fused loss is double backward's: at the first call, and where batches are joined."""
    real, fake, eps = images(shape, n, seed=9)
    for _ in range(2):
        torch.manual_seed(11)
        ours = fastgan.wgan_gp_critic_loss(
            critic, real, fake, eps=eps, path="fused", critic_args=args
        ).loss
        found = gradients(critic, ours)
        found = {name: None if g is None else g.clone() for name, g in found.items()}
        torch.manual_seed(11)
        theirs = reference.wgan_gp_critic_loss(lambda x: critic(x, *args), real, fake, eps=eps).loss
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert_same(found, gradients(critic, theirs))


@pytest.mark.parametrize("build", [WGANCritic, MLPDiscriminator, DCGANDiscriminator])
def test_conditional_critics_take_their_labels(build: Callable[..., nn.Module]) -> None:
    output = {} if build is WGANCritic else {"output": "logits"}
    critic = build(nc=2, image_size=16, num_classes=3, **output).eval().double()
    scaled(critic)
    for labels in (torch.tensor([0, 2, 1, 1]), torch.tensor([2, 2, 0, 1])):
        agree(critic, (2, 16, 16), (labels,))


def test_labels_are_checked_at_every_call() -> None:
    critic = WGANCritic(1, 2, 16, num_classes=3)
    real, fake, _ = images((1, 16, 16), 2, dtype=torch.float32)
    fastgan.gradient_penalty(critic, real, fake, critic_args=(torch.tensor([0, 1]),))
    with pytest.raises(ValueError, match="label 3"):
        fastgan.gradient_penalty(critic, real, fake, critic_args=(torch.tensor([0, 3]),))


class Planes(nn.Module):
    """Learnt planes beside the images, as many as there are samples, and a sum over everything."""

    def __init__(self) -> None:
        super().__init__()
        self.plane = nn.Parameter(torch.randn(1, 1, 2, 2))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        beside = self.plane.expand(len(x), 1, 2, 2)
        return torch.cat([(x * self.scale).relu(), beside], 1).flatten(1).sum(1)


def test_the_number_of_samples_may_be_asked_for() -> None:
    agree(Planes().double(), (1, 2, 2))


def test_embeddings_of_labels_are_learnt_too() -> None:
    torch.manual_seed(0)
    agree(Projection().double(), (2, 4, 4), (torch.tensor([0, 2, 1, 1]),))


class TwiceConditioned(nn.Module):
    """A label's embedding beside the images, and again beside features that a shortcut joins."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4)
        self.shortcut = nn.Linear(5, 10)
        self.first = nn.Linear(9, 6)
        self.head = nn.Linear(10, 1)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        beside = self.embedding(labels)
        shortcut = self.shortcut(x)
        h = torch.tanh(self.first(torch.cat([x, beside], 1)))
        return self.head(torch.tanh(shortcut + torch.cat([h, beside], 1))).view(-1)


def test_a_constant_used_twice_leaves_the_signals_alone() -> None:
    torch.manual_seed(0)
    critic, labels = scaled(TwiceConditioned()).double(), (torch.tensor([0, 2, 1, 1]),)
    agree(critic, (5,), labels)
    real, fake, eps = images((5,), 4)
    asked: dict[str, Any] = {"eps": eps, "critic_args": labels}
    ours = fastgan.gradient_penalty(critic, real, fake, path="fused", **asked)
    theirs = fastgan.gradient_penalty(critic, real, fake, path="autograd", **asked)
    found = {k: g.clone() for k, g in gradients(critic, ours).items() if g is not None}
    assert_same(found, {k: g for k, g in gradients(critic, theirs).items() if k in found})


@pytest.mark.parametrize(
    "name",
    ["dcgan-16", "residual", "bound", "grouped-dilated", "dcgan-layer-norm", "smooth"],
)
def test_third_derivatives_are_right(name: str) -> None:
    critic, shape = make(name)
    real, fake, eps = images(shape, 2, seed=3)
    parameters = [p for p in critic.parameters() if p.requires_grad]
    found = []
    for path in ("fused", "autograd"):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        size = sum(g.square().sum() for g in first)
        found.append(torch.autograd.grad(size, parameters, allow_unused=True))
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


NORMS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "group": (lambda: nn.GroupNorm(2, 4), (2, 3, 3)),
    "instance": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 3, 3)),
    "layer": (lambda: nn.LayerNorm([4, 2, 2]), (2, 3, 3)),
}


@pytest.mark.parametrize("name", ["vectors", *NORMS])
def test_gradients_pass_gradcheck_and_gradgradcheck(name: str) -> None:
    # So the derivatives of norms are right in every order; torch's own are wrong in the third.
    if name in NORMS:
        torch.manual_seed(1)
        norm, shape = NORMS[name][0](), NORMS[name][1]
        critic: nn.Module = sequential(
            nn.Conv2d(2, 4, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(16, 1)
        ).double()
    else:
        critic, shape = make(name)
    real, fake, eps = images(shape, 3)
    layers = [module for module in critic.modules() if list(module.parameters(recurse=False))]
    inputs = tuple(p.detach().clone().requires_grad_() for p in critic.parameters())

    def value(*parameters: Tensor) -> Tensor:
        for module, weight, bias in zip(layers, parameters[::2], parameters[1::2], strict=True):
            del module.weight, module.bias
            module.weight, module.bias = weight, bias  # type: ignore[assignment]
        return fastgan.gradient_penalty(critic, real, fake, eps=eps, path="fused")

    assert torch.autograd.gradcheck(value, inputs)
    assert torch.autograd.gradgradcheck(value, inputs, atol=1e-4)


def test_backward_a_second_time_gives_the_same_gradient_again() -> None:
    critic, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)
    loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in critic.named_parameters()}
    critic.zero_grad()
    loss.backward()
    assert_same({name: p.grad for name, p in critic.named_parameters()}, once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_gradients_accumulate_and_scale() -> None:
    critic, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)
    once = gradients(
        critic, fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    )
    once = {name: g.clone() for name, g in once.items() if g is not None}
    critic.zero_grad()
    for scale in (1.0, 2.0):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
        (loss * scale).backward()
    for name, parameter in critic.named_parameters():
        torch.testing.assert_close(parameter.grad, 3 * once[name])


def test_parameter_hooks_fire() -> None:
    critic, shape = make("dcgan-16")
    real, fake, _ = images(shape, 3)
    seen: list[str] = []
    for name, parameter in critic.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.append(name))
    fastgan.wgan_gp_critic_loss(critic, real, fake, path="fused").loss.backward()
    assert sorted(seen) == sorted(name for name, _ in critic.named_parameters())


@pytest.mark.parametrize("name", ["dcgan-32", "dcgan-layer-norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_matches_float32_and_keeps_norms_wide(dtype: torch.dtype, name: str) -> None:
    critic, shape = make(name)
    critic = critic.float()
    real, fake, eps = images(shape, 6, dtype=torch.float32)
    exact = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="autograd")
    expected = gradients(critic, exact.loss)
    errors = {}
    for path in ("fused", "autograd"):
        with torch.autocast("cpu", dtype=dtype):
            result = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path)
        assert result.loss.dtype == result.penalty.dtype == torch.float32
        found = gradients(critic, result.loss)
        errors[path] = max(
            float((found[k] - g).norm() / g.norm())  # type: ignore[operator, union-attr]
            for k, g in expected.items()
            if g is not None
        )
        assert all(g is None or g.dtype == torch.float32 for g in found.values())
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.7), (torch.float16, 0.8)])
def test_hardtanh_is_flat_beyond_bounds_that_its_dtype_rounds(
    dtype: torch.dtype, bound: float
) -> None:
    torch.manual_seed(0)
    assert torch.tensor(bound, dtype=dtype).item() < bound
    critic = sequential(
        nn.Conv2d(2, 6, 3), nn.Hardtanh(-bound, bound), nn.Flatten(), nn.Linear(96, 1)
    )
    real, fake, eps = images((2, 6, 6), 8, dtype=torch.float32)
    expected = gradients(
        critic, fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="autograd").loss
    )
    errors = {}
    for path in ("fused", "autograd"):
        with torch.autocast("cpu", dtype=dtype):
            loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        found = gradients(critic, loss)
        errors[path] = sum(
            float((found[k] - g).norm() / g.norm())  # type: ignore[operator, union-attr]
            for k, g in expected.items()
            if g is not None and g.norm() > 1e-6
        )
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-4, errors


def test_fixed_batch_norm_of_a_half_is_as_exact_as_autograds() -> None:
    torch.manual_seed(0)
    critic = sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 1))
    trained_statistics(critic)
    real, fake, eps = images((2, 6, 6), 6, dtype=torch.float32)
    exact = copy.deepcopy(critic).double()
    expected = gradients(
        exact,
        fastgan.wgan_gp_critic_loss(
            exact, real.double(), fake.double(), eps=eps.double(), path="autograd"
        ).loss,
    )
    errors = {}
    for path in ("fused", "autograd"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path=path).loss
        found = gradients(critic, loss)
        errors[path] = sum(
            float((found[k].double() - g).norm() / g.norm())  # type: ignore[union-attr]
            for k, g in expected.items()
            if g is not None and g.norm() > 1e-6
        )
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-4, errors


def test_grad_scaler_unscales_to_the_same_gradient() -> None:
    critic, shape = make("dcgan-16")
    critic = critic.float()
    real, fake, eps = images(shape, 4, dtype=torch.float32)
    expected = gradients(
        critic, fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    )
    expected = {k: g.clone() for k, g in expected.items() if g is not None}
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    critic.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    for name, parameter in critic.named_parameters():
        error = (parameter.grad - expected[name]).norm() / expected[name].norm()
        assert error < 0.02


def test_zero_gradient_gives_zero_not_nan() -> None:
    critic, shape = make("dcgan-16")
    nn.init.zeros_(critic.main[0].weight)  # type: ignore[union-attr, index]
    real, fake, _ = images(shape, 3)
    for target in (0.0, 1.0):
        value = fastgan.gradient_penalty(critic, real, fake, target=target, path="fused")
        found = gradients(critic, value)
        assert value.item() == 10 * target**2
        assert all(g is None or torch.equal(g, torch.zeros_like(g)) for g in found.values())


def test_value_without_grad_mode_has_no_graph() -> None:
    critic, shape = make("residual")
    real, fake, eps = images(shape, 3)
    expected = reference.wgan_gp_critic_loss(critic, real, fake, eps=eps)
    with torch.no_grad():
        result = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused")
    assert not result.loss.requires_grad
    torch.testing.assert_close(result.loss, expected.loss.detach())


def test_wrapped_and_compiled_code_gets_the_same_loss() -> None:
    critic, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)

    def loss(real: Tensor, fake: Tensor) -> Tensor:
        return 2 * fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss

    expected = loss(real, fake)
    torch.testing.assert_close(torch.compile(loss, backend="eager")(real, fake), expected)
    compiled = torch.compile(critic, backend="eager")
    again = fastgan.wgan_gp_critic_loss(compiled, real, fake, eps=eps, path="fused").loss
    torch.testing.assert_close(2 * again, expected)


# Which critics are taken, and what is said of the others ---------------------------------------


class Judge(nn.Module):
    """A linear layer before whatever a subclass makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def rows(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1)).tanh()


class Valued(Judge):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        return rows.sum(1) if x.mean() > 0 else rows.mean(1)


class Noisy(Judge):
    def forward(self, x: Tensor) -> Tensor:
        return (self.rows(x) * torch.randn(4, dtype=x.dtype)).sum(1)


class MiniBatch(Judge):
    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        return (rows * (rows - rows.mean(0))).sum(1)


class Stopped(Judge):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            weight = x.flatten(1) * 2.0
        return (weight * self.rows(x)).sum(1)


class CrossedBatches(Judge):
    """(N,) + (N, 1) is (N, N): each row has every sample."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.rows(x)
        return (rows.sum(1) + rows.relu().sum(1, keepdim=True)).mean(1)


class FlatMaxima(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.first(x.flatten(2)), 2).flatten(1).sum(1)


def test_sums_in_which_batches_cross_are_not_joined() -> None:
    agree(CrossedBatches().double(), (1, 2, 2))
    report = fastgan.explain(CrossedBatches(), torch.ones(2, 1, 2, 2))
    assert "may mix the samples of a batch" in report.rows[1].reason


@pytest.mark.parametrize("function", [F.max_pool2d, torch.max_pool2d], ids=["F", "torch"])
def test_max_pooling_without_a_batch_dimension_of_maps(function: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    agree(FlatMaxima(function).double(), (4, 2, 3), n=3)


@pytest.mark.parametrize(
    "critic",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.GELU()),
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.CELU(0.7), nn.Linear(3, 1)),
        nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 1)),
        nn.Sequential(nn.Dropout(0.5), nn.Flatten(), nn.Linear(4, 1)),
        nn.Sequential(
            nn.InstanceNorm2d(1, track_running_stats=True), nn.Flatten(), nn.Linear(4, 1)
        ),
        nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.RMSNorm(2), nn.Linear(2, 1)),
        nn.Sequential(
            nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(4, 1)
        ),
        nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(4, 1))),
        Valued(),
        Noisy(),
        MiniBatch(),
        Stopped(),
    ],
    ids=[
        "gelu",
        "celu",
        "batch norm",
        "dropout",
        "tracked instance norm",
        "rms norm",
        "circular padding",
        "DataParallel",
        "branch on values",
        "noise",
        "batch mean",
        "no_grad",
    ],
)
def test_critics_of_any_kind_are_fused(critic: nn.Module) -> None:
    torch.manual_seed(0)
    agree(critic.double(), (1, 2, 2))


def test_functions_and_closures_are_critics() -> None:
    inner, shape = make("dcgan-16")
    real, fake, eps = images(shape, 3)
    for critic in (lambda x: inner(x) * 2, partial(torch.nn.Module.__call__, inner), inner.forward):
        ours = fastgan.wgan_gp_critic_loss(critic, real, fake, eps=eps, path="fused").loss
        found = {k: g.clone() for k, g in gradients(inner, ours).items() if g is not None}
        theirs = reference.wgan_gp_critic_loss(critic, real, fake, eps=eps).loss
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
        assert_same(found, gradients(inner, theirs))


class Inquisitive(nn.Module):
    """Asks autograd within its forward, which no tape can stand for."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).requires_grad_()
        h = self.layer(x)
        (slope,) = torch.autograd.grad(h.sum(), x, create_graph=True)
        return h + slope.square().sum(1, keepdim=True)


def test_a_fallback_warns_once_and_is_still_right() -> None:
    critic = Inquisitive().double()
    real, fake, eps = images((1, 2, 2), 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        values = [fastgan.gradient_penalty(critic, real, fake, eps=eps) for _ in range(2)]
    messages = [str(w.message) for w in caught if w.category is fastgan.FallbackWarning]
    assert len(messages) == 1
    assert "Inquisitive" in messages[0]
    assert "torch.autograd.grad" in messages[0]
    assert caught[0].filename == __file__
    expected = reference.gradient_penalty(critic, real, fake, eps=eps)
    torch.testing.assert_close(values[1], expected)
    with pytest.raises(
        fastgan.UnsupportedCriticError, match=r"'fused'.*Inquisitive.*autograd\.grad"
    ):
        fastgan.gradient_penalty(critic, real, fake, path="fused")


def test_hooks_inside_are_obeyed() -> None:
    critic, shape = make("dcgan-16")
    agree(critic, shape)
    calls: list[int] = []

    def double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append(len(output))
        return 2 * output

    handle = critic.main[2].register_forward_hook(double)  # type: ignore[union-attr, index]
    agree(critic, shape)
    # As often as by plain code: for fakes, reals and points, each by itself.
    assert calls == [4] * 12
    handle.remove()
    agree(critic, shape)


def test_changes_of_the_critic_are_followed() -> None:
    critic, shape = make("grouped-dilated")
    agree(critic, shape)
    critic[1].negative_slope = 0.7  # type: ignore[index, union-attr]
    agree(critic, shape)
    critic[3] = nn.ReLU()  # type: ignore[index]
    agree(critic, shape)
    critic[8].p = 0.5  # type: ignore[index, union-attr]
    agree(critic, shape)
    critic.eval()
    agree(critic, shape)
    critic[0].weight.data.mul_(2)  # type: ignore[index, union-attr, operator]
    critic[0].bias = nn.Parameter(torch.ones(6, dtype=torch.float64))  # type: ignore[index, union-attr]
    agree(critic, shape)
    nn.utils.parametrizations.weight_norm(critic[0])  # type: ignore[index]
    agree(critic, shape)
    agree(critic, (4, 8, 9))


class Slotted:
    __slots__ = ("slope",)

    def __init__(self, slope: float) -> None:
        self.slope = slope


@dataclass
class Settings:
    inner: SimpleNamespace


class Configured(nn.Module):
    """Reads its settings wherever Python keeps some."""

    slope = 0.2

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 1)
        self.config = Settings(SimpleNamespace(skip=1))
        self.slotted = Slotted(0.5)
        self.factor = lambda x: x * (1 + self.config.inner.skip)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), self.slope)
        if self.config.inner.skip:
            h = h + F.leaky_relu(h, self.slotted.slope)
        return self.second(self.factor(h)).view(-1)


def test_settings_in_objects_and_classes_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    critic = Configured().double()
    agree(critic, (3,))
    critic.slotted.slope = 0.9
    agree(critic, (3,))
    critic.config.inner.skip = 0
    agree(critic, (3,))
    monkeypatch.setattr(Configured, "slope", 0.7)
    agree(critic, (3,))
    for factor in (2.0, 3.0, 5.0):  # the third may lie where the first lay
        critic.factor = lambda x, factor=factor: x * factor  # type: ignore[assignment]
        agree(critic, (3,))
        gc.collect()


def test_another_view_of_what_changes_in_place_is_seen() -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            shortcut = h  # the same tensor: it sees the ReLU
            h = F.relu(h, inplace=True)
            return self.second(h + 2 * shortcut).view(-1)

    torch.manual_seed(0)
    agree(Shortcut().double(), (3,))


def test_a_fused_sequential_is_recorded_as_its_children() -> None:
    torch.manual_seed(0)
    inner = fastgan.nn.FusedSequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
    critic = sequential(inner, nn.Linear(12, 1)).double()
    agree(critic, (2, 4, 4))
    rows = fastgan.explain(critic, torch.ones(2, 2, 4, 4, dtype=torch.float64)).rows
    found = {(row.layer, row.op) for row in rows if row.reason.startswith("penalty: ")}
    assert {("0.0", "convolution"), ("0.1", "relu"), ("1", "addmm")} <= found


def test_instance_norm_with_fixed_statistics_is_linear() -> None:
    torch.manual_seed(0)
    critic = sequential(
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True), nn.Flatten(), nn.Linear(8, 1)
    )
    nn.init.uniform_(critic[0].running_var, 0.5, 2.0)  # type: ignore[index, union-attr]
    agree(critic.double().eval(), (2, 2, 2))


def test_no_critic_is_kept_alive() -> None:
    critic, shape = make("residual")
    real, fake, _ = images(shape, 2)
    fastgan.gradient_penalty(critic, real, fake, path="fused").backward()
    gone = weakref.ref(critic)
    del critic
    gc.collect()
    assert gone() is None


def test_the_critic_is_left_as_it_was() -> None:
    critic, shape = make("bound")
    before = copy.deepcopy(critic.__dict__)
    real, fake, _ = images(shape, 2)
    copies = real.clone(), fake.clone()
    fastgan.wgan_gp_critic_loss(critic, real, fake, path="fused").loss.backward()
    assert critic.__dict__.keys() == before.keys()
    assert torch.equal(real, copies[0])
    assert torch.equal(fake, copies[1])


# What it costs ---------------------------------------------------------------------------------


CONVOLUTIONS = {
    "aten::convolution",
    "aten::convolution_backward",
    "fastgan::matrix_forward",
    "fastgan::matrix_input_gradient",
    "fastgan::matrix_weight_gradient",
    "fastgan::patch_scatter",
    "fastgan::winograd_gather",
    "fastgan::winograd_scatter",
    "fastgan::winograd_weight_gradient",
}


@pytest.mark.parametrize("whole", [False, True], ids=["penalty", "critic loss"])
@pytest.mark.parametrize("width", [4, 32])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_at_most_four_convolutions_a_layer_and_none_dilated(
    norm: str, width: int, whole: bool
) -> None:
    # What curves has two more for the second signal, and its fakes and reals come by themselves.
    limit = 4 if norm == "none" else 9 if whole else 6
    critic = WGANCritic(3, width, 64, norm=norm)
    layers = sum(isinstance(m, nn.Conv2d) for m in critic.modules())
    real, fake, _ = images((3, 64, 64), 2, dtype=torch.float32)
    function: Any = fastgan.wgan_gp_critic_loss if whole else fastgan.gradient_penalty
    calls = {}
    for path in ("fused", "autograd"):
        for _ in range(2):  # the first call traces the critic, on tensors without memory
            with torch.profiler.profile(record_shapes=True) as profile:
                result = function(critic, real, fake, path=path)
                (result.loss if whole else result).backward()
        calls[path] = [
            (event.name, event.input_shapes[1] if event.input_shapes else [])
            for event in profile.events()
            if event.name in CONVOLUTIONS
        ]
    assert 0 < len(calls["fused"]) <= limit * layers
    # Double backward convolves with a map as the filter, dilated by the stride.
    assert max(largest_filter(calls["autograd"])) > 4
    assert max(largest_filter(calls["fused"])) == 4


def largest_filter(calls: list[tuple[str, list[int]]]) -> list[int]:
    return [max(shape[2:]) for name, shape in calls if name == "aten::convolution"]


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


# What explain says -----------------------------------------------------------------------------


def test_explain_names_every_layer_of_a_fused_critic() -> None:
    critic = WGANCritic(3, 4, 32, num_classes=2)
    report = fastgan.explain(critic)
    assert [row.op for row in report.rows[:2]] == ["gradient_penalty", "discriminator_loss"]
    assert {row.path for row in report.rows if not row.op.startswith("penalty_")} == {"aten"}
    named = {row.layer for row in report.rows}
    assert {f"main.{i}" for i in range(len(critic.main))} <= named
    assert str(report).splitlines()[0].split() == ["layer", "op", "path", "reason"]


def path_of_kernels(device: torch.device) -> str:
    info = fastgan.build_info()
    return device.type if info.native and (device.type == "cpu" or info.cuda) else "aten"


@pytest.mark.parametrize("norm", ["layer", "instance"])
def test_explain_says_who_computes_a_fused_critics_norms(norm: str, device: torch.device) -> None:
    report = fastgan.explain(WGANCritic(3, 4, 32, norm=norm).to(device))
    norms = [row for row in report.rows if "second derivative" in row.reason]
    assert [row.layer for row in norms] == ["main.3", "main.6"]
    # Instance norm is group norm with a group for each channel.
    assert {row.op for row in norms} == {"group_norm"}
    assert {row.path for row in norms} == {path_of_kernels(device)}
    said = {"cpu": "; C++, ", "cuda": "; CUDA ", "aten": "; this "}[path_of_kernels(device)]
    assert all(said in row.reason for row in norms)


def test_explain_says_who_computes_a_layer_norm(device: torch.device) -> None:
    critic = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 1)).to(device)
    (norm,) = (row for row in fastgan.explain(critic).rows if row.op == "layer_norm")
    assert (norm.layer, norm.path) == ("1", path_of_kernels(device))


def test_explain_says_who_mixes_and_who_takes_the_tangent(device: torch.device) -> None:
    name, path = "WGANCritic", path_of_kernels(device)
    report = fastgan.explain(WGANCritic(1, 4, 16).to(device))
    beside = [row for row in report.rows if row.op.startswith("penalty_")]
    assert [(row.layer, row.op, row.path) for row in beside] == [
        (name, "penalty_tangent_", path),
        (name, "penalty_mix_", path),
    ]
    moving = fastgan.explain(spectral(WGANCritic(1, 4, 16)).to(device))
    assert "penalty_mix_" not in {row.op for row in moving.rows}


def test_explain_gives_the_reason_for_autograds_path() -> None:
    report = fastgan.explain(Inquisitive())
    assert {row.path for row in report.rows[:2]} == {"autograd"}
    assert "torch.autograd.grad" in report.rows[0].reason
    assert "torch.autograd.grad" in str(report)


def test_explain_names_the_ops_that_autograd_is_asked_for() -> None:
    critic = nn.Sequential(nn.Linear(5, 3), nn.CELU(), nn.Linear(3, 1))
    (row,) = (row for row in fastgan.explain(critic).rows if row.op == "celu")
    assert (row.layer, row.path) == ("1", "autograd")
    assert "of this op alone" in row.reason
    function = fastgan.explain(lambda x: F.celu(x).sum(1), torch.ones(2, 5))
    assert [row.op for row in function.rows if row.path == "autograd"] == ["celu"]
    with pytest.raises(fastgan.ConfigError, match="input is None"):
        fastgan.explain(lambda x: x)


def test_explain_says_why_batches_are_not_joined() -> None:
    for critic, words in (
        (spectral(WGANCritic(1, 4, 16)), "changes in place what the critic keeps"),
        (WGANCritic(1, 2, 16, norm="batch"), "changes in place what the critic keeps"),
        (nn.Sequential(nn.Linear(5, 1), nn.Dropout()), "draws random numbers"),
    ):
        report = fastgan.explain(critic)
        assert report.rows[0].path == "aten"
        assert words in report.rows[1].reason


def test_explain_leaves_the_critic_as_it_was() -> None:
    critic = spectral(WGANCritic(1, 2, 16, norm="batch"))
    before = copy.deepcopy(critic.state_dict())
    random = torch.get_rng_state()
    fastgan.explain(critic)
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_explain_leaves_the_penalty_out_where_it_finds_no_input() -> None:
    assert [row.op for row in fastgan.explain(nn.Flatten()).rows] == ["Flatten"]
    with pytest.raises(fastgan.ConfigError, match="module_or_critic is int"):
        fastgan.explain(3)
    critic, shape = make("residual")
    assert fastgan.explain(critic, images(shape, 2)[0]).rows[0].path == "aten"
    assert {row.op for row in fastgan.explain().rows} >= {"adam_step_"}
