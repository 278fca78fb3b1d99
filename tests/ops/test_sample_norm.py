"""Norms with per-sample statistics, scale and shift, against torch's functions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.ops.norm_choice import contenders
from fastgan.ops.sample_norm import sample_norm_act

SHAPE = (3, 4, 5, 6)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


LAYOUTS = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("over", ["batch", "sample", "group", "running"])
@LAYOUTS
def test_values_and_gradients_to_second_order(
    layout: torch.memory_format, over: str, activation: str, device: torch.device
) -> None:
    if device.type != "cpu" and layout is torch.channels_last:
        pytest.skip("contiguous maps alone")
    torch.manual_seed(0)
    x, weight, bias = drawn(*SHAPE), drawn(4), drawn(4)
    x = x.detach().contiguous(memory_format=layout).requires_grad_()
    gain, shift = drawn(3, 4, 1, 1), drawn(3, 4, 1, 1)
    for affine, scales, shifts in itertools.product((False, True), repeat=3):
        given = {
            "weight": weight if affine else None,
            "bias": bias if affine else None,
            "gain": gain if scales else None,
            "shift": shift if shifts else None,
        }
        leaves = [x, *(each for each in given.values() if each is not None)]
        running = [torch.linspace(-1, 1, 4).double(), torch.linspace(0.5, 2, 4).double()]
        results = []
        for fused in (False, True):
            mean, variance = (each.clone().to(device) for each in running)
            of = {k: None if each is None else each.to(device) for k, each in given.items()}
            if fused:
                own = (mean, variance) if over in ("batch", "running") else (None, None)
                output = sample_norm_act(
                    x.to(device),
                    over=over,
                    groups=2,
                    running_mean=own[0],
                    running_var=own[1],
                    activation=activation,
                    negative_slope=0.2,
                    **of,
                )
            elif over == "group":
                output = F.group_norm(x.to(device), 2, of["weight"], of["bias"])
            elif over == "sample":
                output = F.instance_norm(x.to(device), weight=of["weight"], bias=of["bias"])
            else:
                output = F.batch_norm(
                    x.to(device), mean, variance, of["weight"], of["bias"], over == "batch"
                )
            if not fused:
                output = output * of["gain"] if scales else output
                output = output + of["shift"] if shifts else output
                output = ACTIVATIONS[activation].forward(output, 0.2)
            weights = torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=device).view(SHAPE)
            once = torch.autograd.grad(output, leaves, weights, retain_graph=True)
            recorded = torch.autograd.grad(output, leaves, weights, create_graph=True)
            if fused:
                assert {each.stride() for each in (output, once[0], recorded[0])} == {x.stride()}
            size = sum((each.square().sum() for each in recorded), torch.zeros(()))
            twice = [None] * len(leaves)
            if size.requires_grad:
                twice = torch.autograd.grad(size, leaves, allow_unused=True)
            zeros = [
                torch.zeros_like(leaf) if each is None else each
                for leaf, each in zip(leaves, twice, strict=True)
            ]
            results.append([output, *once, *recorded, mean, variance, *zeros])
        for theirs, mine in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@LAYOUTS
def test_errors_are_at_most_twice_those_of_torch(
    layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """Against float64, with a mean far above the spread, and sums of more than one tile."""
    torch.manual_seed(0)
    x = (torch.randn(2, 16, 32, 32) + (8 if dtype == torch.bfloat16 else 1000)).to(dtype)
    x = x.contiguous(memory_format=layout)
    gain, shift = torch.randn(2, 2, 16, 1, 1).to(dtype).unbind()
    results = []
    for cast in (torch.float64, dtype):
        leaves = [each.to(cast).requires_grad_() for each in (x, gain, shift)]
        output = F.relu(F.batch_norm(leaves[0], None, None, training=True) * leaves[1] + leaves[2])
        weights = torch.sin(torch.arange(x.numel())).view(x.shape).to(cast)
        results.append([output, *torch.autograd.grad(output, leaves, weights)])
    leaves = [each.clone().requires_grad_() for each in (x, gain, shift)]
    output = sample_norm_act(
        leaves[0], over="batch", gain=leaves[1], shift=leaves[2], activation="relu"
    )
    results.append([output, *torch.autograd.grad(output, leaves, weights)])
    for exact, theirs, mine in zip(*results, strict=True):
        scale = exact.detach().abs().max()
        errors = [
            float((each.detach().double() - exact.detach()).abs().max() / scale)
            for each in (mine, theirs)
        ]
        assert errors[0] <= 2 * errors[1] + torch.finfo(dtype).eps


def test_the_output_may_be_written_over() -> None:
    x = drawn(*SHAPE)
    output = sample_norm_act(x, over="sample", activation="relu")
    (grad,) = torch.autograd.grad(output.mul_(2).square().sum(), x)
    (expected,) = torch.autograd.grad((F.instance_norm(x).relu() * 2).square().sum(), x)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_is_timed_is_the_same(dtype: torch.dtype) -> None:
    for over, own in itertools.product(("batch", "running", "sample", "group"), (False, True)):
        for layout in (torch.contiguous_format, torch.channels_last):
            like = torch.empty(2, 4, 3, 3, dtype=dtype).contiguous(memory_format=layout)
            calls = contenders(over, like, 2, own)
            mine, theirs = (calls[name]() for name in ("one_pass", "aten"))
            bound = 100 * torch.finfo(dtype).eps
            for each, other in zip(mine, theirs, strict=True):
                torch.testing.assert_close(each, other, rtol=bound, atol=10 * bound)


@LAYOUTS
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_bits_do_not_depend_on_the_number_of_threads(
    samples: int, layout: torch.memory_format
) -> None:
    """Samples are shared out, or the tiles within them."""
    torch.manual_seed(0)
    x = torch.randn(samples, 24, 40, 40).contiguous(memory_format=layout).requires_grad_()
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            output = sample_norm_act(x, over="group", groups=4, activation="silu")
            results.append([output, *torch.autograd.grad(output.square().sum(), x)])
    finally:
        torch.set_num_threads(threads)
    for each in results[1:]:
        assert all(map(torch.equal, each, results[0]))


def test_the_ops_refuse_what_does_not_fit() -> None:
    op = torch.ops.fastgan.sample_norm_act
    x, vectors = torch.randn(2, 4, 3, 3), [torch.ones(2, 4) for _ in range(4)]
    for groups in (3, -2):
        with pytest.raises(RuntimeError, match="groups is"):
            op(x, *vectors, groups, 1e-5, 0, 0.0)
    with pytest.raises(RuntimeError, match="input is empty"):
        op(x[:0], *(each[:0] for each in vectors), 4, 1e-5, 0, 0.0)
    with pytest.raises(RuntimeError, match=r"scale has shape \(4,?\)"):
        op(x, torch.ones(4), *vectors[1:], 4, 1e-5, 0, 0.0)
    with pytest.raises(RuntimeError, match="scale has dtype"):
        op(x, vectors[0].double(), *vectors[1:], 4, 1e-5, 0, 0.0)
    with pytest.raises(RuntimeError, match="activation is"):
        op(x, *vectors, 4, 1e-5, 99, 0.0)
