"""The fused gradient penalty on the Triton kernels, against double backward in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fastgan.penalty.plan import Plan
from fastgan.penalty.selection import find_plan
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.kernels import interpreted

CHANNELS, SIZE, BATCH = 3, 8, 3
FUNCTIONS = [fastgan.gradient_penalty, fastgan.wgan_gp_critic_loss]
EACH_FUNCTION = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)


def scores(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(1))


def plain() -> nn.Module:
    """With and without bias, in and out of place; its last activation meets a linear layer."""
    return scores(
        nn.Conv2d(CHANNELS, 6, 4, 2, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(6, 5, 3, 1, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(5, 4, (2, 3), (1, 2), (0, 1)),
        nn.LeakyReLU(0.1),
    )


def transposed() -> nn.Module:
    return scores(
        nn.Conv2d(CHANNELS, 4, 3, 2, 1),
        nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 5, 3, 2, 1, 1),
        nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(5, 2, 2, 1, bias=False),
    )


def spectral() -> nn.Module:
    """Its parameters move: fakes and reals are passes of their own."""
    critic = plain()
    for index in (0, 2, 4):
        nn.utils.parametrizations.spectral_norm(critic[index])
    return critic


def fixed_spectral() -> nn.Module:
    return spectral().eval()


def frozen_first() -> nn.Module:
    critic = plain()
    critic[0].requires_grad_(False)
    return critic


def frozen_last() -> nn.Module:
    """No signal goes as far as its last activations."""
    critic = plain()
    for index in (2, 4):
        critic[index].requires_grad_(False)
    return critic


class Gain(nn.Module):
    """Float32 under autocast, as its parameter is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def mixed() -> nn.Module:
    """Convolutions with groups or without neighbours stay with ATen, and smooth steps between."""
    return scores(
        nn.Conv2d(CHANNELS, 4, 3, bias=False),
        nn.GroupNorm(2, 4),
        Gain(4),
        nn.LeakyReLU(0.2),
        nn.Conv2d(4, 6, 3, 1, 1),
        nn.Conv2d(6, 4, 1, groups=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Tanh(),
    )


class Residual(nn.Module):
    """Outputs that go two ways: before an activation, after one, and through one twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, 5, 3, padding=1)
        self.twice = nn.Conv2d(5, 5, 3, padding=1)
        self.inner = nn.Conv2d(5, 5, 3, padding=1)
        self.head = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.twice(F.relu(h))
        a = F.leaky_relu(self.inner(h), 0.2)
        h = F.avg_pool2d(a, 2) + F.avg_pool2d(self.twice(a), 2)
        h = F.relu(self.inner(F.leaky_relu(self.twice(h), 0.1)))
        return self.head(h.mean((2, 3))).squeeze(1)


CRITICS = [
    plain,
    transposed,
    spectral,
    fixed_spectral,
    frozen_first,
    frozen_last,
    mixed,
    Residual,
]


def make(build: Callable[[], nn.Module], device: torch.device, seed: int = 0) -> nn.Module:
    """With weights and biases large enough that every layer bends somewhere."""
    torch.manual_seed(seed)
    critic = build()
    with torch.no_grad():
        critic(torch.zeros(1, CHANNELS, SIZE, SIZE))
        for parameter in critic.parameters():
            parameter.normal_(0.0, 0.4)
    return critic.to(device)


def images(device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Reals, fakes and eps."""
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, CHANNELS, SIZE, SIZE)
    real, fake = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
    return real, fake, torch.rand((BATCH, 1, 1, 1), generator=generator).to(device)


