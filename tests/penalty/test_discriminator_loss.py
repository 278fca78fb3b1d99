"""A discriminator's loss with its penalties, against double backward written out here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastgan
from fastgan.models import WGANCritic

SHAPE = (3, 16, 16)


class Patches(nn.Module):
    """A map of scores, after instance norm."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 6, 4, 2, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(6, 8, 4, 2, 1, bias=False),
            nn.InstanceNorm2d(8),
            nn.LeakyReLU(0.2),
            nn.Conv2d(8, 1, 3, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class Scales(nn.Module):
    """Two maps and features beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = Patches(), Patches()

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.fine.main[0](x)
        return {"maps": [self.fine(x), self.coarse(F.avg_pool2d(x, 2))], "features": h}


class Attention(nn.Module):
    """Self-attention whose weight begins at zero, and a statistic of the minibatch."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, 4)
        self.query, self.key, self.value = (nn.Conv2d(8, n, 1) for n in (2, 2, 8))
        self.gamma = nn.Parameter(torch.zeros(1))
        self.head = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(x))
        q, k, v = (layer(h).flatten(2) for layer in (self.query, self.key, self.value))
        beta = torch.softmax(torch.bmm(q.transpose(1, 2), k), -1)
        h = h + self.gamma * torch.bmm(v, beta.transpose(1, 2)).view_as(h)
        spread = (h.var(0, unbiased=False) + 1e-8).sqrt().mean().expand(len(x), 1)
        return self.head(torch.cat([h.mean((2, 3)), spread], 1))


