"""Fusing doesn't change a module's results, for any forward.

The reference is always a deep copy of the module, run plain.
"""

from __future__ import annotations

import copy
import math
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import fastgan
from fastgan.nn import recorder, stretch, unseen
from fastgan.nn.waiting import Waiting
from fastgan.ops import norm_choice
from fastgan.ops.backends import Selector, Way, fixed_table, using
from fastgan.ops.backends.selection import measuring_nothing
from fastgan.ops.backends.vector_units import has_vectors
from fastgan.ops.memory_format import is_channels_last

SIZE, CHANNELS = 6, 4
ACTIVATIONS = (torch.relu, torch.tanh, Tensor.sigmoid, F.leaky_relu, F.silu, F.gelu)


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
        before, backward = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 1)
        before.register_forward_pre_hook(lambda module, args: (args[0].clamp(-1, 1),))
        backward.register_full_backward_hook(lambda module, grads, _: (grads[0] * 0.5,))
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(c, c, 3, padding=1),
                nn.ConvTranspose2d(c, c, 3, padding=1, bias=False),
                nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect"),
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(c, c, 3, padding=1)),
                nn.Conv2d(c, c, 1, groups=2),
                *(hooked, before, backward),
            ]
        )
        self.bias = nn.Parameter(torch.rand(1, c, 1, 1))
        self.lines = nn.ModuleList(
            [
                nn.Conv1d(c, c, 3, padding=1),
                nn.ConvTranspose1d(c, c, 3, padding=1, groups=2),
                nn.Conv1d(c, c, 3, padding="same", dilation=2, bias=False),
            ]
        )
        self.line_norm = nn.BatchNorm1d(c)
        self.layer_norms = nn.ModuleList(
            [
                nn.LayerNorm([c, SIZE, SIZE]),
                nn.LayerNorm([c, SIZE, SIZE], elementwise_affine=False),
                nn.LayerNorm(SIZE),
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
        self.instance = nn.InstanceNorm2d(c), nn.InstanceNorm2d(c, affine=True)
        self.affine = self.instance[1]
        self.dropout, self.groups = nn.Dropout(0.5).eval(), nn.GroupNorm(2, c)
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
            elif name == "bias":
                h = F.conv_transpose2d(r[b], self.convolutions[1].weight, padding=1) + (
                    self.bias if number % 2 else self.bias[0]
                )
                r[a] = r[a] + F.leaky_relu(self.norms[number % 4](h) if number > 3 else h, 0.2)
            elif name == "layer norm":
                h = self.layer_norms[number % 3](self.convolutions[number](r[b]) + r[a])
                r[a] = F.relu(h) if number > 2 else h + r[b]
            elif name == "line":
                h = self.lines[number % 3](r[b].flatten(2))
                r[a] = F.gelu(self.line_norm(h) if number % 2 else h).view(r[b].shape)
            elif name == "pad":
                h = F.leaky_relu(self.norms[number % 4](r[b]), 0.2) if number > 3 else r[b]
                mode = ("reflect", "replicate", "constant")[number % 3]
                weight = self.convolutions[0].weight
                r[a] = F.silu(F.conv2d(F.pad(h, (2, 2, 1, 1), mode), weight))
                r[a] = F.avg_pool2d(r[a], (1, 3), 1)
            elif name == "before":
                r[a] = self.convolutions[number](F.leaky_relu(self.norms[number % 4](r[b]), 0.2))
            elif name == "sample norm":
                r[a] = self.instance[number % 2](r[b])
                if number > 1:
                    r[a] = r[a].relu()
            elif name == "conditional":
                norm = (*self.norms, *self.instance)[number % 6]
                own = r[b].mean((2, 3), keepdim=True), 1 + z.amax((2, 3), keepdim=True)
                r[a] = own[0] * norm(r[a]) + own[1] if number % 2 else norm(r[a]) * own[1] + own[0]
                r[a] = F.leaky_relu(r[a], 0.2)
            elif name == "residual":
                h = self.norms[number % 4](self.convolutions[number](r[b]))
                r[a] = F.relu(h + r[a] if number % 2 else r[a] + h)
            elif name == "left":
                r[a] = self.convolutions[0](self.dropout(self.groups(r[b]).relu()))
                r[a] = self.dropout(r[a]).relu()
            elif name == "activation":
                r[a] = ACTIVATIONS[number % len(ACTIVATIONS)](r[b])
            elif name == "in place":
                own = r[b] if r[b] is not x and r[b] is not z else r[b] + 0
                r[a] = (F.relu, F.silu)[number % 2](own, inplace=True)
            elif name == "add":
                r[a] = r[a] + r[b]
            elif name == "add in place":
                r[a] = r[a] * 1
                r[a] += r[b]
            elif name == "branch":
                # Not at 0: that's the mean of a norm's result, which rounding moves to either side.
                r[a] = r[b].tanh() if r[b].mean() > 0.01 else self.convolutions[number](r[b])
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
    *("sample norm", "conditional", "conditional", "residual", "left", "bias"),
    *("layer norm", "line", "pad"),
    *("branch", "keep", "resample", "custom", "checkpoint", "no grad", "statistics", "view"),
]
instructions = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(0, 2), st.integers(0, 2), st.integers(0, 7)),
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