def results(
    function: Callable[..., Any], critic: nn.Module, seed: int, path: str, dtype: torch.dtype
) -> list[Tensor]:
    """The loss, and each parameter's gradient."""
    critic = copy.deepcopy(critic).to(dtype)
    device = next(critic.parameters()).device
    real, fake, eps = (tensor.to(dtype) for tensor in images(device, seed))
    found = function(critic, real, fake, eps=eps, path=path)
    loss = getattr(found, "loss", found)
    wanted = [p for p in critic.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    return [loss.detach(), *(g for g in grads if g is not None)]


def errors(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    return [
        float((ours.double() - truth).norm() / truth.norm().clamp_min(1e-3))
        for ours, truth in zip(found, expected, strict=True)
    ]


def compare(
    build: Callable[[], nn.Module],
    function: Callable[..., Any],
    device: torch.device,
    run: Callable[[nn.Module, int, str], list[Tensor]],
    roundoff: float,
) -> None:
    """Both paths of ``run`` with float64, by the worst of each quantity over several draws."""
    found = []
    for seed in range(2):
        critic = make(build, device, seed)
        assert neighbours(plan_of(critic, device))
        truth = results(function, critic, seed, "autograd", torch.float64)
        found.append([errors(run(critic, seed, path), truth) for path in ("autograd", "fused")])
    eager, own = torch.tensor(found).amax(0)
    ratios = (own + roundoff) / (eager + roundoff)
    # Of tensors this small each error by itself is a matter of luck, see test_chains.py.
    assert ratios.log().mean().exp() <= 2, torch.stack([own, eager])
    assert ratios.max() <= 16, torch.stack([own, eager])


def plan_of(critic: nn.Module, device: torch.device) -> Plan:
    found = find_plan(critic, images(device)[0], ())
    assert isinstance(found, Plan)
    return found


def neighbours(plan: Plan) -> list[tuple[str, str | None, str | None]]:
    """Of each convolution by the kernels: its layer, what it applies, whose mask it applies."""

    def name(index: int | None) -> str | None:
        return None if index is None else plan.steps[index].step.op

    return [
        (planned.layer, name(planned.applies), name(planned.masks))
        for planned in plan.steps
        if planned.step.op == "convolution" and planned.step.path == "triton"
    ]


@EACH_FUNCTION
@pytest.mark.parametrize("build", CRITICS, ids=lambda build: build.__name__)
def test_value_and_gradients_are_as_exact_as_autograds(
    build: Callable[[], nn.Module], function: Callable[..., Any], device: torch.device
) -> None:
    def run(critic: nn.Module, seed: int, path: str) -> list[Tensor]:
        return results(function, critic, seed, path, torch.float32)

    compare(build, function, device, run, torch.finfo(torch.float32).eps)


def test_which_neighbours_go_together(device: torch.device) -> None:
    assert neighbours(plan_of(make(plain, device), device)) == [
        ("0", "leaky_relu", None),
        ("2", "relu", "leaky_relu"),
        ("4", "leaky_relu", "relu"),
    ]
    # One (0) has a norm behind it, and one (5) is of groups, which the kernels leave out.
    assert neighbours(plan_of(make(mixed, device), device)) == [
        ("4", None, "leaky_relu"),
        ("7", None, "relu"),
    ]
    # What goes two ways stays apart: "first", and what the second "twice" takes.
    assert neighbours(plan_of(make(Residual, device), device)) == [
        ("twice", None, "relu"),
        ("inner", "leaky_relu", None),
        ("twice", "leaky_relu", None),
        ("inner", "relu", "leaky_relu"),
    ]


class Recorded(TorchDispatchMode):
    """The names of the ops that run, and how many dimensions their results have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.found.append((func.name(), result.dim() if isinstance(result, Tensor) else 0))
        return result


@EACH_FUNCTION
def test_no_pass_of_its_own_convolves_or_activates(
    function: Callable[..., Any], device: torch.device
) -> None:
    critic = make(plain, device)
    with Recorded() as recorded:
        results(function, critic, 0, "fused", torch.float32)
    words = ("convolution", "relu", "threshold")
    found = [name for name, _ in recorded.found if any(word in name for word in words)]
    # But that the last activation, which no convolution comes after, masks its own signals.
    assert found == ["aten::leaky_relu_backward.grad_input"]
    # Signals of fakes and reals are written where those of the points are to join them.
    assert ("aten::cat", 4) not in recorded.found


@EACH_FUNCTION
def test_two_runs_are_the_same_to_the_bit(
    function: Callable[..., Any], device: torch.device
) -> None:
    critic = make(plain, device)
    first, second = (results(function, critic, 0, "fused", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@EACH_FUNCTION
@pytest.mark.parametrize("build", [plain, mixed], ids=lambda build: build.__name__)
def test_autocast_is_as_exact_as_autograds(
    build: Callable[[], nn.Module], function: Callable[..., Any], device: torch.device
) -> None:
    """With an activation in float32, before a convolution that isn't."""
    # The interpreter multiplies bfloat16 wrongly.
    dtype = torch.float16 if interpreted() else torch.bfloat16

    def run(critic: nn.Module, seed: int, path: str) -> list[Tensor]:
        with torch.autocast(device.type, dtype=dtype):
            return results(function, critic, seed, path, torch.float32)

    compare(build, function, device, run, torch.finfo(dtype).eps)


def test_third_derivatives_are_autograds(device: torch.device) -> None:
    critic = make(plain, device)
    real, fake, eps = images(device)
    wanted = [p for p in critic.parameters() if p.requires_grad]
    found = []
    for path in ("fused", "autograd"):
        value = fastgan.gradient_penalty(critic, real, fake, eps=eps, path=path)
        grads = torch.autograd.grad(value, wanted, create_graph=True, materialize_grads=True)
        square = sum(grad.square().sum() for grad in grads)
        assert isinstance(square, Tensor)
        found.append(torch.autograd.grad(square, wanted, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_explain_says_which_layers_are_the_kernels(device: torch.device) -> None:
    critic = make(plain, device)
    report = fastgan.explain(critic, images(device)[0])
    assert [row.path for row in report.rows[:2]] == ["triton", "triton"]
    layers = {row.layer: row for row in report.rows if row.reason.startswith("penalty: ")}
    assert [layers[str(index)].path for index in range(6)] == ["triton"] * 6
    assert layers["7"].path == "aten"
    assert layers["2"].reason == (
        "penalty: linear; relu of '3' on storing its result; the mask of '1' on storing its signal"
    )
    assert layers["3"].reason == "penalty: piecewise linear, its mask; together with '2'"
    # Float64 is not theirs.
    double = fastgan.explain(critic.double(), images(device)[0].double())
    assert {row.path for row in double.rows[:2]} == {"aten"}
