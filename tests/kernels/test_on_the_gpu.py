"""Tests for GPUs: graphs, streams, devices, TF32, and more than 2^31 elements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgan.kernels import ConvGeometry, forward, input_gradient, weight_gradient
from fastgan.kernels.fusion import NormActivation, Statistics

pytestmark = pytest.mark.gpu
GEOMETRY = ConvGeometry((4, 4), (2, 2), (1, 1))


def operands(device, batch=8, dtype=torch.bfloat16):
    generator = torch.Generator(device).manual_seed(0)
    return [
        torch.randn(shape, generator=generator, device=device, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        for shape in ((batch, 64, 32, 32), (128, 64, 4, 4), (batch, 128, 16, 16))
    ]


def all_three(input, weight, grad):
    ones = torch.ones(64, device=input.device)
    norm = NormActivation(0 * ones, ones, None, "relu", 0.0)
    output, statistics = forward(input, weight, GEOMETRY, prologue=norm, epilogue=Statistics())
    grad_input, _ = input_gradient(grad, weight, GEOMETRY, (32, 32))
    grad_weight, grad_bias = weight_gradient(input, grad, GEOMETRY, weight, with_bias=True)
    return output, statistics.mean, statistics.m2, grad_input, grad_weight, grad_bias


def test_a_captured_graph_replays_what_was_launched(cuda):
    tensors = operands(cuda)
    expected = all_three(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = all_three(*tensors)
    for tensor in captured:
        tensor.fill_(float("nan"))
    graph.replay()
    for ours, same in zip(captured, expected, strict=True):
        assert torch.equal(ours, same)


def test_kernels_wait_for_torchs_current_stream(cuda):
    input, weight, grad = operands(cuda)
    expected = all_three(input, weight, grad)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(input)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(input)
        found = all_three(late, weight, grad)
    stream.synchronize()
    for ours, same in zip(found, expected, strict=True):
        assert torch.equal(ours, same)


def test_an_input_that_is_not_aligned_after_one_that_is(cuda):
    input, weight, grad = operands(cuda)
    shifted = torch.empty(input.numel() + 1, dtype=input.dtype, device=cuda)[1:]
    shifted = shifted.as_strided(input.shape, input.stride(), 1).copy_(input)
    assert shifted.data_ptr() % 16
    first = all_three(input, weight, grad)
    for ours, same in zip(all_three(shifted, weight, grad), first, strict=True):
        torch.testing.assert_close(ours, same)


@pytest.mark.parametrize(("allowed", "bound"), [(False, 2e-6), (True, 2e-3)])
def test_float32_is_as_exact_as_torch_allows(cuda, allowed, bound, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    input, weight, _ = operands(cuda, dtype=torch.float32)
    exact = F.conv2d(input.double(), weight.double(), None, 2, 1)
    ours, _ = forward(input, weight, GEOMETRY)
    error = ((ours - exact).norm() / exact.norm()).item()
    assert error < bound
    if allowed:
        assert error > 1e-5, "full float32, though torch allows TF32"


def test_more_than_2_to_the_31_elements(cuda):
    geometry = ConvGeometry((1, 1))
    batch = 2**31 // (64 * 1024) + 2
    input = torch.randn(batch, 16, 32, 32, device=cuda, dtype=torch.bfloat16)
    input = input.to(memory_format=torch.channels_last)
    weight = torch.randn(64, 16, 1, 1, device=cuda, dtype=torch.bfloat16)
    ours, _ = forward(input, weight, geometry)
    assert ours.numel() > 2**31
    last, _ = forward(input[-2:], weight, geometry)
    assert torch.equal(ours[-2:], last)
    grad_input, _ = input_gradient(ours, weight, geometry, (32, 32))
    last, _ = input_gradient(ours[-2:], weight, geometry, (32, 32))
    assert torch.equal(grad_input[-2:], last)
    grad_weight, _ = weight_gradient(input, ours, geometry, weight)
    exact = torch.einsum(
        "nkhw,nchw->ck", input[-4096:].float(), ours[-4096:].float()
    ) + torch.einsum("nkhw,nchw->ck", input[:-4096].float(), ours[:-4096].float())
    torch.testing.assert_close(grad_weight[:, :, 0, 0].float(), exact, rtol=2e-2, atol=2e-2)
