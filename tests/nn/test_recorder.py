"""A fused module does what it did, whatever its forward does.

The reference is always a deep copy of the module, run plain.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn import FusedSequential, recorder

SIZE, CHANNELS = 6, 4


class Doubled(torch.autograd.Function):
    """A function that torch's modes don't see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class Program(nn.Module):
    """Runs instructions over registers, layers drawn from shared pools."""

    def __init__(self, instructions: list[tuple[Any, ...]], returned: str) -> None:
        super().__init__()
        self.instructions, self.returned = instructions, returned
        c = CHANNELS
        hooked = nn.Conv2d(c, c, 1)
        hooked.register_forward_hook(lambda module, args, output: output * 0.5)
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(c, c, 3, padding=1),
                nn.ConvTranspose2d(c, c, 3, padding=1, bias=False),
                nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect"),
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(c, c, 3, padding=1)),
                nn.Conv2d(c, c, 1, groups=2),
                hooked,
            ]
        )
        self.norms = nn.ModuleList(
            [
                nn.BatchNorm2d(c),
                nn.BatchNorm2d(c, momentum=None, eps=1e-2),
                nn.BatchNorm2d(c, affine=False, track_running_stats=False),
                nn.BatchNorm2d(c).eval(),
            ]
        )
        self.linear = nn.Linear(c, 3)
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor, z: Tensor) -> Any:
        self.kept.clear()
        r = [x, z, x * z]
        for name, a, b, number in self.instructions:
            if name == "convolution":
                r[a] = self.convolutions[number](r[b])
            elif name == "norm":
                r[a] = self.norms[number % 4](r[b])
            elif name == "block":
                r[a] = F.relu(self.norms[number % 4](self.convolutions[number](r[b])))
            elif name == "before":
                r[a] = self.convolutions[number](F.leaky_relu(self.norms[number % 4](r[b]), 0.2))
            elif name == "activation":
                r[a] = (torch.relu, torch.tanh, Tensor.sigmoid, F.leaky_relu)[number % 4](r[b])
            elif name == "in place":
                r[a] = F.relu(r[b] if r[b] is not x and r[b] is not z else r[b] + 0, inplace=True)
            elif name == "add":
                r[a] = r[a] + r[b]
            elif name == "add in place":
                r[a] = r[a] * 1
                r[a] += r[b]
            elif name == "branch":
                r[a] = r[b].tanh() if r[b].mean() > 0 else self.convolutions[number](r[b])
            elif name == "keep":
                self.kept.append(r[b])
            elif name == "resample":
                r[a] = F.avg_pool2d(F.interpolate(r[b], scale_factor=2), 2)
            elif name == "custom":
                r[a] = Doubled.apply(r[b])
            elif name == "checkpoint":
                r[a] = checkpoint(self.convolutions[number], r[b], use_reentrant=False)
            elif name == "no grad":
                with torch.no_grad():
                    constant = self.convolutions[number](r[b])
                r[a] = r[a] * constant.tanh()
            elif name == "statistics":
                norm = self.norms[number % 2]
                r[a] = r[b] * (1 + norm.running_var.mean() + norm.num_batches_tracked)
            elif name == "view":
                r[a] = r[b].transpose(2, 3)
        pooled = self.linear(F.relu(r[0]).mean((2, 3)))
        if self.returned == "tuple":
            return r[0], (r[1], pooled), self.kept
        if self.returned == "dict":
            return {"map": r[2], "pooled": pooled}
        return r[1]


NAMES = [
    *("convolution", "norm", "block", "before", "activation", "in place", "add", "add in place"),
    *("branch", "keep", "resample", "custom", "checkpoint", "no grad", "statistics", "view"),
]
instructions = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 2), st.integers(0, 2), st.integers(0, 5)),
    min_size=2,
    max_size=9,
)


def tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from tensors(each)


def results(module: nn.Module, *inputs: Tensor) -> tuple[list[Tensor], list[Any], list[Tensor]]:
    """Outputs, their strides and that of the inputs' gradients, and all gradients and buffers."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    outputs = list(tensors(module(*leaves)))
    for output in outputs:
        assert type(output) is Tensor
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in outputs]
    loss = sum((o * w).sum() + (o * w).square().sum() for o, w in zip(outputs, weights, strict=True))
    wanted = [*leaves, *module.parameters()]
    once = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    size = sum(each.square().sum() for each in once if each is not None)
    twice: list[Any] = [None] * len(wanted)
    if isinstance(size, Tensor) and size.requires_grad:
        twice = list(torch.autograd.grad(size, wanted, allow_unused=True))
    values = [*outputs, *once, *twice, *module.buffers()]
    strides = [each.stride() for each in (*outputs, *once[: len(leaves)]) if each is not None]
    return [torch.zeros(()) if v is None else v.detach() for v in values], strides, outputs


def agree(module: nn.Module, *inputs: Tensor, tolerance: float = 1e-9) -> nn.Module:
    fused = fastgan.fuse(copy.deepcopy(module))
    expected, strides, _ = results(module, *inputs)
    found, own, _ = results(fused, *inputs)
    for mine, truth in zip(found, expected, strict=True):
        scale = max(1.0, float(truth.abs().max()))
        torch.testing.assert_close(mine, truth, rtol=tolerance, atol=tolerance * scale)
    assert own == strides
    return fused


@pytest.fixture(params=["all fused", "as on a CPU"])
def fewest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of running what waits: as chains, and as torch's functions where these are fast."""
    monkeypatch.setattr(recorder, "LEAVE_TO_TORCH", request.param == "as on a CPU")
    monkeypatch.setattr(recorder, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(recorder, "FEWEST_VALUES", 0)


@pytest.mark.usefixtures("fewest")
@pytest.mark.filterwarnings("ignore::fastgan.fallback.FallbackWarning")
@given(instructions, st.sampled_from(["tuple", "dict", "one"]), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None, phases=[Phase.generate])
def test_random_forwards_agree_to_second_order(
    program: list[tuple[Any, ...]], returned: str, seed: int
) -> None:
    torch.manual_seed(seed)
    module = Program(program, returned).double()
    inputs = [torch.randn(2, CHANNELS, SIZE, SIZE, dtype=torch.float64) for _ in range(2)]
    try:
        results(copy.deepcopy(module), *inputs)
    except RuntimeError:
        assume(False)  # eager's own: what was written over is needed, or nothing has a gradient
    agree(module, *inputs)
