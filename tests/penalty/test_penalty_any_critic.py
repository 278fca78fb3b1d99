"""Critics with labels, with any code, and changing critics: fused or named in a warning."""

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
from penalty_critics import (
    Inquisitive,
    Projection,
    agree,
    assert_same,
    gradients,
    images,
    make,
    scaled,
    sequential,
)
from torch import Tensor, nn

import fastgan
from fastgan import reference
from fastgan.models import DCGANDiscriminator, MLPDiscriminator, WGANCritic


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


def without_gradients(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h.flatten(2)


def written_buffer(h: Tensor) -> Tensor:
    buffer = torch.ones_like(h)
    buffer[:, 1:] = h[:, 1:]
    return buffer


@pytest.mark.parametrize(
    "stop",
    [
        lambda h: h.detach(),
        lambda h: h.data,
        lambda h: h.flatten(2).detach()[:, :2].repeat(1, 2, 1),
        without_gradients,
        lambda h: without_gradients(h.detach()).chunk(2, 1)[0].repeat(1, 2, 1),
    ],
    ids=["detach", "data", "detached view", "no_grad", "part"],
)
@pytest.mark.parametrize(
    "write",
    [
        lambda h: F.leaky_relu(h, 0.1, inplace=True),
        lambda h: (h[:, :2].mul_(2), h)[1],
        lambda h: torch.zeros_like(h).copy_(h),
        written_buffer,
    ],
    ids=["whole", "part", "buffer", "part of a buffer"],
)
def test_what_is_detached_of_a_written_tensor_is_a_constant(
    write: Callable[[Tensor], Tensor], stop: Callable[[Tensor], Tensor]
) -> None:
    class Stopping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 3)
            self.head = nn.Linear(64, 1)

        def forward(self, x: Tensor) -> Tensor:
            h = write(self.conv(x))
            return self.head((h * stop(h).tanh().view_as(h) + h).flatten(1))

    agree(Stopping().double(), (2, 6, 6))


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


def test_parameters_that_no_score_depends_on_have_no_gradient() -> None:
    weight = nn.Parameter(torch.ones(2, 1, 1))

    def critic(x: Tensor) -> Tensor:
        (x * weight).sum()
        return x.square().mean((1, 2, 3))

    real, fake, _ = images((2, 4, 4), 3, dtype=torch.float32)
    fastgan.discriminator_loss(critic, real, fake, gp=10.0, path="fused").loss.backward()
    assert weight.grad is None


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
