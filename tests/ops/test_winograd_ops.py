"""The convolution ops that save products, against torch's in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

import fastgan
from fastgan.ops import winograd
from fastgan.ops.backends import ATEN, Selector, select_backend, using
from fastgan.ops.backends.vector_units import has_vectors
from fastgan.ops.backends.winograd import Winograd
from fastgan.ops.stages import Stage

ops = torch.ops.fastgan
NAMES = ("gather", "scatter", "weight gradient")
Biases = list[Tensor | None]
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


KERNELS = list(winograd.PRODUCTS)


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    taps, stride = draw(st.sampled_from(KERNELS))
    small = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    extra = draw(st.integers(0, stride - 1)), draw(st.integers(0, stride - 1))
    wide = tuple(
        max(stride * (s - 1) + taps - 2 * p + e, 1)
        for s, p, e in zip(small, padding, extra, strict=True)
    )
    small = tuple((w + 2 * p - taps) // stride + 1 for w, p in zip(wide, padding, strict=True))
    return {
        "kernel": (taps, stride),
        "batch": draw(st.integers(0, 3)),
        "small": (32 * draw(st.integers(1, 5)), *small),
        "wide": (32 * draw(st.integers(1, 5)), *wide),
        "padding": padding,
        "bias": draw(st.booleans()),
        "noise": draw(st.sampled_from(["none", "shared", "own"])),
        "mean": draw(st.sampled_from([0.0, 10.0])),
        "seed": draw(st.integers(0, 2**31)),
    }


def drawn(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Biases]:
    """Maps, weight, and a bias for either map, of numbers that `dtype` has."""
    torch.manual_seed(case["seed"])
    taps, _ = case["kernel"]
    small, wide = (
        torch.randn(case["batch"], *case[name]).add_(case.get("mean", 0)).to(dtype)
        for name in ("small", "wide")
    )
    weight = torch.randn(case["small"][0], case["wide"][0], taps, taps).to(dtype)
    biases = [torch.randn(case[name][0]) if case["bias"] else None for name in ("small", "wide")]
    return small, wide, weight, biases


def factors(case: dict[str, Any], input: str, output: str) -> list[Tensor]:
    """Scales and noise of a modulated convolution, none of them negative; or nothing."""
    if case.get("noise", "none") == "none":
        return []
    batch, random = case["batch"], torch.Generator().manual_seed(case["seed"])
    noises = 1 if case["noise"] == "shared" else batch
    shapes = (batch, case[input][0]), (batch, case[output][0]), (noises, 1, *case[output][1:])
    return [torch.rand(shape, generator=random) for shape in shapes]


def modulated(
    convolution: Callable[[Tensor], Tensor], input: Tensor, bias: Tensor | None, given: list[Tensor]
) -> Tensor:
    by = [tensor.to(input.dtype) for tensor in given]
    y = convolution(input * by[0][:, :, None, None] if by else input)
    y = y * by[1][:, :, None, None] + by[2] if by else y
    return y if bias is None else y + bias.to(y.dtype)[:, None, None]


def call(
    case: dict[str, Any], small: Tensor, wide: Tensor, weight: Tensor, biases: Biases
) -> list[Tensor]:
    (taps, stride), padding = case["kernel"], case["padding"]
    to_small = *case["small"][1:], *factors(case, "wide", "small")
    to_wide = *case["wide"][1:], *factors(case, "small", "wide")
    return [
        ops.winograd_gather(wide, weight, biases[0], stride, *padding, *to_small),
        ops.winograd_scatter(small, weight, biases[1], stride, *padding, *to_wide),
        ops.winograd_weight_gradient(small, wide, taps, stride, *padding),
    ]


def by_torch(
    case: dict[str, Any], small: Tensor, wide: Tensor, weight: Tensor, biases: Biases
) -> list[Tensor]:
    given_ = {"stride": case["kernel"][1], "padding": case["padding"]}
    gather = partial(F.conv2d, weight=weight, **given_)
    scatter = partial(conv2d_input, wide.shape, weight, **given_)
    return [
        modulated(gather, wide, biases[0], factors(case, "wide", "small")),
        modulated(scatter, small, biases[1], factors(case, "small", "wide")),
        conv2d_weight(wide, weight.shape, small, **given_),
    ]


@pytest.mark.processors
@pytest.mark.parametrize("dtype", DTYPES)
@given(case=shapes())
@settings(max_examples=60, deadline=None)
def test_values(dtype: torch.dtype, case: dict[str, Any]) -> None:
    small, wide, weight, biases = drawn(case, dtype)
    exact = [t.double() for t in (small, wide, weight)]
    truths = by_torch(case, *exact, biases)
    # Where terms cancel, what is rounded is as large as they are.
    sizes = [None if bias is None else bias.abs() for bias in biases]
    terms = by_torch(case, *(t.abs() for t in exact), sizes)
    for name, found, truth, size in zip(
        NAMES, call(case, small, wide, weight, biases), truths, terms, strict=True
    ):
        assert found.dtype == dtype
        assert found.shape == truth.shape
        if truth.numel() > 0:
            error = (found.double() - truth).abs().max()
            assert float(error) <= DTYPES[dtype] * float(size.max()), name


@pytest.mark.processors
@pytest.mark.skipif(
    not has_vectors(),
    reason="fastgan takes these ops only on AVX2 and AVX-512; torch's sums differ",
)
@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("kernel", KERNELS)
def test_errors_are_at_most_twice_those_of_torch(kernel: tuple[int, int], mean: float) -> None:
    """In float32, against float64: of the layers of a GAN-64, and of the smallest there is.

    Or of two roundings of the values: torch's error depends on its processor's kernels.
    """
    taps, stride = kernel
    for few, many, spatial_size in ((32, 32, 8), (128, 64, 16), (512, 256, 4), (256, 128, 13)):
        wide = stride * (spatial_size - 1) + taps - 2
        case = {
            "kernel": kernel,
            "batch": 2 if few < 128 else 1,
            "small": (few, spatial_size, spatial_size),
            "wide": (many, wide, wide),
            "padding": (1, 1),
            "bias": False,
            "mean": mean,
            "seed": spatial_size,
        }
        tensors = drawn(case, torch.float32)
        truths = by_torch(case, *(t.double() for t in tensors[:3]), tensors[3])
        rows = zip(NAMES, call(case, *tensors), by_torch(case, *tensors), truths, strict=True)
        for name, ours, theirs, truth in rows:
            own, eager = ((t.double() - truth).square().mean().sqrt() for t in (ours, theirs))
            floor = torch.finfo(torch.float32).eps * truth.square().mean().sqrt()
            assert own <= 2 * (eager + floor), (
                f"{name} of {few} and {many}: {own:.2e}, torch's {eager:.2e}"
            )


def values_with_outliers(shape: torch.Size) -> Tensor:
    """One of 64 channels is 500 times as large as the others."""
    values = torch.randn(shape) * 0.02
    values[:, ::64] *= 500
    return values


@pytest.mark.processors
@pytest.mark.skipif(
    not has_vectors(),
    reason="fastgan takes these ops only on AVX2 and AVX-512; torch's sums differ",
)
@pytest.mark.parametrize("values", ["normal", "rectified", "large mean", "zero sum", "outliers"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_errors_in_bfloat16_are_at_most_twice_those_of_torch(
    kernel: tuple[int, int], values: str
) -> None:
    """Against float64, with nothing added: torch rounds its results to bfloat16, as these ops do.

    "zero sum" has weights that cancel a large mean, which leaves rounded terms to differ.
    """
    taps, stride = kernel
    case = fitting(
        kernel,
        small=(96, 9, 7),
        wide=(128, stride * 8 + taps - 2, stride * 6 + taps - 2),
        bias=False,
        mean=10.0 if values in ("large mean", "zero sum") else 0.0,
    )
    small, wide, weight, biases = drawn(case, torch.float32)
    if values == "rectified":
        small, wide = small.relu(), wide.relu()
    elif values == "zero sum":
        weight = weight - weight.mean((1, 2, 3), keepdim=True)
    elif values == "outliers":
        small, wide = values_with_outliers(small.shape), values_with_outliers(wide.shape)
    tensors = [t.bfloat16() for t in (small, wide, weight)]
    truths = by_torch(case, *(t.double() for t in tensors), biases)
    rows = zip(
        NAMES, call(case, *tensors, biases), by_torch(case, *tensors, biases), truths, strict=True
    )
    for name, ours, theirs, truth in rows:
        own, eager = ((t.double() - truth).square().mean().sqrt() for t in (ours, theirs))
        assert own <= 2 * eager, f"{name}: {own:.2e}, torch's {eager:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_are_relative_to_each_image_and_to_each_output_channel(dtype: torch.dtype) -> None:
    """Powers of two, by which either is multiplied, come out as they are."""
    torch.manual_seed(4)
    wide, weight = torch.randn(3, 64, 6, 6).to(dtype), torch.randn(32, 64, 3, 3).to(dtype)
    expected = ops.winograd_gather(wide, weight, None, 1, 1, 1, 6, 6)
    of_images = torch.tensor([2.0**-60, 1.0, 2.0**40]).view(3, 1, 1, 1).to(dtype)
    of_channels = torch.exp2(torch.arange(-16.0, 16.0)).view(32, 1, 1, 1).to(dtype)
    found = ops.winograd_gather(wide * of_images, weight * of_channels, None, 1, 1, 1, 6, 6)
    assert torch.equal(found, expected * of_images * of_channels.view(1, 32, 1, 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_errors_of_a_weight_gradient_do_not_grow_with_the_batch(kernel: tuple[int, int]) -> None:
    """Of 2^17 tiles that are alike, so that where a sum grows, its roundings all go one way.

    The bound is csrc/cpu/winograd_loops.h's, and 8 roundings of transforming what comes and goes.
    """
    taps, stride = kernel
    torch.manual_seed(0)
    of_small, of_wide = (1 + torch.rand(2, 32, 1, 1)).unbind()
    small, wide = (
        t.expand(32, 32, size, size).contiguous(memory_format=torch.channels_last)
        for t, size in ((of_small, 128), (of_wide, 127 * stride + taps))
    )
    found = ops.winograd_weight_gradient(small, wide, taps, stride, 0, 0)
    exact = 32 * 128**2 * of_small.double()[:, None] * of_wide.double()[None]
    error = (found.double() / exact - 1).abs().max()
    assert float(error) <= 104 * 2.0**-24


def fitting(kernel: tuple[int, int], **sizes: Any) -> dict[str, Any]:
    """A case of an odd shape, unless `sizes` say otherwise."""
    taps, stride = kernel
    wide = tuple(stride * (spatial_size - 1) + taps - 2 for spatial_size in (3, 4))
    return {
        "kernel": kernel,
        "batch": 2,
        "small": (32, 3, 4),
        "wide": (64, *wide),
        "padding": (1, 1),
        "bias": True,
        "seed": 3,
    } | sizes


@pytest.mark.skipif(not fastgan.build_info().native, reason="torch's bits depend on the layout")
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_arguments_in_any_layout(dtype: torch.dtype, kernel: tuple[int, int]) -> None:
    taps, stride = kernel
    rows, columns = (stride * (spatial_size - 1) + taps - 2 for spatial_size in (5, 7))
    case = fitting(kernel, small=(32, 5, 7), wide=(64, rows, columns))
    small, wide, weight, biases = drawn(case, dtype)
    expected = call(case, small, wide, weight, biases)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (small, wide, weight)]
    strided = [torch.stack([t, t], -1)[..., 1] for t in (small, wide, weight)]
    turned = weight.transpose(0, 1).contiguous(memory_format=torch.channels_last).transpose(0, 1)
    for other in (last, strided, (small, wide, turned)):
        for found, value in zip(call(case, *other, biases), expected, strict=True):
            assert torch.equal(found, value)
    constant = small[:, :1, :1, :1].expand_as(small)
    found, value = (
        ops.winograd_scatter(t, weight, None, kernel[1], 1, 1, *wide.shape[2:])
        for t in (constant, constant.clone())
    )
    assert torch.equal(found, value)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_bits_in_every_run_and_on_any_number_of_threads(kernel: tuple[int, int]) -> None:
    taps, stride = kernel
    wide = (96, stride * 6 + taps - 2, stride * 5 + taps - 2)
    case = fitting(kernel, batch=5, small=(160, 7, 6), wide=wide)
    tensors = drawn(case, torch.float32)
    threads = torch.get_num_threads()
    runs = []
    try:
        for count in (1, 1, 2, 3):
            torch.set_num_threads(count)
            runs.append(call(case, *tensors))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        for found, value in zip(run, runs[0], strict=True):
            assert torch.equal(found, value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (7, 7), (3, 4)])
def test_what_is_not_finite_reaches_the_places_it_should(
    place: tuple[int, int], value: float, dtype: torch.dtype
) -> None:
    wide, weight = torch.ones(1, 32, 8, 8, dtype=dtype), torch.ones(32, 32, 4, 4, dtype=dtype)
    wide[0, 3, place[0], place[1]] = value
    found = ops.winograd_gather(wide, weight, None, 2, 1, 1, 4, 4)
    expected = F.conv2d(wide, weight, stride=2, padding=1)
    if value != value:
        assert bool((found.isnan() | ~expected.isnan()).all())
    assert bool((~found.isfinite() | expected.isfinite()).all())
    of_weight = ops.winograd_gather(torch.ones_like(wide), weight * value, None, 2, 1, 1, 4, 4)
    assert not of_weight.isfinite().any()


def test_misfits_are_refused() -> None:
    small, wide, weight = torch.ones(2, 32, 4, 4), torch.ones(2, 64, 8, 8), torch.ones(32, 64, 4, 4)
    with pytest.raises(RuntimeError, match=r"do not belong together"):
        ops.winograd_gather(wide, weight, None, 2, 1, 1, 5, 4)
    with pytest.raises(
        RuntimeError, match=r"as many rows of taps as columns, and channels to match"
    ):
        ops.winograd_gather(small, weight, None, 2, 1, 1, 2, 2)
    with pytest.raises(RuntimeError, match=r"expected a multiple of 32"):
        ops.winograd_weight_gradient(small[:, :16], wide, 4, 2, 1, 1)
    with pytest.raises(RuntimeError, match=r"expected float32 or bfloat16"):
        ops.winograd_scatter(small.double(), weight.double(), None, 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"weight has dtype"):
        ops.winograd_scatter(small, weight.bfloat16(), None, 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"bias has shape \(3\); expected \(64\)"):
        ops.winograd_scatter(small, weight, torch.ones(3), 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"4 by 4 taps and stride 3; expected 3 or 4 and 1 or 2"):
        ops.winograd_gather(wide, weight, None, 3, 1, 1, 3, 3)
    with pytest.raises(RuntimeError, match=r"5 by 5 taps and stride 1; expected 3 or 4 and 1 or 2"):
        ops.winograd_weight_gradient(small, wide, 5, 1, 1, 1)
    with pytest.raises(RuntimeError, match=r"no gradient"):
        ops.winograd_scatter(small.requires_grad_(), weight, None, 2, 1, 1, 8, 8)


def test_a_padding_at_which_offsets_would_overflow_is_refused() -> None:
    wide, weight = torch.ones(1, 32, 10, 10), torch.ones(32, 32, 4, 4)
    with pytest.raises(RuntimeError, match=r"do not belong together"):
        ops.winograd_gather(wide, weight, None, 2, 2**63 - 1, 1, 3, 5)


@pytest.mark.parametrize("shape", [(), (32,), (32, 64), (32, 64, 4)])
def test_misfits_are_refused_without_values_too(shape: tuple[int, ...]) -> None:
    """By the version that compilers trace, and that runs without a compiled part."""
    small, wide = torch.ones(2, 32, 4, 4, device="meta"), torch.ones(2, 64, 8, 8, device="meta")
    whole, few = torch.ones(32, 64, 4, 4, device="meta"), torch.ones(shape, device="meta")
    for op, map, spatial_size in (("gather", wide, (4, 4)), ("scatter", small, (8, 8))):
        for pair in ((map, few), (few, whole)):
            with pytest.raises(RuntimeError, match=r"expected four dimensions"):
                getattr(ops, f"winograd_{op}")(*pair, None, 2, 1, 1, *spatial_size)
        bias = torch.ones(3, device="meta")
        with pytest.raises(RuntimeError, match=r"bias has shape \(3\); expected"):
            getattr(ops, f"winograd_{op}")(map, whole, bias, 2, 1, 1, *spatial_size)
        oblong = whole[..., :3]
        with pytest.raises(RuntimeError, match=r"channels to match"):
            getattr(ops, f"winograd_{op}")(map, oblong, None, 2, 1, 1, *spatial_size)
        with pytest.raises(RuntimeError, match=r"4 by 4 taps and stride 3; expected"):
            getattr(ops, f"winograd_{op}")(map, whole, None, 3, 1, 1, *spatial_size)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("factors", "words"),
    [
        (
            {"input_scale": torch.ones(2, 32)},
            r"input_scale has shape \(2, 32\); expected \(2, 64\)",
        ),
        ({"output_scale": torch.ones(32)}, r"output_scale has shape \(32"),
        ({"output_scale": torch.ones(2, 32).double()}, "output_scale has dtype torch.float64"),
        ({"noise": torch.ones(2, 1, 4, 3)}, r"noise has shape \(2, 1, 4, 3\); expected \(2"),
        ({"noise": torch.ones(3, 1, 4, 4)}, r"noise has shape \(3, 1, 4, 4\); expected \(2"),
        ({"noise": torch.ones(2, 1, 4, 4).half()}, "noise has dtype torch.float16"),
    ],
)
def test_factors_that_do_not_fit_are_refused(
    factors: dict[str, Tensor], words: str, device: str
) -> None:
    wide, weight = (torch.ones(shape, device=device) for shape in ((2, 64, 8, 8), (32, 64, 4, 4)))
    given_ = {name: factor.to(device) for name, factor in factors.items()}
    with pytest.raises(RuntimeError, match=words):
        ops.winograd_gather(wide, weight, None, 2, 1, 1, 4, 4, **given_)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["gather", "scatter", "weight_gradient"])
def test_the_plain_version_agrees(name: str, kernel: tuple[int, int]) -> None:
    taps, stride = kernel
    rows = stride * 2 + taps - 2 + (stride - 1)  # one more than is needed, if stride allows
    case = fitting(kernel, wide=(64, rows, stride * 3 + taps - 2))
    small, wide, weight, biases = drawn(case, torch.float32)
    arguments: tuple[Any, ...] = {
        "gather": (wide, weight, biases[0], stride, 1, 1, 3, 4),
        "scatter": (small, weight, biases[1], stride, 1, 1, *wide.shape[2:]),
        "weight_gradient": (small, wide, taps, stride, 1, 1),
    }[name]
    found = getattr(winograd, f"winograd_{name}")(*arguments)
    compiled = getattr(ops, f"winograd_{name}")(*arguments)
    assert found.stride() == compiled.stride()
    torch.testing.assert_close(found, compiled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "channels", "taps"),
    [
        (Stage("conv2d", padding=(1, 1)), (64, 32), 3),
        (Stage("conv2d", padding=(0, 2)), (64, 32), 3),
        (Stage("conv_transpose2d", padding=(1, 0)), (32, 64), 3),
        (Stage("conv2d", padding=(1, 1)), (64, 32), 4),
        (Stage("conv_transpose2d", padding=(0, 2)), (32, 64), 4),
        (Stage("conv2d", (2, 2), (2, 2)), (64, 32), 5),
        (Stage("conv_transpose2d", (2, 2), (2, 1), output_padding=(1, 0)), (32, 64), 5),
    ],
)
def test_a_stage_and_its_gradients_are_autograds(
    stage: Stage, channels: tuple[int, int], taps: int
) -> None:
    torch.manual_seed(7)
    ours_of = Winograd()
    input = torch.randn(3, 32, 9, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(*channels, taps, taps, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(64, dtype=torch.float64, requires_grad=True)
    expected = ATEN.forward(stage, input, weight, bias)
    grad_output = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, (input, weight, bias), grad_output)
    x, w, b, g = (t.detach().float() for t in (input, weight, bias, grad_output))
    found = [
        ours_of.forward(stage, x, w, b),
        ours_of.input_gradient(stage, g, x, w),
        *ours_of.weight_gradient(stage, g, x, w, True),
    ]
    for ours, exact in zip(found, (expected, *gradients), strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.double(), exact.detach(), rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("batch", [8, 64])
def test_it_is_the_fixed_tables_for_3x3_and_5x5_taps(batch: int) -> None:
    def name(stage: Stage, shape: tuple[int, ...], weight: tuple[int, ...]) -> str:
        placed = torch.empty(weight).contiguous(memory_format=torch.channels_last)
        with using(Selector("0")):
            return select_backend("forward", stage, torch.empty(shape), placed).name

    taken = "winograd" if has_vectors() else "aten"
    residual, halving = Stage("conv2d", padding=(1, 1)), Stage("conv2d", (2, 2), (2, 2))
    doubling = Stage("conv_transpose2d", (2, 2), (2, 2), output_padding=(1, 1))
    assert name(residual, (batch, 256, 16, 16), (256, 256, 3, 3)) == taken
    assert name(residual, (batch, 256, 15, 15), (256, 256, 3, 3)) == taken
    assert name(halving, (batch, 256, 16, 16), (256, 256, 5, 5)) == taken
    assert name(doubling, (batch, 256, 8, 8), (256, 256, 5, 5)) == taken
    assert name(residual, (1, 256, 8, 8), (256, 256, 3, 3)) != "winograd"
    assert name(residual, (batch, 48, 8, 8), (256, 48, 3, 3)) != "winograd"
    assert name(residual, (batch, 256, 1, 8), (256, 256, 3, 3)) != "winograd"
    assert name(Stage("conv2d", padding=(2, 2)), (batch, 256, 8, 8), (256, 256, 5, 5)) != "winograd"
