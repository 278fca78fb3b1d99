"""The table of activations: that its rows agree with autograd, with C++ and with Triton."""

from __future__ import annotations

import copy
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgan.activations import ACTIVATIONS, BY_FUNCTION, activation_call
from fastgan.errors import ConfigError
from fastgan.nn import fuse
from fastgan.nn.placement import placements
from fastgan.ops.chain import Chain, run_chain
from fastgan.ops.stages import Stage, StageTensors

ROOT = Path(__file__).parents[1]
HEADERS = ROOT / "csrc" / "math"
#: Slopes of either sign: what a leaky ReLU keeps depends on it.
SLOPES = (0.2, -0.3)


def points() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, generator=generator, dtype=torch.float64) * 3
    return values.requires_grad_()


# The rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_are_those_of_autograd(name: str, slope: float) -> None:
    row, x = ACTIVATIONS[name], points()
    grad = torch.linspace(-2, 2, 50, dtype=torch.float64, requires_grad=True)
    y = row.forward(x, slope)
    (expected,) = torch.autograd.grad(y, x, grad, create_graph=True)
    kept = x if row.keeps_input(slope) else y
    torch.testing.assert_close(row.gradient(grad, kept, slope), expected, rtol=1e-12, atol=1e-12)
    by_input = row.gradient_by_input(grad, x, slope)
    torch.testing.assert_close(by_input, expected, rtol=1e-12, atol=1e-12)
    over = grad.detach().clone()
    assert row.gradient(over, kept.detach(), slope, over) is over
    torch.testing.assert_close(over, expected.detach(), rtol=1e-12, atol=1e-12)
    second = 0 * x
    if expected.requires_grad and name != "none":
        (second,) = torch.autograd.grad(expected.sum(), x)
    formula = row.second_derivative
    found = 0 * x if formula is None else formula(kept, slope) * grad
    torch.testing.assert_close(found, second, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_are_differentiable_twice(name: str) -> None:
    row = ACTIVATIONS[name]
    grad = torch.linspace(-2, 2, 50, dtype=torch.float64, requires_grad=True)

    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return row.gradient_by_input(grad, x, 0.2)

    assert torch.autograd.gradcheck(gradient, (grad, points()))
    assert torch.autograd.gradgradcheck(gradient, (grad, points()))


@pytest.mark.parametrize("slope", SLOPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_input_is_written_over_unless_its_derivative_needs_it(name: str, slope: float) -> None:
    row, x = ACTIVATIONS[name], points()
    expected = row.forward(x, slope)
    with torch.no_grad():
        input = x.detach().clone()
        assert row.overwrite(input, slope).data_ptr() == input.data_ptr()
        torch.testing.assert_close(input, expected)
    input = x.clone()
    output = row.overwrite(input, slope)
    assert (output is input) == (name == "none" or not row.keeps_input(slope))
    for result in (output, expected):
        result.sum().backward()
    torch.testing.assert_close(output, expected)
    assert x.grad is not None
    (once,) = torch.autograd.grad(row.forward(x, slope).sum(), x)
    torch.testing.assert_close(x.grad, 2 * once)


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "expected"),
    [
        (F.relu, (), {"inplace": True}, ("relu", 0.0, True)),
        (Tensor.relu_, (), {}, ("relu", 0.0, False)),
        (F.leaky_relu, (), {}, ("leaky_relu", 0.01, False)),
        (F.leaky_relu, (-0.4,), {}, ("leaky_relu", -0.4, False)),
        (F.silu, (True,), {}, ("silu", 0.0, True)),
        (F.gelu, (), {}, ("gelu", 0.0, False)),
        (F.gelu, (), {"approximate": "tanh"}, ("gelu_tanh", 0.0, False)),
        (F.gelu, (), {"approximate": "erf"}, None),
        (F.softplus, (), {}, None),
    ],
)
def test_calls_of_torch_are_understood(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], expected: Any
) -> None:
    call = activation_call(function, (torch.ones(2), *args), kwargs)
    found = None if call is None else (call.activation.name, *call[2:])
    assert found == expected


def test_every_function_of_the_table_computes_its_row() -> None:
    x = points().detach()
    for function, rows in BY_FUNCTION.items():
        torch.testing.assert_close(function(x.clone()), rows[0].forward(x, 0.01))


# C++ and Triton ----------------------------------------------------------------------------------


