"""bias_act against its formula in float64: values, gradients of any order, what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.ops.bias_act import ACTIVATIONS, bias_act
from fastgan.reference import style_ops

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: Shape of x, dim: long runs and short ones, blocks that end within a run, one value.
SHAPES = [((2, 3, 20, 33), 1), ((3, 70, 2, 3), 1), ((5, 300), 1), ((7,), 0), ((2, 3, 4, 5), -1)]


def drawn(shape: tuple[int, ...], dim: int, channels_last: bool = False) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    x = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return x, torch.randn(shape[dim], generator=generator, dtype=torch.float64)


def gradients(function: Any, x: Tensor, b: Tensor, seed: Tensor, **settings: Any) -> list[Tensor]:
    x, b = x.detach().requires_grad_(), b.detach().requires_grad_()
    y = function(x, b, **settings)
    return [y, *torch.autograd.grad(y, (x, b), seed.to(y.dtype))]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, 1.3])
def test_values_and_gradients_are_as_near_as_torchs(act: str, clamp: float | None) -> None:
    for shape, dim in SHAPES:
        for channels_last in {False, len(shape) == 4 and dim == 1}:
            x, b = drawn(shape, dim, channels_last)
            for dtype in DTYPES:
                settings = {"dim": dim, "act": act, "clamp": clamp}
                x, b = x.to(dtype), b.to(dtype)
                own = gradients(bias_act, x, b, x.cos(), **settings)
                wide = (x.double(), b.double(), x.cos().double())
                exact = gradients(style_ops.bias_act, *wide, **settings)
                plain = gradients(style_ops.bias_act, x, b, x.cos(), **settings)
                for found, right, torchs in zip(own, exact, plain, strict=True):
                    assert found.dtype == dtype
                    near = torch.finfo(dtype).eps * right.abs().max()
                    bound = 2 * (torchs - right).abs().max() + near
                    # A value that rounding brought to the clamp, or past it, is another value's.
                    at_clamp = (exact[0].abs() - (clamp or 9e9)).abs() < 0.02
                    if found.shape == x.shape:
                        assert (found - right).abs().masked_fill(at_clamp, 0).max() <= bound
                    elif not at_clamp.any():
                        assert (found - right).abs().max() <= bound
                assert own[0].is_contiguous(
                    memory_format=torch.channels_last if channels_last else torch.contiguous_format
                )


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize(("clamp", "alpha"), [(None, None), (1.0, None), (1.0, -0.3)])
def test_gradients_of_any_order(act: str, clamp: float | None, alpha: float | None) -> None:
    x, b = drawn((2, 2, 2, 3), 1, channels_last=clamp is None)
    x, b = x.requires_grad_(), b.requires_grad_()

    def function(x: Tensor, b: Tensor) -> Tensor:
        return bias_act(x, b, act=act, alpha=alpha, gain=-1.2, clamp=clamp)

    assert torch.autograd.gradcheck(function, (x, b))
    if ACTIVATIONS[act].has_second_gradient:
        assert torch.autograd.gradgradcheck(function, (x, b))

        def gradient(x: Tensor, b: Tensor) -> Tensor:
            y = function(x, b).square().sum()
            return torch.autograd.grad(y, x, create_graph=True)[0]

        assert torch.autograd.gradgradcheck(gradient, (x, b))
        return
    seed = torch.randn_like(x).requires_grad_()
    first = torch.autograd.grad(function(x, b), (x, b), seed, create_graph=True)
    assert torch.autograd.grad(first[0].sum(), (x, b), retain_graph=True, allow_unused=True) == (
        None,
        None,
    )
    of_seed = torch.autograd.grad([each.sum() for each in first], seed, create_graph=True)[0]
    plain = torch.autograd.grad(
        style_ops.bias_act(x, b, act=act, alpha=alpha, gain=-1.2, clamp=clamp), x, 2 + 0 * seed
    )[0]
    torch.testing.assert_close(of_seed, plain)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_special_values_are_torchs(act: str) -> None:
    special = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e30, -1e30, 88.8, -103.5]
    x = torch.tensor(special * 3).requires_grad_()
    for clamp in (None, 3.0):
        own, plain = (
            (y, torch.autograd.grad(y, x, torch.ones_like(y))[0])
            for y in (f(x, act=act, clamp=clamp) for f in (bias_act, style_ops.bias_act))
        )
        torch.testing.assert_close(own[0], plain[0], equal_nan=True)
        finite = x.isfinite()
        torch.testing.assert_close(own[1][finite], plain[1][finite], atol=1e-6, rtol=1e-5)
        if clamp is None and act != "swish":  # torch's silu gives NaN at an infinity
            torch.testing.assert_close(own[1], plain[1], equal_nan=True, atol=1e-6, rtol=1e-5)


def kept_bytes(call: Any) -> int:
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storages.values())


@pytest.mark.parametrize(
    ("act", "clamp", "expected"),
    [("linear", None, 0), ("lrelu", None, 150), ("lrelu", 1.0, 4800), ("tanh", None, 4800)],
)
def test_one_bit_or_the_output_is_kept(act: str, clamp: float | None, expected: int) -> None:
    x, b = torch.randn(2, 3, 10, 20).requires_grad_(), torch.randn(3).requires_grad_()
    assert kept_bytes(lambda: bias_act(x, b, act=act, clamp=clamp)) == expected


def test_two_runs_give_the_same_bits_with_any_number_of_threads() -> None:
    x, b = (each.float() for each in drawn((3, 64, 40, 50), 1))
    threads = torch.get_num_threads()
    runs = []
    for count in (1, 2, 1):
        torch.set_num_threads(count)
        runs.append(gradients(bias_act, x, b, x.cos(), act="lrelu"))
    torch.set_num_threads(threads)
    for others in zip(*runs, strict=True):
        assert all(torch.equal(others[0], other) for other in others[1:])


def test_compiles_as_one_graph() -> None:
    x, b = torch.randn(2, 3, 4, 5).requires_grad_(), torch.randn(3).requires_grad_()

    compiled = torch.compile(
        lambda x, b: bias_act(bias_act(x, b, act="lrelu"), act="swish"),
        fullgraph=True,
        backend="aot_eager",
    )
    y = compiled(x, b)
    eager = bias_act(bias_act(x, b, act="lrelu"), act="swish")
    assert torch.equal(y, eager)
    for found, right in zip(
        torch.autograd.grad(y.sum(), (x, b)), torch.autograd.grad(eager.sum(), (x, b)), strict=True
    ):
        torch.testing.assert_close(found, right)


def test_wrong_arguments_are_named() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ConfigError, match="act is 'mish'; expected one of linear, relu"):
        bias_act(x, act="mish")
    with pytest.raises(ConfigError, match=r"b has shape \(2,\); expected \(3,\)"):
        bias_act(x, torch.ones(2))
    with pytest.raises(ConfigError, match="dim is 2, x has 2 dimensions"):
        bias_act(x, torch.ones(2), dim=2)
    with pytest.raises(RuntimeError, match=r"x has dtype torch.int64; expected float64"):
        bias_act(torch.ones(2, dtype=torch.int64))


def test_empty_and_mixed_dtypes() -> None:
    x = torch.empty(0, 3, 4, 4).requires_grad_()
    b = torch.ones(3).requires_grad_()
    y = bias_act(x, b, act="lrelu")
    assert [each.shape for each in torch.autograd.grad(y.sum(), (x, b))] == [x.shape, b.shape]
    assert bias_act(torch.ones(1, 3, dtype=torch.bfloat16), b).dtype == torch.bfloat16