def results(module: nn.Module, *inputs: Tensor) -> tuple[list[list[Tensor]], list[Any]]:
    """Outputs with buffers, gradients, and gradients of second order; and the strides.

    Of outputs and of the inputs' gradients.
    """
    leaves = [each.clone().requires_grad_() for each in inputs]
    outputs = list(tensors(module(*leaves)))
    for output in outputs:
        assert type(output) is Tensor
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(o.shape, dtype=o.dtype, generator=generator) for o in outputs]
    loss = sum(
        (o * w).sum() + (o * w).square().sum() for o, w in zip(outputs, weights, strict=True)
    )
    wanted = [*leaves, *module.parameters()]
    once = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
    size = sum(each.square().sum() for each in once if each is not None)
    twice: list[Any] = [None] * len(wanted)
    if isinstance(size, Tensor) and size.requires_grad:
        twice = list(torch.autograd.grad(size, wanted, allow_unused=True))
    strides = [each.stride() for each in (*outputs, *once[: len(leaves)]) if each is not None]
    orders = ([*outputs, *module.buffers()], once, twice)
    return [
        [torch.zeros(()) if v is None else v.detach() for v in each] for each in orders
    ], strides


def agree(module: nn.Module, *inputs: Tensor, tolerance: float = 1e-9) -> nn.Module:
    fused, untouched = fastgan.fuse(copy.deepcopy(module)), copy.deepcopy(module)
    try:
        expected, strides = results(module, *inputs)
    except RuntimeError:
        assume(False)  # eager's own: what was written over is needed, or nothing has a gradient
    found, own = results(fused, *inputs)
    assert own == strides
    own_and_eager = zip(module.parameters(), expected[1][len(inputs) :], strict=True)
    for mine, either in zip(found[1][len(inputs) :], own_and_eager, strict=True):
        assert mine.stride() in [each.stride() for each in either]
    errors = None
    for order, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert [each.shape for each in ours] == [each.shape for each in theirs]
        for place, (mine, truth) in enumerate(zip(ours, theirs, strict=True)):
            bound = tolerance * max(1.0, float(truth.abs().max()))
            if not torch.allclose(mine, truth, rtol=tolerance, atol=bound):
                errors = errors or errors_of_eager(untouched, expected, *inputs)
                bound += 8 * errors[order][place]
            torch.testing.assert_close(mine, truth, rtol=tolerance, atol=bound)
    return fused


def errors_of_eager(
    module: nn.Module, expected: list[list[Tensor]], *inputs: Tensor
) -> list[list[float]]:
    """How far eager's results move if its inputs and parameters are rounded otherwise.

    The gradient of a bias before a norm, which is 0, moves by all of what rounding leaves of terms
    that cancel.
    """
    generator = torch.Generator().manual_seed(2)

    def rounded(value: Tensor) -> Tensor:
        noise = torch.randint(-1, 2, value.shape, generator=generator, dtype=value.dtype)
        return value * (1 + torch.finfo(value.dtype).eps * noise)

    errors = [[0.0] * len(each) for each in expected]
    for _ in range(4):
        moved = copy.deepcopy(module)
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter.copy_(rounded(parameter))
        found, _ = results(moved, *map(rounded, inputs))
        for own, ours, theirs in zip(errors, found, expected, strict=True):
            for place, (mine, truth) in enumerate(zip(ours, theirs, strict=True)):
                own[place] = max(own[place], float((mine - truth).abs().max()))
    return errors


@pytest.fixture(params=["all fused", "as on a CPU", "channels-last within"])
def fewest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways of running what waits: as chains, and as torch's functions where these are fast.

    The third lays all contiguous maps out anew.
    """
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", request.param != "all fused")
    if request.param == "channels-last within":
        monkeypatch.setattr(stretch, "select_layout", converted)
    take_all(monkeypatch)


def take_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small."""
    monkeypatch.setattr(fixed_table, "FEWEST_PRODUCTS", 0)
    for name in ("in_place_savings", "one_pass_savings"):
        monkeypatch.setattr(norm_choice, name, lambda *_, **__: True)


def converted(stage: Any, input: Tensor, weight: Tensor, *_: Any) -> tuple[Way, Way]:
    """Stands for :func:`select_layout`: all that is contiguous is better channels-last."""
    channels_last = stage.kind == "linear" or is_channels_last(input) or is_channels_last(weight)
    return Way(False, not channels_last, 1.0), Way(False, False, 0.0)