def test_the_three_tables_have_the_same_rows() -> None:
    functions = pytest.importorskip("fastgan.kernels.activations").FUNCTIONS
    assert list(functions) == list(ACTIVATIONS)
    header = (HEADERS / "activation.h").read_text()
    rows = re.findall(r"#define FASTGAN_(?:PIECEWISE_LINEAR|SMOOTH)\(X\)(.*)", header)
    in_order = re.findall(r"X\((\w+)\)", "".join(rows))
    assert in_order == list(ACTIVATIONS)
    assert [row.code for row in ACTIVATIONS.values()] == list(range(len(in_order)))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(
    ("call", "compiles"),
    [
        ("activate<Activation::gelu>(1.0f, 0.0f)", True),
        ("activate<static_cast<Activation>(99)>(1.0f, 0.0f)", False),
        ("gradient_by_input<static_cast<Activation>(99)>(1.0f, 1.0f, 0.0f)", False),
        ("activation_gradient<static_cast<Activation>(99)>(1.0f, 1.0f, 0.0f)", False),
    ],
)
def test_an_activation_without_formulas_does_not_compile(
    call: str, compiles: bool, tmp_path: Path
) -> None:
    source = tmp_path / "program.cpp"
    source.write_text(f'#include "activation.h"\nusing namespace fastgan;\nfloat y = {call};\n')
    command = ["g++", "-std=c++20", "-fsyntax-only", f"-I{HEADERS}", str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == compiles, result.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_an_unknown_number_ends_a_cpp_program(tmp_path: Path) -> None:
    (tmp_path / "program.cpp").write_text(
        '#include "activation.h"\n'
        "int main(int count, char**) {\n"
        "    const auto number = static_cast<fastgan::Activation>(count > 1 ? 99 : 1);\n"
        "    fastgan::with_activation(number, [](auto) {});\n"
        "}\n"
    )
    program = str(tmp_path / "program")
    command = ["g++", "-std=c++20", f"-I{HEADERS}", str(tmp_path / "program.cpp"), "-o", program]
    subprocess.run(command, check=True, capture_output=True)
    assert subprocess.run([program], check=False).returncode == 0
    assert subprocess.run([program, "unknown"], check=False).returncode == -signal.SIGABRT


def test_an_unknown_activation_raises_in_a_chain() -> None:
    stage = Stage("linear", activation="swish")
    for norm in (False, True):
        chain = Chain((Stage("linear", norm=norm, activation="swish"),))
        with pytest.raises(ConfigError, match="activation is 'swish'; expected one of none"):
            run_chain(chain, torch.ones(3, 2), [StageTensors(torch.ones(4, 2))])
    assert stage.activation not in ACTIVATIONS


# Fused layers ------------------------------------------------------------------------------------


SMOOTH = {
    "silu": nn.SiLU,
    "silu in place": lambda: nn.SiLU(inplace=True),
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "negative slope": lambda: nn.LeakyReLU(-0.3, inplace=False),
}


def network(activation: str) -> nn.Sequential:
    """With and without a norm before the activation, as the first, an inner and the last layer."""
    make = SMOOTH[activation]
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        make(),
        nn.Conv2d(5, 4, 4, 2, 1, bias=False),
        nn.BatchNorm2d(4),
        make(),
        nn.ConvTranspose2d(4, 6, 4, 2, 1),
        make(),
        nn.Conv2d(6, 2, 3),
        make(),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", SMOOTH)
def test_fused_networks_agree_with_torch(activation: str, training: bool) -> None:
    torch.manual_seed(0)
    plain = network(activation).double().train(training)
    fused = fuse(copy.deepcopy(plain))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = []
    for model in (plain, fused):
        input = x.clone().requires_grad_()
        output = model(input)
        leaves = [input, *model.parameters()]
        once = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        twice = torch.autograd.grad(
            sum(grad.square().sum() for grad in once),  # type: ignore[arg-type]
            leaves,
            materialize_grads=True,
        )
        with torch.no_grad():
            again = model(x)
        found.append([output, again, *once, *twice, *model.buffers()])
    for theirs, ours in zip(*found, strict=True):
        size = float(theirs.detach().abs().max()) if theirs.is_floating_point() else 1.0
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10 * size)
    ran = [(row.op, row.path) for row in placements(fused, x.requires_grad_())]
    assert not [row for row in ran if row[1] == "autograd"]


def test_a_layer_keeps_only_the_input_of_its_activation() -> None:
    """One map a layer, where eager keeps SiLU's input and its output."""
    fused = fuse(nn.Sequential(nn.Conv2d(3, 5, 3), nn.SiLU(), nn.Conv2d(5, 2, 3), nn.SiLU()))
    output = fused(torch.randn(2, 3, 8, 8, requires_grad=True))
    node = output.grad_fn
    assert "Chain" in node.name()
    kept = [each.value.shape for each in node.kept if each.value.numel()]
    assert kept == [(2, 5, 6, 6), (2, 2, 4, 4)]
