"""Regression tests: arguments that crashed the process or gave a wrong gradient."""

from __future__ import annotations

import math
import resource
from pathlib import Path

import pytest
import torch
from forked import Forked
from torch import nn

from fastgan.activations import ACTIVATIONS
from fastgan.nn import fuse
from fastgan.ops import batch_norm
from fastgan.ops.define import DEFINED


@pytest.mark.parametrize("op", ["forward", "project", "curvature"])
def test_norms_of_no_channels_are_refused(op: str) -> None:
    empty, invstd = torch.empty(4, 0, 3), torch.empty(8)
    arguments = {
        "forward": (empty, None, None, 2, 1e-5, empty.clone(), invstd, empty.clone()),
        "project": (empty, empty.clone(), invstd, None, 2, False, empty.clone()),
        "curvature": (empty, empty.clone(), empty.clone(), invstd, None, 2, empty.clone()),
    }[op]
    with pytest.raises(RuntimeError, match="groups is 2; expected a divisor of 0 channels"):
        getattr(torch.ops.fastgan, f"penalty_norm_{op}_")(*arguments)


@pytest.mark.parametrize("name", DEFINED)
def test_none_in_a_tensors_place_is_said_in_words(name: str) -> None:
    op = DEFINED[name]
    arguments = next(iter(op.examples()))
    for place, expected in enumerate(op.overload._schema.arguments):
        if isinstance(expected.type, torch.TensorType):
            with pytest.raises(RuntimeError, match=r"was given None where|\(0\)"):
                op.overload(*arguments[:place], None, *arguments[place + 1 :])


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 1e30])
def test_an_infinity_in_evaluation_leaves_the_gradients_of_others_alone(value: float) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3, 1, 1), nn.BatchNorm2d(2), nn.Tanh()).eval()
    images = torch.randn(1, 1, 6, 6)
    images[0, 0, 2, 3] = value
    gradients = []
    for net in (plain, fuse(plain)):
        leaf = images.clone().requires_grad_()
        net(leaf).sum().backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    expected, found = gradients
    assert bool(expected.isfinite().all())
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


#: z'(u) at u = infinity and -infinity.
_AT_INFINITIES = {
    "none": (1.0, 1.0),
    "relu": (1.0, 0.0),
    "leaky_relu": (1.0, 0.2),
    "tanh": (0.0, 0.0),
    "sigmoid": (0.0, 0.0),
}


@pytest.mark.parametrize("activation", _AT_INFINITIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("implementation", ["compiled", "plain"])
def test_constant_statistics_leave_infinite_inputs_out_of_gradients(
    activation: str, dtype: torch.dtype, implementation: str
) -> None:
    """grad_input = grad weight invstd z'(u), whatever x: the closed form in float64."""
    x = torch.tensor([0.25, float("inf"), -float("inf"), 0.75]).view(4, 1).to(dtype)
    wide = batch_norm.arithmetic_dtype(dtype)
    weight, bias, mean, invstd = (torch.tensor([v], dtype=wide) for v in (2.0, 0.5, 0.25, 0.5))
    op = {"compiled": torch.ops.fastgan.bn_act_gradient, "plain": batch_norm.bn_act_gradient}
    code = ACTIVATIONS[activation].code
    arguments = (torch.full_like(x, 3.0), x, weight, bias, mean, invstd, False, code, 0.2)
    found = op[implementation](*arguments)[0].double().flatten().tolist()

    def slope(u: float) -> float:
        if activation == "tanh":
            return 1 - math.tanh(u) ** 2
        return math.exp(-u) / (1 + math.exp(-u)) ** 2 if activation == "sigmoid" else 1.0

    above, below = _AT_INFINITIES[activation]
    expected = [3.0 * z for z in (slope(0.5), above, below, slope(1.0))]  # u = x + 0.25
    assert found == pytest.approx(expected, rel=4 * torch.finfo(dtype).eps, abs=0)


def call_without_memory() -> int:
    """Ops that ask torch for more memory than there is; 0 if each says so in words."""
    maps, weight = torch.randn(64, 64, 64, 64), torch.randn(64, 64, 3, 3)
    turned = maps.transpose(2, 3)
    calls = [
        lambda: torch.ops.fastgan.act_gradient(turned, maps, 1, 0.0),
        lambda: torch.ops.fastgan.winograd_gather(maps, weight, None, 1, 1, 1, 64, 64),
        lambda: torch.ops.fastgan.bn_act_gradient(
            maps[:, :, ::2], maps[:, :, ::2], *[None] * 2, *torch.ones(2, 64), True, 1, 0.2
        ),
    ]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**24,) * 2)
    for call in calls:
        with pytest.raises(RuntimeError) as caught, torch.no_grad():
            call()
        print(str(caught.value).splitlines()[0], flush=True)
    return 0


def test_an_op_that_finds_no_memory_says_so_in_words(tmp_path: Path) -> None:
    process = Forked(call_without_memory, folder=tmp_path)
    assert process.ended() == 0, process.errors
    lines = process.printed.splitlines()
    assert len(lines) == 3
    for line in lines:
        assert line.startswith("fastgan: torch can't "), line
        assert "API call failed" not in line
        assert torch.__version__ < "2.13" or "can't allocate memory" in line


def test_statistics_that_would_be_written_in_one_place_are_refused_in_words() -> None:
    images, mean, variance = torch.randn(4, 3, 5, 5), torch.zeros(1).expand(3), torch.ones(3)
    with pytest.raises(RuntimeError, match="running_mean is expanded: more than one"):
        torch.ops.fastgan.batch_norm_statistics(images, None, mean, variance, 0.1, 1e-5)
