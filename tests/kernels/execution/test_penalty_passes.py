"""The fused gradient penalty on the Triton kernels, against double backward in plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastgan
from fastgan.explaining.explanation import _named_recording
from fastgan.kernels import interpreted
from fastgan.penalty.critics import Critic
from fastgan.penalty.products import Convolution

pytestmark = pytest.mark.usefixtures("few_programs")

CHANNELS, SIZE, BATCH = 3, 8, 3
# The interpreter multiplies bfloat16 wrongly.
HALF = torch.float16 if interpreted() else torch.bfloat16
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
    """No gradient goes as far as its last activations."""
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
    """One of groups, which stays with ATen, and norms and smooth functions between."""
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


class Maps(nn.Module):
    """Its scores are what a convolution, an activation, and both together make."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.first(x)
        a = F.relu(h)
        return [h, a, F.leaky_relu(self.second(a), 0.2)]


class NegativeSlope(nn.Module):
    """A leaky ReLU whose output doesn't tell its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, 4, 3)
        self.second = nn.Conv2d(4, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.leaky_relu(self.first(x), -0.5)))


CRITICS = [
    plain,
    transposed,
    spectral,
    fixed_spectral,
    frozen_first,
    frozen_last,
    mixed,
    Residual,
    Maps,
    NegativeSlope,
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
    """Both paths of ``run`` with float64, by the worst of each quantity over two draws.

    In the interpreter of one, which takes seconds.
    """
    found = []
    for seed in range(1 if interpreted() else 2):
        critic = make(build, device, seed)
        assert neighbours(critic, device)
        truth = results(function, critic, seed, "autograd", torch.float64)
        found.append([errors(run(critic, seed, path), truth) for path in ("autograd", "fused")])
    eager, own = torch.tensor(found).amax(0)
    ratios = (own + roundoff) / (eager + roundoff)
    # Of tensors this small each error by itself is a matter of luck, see test_chains.py.
    assert ratios.log().mean().exp() <= 2, torch.stack([own, eager])
    assert ratios.max() <= 16, torch.stack([own, eager])


def neighbours(critic: nn.Module, device: torch.device) -> list[tuple[str, str | None, str | None]]:
    """Each convolution: its layer, and whose masks it applies."""
    tape = _named_recording(Critic(critic), images(device)[0]).tape
    return [
        (node.layer, *(n and n.rule.activation.name for n in (node.rule.after, node.rule.before)))
        for node in tape.nodes
        if isinstance(node.rule, Convolution)
    ]


@pytest.mark.parametrize(
    ("build", "function"),
    [
        *((build, fastgan.gradient_penalty) for build in CRITICS if build is not spectral),
        # It also joins the batches of most; here without, and with.
        *((build, fastgan.wgan_gp_critic_loss) for build in (spectral, plain)),
    ],
    ids=lambda function: function.__name__,
)
def test_value_and_gradients_are_as_exact_as_autograds(
    build: Callable[[], nn.Module], function: Callable[..., Any], device: torch.device
) -> None:
    def run(critic: nn.Module, seed: int, path: str) -> list[Tensor]:
        return results(function, critic, seed, path, torch.float32)

    compare(build, function, device, run, torch.finfo(torch.float32).eps)


def test_which_neighbours_go_together(device: torch.device) -> None:
    assert neighbours(make(plain, device), device) == [
        ("0", "leaky_relu", None),
        ("2", "relu", "leaky_relu"),
        ("4", "leaky_relu", "relu"),
    ]
    # One (0) has a norm behind it, and one (5) is of groups, which the kernels leave out.
    assert neighbours(make(mixed, device), device) == [
        ("0", None, None),
        ("4", None, "leaky_relu"),
        ("5", None, None),
        ("7", None, "relu"),
    ]
    # What goes two ways stays apart: "first", and what the second "twice" takes.
    assert neighbours(make(Residual, device), device) == [
        ("first", None, None),
        ("twice", None, "relu"),
        ("inner", "leaky_relu", None),
        ("twice", None, None),
        ("twice", "leaky_relu", None),
        ("inner", "relu", "leaky_relu"),
    ]
    # So does what is a score.
    assert neighbours(make(Maps, device), device) == [
        ("first", None, None),
        ("second", "leaky_relu", None),
    ]
    assert neighbours(make(NegativeSlope, device), device) == [
        ("first", None, None),
        ("second", "relu", None),
    ]


def test_a_mask_of_another_dtype_stays_apart(device: torch.device) -> None:
    """Autocast's cast lies between an activation in float32 (1 to 3) and its convolution (4)."""
    with torch.autocast(device.type, dtype=HALF):
        assert neighbours(make(mixed, device), device) == [
            ("0", None, None),
            ("4", None, None),
            ("5", None, None),
            ("7", None, "relu"),
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
def test_no_pass_of_its_own_convolves_or_masks(
    function: Callable[..., Any], device: torch.device
) -> None:
    critic = make(plain, device)
    real, fake, eps = images(device)
    function(critic, real, fake, eps=eps)  # finds out that batches can be joined
    with Recorded() as recorded:
        found = function(critic, real, fake, eps=eps)
        getattr(found, "loss", found).backward()
    words = ("convolution", "relu", "threshold")
    names = [name.partition(".")[0] for name, _ in recorded.found]
    ran = [name for name in names if any(word in name for word in words)]
    # The forward pass activates for itself: it runs eagerly, layer by layer, while it is recorded.
    forward = ["aten::leaky_relu_", "aten::relu", "aten::leaky_relu"]
    # The last activation masks its own gradients, which come of no convolution.
    assert ran == [*forward, "aten::leaky_relu_backward"]
    # Output gradients of fakes and reals are of one tensor with those of the points.
    assert ("aten::cat", 4) not in recorded.found


@EACH_FUNCTION
def test_a_second_backward_pass_is_the_first(
    function: Callable[..., Any], device: torch.device
) -> None:
    critic = make(plain, device)
    real, fake, eps = images(device)
    found = function(critic, real, fake, eps=eps)
    loss = getattr(found, "loss", found)
    first, second = (
        torch.autograd.grad(
            loss, list(critic.parameters()), retain_graph=True, materialize_grads=True
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@EACH_FUNCTION
def test_two_runs_are_the_same_to_the_bit(
    function: Callable[..., Any], device: torch.device
) -> None:
    critic = make(plain, device)
    first, second = (results(function, critic, 0, "fused", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("build", "function"),
    [(plain, fastgan.wgan_gp_critic_loss), (mixed, fastgan.gradient_penalty)],
    ids=lambda function: function.__name__,
)
def test_autocast_is_as_exact_as_autograds(
    build: Callable[[], nn.Module], function: Callable[..., Any], device: torch.device
) -> None:
    """With an activation in float32, before a convolution that isn't."""

    def run(critic: nn.Module, seed: int, path: str) -> list[Tensor]:
        with torch.autocast(device.type, dtype=HALF):
            return results(function, critic, seed, path, torch.float32)

    compare(build, function, device, run, torch.finfo(HALF).eps)


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
    ops = [row for row in report.rows if row.reason.startswith("penalty: ")]
    assert [(row.layer, row.path) for row in ops] == [
        *((str(index), "triton") for index in range(5)),
        ("5", "aten"),  # its gradients come of no convolution
        ("6", "aten"),  # its input is channels-last: a copy,
        ("6", "aten"),  # and a view
        ("7", "aten"),
    ]
    assert ops[2].reason == (
        "penalty: linear; on storing, masks tangents by relu of '3' and gradients by leaky_relu of "
        "'1'"
    )
    assert ops[3].reason == (
        "penalty: piecewise linear, its mask; applied to tangents by convolution of '2', to "
        "gradients by convolution of '4'"
    )
    # Float64 is not theirs.
    double = fastgan.explain(critic.double(), images(device)[0].double())
    assert {row.path for row in double.rows[:2]} == {"aten"}
