"""Kernels whose operands the tensor memory accelerator copies, against float64."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_convolutions import SLOPE, Case, draw
from torch import nn

from fastgan import fuse
from fastgan.kernels import (
    ConvGeometry,
    forward,
    input_gradient,
    no_descriptors_reason,
    weight_gradient,
)
from fastgan.kernels.fusion import ActivationGradient, BiasActivation, Statistics
from fastgan.ops.backends import Selector, selection, using
from fastgan.ops.backends.measurement import Times

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability()[0] not in (9, 10),
    reason="the GPU has no tensor memory accelerator",
)

#: Both directions; maps that boxes cover in part, odd ones, taps apart, strides that leave pixels.
CASES = [
    Case(ConvGeometry((4, 4), (2, 2), (1, 1)), 3, (64, 32), (8, 8)),
    Case(ConvGeometry((3, 3), (1, 1), (1, 1)), 2, (64, 32), (5, 7)),
    Case(ConvGeometry((3, 5), (1, 2), (2, 2), (2, 1)), 2, (32, 32), (5, 6)),
    Case(ConvGeometry((3, 3), (4, 4), (1, 1)), 1, (96, 32), (16, 8)),
    Case(ConvGeometry((1, 1)), 70, (32, 32), (1, 1)),
    Case(ConvGeometry((4, 4), (2, 2), (1, 1), transposed=True), 2, (32, 32), (4, 3)),
    Case(ConvGeometry((4, 4), transposed=True), 3, (32, 32), (1, 1)),
    Case(ConvGeometry((3, 3), (2, 2), (1, 1), (1, 1), (1, 1), True), 2, (32, 160), (3, 3)),
]


def name_of(case: Case) -> str:
    geometry = case.geometry
    return f"{'transposed' if geometry.transposed else 'conv'}-{geometry.kernel_size}"


def assert_near(found, exact, like):
    """Within the rounding of ``like``'s dtype, products summed in float32."""
    scale = exact.abs().max().item() + 1e-6
    assert (found.double() - exact).abs().max().item() <= 2 * torch.finfo(like).eps * scale


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_every_pass_is_exact_to_rounding(case, device):
    dtype = torch.float16
    geometry = case.geometry
    input = draw(case.input_shape, dtype, device, 0)
    weight = draw(case.weight_shape, dtype, device, 1)
    grad = draw(case.output_shape, dtype, device, 2)
    bias = draw((case.channels[1],), torch.float32, device, 3)
    for which in ("forward", "input_gradient", "weight_gradient"):
        assert not no_descriptors_reason(
            which, geometry, dtype, weight.shape, input_size=case.size, device=device
        )
    exact = case.convolve(input.double(), weight.double()) + bias.double()[:, None, None]
    given = {"descriptors": True}
    output, partials = forward(input, weight, geometry, epilogue=Statistics(bias), **given)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert_near(output, exact, dtype)
    count, mean, m2 = (each.double() for each in (partials.count, partials.mean, partials.m2))
    assert count.sum() == output.numel() // output.shape[1]
    whole = (count[:, None] * mean).sum(0) / count.sum()
    stored = output.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(whole, stored.mean(1), rtol=1e-5, atol=1e-5)
    whole = (m2 + count[:, None] * (mean - whole).square()).sum(0)
    torch.testing.assert_close(
        whole, stored.var(1, correction=0) * stored.shape[1], rtol=1e-4, atol=1e-4
    )

    epilogue = BiasActivation(bias, "leaky_relu", SLOPE)
    output, _ = forward(input, weight, geometry, epilogue=epilogue, **given)
    assert_near(output, F.leaky_relu(exact, SLOPE), dtype)

    exact_input, exact_weight = case.gradients(input.double(), weight.double(), grad.double())
    kept = draw(case.input_shape, dtype, device, 4)
    gradient, _ = input_gradient(
        grad,
        weight,
        geometry,
        case.size,
        epilogue=ActivationGradient(kept, "leaky_relu", SLOPE),
        **given,
    )
    assert_near(gradient, torch.where(kept > 0, exact_input, SLOPE * exact_input), dtype)
    gradient, of_bias = weight_gradient(
        input, grad, geometry, weight, with_bias=True, dtype=torch.float32, **given
    )
    assert gradient.stride() == weight.stride()
    torch.testing.assert_close(gradient.double(), exact_weight, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(of_bias.double(), grad.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-4)


def test_operands_of_any_layout(device):
    """Contiguous, not aligned to 16 bytes, expanded; and none at all."""
    case = CASES[0]
    dtype = torch.float16
    weight = draw(case.weight_shape, dtype, device, 1, channels_last=False)
    flat = draw((torch.Size(case.input_shape).numel() + 1,), dtype, device, 0)
    shifted = flat[1:].view(case.input_shape)
    for input in (shifted, shifted[:1].expand(3, -1, -1, -1), shifted[:0]):
        output, _ = forward(input, weight, case.geometry, descriptors=True)
        if input.numel():
            assert_near(output, case.convolve(input.double(), weight.double()), dtype)
        gradient, _ = weight_gradient(
            input, torch.ones_like(output), case.geometry, weight, descriptors=True
        )
        assert input.numel() or not gradient.any()


@pytest.mark.parametrize(
    ("which", "change", "reason"),
    [
        ("forward", {"stride": (3, 3)}, "stride (3, 3)"),
        ("forward", {"stride": (2, 2)}, "5x7 pixels with stride (2, 2)"),
        ("input_gradient", {"stride": (3, 3)}, None),
        ("weight_gradient", {"stride": (1, 1)}, None),
    ],
)
def test_what_descriptors_cannot_describe(which, change, reason):
    geometry = replace(ConvGeometry((3, 3)), **change)
    half = torch.float16
    assert no_descriptors_reason(which, geometry, half, (64, 32, 3, 3), input_size=(5, 7)) == reason
    assert no_descriptors_reason(which, geometry, torch.float32, (64, 32, 3, 3)) == "float32"
    few = no_descriptors_reason(which, replace(geometry, stride=(1, 1)), half, (4, 3, 3, 3))
    assert "not a multiple of" in few


def test_a_fused_module_runs_by_descriptors_where_they_are_fastest(device, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTGAN_CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    low = nn.Sequential(
        nn.Conv2d(32, 32, 4, 2, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(32, 64, 4, 2, 1),
    ).to(device, torch.float16)
    exact = copy.deepcopy(low).double()
    input = torch.randn(2, 32, 8, 8, device=device, dtype=torch.float16)
    used = set()

    def chosen(problem, backends, **options):
        names = [backend.name for backend in backends]
        name = "triton_tma" if "triton_tma" in names else names[0]
        used.add((problem.which, name))
        return Times({each: 1.0 if each == name else 2.0 for each in names})

    def results(network, input):
        output = network(input.requires_grad_())
        gradients = torch.autograd.grad(output.square().sum(), [input, *network.parameters()])
        return [output, *gradients]

    monkeypatch.setattr(selection, "measure", chosen)
    with using(Selector("exhaustive")):
        found = results(fuse(low), input.clone())
    for ours, truth in zip(found, results(exact, input.double()), strict=True):
        scale = truth.abs().max().item()
        torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2e-2 * scale + 1e-3)
    assert {which for which, name in used if name == "triton_tma"} == {
        "forward",
        "input_gradient",
        "weight_gradient",
    }