@pytest.mark.usefixtures("fewest")
@pytest.mark.filterwarnings("ignore::fastgan.explaining.fallback.FallbackWarning")
@given(
    instructions,
    st.sampled_from(["tuple", "dict", "one"]),
    st.tuples(*[st.sampled_from([torch.contiguous_format, torch.channels_last])] * 3),
    st.integers(0, 2**31),
)
@example(
    program=[("no grad", 2, 1, 0), ("view", 2, 1, 3), ("before", 1, 2, 2)],
    returned="tuple",
    layouts=(torch.channels_last,) * 3,
    seed=13,
)
@example(  # gradients of one value, added up in the order of calls of which none has run
    program=[("before", 2, 0, 0), ("layer norm", 2, 0, 5), ("checkpoint", 0, 2, 7)],
    returned="dict",
    layouts=(torch.channels_last, torch.contiguous_format, torch.channels_last),
    seed=0,
)
@example(  # a sum of what is converted and what eager has channels-last
    program=[("conditional", 2, 0, 5), ("block", 1, 2, 2), ("residual", 1, 0, 2)],
    returned="tuple",
    layouts=(torch.contiguous_format, torch.channels_last, torch.channels_last),
    seed=155292,
)
@example(  # gradients of a channels-last map's instance norm, which torch has contiguous
    program=[("conditional", 0, 0, 4)],
    returned="tuple",
    layouts=(torch.contiguous_format, torch.channels_last, torch.contiguous_format),
    seed=0,
)
@example(  # a value's gradients by a convolution, and by what a norm after it takes of its own
    program=[
        *(("pad", 0, 2, 2), ("in place", 0, 2, 5), ("convolution", 0, 0, 4)),
        *(("convolution", 0, 0, 4), ("conditional", 0, 2, 6)),
    ],
    returned="tuple",
    layouts=(torch.channels_last,) * 3,
    seed=146040,
)
@example(  # gradients of a norm of a transposed map, and of a map converted for a sum
    program=[("bias", 2, 2, 0), ("block", 0, 1, 5), ("view", 2, 2, 4), ("left", 1, 2, 6)],
    returned="tuple",
    layouts=(torch.contiguous_format,) * 3,
    seed=1907752789,
)
@example(  # gradients of 1e-6 that cancel beside others of 1e6
    program=[
        *(("add", 1, 2, 7), ("in place", 2, 2, 5), ("layer norm", 0, 1, 0), ("resample", 2, 0, 2)),
        *(("layer norm", 2, 0, 2), ("activation", 0, 1, 6), ("pad", 2, 0, 2), ("no grad", 2, 2, 7)),
        ("block", 0, 2, 4),
    ],
    returned="tuple",
    layouts=(torch.channels_last, torch.contiguous_format, torch.channels_last),
    seed=510510,
)
@example(  # what a convolution pads is written to after it
    program=[("checkpoint", 1, 1, 1), ("pad", 2, 1, 2), ("in place", 1, 1, 6)],
    returned="dict",
    layouts=(torch.channels_last, torch.contiguous_format, torch.channels_last),
    seed=3596,
)
@example(  # a checkpoint iterates a spectral norm again at each order of gradients
    program=[("view", 0, 0, 7), ("checkpoint", 2, 1, 3)],
    returned="dict",
    layouts=(torch.contiguous_format, torch.channels_last, torch.contiguous_format),
    seed=1139125,
)
@settings(max_examples=50, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_random_forwards_agree_to_second_order(
    program: list[tuple[Any, ...]],
    returned: str,
    layouts: tuple[torch.memory_format, ...],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    module = Program(program, returned).double().to(memory_format=layouts[0])
    inputs = [
        torch.randn(2, CHANNELS, SIZE, SIZE, dtype=torch.float64).contiguous(memory_format=layout)
        for layout in layouts[1:]
    ]
    with measuring_nothing():  # hundreds of problems, each measured once
        agree(module, *inputs)


# What is not random -------------------------------------------------------------------------------


class Block(nn.Module):
    """Pre-activation, a skip, and whatever ``between`` does in the middle."""

    def __init__(self, between: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 4, 3, padding=1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(F.relu(self.norm(x)))
        if self.between is not None:
            h = self.between(self, h)
        h = F.leaky_relu(h, 0.2)
        return x + self.last(h)


def image(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*(shape or (2, 4, 6, 6)), dtype=torch.float64)


def nodes(output: Tensor) -> list[str]:
    found, seen, waiting = [], set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.append(node.name())
            waiting += [following for following, _ in node.next_functions]
    return found


def test_pre_activation_and_what_follows_are_one_node() -> None:
    fused = agree(Block().double(), image())
    found = nodes(fused(image()))
    assert sum("Chain" in name for name in found) == 1
    assert not any("BatchNorm" in name or "Relu" in name for name in found)


class Applied(nn.Module):
    """A function of a norm or convolution and an image."""

    def __init__(self, layer: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.layer, x)


def mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("norm", "function"),
    [
        (nn.BatchNorm2d(4), lambda norm, x: norm(x) * mean(x)),
        (
            nn.InstanceNorm2d(4),
            lambda norm, x: F.relu(norm(x) * (1 + mean(x)) + x.amax((2, 3), True)),
        ),
        (nn.BatchNorm2d(4), lambda norm, x: (lambda own: norm(x) * own)(mean(x))),
    ],
)
def test_a_scale_made_of_the_input_gives_its_gradient_in_eager_order(
    norm: nn.Module, function: Any, layout: torch.memory_format
) -> None:
    """The gradient is laid out as the first that was added."""
    agree(Applied(norm, function).double(), image(2, 4, 5, 6).contiguous(memory_format=layout))


CONVOLUTION = nn.Conv2d(4, 4, 3, padding=1)


class Convolutions(TorchDispatchMode):
    """Counts convolutions of channels-last maps."""

    channels_last = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.channels_last += is_channels_last(args[0])
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    ("ways", "converts"),
    [
        ((Way(False, True, 0.2, 1.0, 0.1), Way(False, False, 0.0, 1.0)), True),
        ((Way(False, True, 0.2, 1.0, 0.3), Way(False, False, 0.0, 1.0)), False),
        ((Way(False, True, math.inf), Way(False, False, math.inf)), True),  # by the fixed table
    ],
)
def test_a_result_that_is_laid_out_back_counts_the_copy(
    monkeypatch: pytest.MonkeyPatch, ways: tuple[Way, Way], converts: bool
) -> None:
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", True)
    monkeypatch.setattr(stretch, "select_layout", lambda *_: ways)
    x = image().requires_grad_()
    one = fastgan.fuse(Applied(copy.deepcopy(CONVOLUTION), lambda layer, x: x + layer(x)).double())
    both = Applied(copy.deepcopy(CONVOLUTION), lambda layer, x: x + layer(layer(x).tanh())).double()
    for module, expected in ((one, converts), (fastgan.fuse(both), 2)):
        with Convolutions() as convolutions:
            module(x)
        assert convolutions.channels_last == expected


LAYOUTS = (torch.contiguous_format, torch.channels_last)


def shifts_and_keeps(layer: Any, map: Tensor) -> Tensor:
    layer.kept = map + layer.shift[None]
    return F.leaky_relu(layer.kept, 0.2)


UNDER_AUTOCAST: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "instance norm": lambda layer, map: F.instance_norm(map),
    "group norm": lambda layer, map: F.group_norm(map, 2),
    "layer norm": lambda layer, map: F.layer_norm(map, map.shape[1:]),
    "padding by zeros": lambda layer, map: F.pad(map, (1, 1, 1, 1)),
    "padding by reflection": lambda layer, map: F.pad(map, (1, 1, 1, 1), "reflect"),
    "padding by replication": lambda layer, map: F.pad(map, (1, 1, 1, 1), "replicate"),
    "bias": lambda layer, map: layer.shift + map,
    "bias and activation": lambda layer, map: F.leaky_relu(map + layer.shift, 0.2),
    "bias, padding": lambda layer, map: F.pad((map + layer.shift).tanh(), (2, 2, 1, 1), "reflect"),
    "bias that is kept": shifts_and_keeps,
    "bias, batch norm": lambda layer, map: F.relu(
        F.batch_norm(map + layer.shift, None, None, training=True)
    ),
    "bias, sum": lambda layer, map: map.sin() + (map + layer.shift).relu(),
    "bias, layer norm": lambda layer, map: F.layer_norm(map + layer.shift, map.shape[1:]),
}