class Grouped(nn.Module):
    """R3GAN's residual block: 1x1, grouped 3x3, 1x1, with biases and leaky ReLUs, no norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.block = nn.ModuleList(
            [nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 1)]
        )
        self.head = nn.Linear(8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.avg_pool2d(x, 2))
        y = h
        for layer in self.block:
            y = layer(F.leaky_relu(y, 0.2))
        return self.head((h + y).sum((2, 3)) / 64).view(-1)


CRITICS: dict[str, Callable[[], nn.Module]] = {
    "dcgan": lambda: WGANCritic(3, 4, 16),
    "batch norm": lambda: WGANCritic(3, 4, 16, norm="batch"),
    "layer norm": lambda: WGANCritic(3, 4, 16, norm="layer"),
    "grouped": Grouped,
    "patches": Patches,
    "attention": Attention,
}

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "wasserstein": lambda a, b: b.mean() - a.mean(),
    "logistic": lambda a, b: F.softplus(-a).mean() + F.softplus(b).mean(),
    "hinge": lambda a, b: (1 - a).clamp(min=0).mean() + (1 + b).clamp(min=0).mean(),
    "least_squares": lambda a, b: ((a - 1).square().mean() + b.square().mean()) / 2,
    "relativistic": lambda a, b: F.softplus(b - a).mean(),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    critic = CRITICS[name]().double()
    for parameter in critic.parameters():
        nn.init.normal_(parameter, 0.0, 0.3)
    return critic


def batches(n: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, n, *SHAPE, generator=random, dtype=dtype)
    return real, fake, torch.rand(n, 1, 1, 1, generator=random, dtype=dtype)


def plain(
    critic: Callable[[Tensor], Sequence[Tensor]],
    real: Tensor,
    fake: Tensor,
    eps: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    gp: float | None = None,
    r1: float = 0.0,
    r2: float = 0.0,
) -> Tensor:
    """Double backward, as one writes it."""

    def squares(scores: Sequence[Tensor], x: Tensor) -> Tensor:
        total = sum(s.sum() for s in scores)
        (slope,) = torch.autograd.grad(total, x, create_graph=True)  # type: ignore[arg-type]
        return slope.flatten(1).square().sum(1)

    fake, real = (x.clone().requires_grad_() for x in (fake, real))
    b, a = critic(fake), critic(real)
    total = sum(loss(s, t) for s, t in zip(a, b, strict=True))
    if gp is not None:
        points = (eps * real + (1 - eps) * fake).detach().requires_grad_()
        total = total + gp * (squares(critic(points), points).sqrt() - 1).square().mean()
    if r1:
        total = total + r1 / 2 * squares(a, real).mean()
    if r2:
        total = total + r2 / 2 * squares(b, fake).mean()
    assert isinstance(total, Tensor)
    return total


def gradients(critic: nn.Module, loss: Tensor) -> list[Tensor]:
    parameters = list(critic.parameters())
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    size = max(float(e.abs().max()) for e in expected)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * max(size, 1.0))


PENALTIES: list[dict[str, float]] = [
    {},
    {"gp": 10.0},
    {"r1": 3.0},
    {"r2": 2.0},
    {"r1": 3.0, "r2": 2.0},
    {"gp": 1.0, "r1": 3.0, "r2": 2.0},
]


@pytest.mark.parametrize("penalties", PENALTIES, ids=lambda p: "+".join(p) or "none")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", CRITICS)
def test_loss_and_gradients_are_double_backwards(
    name: str, loss: str, penalties: dict[str, float]
) -> None:
    critic = make(name)
    twin = copy.deepcopy(critic)
    real, fake, eps = batches()
    for _ in range(2):  # one batch after the other, and, where that may be, in one
        ours = fastgan.discriminator_loss(
            critic, real, fake, loss=loss, eps=eps, path="fused", **penalties
        )
        expected = plain(lambda x: [twin(x)], real, fake, eps, LOSSES[loss], **penalties)
        torch.testing.assert_close(ours.loss, expected, rtol=1e-9, atol=1e-11)
        assert_close(gradients(critic, ours.loss), gradients(twin, expected))
        for mine, theirs in zip(critic.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("path", ["fused", "autograd"])
def test_terms_add_up(path: Any) -> None:
    critic, (real, fake, eps) = make("dcgan"), batches()
    loss, terms = fastgan.discriminator_loss(
        critic, real, fake, loss="hinge", gp=2.0, r1=1.0, r2=3.0, eps=eps, path=path
    )
    assert set(terms) == {"adversarial", "real", "fake", "gp", "r1", "r2"}
    parts = [terms[name] for name in ("adversarial", "gp", "r1", "r2")]
    torch.testing.assert_close(torch.stack(parts).sum(), loss.detach())
    assert not any(term.requires_grad for term in terms.values())
    torch.testing.assert_close(terms["real"].double(), critic(real).detach().mean())


@pytest.mark.parametrize("path", ["fused", "autograd"])
def test_several_maps_and_features_beside_them(path: Any) -> None:
    torch.manual_seed(0)
    critic, (real, fake, eps) = Scales().double(), batches()
    expected = plain(
        lambda x: critic(x)["maps"], real, fake, eps, LOSSES["least_squares"], r1=2.0, gp=1.0
    )
    theirs = gradients(critic, expected)
    for _ in range(2):
        ours = fastgan.discriminator_loss(
            critic,
            real,
            fake,
            loss="least_squares",
            gp=1.0,
            r1=2.0,
            eps=eps,
            scores=lambda out: out["maps"],
            path=path,
        )
        torch.testing.assert_close(ours.loss, expected, rtol=1e-9, atol=1e-11)
        assert_close(gradients(critic, ours.loss), theirs)


def test_a_loss_may_be_a_function_of_all_scores() -> None:
    def ranked(real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(fake[:, None] - real[None, :]).mean() + real.std()

    critic, (real, fake, eps) = make("dcgan"), batches()
    expected = plain(lambda x: [critic(x)], real, fake, eps, ranked, r1=1.0, r2=1.0)
    ours = fastgan.discriminator_loss(critic, real, fake, loss=ranked, r1=1.0, r2=1.0, path="fused")
    torch.testing.assert_close(ours.loss, expected, rtol=1e-9, atol=1e-11)
    assert_close(gradients(critic, ours.loss), gradients(critic, expected))


def test_third_derivatives_are_right() -> None:
    critic, (real, fake, eps) = make("dcgan"), batches(3)
    asked: dict[str, Any] = {"gp": 1.0, "r1": 2.0, "r2": 0.5}
    found = []
    for _ in range(2):
        ours = fastgan.discriminator_loss(
            critic, real, fake, loss="logistic", eps=eps, path="fused", **asked
        ).loss
        expected = plain(lambda x: [critic(x)], real, fake, eps, LOSSES["logistic"], **asked)
        for loss in (ours, expected):
            first = torch.autograd.grad(loss, list(critic.parameters()), create_graph=True)
            found.append(gradients(critic, sum(g.square().sum() for g in first)))  # type: ignore[arg-type]
        assert_close(*found[-2:])


CONVOLUTIONS = {"aten::_convolution", "aten::convolution_backward"}


@pytest.mark.parametrize("loss", LOSSES)
def test_r1_and_r2_at_every_step_take_four_convolutions_a_layer(loss: str) -> None:
    critic = WGANCritic(3, 4, 32)  # too narrow for what isn't ATen's
    real, fake = torch.randn(2, 4, 3, 32, 32)
    layers = sum(isinstance(m, nn.Conv2d) for m in critic.modules())
    asked: dict[str, Any] = {"loss": loss, "r1": 1.0, "r2": 1.0, "path": "fused"}
    fastgan.discriminator_loss(critic, real, fake, **asked).loss.backward()
    with torch.profiler.profile() as profile:
        fastgan.discriminator_loss(critic, real, fake, **asked).loss.backward()
    calls = [
        e.name
        for e in profile.events()
        if e.name in CONVOLUTIONS or e.name.startswith("fastgan::matrix_")
    ]
    assert 0 < len(calls) <= 4 * layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_exact_as_autograds(dtype: torch.dtype) -> None:
    critic = make("dcgan")
    real, fake, eps = batches(8)
    exact = gradients(
        critic, plain(lambda x: [critic(x)], real, fake, eps, LOSSES["logistic"], r1=1.0, r2=1.0)
    )
    in_float32 = copy.deepcopy(critic).float()
    errors = {}
    for path in ("fused", "autograd"):
        for _ in range(2):
            with torch.autocast("cpu", dtype=dtype):
                loss = fastgan.discriminator_loss(
                    in_float32,
                    real.float(),
                    fake.float(),
                    loss="logistic",
                    r1=1.0,
                    r2=1.0,
                    path=path,
                ).loss
        found = gradients(in_float32, loss)
        errors[path] = max(
            float((f.double() - e).norm() / e.norm().clamp_min(1e-3))
            for f, e in zip(found, exact, strict=True)
        )
    assert errors["fused"] <= 2 * errors["autograd"] + 1e-3, errors


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"loss": "wgan"}, "loss is 'wgan'"),
        ({"loss": 3}, "loss is int"),
        ({"r1": float("nan")}, "r1 is nan"),
        ({"gp": "much"}, "gp is 'much'"),
        ({"path": "quick"}, "path is 'quick'"),
    ],
    ids=str,
)
def test_unknown_words_are_named(asked: dict[str, Any], message: str) -> None:
    real, fake, _ = batches()
    with pytest.raises(fastgan.ConfigError, match=message):
        fastgan.discriminator_loss(make("dcgan"), real, fake, **asked)


def test_a_loss_without_one_number_is_refused() -> None:
    real, fake, _ = batches()
    with pytest.raises(ValueError, match="no scalar"):
        fastgan.discriminator_loss(make("dcgan"), real, fake, loss=lambda a, b: a - b)
