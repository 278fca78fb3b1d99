"""Critics of many kinds, and their fused pass compared with double backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan import reference
from fastgan.models import MLPDiscriminator, WGANCritic
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
        self.offset = nn.Parameter(torch.randn(1, 2, 6, 8))
        self.register_buffer("scale", torch.tensor(0.7))
        self.head = nn.Linear(5, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :1], -x[:, 1:]], 1) + self.offset
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


def assert_as_exact_as_autograd(
    exact: nn.Module, real: Tensor, fake: Tensor, eps: Tensor, floor: float
) -> None:
    """In float32, all gradients together are at most twice as far from float64's."""
    expected = gradients(exact, reference.wgan_gp_critic_loss(exact, real, fake, eps=eps).loss)
    wanted = [name for name, g in expected.items() if g is not None]
    target = torch.cat([expected[name].flatten() for name in wanted])  # type: ignore[union-attr]
    in_float32 = copy.deepcopy(exact).float()
    errors = {}
    for path in ("fused", "autograd"):
        found = gradients(
            in_float32,
            fastgan.wgan_gp_critic_loss(
                in_float32, real.float(), fake.float(), eps=eps.float(), path=path
            ).loss,
        )
        flat = torch.cat([found[name].flatten().double() for name in wanted])  # type: ignore[union-attr]
        errors[path] = float((flat - target).norm() / target.norm().clamp_min(1))
    assert errors["fused"] <= 2 * errors["autograd"] + floor, errors


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