class Pads(TorchDispatchMode):
    """Sees the dtypes of what is padded."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "pad2d" in func.name():
            self.dtypes.add(args[0].dtype)
        return func(*args, **kwargs or {})


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("name", UNDER_AUTOCAST)
def test_under_autocast_pending_results_have_eagers_dtype_and_precision(
    name: str, is_first: bool
) -> None:
    dtypes = []

    def forward(layer: Any, x: Tensor) -> Tensor:
        h = UNDER_AUTOCAST[name](layer, x if is_first else layer(x))
        dtypes.append(h.dtype)
        output: Tensor = layer(h)
        return output

    layer = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    layer.register_parameter("shift", nn.Parameter(torch.linspace(-1, 1, 4).view(4, 1, 1)))
    plain = Applied(layer, forward).float()
    results = []
    for module in (copy.deepcopy(plain).double(), plain, fastgan.fuse(copy.deepcopy(plain))):
        is_exact = module.layer.weight.dtype == torch.float64
        x = image(8, 4, 16, 16) if is_exact else image(8, 4, 16, 16).float()
        x.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=not is_exact), Pads() as pads:
            y = module(x)
            y.double().sin().sum().backward()
        results.append([y, x.grad, *(each.grad for each in module.parameters())])
    assert "padding by re" not in name or pads.dtypes == {torch.bfloat16}
    assert dtypes[1] == dtypes[2]
    for exact, eager, ours in zip(*results, strict=True):
        if exact is not None:
            assert eager.dtype == ours.dtype
            error, bound = ((value.double() - exact).norm() for value in (ours, eager))
            assert error <= 2 * bound + 1e-6 * exact.norm()


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize(
    ("layer", "function"),
    [
        (nn.BatchNorm2d(4), lambda norm, x: F.relu(norm(x.transpose(2, 3)))),
        (nn.BatchNorm2d(4).eval(), lambda norm, x: F.relu(norm(x.transpose(2, 3)))),
        (nn.BatchNorm2d(4), lambda norm, x: norm(x) * mean(x)),
        (nn.BatchNorm2d(4).eval(), lambda norm, x: norm(x) * mean(x)),
        (CONVOLUTION, lambda convolution, x: convolution(x) + x),
        (CONVOLUTION, lambda convolution, x: x + convolution(x).relu()),
        (CONVOLUTION, lambda convolution, x: torch.cat([convolution(x), x])),
        (CONVOLUTION, lambda convolution, x: convolution(mean(x)) + mean(x)),
    ],
)
@pytest.mark.parametrize("of_gradient", LAYOUTS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_have_eager_strides(
    layer: nn.Module,
    function: Any,
    layout: torch.memory_format,
    of_gradient: torch.memory_format,
) -> None:
    """Of second order as well. And are None where eager's are."""
    plain, found = Applied(layer, function).double(), []
    for module in (plain, fastgan.fuse(copy.deepcopy(plain))):
        x = image().contiguous(memory_format=layout).requires_grad_()
        output = module(x)
        gradient = torch.ones_like(output).contiguous(memory_format=of_gradient)
        (once,) = torch.autograd.grad(output, x, gradient, create_graph=True)
        (twice,) = torch.autograd.grad(once.square().sum(), x, allow_unused=True)
        found.append([None if each is None else each.stride() for each in (output, once, twice)])
    assert found[0] == found[1]


def reads_statistics(module: Any, h: Tensor) -> Tensor:
    return h * module.norm.running_mean.mean()


def writes_weight(module: Any, h: Tensor) -> Tensor:
    with torch.no_grad():  # after it was used, before it would be read
        module.conv.bias.data.add_(1)
    return h


def swaps_data(module: Any, h: Tensor) -> Tensor:
    module.conv.weight.data = module.conv.weight.data * 2
    return h


def autocasts(module: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=False):
        return module.conv(h)


