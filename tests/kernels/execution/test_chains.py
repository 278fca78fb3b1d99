"""Whole networks on the Triton kernels, forward and backward, against nn.Sequential.

Other files test single kernels; this one tests that prologues, epilogues and the norms' steps work
together.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn

from fastgan.kernels import interpreted
from fastgan.nn import fuse
from fastgan.nn.placement import placements
from fastgan.ops.backends import (
    PASSES,
    TRITON,
    Problem,
    Selector,
    fusion,
    measurement,
    selection,
    using,
)
from fastgan.ops.backends.measurement import Times, measure
from fastgan.ops.backends.registry import TRITON_AFTER_PASSES
from fastgan.ops.backends.selection import supporting
from fastgan.ops.stages import Stage

pytestmark = pytest.mark.usefixtures("few_programs")


def generator() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers = nn.Sequential(
        nn.ConvTranspose2d(7, 8, 2, 1, 0, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 3, 3, 2, 1, 1, bias=False),
        nn.Tanh(),
    )
    return layers, (3, 7, 1, 1)


def critic() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(4, 6, 3, 2, 1, dilation=2, bias=False),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Conv2d(6, 5, 1, bias=False),
        nn.BatchNorm2d(5, affine=False),
        nn.Tanh(),
        nn.Conv2d(5, 1, (2, 3), bias=False),
    )
    return layers, (3, 3, 12, 14)


def dense() -> tuple[nn.Sequential, tuple[int, ...]]:
    layers = nn.Sequential(
        nn.Linear(5, 6, bias=False),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 4),
        nn.LeakyReLU(0.1),
        nn.Linear(4, 1),
        nn.Sigmoid(),
    )
    return layers, (6, 5)


def smooth() -> tuple[nn.Sequential, tuple[int, ...]]:
    """Activations that keep their input, with a norm before them and without."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1),
        nn.SiLU(inplace=True),
        nn.Conv2d(4, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.ConvTranspose2d(6, 5, 4, 2, 1),
        nn.GELU(approximate="tanh"),
        nn.Conv2d(5, 2, 3),
        nn.LeakyReLU(-0.3),
    )
    return layers, (2, 3, 12, 12)


def mixed() -> tuple[nn.Sequential, tuple[int, ...]]:
    """The layer with groups is not the kernels'; it takes and gives what they leave to be done."""
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(6, 2, 3, bias=False),
        nn.BatchNorm2d(2),
        nn.ReLU(),
    )
    return layers, (2, 3, 7, 7)


def results(network: nn.Module, input: Tensor) -> list[Tensor]:
    """Output, gradients and buffers."""
    x = input.detach().clone().requires_grad_()
    output = network(x)
    weights = torch.linspace(-1, 1, output.numel(), device=x.device).view(output.shape)
    grads = torch.autograd.grad(output, [x, *network.parameters()], weights.to(output.dtype))
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    return [output.detach(), *grads, *buffers]


@pytest.mark.parametrize("make", [generator, critic, dense, smooth, mixed])
@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_as_exact_as_eager(
    make, training: bool, dtype: torch.dtype, device: torch.device
) -> None:
    """Against float64, by the worst of each quantity over two draws, in the interpreter of one."""
    errors = []
    for seed in range(1 if interpreted() else 2):
        torch.manual_seed(seed)
        layers, shape = make()
        for layer in layers:
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.affine:
                nn.init.normal_(layer.weight)
                nn.init.normal_(layer.bias)
        low = layers.to(device, dtype).train(training)
        exact, ours = copy.deepcopy(low).double(), fuse(copy.deepcopy(low))
        layers_ = ("Conv2d", "ConvTranspose2d", "Linear")
        input = torch.randn(shape, device=device).to(dtype)
        paths = {found.path for found in placements(ours, input) if found.op in layers_}
        assert paths == ({"triton", "aten"} if make is mixed else {"triton"})
        expected = results(exact, input.double())
        errors.append(
            [
                [
                    float((found.double() - truth).abs().max() / truth.abs().max().clamp_min(1e-3))
                    for found, truth in zip(results(network, input), expected, strict=True)
                ]
                for network in (low, ours)
            ]
        )
        eager_counts, counts = (
            [int(each) for each in network.buffers() if not each.is_floating_point()]
            for network in (low, ours)
        )
        assert counts == eager_counts
    eager, own = torch.tensor(errors).amax(0)
    # Of tensors this small each error by itself is a matter of luck (and eager's sums on a CPU are
    # in float64, a GPU's and ours are not): twice in the geometric mean, and none far beyond.
    roundoff = torch.finfo(dtype).eps
    ratios = (own + roundoff) / (eager + roundoff)
    assert ratios.log().mean().exp() <= 2, torch.stack([own, eager])
    assert ratios.max() <= 16, torch.stack([own, eager])


