"""conv_transpose2d_bn_act and conv2d_bn_act against the reference's, of torch's functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan.functional as ours
import fastgan.reference.functional as reference
from fastgan.activations import ACTIVATIONS

FUNCTIONS = ("conv2d_bn_act", "conv_transpose2d_bn_act")


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes and settings that both functions take."""
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    stride, dilation = draw(pair), draw(pair)
    groups = draw(st.sampled_from([1, 1, 1, 2]))
    return {
        "function": draw(st.sampled_from(FUNCTIONS)),
        "batch": draw(st.integers(1, 3)),
        "channels": groups * draw(st.integers(1, 3)),
        "channels_out": groups * draw(st.integers(1, 4)),
        "size": draw(st.tuples(st.integers(1, 7), st.integers(1, 7))),
        "kernel": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "settings": {
            "stride": draw(st.sampled_from([stride, stride[0]])),
            "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
            "dilation": dilation,
            "groups": groups,
        },
        "output_padding": draw(st.integers(0, 1)),
        "bias": draw(st.booleans()),
        "affine": draw(st.booleans()),
        "running": draw(st.booleans()),
        "training": draw(st.booleans()),
        "activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "channels_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def arguments(
    case: dict[str, Any], dtype: torch.dtype, drawn: torch.dtype | None = None
) -> tuple[list[Tensor | None], dict[str, Any]]:
    """input, weight, bias, bn_weight, bn_bias as leaves; and the keywords.

    Numbers are drawn in `drawn`, `dtype` if None, so that two precisions can have the same.
    """
    torch.manual_seed(case["seed"])
    settings_ = dict(case["settings"])
    groups, wide = settings_["groups"], case["channels_out"]
    if case["function"] == "conv2d_bn_act":
        shape = (wide, case["channels"] // groups, *case["kernel"])
    else:
        shape = (case["channels"], wide // groups, *case["kernel"])
        settings_["output_padding"] = case["output_padding"]
    drawn = drawn or dtype

    def numbers(*size: int) -> Tensor:
        return torch.randn(size, dtype=drawn).to(dtype)

    x, weight = numbers(case["batch"], case["channels"], *case["size"]), numbers(*shape)
    if case["channels_last"]:
        x = x.contiguous(memory_format=torch.channels_last)
        weight = weight.contiguous(memory_format=torch.channels_last)
    tensors = [
        x,
        weight,
        numbers(wide) if case["bias"] else None,
        numbers(wide) if case["affine"] else None,
        numbers(wide) if case["affine"] else None,
    ]
    keywords = {
        **settings_,
        "training": case["training"],
        "activation": case["activation"],
        "running_mean": numbers(wide) if case["running"] else None,
        "running_var": numbers(wide).square() + 0.5 if case["running"] else None,
    }
    return [t if t is None else t.requires_grad_() for t in tensors], keywords


def call(
    module: Any, case: dict[str, Any], tensors: list[Tensor | None], **keywords: Any
) -> Tensor:
    x, weight, bias, bn_weight, bn_bias = tensors
    function = getattr(module, case["function"])
    output: Tensor = function(x, weight, bias, bn_weight=bn_weight, bn_bias=bn_bias, **keywords)
    return output


def run(
    module: Any, case: dict[str, Any], dtype: torch.dtype, drawn: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Output, gradients of first and second order, running statistics."""
    tensors, keywords = arguments(case, dtype, drawn)
    leaves = [t for t in tensors if t is not None]
    output = call(module, case, tensors, **keywords)
    weights = torch.randn(output.shape, dtype=drawn or dtype).to(dtype)
    grads = torch.autograd.grad(output, leaves, weights, create_graph=True)
    twice = torch.autograd.grad(
        sum(grad.square().sum() for grad in grads), leaves, materialize_grads=True
    )
    found = {"output": output.detach()}
    found |= {f"grad {i}": grad.detach() for i, grad in enumerate(grads)}
    found |= {f"second {i}": grad for i, grad in enumerate(twice)}
    for name in ("running_mean", "running_var"):
        if keywords[name] is not None:
            found[name] = keywords[name]
    return found


def is_possible(case: dict[str, Any]) -> bool:
    try:
        run(reference, case, torch.float64)
    except (RuntimeError, ValueError):
        return False
    return True


@given(cases())
@settings(max_examples=80, deadline=None)
def test_values_and_gradients_of_both_orders_in_float64(case: dict[str, Any]) -> None:
    assume(is_possible(case))
    expected, found = run(reference, case, torch.float64), run(ours, case, torch.float64)
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        scale = float(exact.abs().max()) if exact.numel() else 0.0
        torch.testing.assert_close(
            found[name],
            exact,
            rtol=1e-7,
            atol=1e-7 * max(scale, 1),
            msg=lambda m, n=name: f"{n}: {m}",
        )


@given(cases())
@settings(max_examples=40, deadline=None)
def test_what_the_reference_refuses_is_refused(case: dict[str, Any]) -> None:
    assume(not is_possible(case))
    tensors, keywords = arguments(case, torch.float64)
    with pytest.raises((RuntimeError, ValueError)):
        call(ours, case, tensors, **keywords)


def test_an_output_padding_beyond_stride_and_dilation_is_refused_as_by_torch() -> None:
    x, weight, vector = torch.randn(2, 3, 4, 4), torch.randn(3, 2, 2, 2), torch.ones(2)
    with pytest.raises(RuntimeError, match="output padding must be smaller than"):
        ours.conv_transpose2d_bn_act(
            x,
            weight,
            bn_weight=vector,
            bn_bias=vector,
            running_mean=vector.clone(),
            running_var=vector.clone(),
            training=True,
            output_padding=1,
        )


# Activations don't depend on the convolution; random cases above have them with both.
@pytest.mark.parametrize(
    ("function", "activation"),
    [
        *(("conv2d_bn_act", activation) for activation in ACTIVATIONS),
        *(("conv_transpose2d_bn_act", activation) for activation in ("leaky_relu", "silu")),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_and_gradgradcheck(function: str, activation: str, training: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    rest = [torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    running = torch.randn(2, dtype=torch.float64), torch.rand(2, dtype=torch.float64) + 0.5

    def compute(*tensors: Tensor) -> Tensor:
        x, weight, bias, bn_weight, bn_bias = tensors
        output: Tensor = getattr(ours, function)(
            x,
            weight,
            bias,
            bn_weight=bn_weight,
            bn_bias=bn_bias,
            training=training,
            running_mean=running[0].clone(),
            running_var=running[1].clone(),
            stride=2,
            padding=1,
            activation=activation,
        )
        return output

    assert torch.autograd.gradcheck(compute, (x, weight, *rest))
    assert torch.autograd.gradgradcheck(compute, (x, weight, *rest))


def in_elementary_functions(function: str, x: Tensor, weight: Tensor) -> Tensor:
    """Without torch's batch norm, whose third derivative is wrong (torch 2.13)."""
    convolve = F.conv2d if function == "conv2d_bn_act" else F.conv_transpose2d
    y = convolve(x, weight)
    centred = y - y.mean((0, 2, 3), keepdim=True)
    return (centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()).tanh()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_third_derivative(function: str) -> None:
    def fused(function: str, x: Tensor, weight: Tensor) -> Tensor:
        output: Tensor = getattr(ours, function)(
            x,
            weight,
            bn_weight=None,
            bn_bias=None,
            running_mean=None,
            running_var=None,
            training=True,
            activation="tanh",
        )
        return output

    values = []
    for compute in (fused, in_elementary_functions):
        torch.manual_seed(2)
        x = torch.randn(2, 2, 4, 4, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
        output = compute(function, x, weight)
        derivative = (output * torch.randn_like(output)).sum()
        for _ in range(3):
            grads = torch.autograd.grad(derivative, (x, weight), create_graph=True)
            derivative = sum((grad * torch.randn_like(grad)).sum() for grad in grads)
        values.append(derivative.detach())
    assert abs(values[1]) > 1e-3
    torch.testing.assert_close(*values, rtol=1e-8, atol=0)


def drawn_case(seed: int) -> dict[str, Any]:
    """A case as :func:`cases` has them, by torch's generator, in training or evaluation."""
    generator = torch.Generator().manual_seed(seed)

    def among(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    return {
        "function": FUNCTIONS[among(0, 1)],
        "batch": among(4, 6),
        "channels": among(1, 5),
        "channels_out": among(1, 5),
        "size": (among(6, 9), among(6, 9)),  # so that a norm has values enough
        "kernel": (among(1, 3), among(1, 3)),
        "settings": {
            "stride": (among(1, 2), among(1, 2)),
            "padding": (0, 0),
            "dilation": (1, 1),
            "groups": 1,
        },
        "output_padding": 0,
        "bias": False,  # before a norm its gradient is zero but for rounding
        "affine": bool(among(0, 1)),
        "running": True,
        "training": bool(among(0, 2)),
        "activation": ("none", "tanh", "sigmoid")[among(0, 2)],  # no kink to fall on either side of
        "channels_last": bool(among(0, 1)),
        "seed": seed,
    }


def test_float32_errors_are_at_most_twice_those_of_eager_in_both_orders() -> None:
    """Against float64 on the same numbers: the middle and the ninth decile over many shapes."""
    errors: dict[str, list[list[float]]] = {}
    for seed in range(160):
        case = drawn_case(seed)
        exact = run(reference, case, torch.float64, torch.float32)
        found = [run(module, case, torch.float32) for module in (ours, reference)]
        mode = "training" if case["training"] else "evaluation"
        for name, truth in exact.items():
            scale = float(truth.abs().max().clamp_min(1e-6))
            of_both = [float((each[name].double() - truth).abs().max()) / scale for each in found]
            errors.setdefault(f"{name}, {mode}", []).append(of_both)
    assert {"output, training", "grad 3, evaluation", "second 2, training"} <= errors.keys()
    for name, of_cases in errors.items():
        own, eager = torch.tensor(of_cases).sort(0).values.unbind(1)
        for share in (0.5, 0.9):
            place = int(share * len(of_cases))
            # Or of two roundings: torch's error depends on its processor's kernels.
            roundoff = torch.finfo(torch.float32).eps
            assert own[place] <= 2 * (eager[place] + roundoff), f"{name}, {share}"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_compiled_in_one_graph(function: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(4, 4, 3, 3)

    def compute(module: Any, x: Tensor, mean: Tensor, var: Tensor, training: bool) -> Tensor:
        output: Tensor = getattr(module, function)(
            x,
            weight,
            bn_weight=None,
            bn_bias=None,
            running_mean=mean,
            running_var=var,
            training=training,
            stride=2,
            padding=1,
        )
        return output

    compiled = torch.compile(compute, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        results = []
        for run_, module in ((compiled, ours), (compute, reference)):
            leaf = x.clone().requires_grad_()
            mean, var = torch.zeros(4), torch.ones(4)
            output = run_(module, leaf, mean, var, training)
            output.square().sum().backward()
            results.append([output.detach(), leaf.grad, mean, var])
        for mine, expected in zip(*results, strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_padding_by_name(padding: str, kernel: int) -> None:
    x, weight = torch.randn(2, 3, 6, 6).double(), torch.randn(4, 3, kernel, kernel).double()
    keywords: dict[str, Any] = {
        "bn_weight": None,
        "bn_bias": None,
        "running_mean": None,
        "running_var": None,
        "training": True,
        "padding": padding,
    }
    torch.testing.assert_close(
        ours.conv2d_bn_act(x, weight, **keywords), reference.conv2d_bn_act(x, weight, **keywords)
    )
    with pytest.raises(RuntimeError):
        ours.conv2d_bn_act(x, weight, **keywords | {"padding": "full"})


def test_a_negative_slope_below_zero_and_an_unknown_activation() -> None:
    x, weight = torch.randn(2, 3, 6, 6).double(), torch.randn(4, 3, 3, 3).double()
    for training in (True, False):
        results = []
        for module in (ours, reference):
            leaf = x.clone().requires_grad_()
            out = module.conv2d_bn_act(
                leaf,
                weight,
                bn_weight=None,
                bn_bias=None,
                running_mean=torch.zeros(4).double(),
                running_var=torch.ones(4).double(),
                training=training,
                activation="leaky_relu",
                negative_slope=-0.5,
            )
            out.square().sum().backward()
            results.append((out.detach(), leaf.grad))
        torch.testing.assert_close(*results)
    with pytest.raises(ValueError, match="activation is 'selu'; expected one of none, relu"):
        ours.conv2d_bn_act(
            x,
            weight,
            bn_weight=None,
            bn_bias=None,
            running_mean=None,
            running_var=None,
            training=True,
            activation="selu",
        )