def detaches(module: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        noise = module.conv(h)
    assert not noise.requires_grad
    return h + noise


def writes_in_place(module: Any, h: Tensor) -> Tensor:
    kept = h * 1
    h[0] = 0
    h.mul_(2)
    return h + kept


def shapes_alone(module: Any, h: Tensor) -> Tensor:
    assert h.shape == (2, 4, 6, 6)
    assert h.size(1) == 4
    assert len(h) == 2
    assert h.dtype == torch.float64
    assert h.device.type == "cpu"
    assert isinstance(h, Tensor)
    return h


def numbers(module: Any, h: Tensor) -> Tensor:
    assert h.detach().numpy().shape == (2, 4, 6, 6)
    assert float(h.sum()) == pytest.approx(sum(h.flatten().tolist()))
    return h if repr(h).startswith("tensor") else h * 0


def writes_to_views(module: Any, h: Tensor) -> Tensor:
    h = F.leaky_relu(module.conv(h), 0.2)
    upper, row = h[:, :2], h.select(2, 1)
    upper.mul_(2)
    row[0].add_(1)
    h[0] += 1
    return h * upper.sum() + row.mean()


def generates(module: Any, h: Tensor) -> Tensor:
    def halves() -> Iterator[Tensor]:
        for _ in range(2):
            part = F.relu(module.norm(module.conv(h)))
            yield part
            with torch.no_grad():
                yield module.conv(part)

    return sum(halves(), h)


def differentiates(module: Any, h: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(F.silu(module.conv(h)).sum(), h, create_graph=True)
    return F.relu(gradient) + copy.deepcopy(module.last)(h)


def replaces_buffers(module: Any, h: Tensor) -> Tensor:
    h = module.norm(module.conv(h))
    module.norm.running_mean = module.norm.running_mean * 0.5
    return F.relu(module.norm(h))


def hypernetwork(module: Any, h: Tensor) -> Tensor:
    return F.conv2d(h, weight=module.conv(h)[:1, :, :1, :1].expand(4, 4, 1, 1))


def transforms(module: Any, h: Tensor) -> Tensor:
    h = module.norm(module.conv(h))
    with pytest.raises(ZeroDivisionError):
        torch.func.vmap(lambda row: 1 / 0)(h)
    mapped = torch.func.vmap(lambda row: module.conv(row).relu())(module.conv(h))
    h = module.norm(module.conv(h))
    (slope,) = torch.func.vjp(torch.tanh, h)[1](torch.func.grad(lambda h: h.exp().sum())(h))
    assert unseen.current() is None or unseen.current().watches  # type: ignore[union-attr]
    return mapped + slope + torch.func.jvp(torch.sin, (module.conv(h),), (h,))[1]


def subclasses(module: Any, h: Tensor) -> Tensor:
    return module.norm(module.conv(h)).as_subclass(Tensor).relu()  # type: ignore[no-any-return]


def counts_in_tensors(module: Any, h: Tensor) -> Tensor:
    one = torch.tensor(1)
    return F.relu(F.conv2d(h, module.last.weight, None, one, one))


BETWEEN = [
    *(reads_statistics, swaps_data, autocasts, detaches, writes_in_place, shapes_alone),
    *(numbers, writes_to_views, generates, differentiates, replaces_buffers, hypernetwork),
    *(counts_in_tensors, transforms, subclasses),
]


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize("between", BETWEEN, ids=lambda each: each.__name__)
def test_what_touches_a_value_finds_it(between: Callable[[nn.Module, Tensor], Tensor]) -> None:
    agree(Block(between).double(), image())


def learnt(h: Tensor) -> dict[str, Any]:
    return {"running_mean": h.mean((0, 2, 3)), "running_var": h.var((0, 2, 3)), "training": False}


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize(
    "asked",
    [
        lambda h: {"running_mean": None, "running_var": None, "training": True, "eps": 0.0},
        lambda h: {"running_mean": None, "running_var": None, "training": 1},
        learnt,
    ],
    ids=["no eps", "a number", "statistics with a gradient"],
)
def test_a_norm_that_torch_refuses_is_refused_in_its_words(asked: Any) -> None:
    def between(module: Any, h: Tensor) -> Tensor:
        h = module.conv(h)
        return F.relu(F.batch_norm(h, **asked(h)))

    plain, messages = Block(between).double(), []
    for module in (plain, fastgan.fuse(copy.deepcopy(plain))):
        with pytest.raises((RuntimeError, TypeError, ValueError)) as raised:
            module(image()).sum().backward()
        messages.append((type(raised.value), str(raised.value)))
    assert messages[0] == messages[1]


def test_a_weight_written_after_its_use_is_used_as_it_was() -> None:
    plain = Block(writes_weight).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    with torch.no_grad():
        torch.testing.assert_close(fused(image()), plain(image()))


def test_saved_tensor_hooks_see_only_what_was_saved_within() -> None:
    packed: list[int] = []

    def between(module: Any, h: Tensor) -> Tensor:
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda saved: packed.append(1) or saved, lambda saved: saved
        )
        with hooks:
            return h.tanh() * 2

    counts = []
    for module in (Block(between).double(), fastgan.fuse(Block(between).double())):
        packed.clear()
        module(image())
        counts.append(len(packed))
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize("read", [False, True])
def test_a_leaky_relu_is_written_over_as_torchs_which_keeps_its_input(read: bool) -> None:
    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = F.leaky_relu(self.conv(x), 0.2)
            size = h.mean() if read else 1
            h += x
            return self.conv(h) * size

    agree(Added().double(), image())


@pytest.mark.usefixtures("fewest")
def test_a_view_that_autograd_keeps_stays_one_of_what_is_written_to() -> None:
    def between(module: Any, h: Tensor) -> Tensor:
        h = F.leaky_relu(module.conv(h), 0.2)
        rows, columns = h[:, :, :2], h[..., :2]
        kept = rows * module.conv.weight.mean()
        h.mul_(2)
        return h + columns.mean() + rows.mean() + kept.mean()

    plain = Block(between).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    torch.testing.assert_close(fused(image()), plain(image()))


def test_an_exception_leaves_values_and_no_recorder() -> None:
    held: list[Tensor] = []

    def between(module: Any, h: Tensor) -> Tensor:
        held.append(h)
        raise KeyboardInterrupt

    fused = fastgan.fuse(Block(between).double())
    with pytest.raises(KeyboardInterrupt):
        fused(image())
    assert type(held[0]) is Tensor
    torch.testing.assert_close(held[0], fused.conv(F.relu(fused.norm(image()))))
    assert not recorder.is_fused()


def test_a_lazy_module_is_made_by_its_first_call() -> None:
    plain = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    plain(image())
    fused(image())
    fused.load_state_dict(plain.state_dict())
    agree(plain, image())
    torch.testing.assert_close(fused(image()), plain(image()))


def test_no_value_outlives_the_forward_that_made_it() -> None:
    made: list[weakref.ref[Tensor]] = []

    def between(module: Any, h: Tensor) -> Tensor:
        made.append(weakref.ref(h))
        return h

    fused = fastgan.fuse(Block(between).double())
    output = fused(image())
    del output
    assert made[0]() is None


def test_threads_record_by_themselves() -> None:
    plain = Block().double().eval()
    fused = fastgan.fuse(copy.deepcopy(plain))
    found: dict[int, Tensor] = {}

    images = image()  # drawn once: threads share the generator

    def run(number: int) -> None:
        found[number] = fused(images * number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, output in found.items():
        torch.testing.assert_close(output, plain(images * number))


def test_a_fused_module_is_what_it_was() -> None:
    plain = Block().double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    assert isinstance(fused, Block)
    assert type(fused).__name__ == "Block"
    assert fastgan.fuse(fused) is fused
    assert list(fused.state_dict()) == list(plain.state_dict())
    for twin in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(twin) is type(fused)
        torch.testing.assert_close(twin.eval()(image()), plain.eval()(image()))
        assert any("Chain" in name for name in nodes(twin.train()(image())))
        plain.train()
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            tensor.add_(1)
    fused.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fused.eval()(image()), plain.eval()(image()))
    plain.load_state_dict(fused.state_dict())


def test_a_moving_average_runs_fused() -> None:
    averages = []
    block = Block().double()
    for module in (copy.deepcopy(block), fastgan.fuse(block)):
        average = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True
        )
        for _ in range(2):
            module(image())
            average.update_parameters(module)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(1.0)
        averages.append(average)
    plain, fused = averages
    output = fused(image())
    assert any("Chain" in name for name in nodes(output))
    torch.testing.assert_close(output, plain(image()))
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_machinery_sees_the_plain_module() -> None:
    plain = Block().double().eval()
    fused = fastgan.fuse(copy.deepcopy(plain))
    expected = plain(image())
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(image()), expected)
    torch.testing.assert_close(torch.jit.trace(fused, image())(image()), expected)
    exported = torch.export.export(fused, (image(),)).module()
    torch.testing.assert_close(exported(image()), expected)
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image()), expected)
    for each in (plain, fused):
        each.requires_grad_(False)
    value, tangent = torch.func.jvp(fused, (image(),), (image(),))
    torch.testing.assert_close((value, tangent), torch.func.jvp(plain, (image(),), (image(),)))