def test_two_runs_are_the_same_to_the_bit(device: torch.device) -> None:
    torch.manual_seed(0)
    layers, shape = generator()
    network = fuse(layers.to(device))
    input = torch.randn(shape, device=device)
    runs = [results(copy.deepcopy(network), input) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("of_weights", LAYOUTS)
@pytest.mark.parametrize("of_input", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("ends_in", ["image", "norm", "score"])
def test_results_are_laid_out_as_eager_s(
    ends_in: str,
    batch: int,
    of_input: torch.memory_format,
    of_weights: torch.memory_format,
    device: torch.device,
) -> None:
    """The kernels write channels-last; ``view`` must work where it works without fastgan."""
    layers = {
        "image": [nn.ConvTranspose2d(16, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4)],
        "norm": [nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)],
        "score": [nn.Conv2d(16, 16, 3), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 2)],
    }[ends_in]
    eager = nn.Sequential(*layers).to(device)
    for parameter in eager.parameters():
        if parameter.dim() == 4:
            parameter.data = torch.empty_like(parameter, memory_format=of_weights).normal_()
    ours = fuse(copy.deepcopy(eager))
    found = []
    for network in (eager, ours):
        input = torch.empty(batch, 16, 4, 4, device=device, memory_format=of_input).normal_()
        output = network(input.requires_grad_())
        (gradient,) = torch.autograd.grad(output.square().sum(), input)
        found.append((output.stride(), output.is_contiguous(), gradient.stride()))
    assert found[0] == found[1]


CONTENDERS = {"triton", "triton_after_passes", "aten"}


@pytest.mark.parametrize("make", [generator, critic, dense, smooth])
def test_each_pass_can_run_on_a_backend_of_its_own(
    make, device: torch.device, monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """What one backend leaves to be done on load, another does; three draws of choices."""
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    layers, shape = make()
    low = layers.to(device)
    exact = copy.deepcopy(low).double()
    input = torch.randn(shape, device=device)
    expected = results(exact, input.double())
    used = set()
    for seed in range(3):
        draws = random.Random(seed)

        def chosen(problem, backends, draws=draws, **options):
            able = [each.name for each in backends if each.name in CONTENDERS]
            name = draws.choice(able)
            used.add((problem.which, name, *problem.fusion))
            return Times({each: 1.0 if each == name else 2.0 for each in able})

        monkeypatch.setattr(selection, "measure", chosen)
        with using(Selector("exhaustive")):
            found = results(fuse(copy.deepcopy(low)), input)
        for path in tmp_path.rglob("*.json"):
            path.unlink()
        for ours, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-3, atol=2e-4)
    assert {name for _, name, *_ in used} <= CONTENDERS
    assert {"triton", "aten"} <= {name for _, name, *_ in used}


@pytest.mark.parametrize("which", PASSES)
@pytest.mark.parametrize(
    "around",
    [
        {},
        {"input": "norm", "store": "statistics"},
        {"grad": "norm", "store": "norm"},
        {"grad": "activation", "store": "activation"},
        {"input": "norm", "grad": "norm"},
    ],
)
def test_the_kernels_are_timed_with_what_they_fuse(
    which, around: dict[str, str], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measurement, "_SECONDS", 0)  # no turn beyond the first
    reads = {"forward": {"input"}, "input_gradient": {"grad"}, "weight_gradient": {"input", "grad"}}
    if not set(around) - {"store"} <= reads[which]:
        around = {}
    if which == "weight_gradient":
        around.pop("store", None)
    for stage, input, weight in (
        (Stage("conv2d", (2, 2), (1, 1)), (2, 3, 6, 6), (4, 3, 4, 4)),
        (Stage("linear"), (3, 5), (4, 5)),
    ):
        tensors = (torch.empty(shape, device=device) for shape in (input, weight))
        problem = Problem.of(which, stage, *tensors, fusion(**around))
        able = [each for each in supporting(problem) if each.fuses]
        loads = "input" in around or "grad" in around
        assert able == [TRITON, *([TRITON_AFTER_PASSES] if loads else [])]
        assert set(measure(problem, able)) == {each.name for each in able}
