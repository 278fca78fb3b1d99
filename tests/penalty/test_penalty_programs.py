"""Random programs as critics, against double backward: what a forward may do, in any order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastgan

N, CHANNELS, SIZE = 4, 4, 6


class Program(nn.Module):
    """Steps that keep a map's shape; each takes the module, the map and an earlier one."""

    def __init__(self, steps: list[str]) -> None:
        super().__init__()
        self.steps = steps
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.grouped = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.GroupNorm(2, CHANNELS)
        self.batch_norm = nn.BatchNorm2d(CHANNELS)
        self.prelu = nn.PReLU(CHANNELS)
        self.gain = nn.Parameter(torch.randn(CHANNELS, 1, 1))
        self.plane = nn.Parameter(torch.randn(1, CHANNELS, SIZE, SIZE))
        self.head = nn.Linear(CHANNELS * SIZE * SIZE, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = earlier = x
        for step in self.steps:
            h, earlier = STEPS[step](self, h, earlier), h
        return self.head(h.flatten(1))


def attention(m: Program, h: Tensor, e: Tensor) -> Tensor:
    tokens = h.flatten(2)
    weights = torch.softmax(tokens.transpose(1, 2) @ tokens / 8, -1)
    return (tokens @ weights).view_as(h)


def spread(m: Program, h: Tensor, e: Tensor) -> Tensor:
    deviation = (h.var(0, unbiased=False, keepdim=True) + 1e-3).sqrt().mean()
    return h + deviation * m.gain


def in_halves(m: Program, h: Tensor, e: Tensor) -> Tensor:
    h = h.clone()
    left, right = h[:, :2], h[:, 2:]
    left.mul_(0.5).add_(right)
    return torch.cat([left, right.tanh()], 1)


def written(m: Program, h: Tensor, e: Tensor) -> Tensor:
    frame = torch.zeros_like(h)
    frame[:, 1:] = h[:, 1:]
    frame[:, 0, ::2] += e[:, 1, ::2]
    frame.view(len(h), -1)[:, :5].mul_(2)
    return frame + h


def masked(m: Program, h: Tensor, e: Tensor) -> Tensor:
    h = h.clone()
    h[h > 0.5] = 0.25
    return h.masked_fill(e < -1, 0.1)


Step = Callable[[Program, Tensor, Tensor], Tensor]
STEPS: dict[str, Step] = {
    "conv": lambda m, h, e: m.conv(h),
    "grouped": lambda m, h, e: m.grouped(h),
    "transposed": lambda m, h, e: F.conv_transpose2d(h, m.conv.weight, padding=1),
    "leaky": lambda m, h, e: F.leaky_relu(h, 0.3),
    "leaky_": lambda m, h, e: F.leaky_relu(m.conv(h), 0.1, inplace=True),
    "relu_": lambda m, h, e: (h + m.plane).relu_(),
    "prelu": lambda m, h, e: m.prelu(h),
    "gelu": lambda m, h, e: F.gelu(h),
    "silu": lambda m, h, e: F.silu(h),
    "elu": lambda m, h, e: F.elu(h, 0.7),
    "clamp": lambda m, h, e: h.clamp(-1, 1.5),
    "gain": lambda m, h, e: m.gain * h,
    "shared gain": lambda m, h, e: h / (1 + m.gain.square()),
    "residual": lambda m, h, e: h + e,
    "residual_": lambda m, h, e: (0.5 * h).add_(e, alpha=0.25),
    "product": lambda m, h, e: h * torch.sigmoid(e),
    "norm": lambda m, h, e: m.norm(h),
    "instance norm": lambda m, h, e: F.instance_norm(h),
    "layer norm": lambda m, h, e: F.layer_norm(h, h.shape[2:]),
    "batch norm": lambda m, h, e: m.batch_norm(h),
    "attention": attention,
    "spread": spread,
    "centred": lambda m, h, e: h - h.mean(0),
    "in halves": in_halves,
    "written": written,
    "masked": masked,
    "branch": lambda m, h, e: h * 2 if h[0].max() > 1 else h.abs(),
    "pooled": lambda m, h, e: F.interpolate(F.max_pool2d(h, 2), scale_factor=2),
    "averaged": lambda m, h, e: F.pad(F.avg_pool2d(h, 3, 1), (1, 1, 1, 1), mode="reflect"),
    "shuffled": lambda m, h, e: F.pixel_unshuffle(F.pixel_shuffle(h, 2), 2),
    "turned": lambda m, h, e: h.transpose(2, 3).contiguous().flip(3).view(h.shape),
    "rolled": lambda m, h, e: torch.roll(h, 1, 1).permute(0, 2, 3, 1).mul(1.5).permute(0, 3, 1, 2),
    "stacked": lambda m, h, e: torch.stack([h, e, m.plane.expand_as(h)]).square().mean(0),
    "einsum": lambda m, h, e: torch.einsum("nchw,dc->ndhw", h, m.conv.weight[:, :, 0, 0]),
    "detached": lambda m, h, e: h * e.detach().tanh(),
    "no grad": lambda m, h, e: h + _without_grad(e),
}


@torch.no_grad()
def _without_grad(h: Tensor) -> Tensor:
    return h.sin()


def flat(critic: nn.Module, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(
        loss, list(critic.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([g.flatten() for g in found])


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=8),
    loss=st.sampled_from(["wasserstein", "logistic", "hinge", "relativistic"]),
    penalties=st.fixed_dictionaries(
        {}, optional={name: st.sampled_from([0.5, 3.0]) for name in ("gp", "r1", "r2")}
    ),
    seed=st.integers(0, 2**16),
)
@example(
    steps=["leaky_", "attention", "detached"], loss="wasserstein", penalties={"gp": 0.5}, seed=0
)
def test_random_programs_have_double_backwards_gradients(
    steps: list[str], loss: str, penalties: dict[str, float], seed: int
) -> None:
    torch.manual_seed(seed)
    critic = Program(steps).double()
    twin = copy.deepcopy(critic)
    real, fake = torch.randn(2, N, CHANNELS, SIZE, SIZE, dtype=torch.float64)
    asked: dict[str, Any] = {"loss": loss, "eps": torch.rand(N, 1, 1, 1, dtype=torch.float64)}
    for _ in range(2):
        try:
            theirs = fastgan.discriminator_loss(
                twin, real, fake, path="autograd", **asked, **penalties
            )
            expected = flat(twin, theirs.loss)
        except RuntimeError as error:
            # What autograd itself refuses: a value that is needed was changed in place.
            assume("inplace" in str(error) or "in-place" in str(error))
            raise
        ours = fastgan.discriminator_loss(critic, real, fake, path="fused", **asked, **penalties)
        torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-9, atol=1e-10)
        found = flat(critic, ours.loss)
        error = (found - expected).norm() / expected.norm().clamp_min(1e-3)
        assert float(error) <= 1e-9
    for mine, expected in zip(critic.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)