class Scripted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid() + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("made", ["module", "function", "traced", "no child"])
def test_scripted_code_gets_values_and_the_rest_is_fused(made: str) -> None:
    """Whenever it came there: what is called is what counts."""
    plain = Block(lambda module, h: between(h)).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    between: Callable[[Tensor], Tensor] = Scripted()
    fused(image())
    if made == "module":
        fused.child = torch.jit.script(Scripted())
        between = fused.child
    elif made == "function":
        between = torch.jit.script(gated)
    elif made == "traced":
        between = torch.jit.trace(Scripted(), image())
    else:
        between = torch.jit.script(Scripted())
    plain.load_state_dict(fused.state_dict(), strict=False)
    output, expected = fused(image()), plain(image())
    torch.testing.assert_close(output, expected)
    assert sum("Chain" in name for name in nodes(output)) == 2
    for mine, theirs in zip(
        torch.autograd.grad(output.sum(), list(fused.parameters())),
        torch.autograd.grad(expected.sum(), list(plain.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def gated(x: Tensor) -> Tensor:
    return x * x.sigmoid() + 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("made", ["compiled", "compiled in place"])
def test_children_that_are_compiled(made: str) -> None:
    """After the first call: children are looked at in each."""
    plain = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Softsign(), nn.Conv2d(4, 4, 3)).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    before = fused(image())
    if made == "compiled":
        fused[2] = torch.compile(fused[2], backend="eager")
    else:
        fused[2].compile(backend="eager")
    torch.testing.assert_close(fused(image()), before)
    torch.testing.assert_close(before, plain(image()))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_saves_values(reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for a tensor's device is not looked at, not even torch.utils.checkpoint's frame."""
    monkeypatch.setitem(globals(), "__name__", "torch.utils.checkpoint")

    def between(module: Any, h: Tensor) -> Tensor:
        assert h.device.type == "cpu"
        assert type(h) is (Waiting if recorder.is_fused() else Tensor)
        return checkpoint(lambda h: module.conv(h).tanh(), h, use_reentrant=reentrant)

    plain = Block(between).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    for module in (plain, fused):
        module(image()).sum().backward()
    for mine, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)


def unseen_by_modes(module: Any, h: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return torch.sin(h)


def test_code_that_modes_do_not_see_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="touch the value"):
        fastgan.fuse(Block(unseen_by_modes).double())(image())


def test_norms_count_their_batches_together_and_before_anything_reads_a_count() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
            self.seen: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            first, second, third = self.norms
            x = torch.relu(second(first(x)))
            self.seen.append(int(second.num_batches_tracked))
            x = first(third(first(x)))
            view = first.num_batches_tracked.view(1)
            self.seen += [int(view), int(first.num_batches_tracked)]
            return x + third.num_batches_tracked.to(x.dtype)

    module = Counting()
    with patch.object(torch, "_foreach_add_", wraps=torch._foreach_add_) as added:
        fastgan.fuse(module)(torch.randn(2, 4, 3, 3))
    assert module.seen == [1, 3, 3]
    assert [int(norm.num_batches_tracked) for norm in module.norms] == [3, 1, 1]
    assert [len(call.args[0]) for call in added.call_args_list] == [2, 2, 1]


@pytest.mark.usefixtures("fewest")
def test_folded_norms_in_evaluation() -> None:
    class Tail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x)))

    plain = Tail().double()
    plain(image())
    plain.eval()
    with torch.no_grad():
        fused = fastgan.fuse(copy.deepcopy(plain))
        torch.testing.assert_close(fused(image()), plain(image()))


# Left to torch ------------------------------------------------------------------------------------


class Recordings:
    """How many forward passes were recorded, and a clock that their calls move."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.now = 0, 0.0
        run = recorder.Recorder.run

        def counted(*args: Any) -> Any:
            self.count += 1
            self.now += 1e-3
            return run(*args)

        patch.setattr(recorder.Recorder, "run", counted)
        patch.setattr(recorder, "_clock", lambda: self.now)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> Recordings:
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", True)
    return Recordings(monkeypatch)


def test_a_small_network_runs_plain_from_its_third_call_on(recordings: Recordings) -> None:
    plain = Block().double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    for _ in range(5):
        assert torch.equal(fused(image()), plain(image()))
    assert recordings.count == 2
    fused(image(3, 4, 6, 6))
    assert recordings.count == 3


def test_a_plain_call_is_repeated_without_deciding_again(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, x = fastgan.fuse(nn.Sequential(nn.Linear(4, 4))), torch.ones(2, 4)
    decided, run = [], recorder._run
    monkeypatch.setattr(recorder, "_run", lambda *given: decided.append(1) or run(*given))

    def decisions(given: Tensor, calls: int = 6) -> int:
        decided.clear()
        for _ in range(calls):
            fused(given)
        return len(decided)

    assert decisions(x) == 3
    assert decisions(x.clone()) == 0
    with torch.no_grad():
        assert decisions(x) == 3
        assert decisions(x) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert decisions(x) == 3
    for other in (torch.ones(4, 2).T, torch.ones(3, 4)):
        assert decisions(other) == 3
    assert decisions(x, 1) == 0
    fused[0].register_forward_hook(lambda *_: setattr(recordings, "now", recordings.now + 1))
    assert decisions(x, 1) == 0
    assert decisions(x, 1) == 1  # the call before took longer than recording
    fused.eval()
    assert decisions(x) == 3


@pytest.mark.parametrize(("costs", "usual"), [(1e-3, 1.0), (1.0, 1.0), (1e-3, 90.0)])
def test_a_forward_that_saves_less_than_watching_it_costs_is_plain_by_a_choice_that_is_kept(
    recordings: Recordings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    costs: float,
    usual: float,
) -> None:
    way = Way(False, True, 0.1, usual)
    recorded = costs < 0.1 and usual == 1.0
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(stretch, "select_layout", lambda *_: (way, way))
    monkeypatch.setattr(recorder, "watching_milliseconds", lambda: costs)
    for name in ("in_place_savings", "one_pass_savings"):
        monkeypatch.setattr(norm_choice, name, lambda *_, **__: 0.0)
    plain = Block().double()
    for first in (True, False):  # the second as another process, which reads the file
        fused = fastgan.fuse(copy.deepcopy(plain))
        recordings.count = 0
        with using(Selector("1")):
            for _ in range(4):
                fused(image())
        assert recordings.count == (4 if recorded else 1 if first else 0)
    with using(Selector("0")):
        fused = fastgan.fuse(copy.deepcopy(plain))
        fused(image())
    assert recordings.count == (5 if recorded else 1)


def test_each_dtype_and_layout_has_a_choice_of_its_own(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    way = Way(False, True, 0.1, 1.0)
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(stretch, "select_layout", lambda *_: (way, way))
    monkeypatch.setattr(recorder, "watching_milliseconds", lambda: 1.0)
    for name in ("in_place_savings", "one_pass_savings"):
        monkeypatch.setattr(norm_choice, name, lambda *_, **__: 0.0)
    x, last = image().float(), torch.channels_last
    with using(Selector("1")):
        for layout in (torch.contiguous_format, last):
            fused = fastgan.fuse(Block()).to(memory_format=layout)
            for given, autocast in (
                (x, False),
                (x, True),
                (x.contiguous(memory_format=last), False),
            ):
                recordings.count = 0
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    for _ in range(2):
                        fused(given)
                assert recordings.count == 1


def test_a_call_that_does_more_than_was_recorded_is_recorded_again(
    recordings: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def between(module: Any, h: Tensor) -> Tensor:
        if grown:
            recordings.now += 1.0
            h = F.relu(module.norm(module.conv(h)))
        return h

    grown = False
    plain = Block(between).double()
    fused = fastgan.fuse(copy.deepcopy(plain))
    for _ in range(3):
        fused(image())
    grown = True
    fused(image())  # takes longer than it did when it was recorded
    take_all(monkeypatch)
    found = nodes(fused(image()))
    assert any("BnAct" in name for name in found)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_contiguous_weights_take_the_fastest_convolution_and_keep_their_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4x4 taps with stride 2 take fewer products, where the processor has vectors."""
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", True)
    # A convolution is ours from so many products per thread on.
    monkeypatch.setattr(fixed_table, "FEWEST_PRODUCTS", 0)
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(32, 64, 4, 2, 1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.ReflectionPad2d(1),
        nn.Conv2d(64, 64, 3),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(64, 32, 4, 2, 1),
    ).to(memory_format=layout)
    fused = fastgan.fuse(copy.deepcopy(plain))
    x = torch.randn(16, 32, 16, 16)
    reference = copy.deepcopy(plain).double()
    expected, strides = results(plain, x)
    found, own = results(fused, x)
    truth, _ = results(reference, x.double())
    assert own == strides
    for mine, theirs, exact in zip(*map(tensors, (found, expected, truth)), strict=True):
        bound = 4 * (theirs - exact).abs().max() + 1e-5 * exact.abs().max()
        assert (mine - exact).abs().max() <= bound
    output = fused(x)
    assert any("Chain" in name for name in nodes(output)) == has_vectors()
    parameters = list(fused.parameters())
    for graph in (True, False):
        gradients = torch.autograd.grad(output.sum(), parameters, create_graph=graph)
        assert [each.stride() for each in gradients] == [each.stride() for each in parameters]


def test_a_profiler_may_hold_what_is_computed() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4, 4, 4, 2, 1))
    fused, images = fastgan.fuse(copy.deepcopy(plain)), torch.randn(2, 3, 16, 16)
    with torch.profiler.profile(record_shapes=True):
        for _ in range(2):
            found = fused(images)
    torch.testing.assert_close(found, plain(images), rtol=1e-5, atol=1e-6)
    found.sum().backward()


@pytest.mark.filterwarnings("ignore::fastgan.explaining.fallback.FallbackWarning")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_sparse_inputs_run_as_without_fuse(layout: torch.layout) -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    fused, x = fastgan.fuse(copy.deepcopy(plain)), torch.eye(3).to_sparse(layout=layout)
    assert torch.equal(fused(x), plain(x))


class Conditional(nn.Module):
    """What chains besides convolution, batch norm and activation, and what is left on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.instance, self.relu, self.groups = nn.InstanceNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4)
        self.pad, self.line = nn.ReflectionPad2d(1), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        own = x.mean((2, 3), keepdim=True)
        h = self.relu(self.norm(self.conv(x)) * own + own)
        h = self.relu(self.instance(self.pad(h)))
        h = self.line(self.groups(h).flatten(2))
        return self.conv(x) + x + h.mean()


def test_explain_names_what_chains_and_why_the_rest_does_not() -> None:
    module = fastgan.fuse(Conditional().double())
    reasons = {row.layer: row.reason for row in fastgan.explain(module, image()).rows}
    assert reasons["norm"] == "with the scale, shift, activation after it, in one pass"
    assert reasons["instance"] == "with the activation after it, in one pass"
    assert reasons["groups"] == "by torch's own function, the fastest here"
    assert reasons["pad"] == "a pass of its own"
    assert reasons["line"] == "by torch's own function, the fastest here"
    for layout in (torch.contiguous_format, torch.channels_last):
        plain = Conditional().double().to(memory_format=layout)
        x = image().contiguous(memory_format=layout)
        found = nodes(agree(plain, x)(x))
        assert sum("SampleNormAct" in name for name in found) == 2


class Skips(nn.Module):
    """Contiguous maps through functions that don't look at strides, and some that do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.seen, self.kept = nn.BatchNorm2d(4), [], []

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + F.relu(self.norm(self.second(h)))
        h = F.avg_pool2d(F.interpolate(h, scale_factor=2), 2)
        self.kept.append(h)
        g = torch.cat([h, -h.tanh()], 1)
        self.seen.append(g.stride())
        return g.view(len(x), -1).sum(1) + g.mean((1, 2, 3))


def test_maps_laid_out_anew_are_nobody_elses_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", True)
    monkeypatch.setattr(stretch, "select_layout", converted)
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    fused = agree(Skips().double(), x)
    with torch.inference_mode():
        fused(x)
    assert fused.seen == [(240, 30, 6, 1)] * 2
    assert [map.stride() for map in fused.kept] == [(120, 30, 6, 1)] * 2
    fused(x)
    pooled = fused.kept[-1].grad_fn
    assert pooled.name() == "AvgPool2DBackward0"
    assert pooled._saved_self.stride() == (480, 1, 48, 4)


def test_an_instance_norm_of_a_channels_last_map_copies_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stretch, "LEAVE_TO_TORCH", True)
    take_all(monkeypatch)
    layers = [nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)]
    plain = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = image().float().contiguous(memory_format=torch.channels_last)
    with measuring_nothing():
        fused = agree(plain, x, tolerance=1e-3)
        with torch.profiler.profile() as profiler:
            fused(x)
    names = {event.name for event in profiler.events()}
    assert "fastgan::sample_norm_act" in names
    assert not {"aten::copy_", "aten::clone"} & names
