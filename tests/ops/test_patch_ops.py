"""The convolution whose output is an image, on CPUs, against torch's in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastgan
from fastgan.ops import op_path, op_paths, patches
from fastgan.ops.backends.patches import Patches
from fastgan.ops.stages import Stage

scatter = torch.ops.fastgan.patch_scatter
DTYPES = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    channels = draw(st.integers(1, 4))
    taps = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    small = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
    most = [
        min(3, ((n - 1) * s + t + e - 1) // 2)
        for n, s, t, e in zip(small, stride, taps, extra, strict=True)
    ]
    return {
        "batch": draw(st.integers(0, 3)),
        "small": (16 * draw(st.integers(1, 9)), *small),
        "weight": (channels, *taps),
        "settings": {
            "stride": stride,
            "padding": tuple(draw(st.integers(0, m)) for m in most),
            "output_padding": extra,
        },
        "bias": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)),
    }


def drawn(case: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(case["seed"])
    small = torch.randn(case["batch"], *case["small"]).to(dtype)
    weight = torch.randn(case["small"][0], *case["weight"]).to(dtype)
    return small, weight, torch.randn(case["weight"][0]) if case["bias"] else None


@pytest.mark.parametrize("dtype", DTYPES)
@given(case=cases())
@example(
    case={
        "batch": 1,
        "small": (32, 1, 1),
        "weight": (1, 1, 3),
        "settings": {"stride": (1, 1), "padding": (0, 1), "output_padding": (0, 0)},
        "bias": False,
        "seed": 286,
    }
)
@settings(max_examples=60, deadline=None)
def test_values(dtype: torch.dtype, case: dict[str, Any]) -> None:
    small, weight, bias = drawn(case, dtype)
    wide_bias = None if bias is None else bias.double()
    truth = F.conv_transpose2d(small.double(), weight.double(), wide_bias, **case["settings"])
    around = case["settings"]["stride"] + case["settings"]["padding"]
    found = scatter(small, weight, bias, *around, *truth.shape[2:])
    assert found.dtype == dtype
    assert found.shape == truth.shape
    if truth.numel() > 0:
        # Where terms cancel, what is rounded is as large as they are.
        sizes = [None if t is None else t.double().abs() for t in (small, weight, bias)]
        terms = F.conv_transpose2d(*sizes, **case["settings"])
        assert ((found.double() - truth).abs() <= DTYPES[dtype] * terms).all()


def test_errors_are_at_most_twice_those_of_torch() -> None:
    torch.manual_seed(0)
    small, weight = torch.randn(4, 64, 32, 32), torch.randn(64, 3, 4, 4)
    truth = F.conv_transpose2d(small.double(), weight.double(), stride=2, padding=1)
    ours = scatter(small, weight, None, 2, 2, 1, 1, 64, 64)
    theirs = F.conv_transpose2d(small, weight, stride=2, padding=1)
    own, eager = ((t.double() - truth).square().mean().sqrt() for t in (ours, theirs))
    # Or of two roundings: torch's error depends on its processor's kernels.
    assert own <= 2 * (eager + torch.finfo(torch.float32).eps * truth.square().mean().sqrt())


def test_any_layout_and_number_of_threads_gives_the_same_bits() -> None:
    torch.manual_seed(1)
    small, weight, bias = torch.randn(5, 48, 7, 9), torch.randn(48, 3, 4, 4), torch.randn(3)
    expected = scatter(small, weight, bias, 2, 2, 1, 1, 14, 18)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (small, weight)]
    strided = [torch.stack([t, t], -1)[..., 1] for t in (small, weight)]
    threads = torch.get_num_threads()
    try:
        for count, pair in ((1, last), (2, strided), (3, [small, weight])):
            torch.set_num_threads(count)
            assert torch.equal(scatter(*pair, bias, 2, 2, 1, 1, 14, 18), expected)
    finally:
        torch.set_num_threads(threads)


def test_misfits_are_refused() -> None:
    small, weight = torch.ones(2, 32, 4, 4), torch.ones(32, 3, 4, 4)
    with pytest.raises(RuntimeError, match=r"do not belong together"):
        scatter(small, weight, None, 2, 2, 1, 1, 10, 8)
    with pytest.raises(RuntimeError, match=r"C \* kH \* kW at most 64"):
        scatter(small, torch.ones(32, 5, 4, 4), None, 2, 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"expected a multiple of 16"):
        scatter(small[:, :20], weight[:20], None, 2, 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"expected float32 or bfloat16"):
        scatter(small.double(), weight.double(), None, 2, 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"bias has shape \(2\); expected \(3\)"):
        scatter(small, weight, torch.ones(2), 2, 2, 1, 1, 8, 8)
    with pytest.raises(RuntimeError, match=r"no gradient"):
        scatter(small, weight.requires_grad_(), None, 2, 2, 1, 1, 8, 8)


@pytest.mark.skipif(not fastgan.build_info().native, reason="torch's takes no such memory")
def test_sums_that_no_memory_holds_are_refused() -> None:
    """They reach as far as the padding does, which a large stride lets be large."""
    small, weight = torch.ones(2, 16, 1, 1), torch.ones(16, 3, 4, 4)
    for most in (2**25, 2**31):
        with pytest.raises((RuntimeError, MemoryError), match=r"bad_alloc"):
            scatter(small, weight, None, most, most, most // 2, most // 2, 3, 3)
    with pytest.raises(RuntimeError, match=r"do not belong together"):
        scatter(small, weight, None, 2**33, 2**33, 2**32 - 1, 2**32 - 1, 1, 1)


@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_maps_without_places_are_refused_with_values_and_without(where: str) -> None:
    small, weight = torch.ones(2, 32, 2, 4), torch.ones(32, 3, 4, 4)
    small, weight = small.to(where), weight.to(where)
    with pytest.raises(RuntimeError, match=r"do not belong together"):
        scatter(small, weight, None, 2, 2, 3, 1, 0, 8)
    with pytest.raises(RuntimeError, match=r"do not belong together"):
        scatter(small[:, :, :0], weight, None, 2, 2, 1, 1, 0, 8)
    with pytest.raises(RuntimeError, match=r"C \* kH \* kW at most 64"):
        scatter(small, weight[:, :0], None, 2, 2, 1, 1, 4, 8)


def test_the_plain_version_lies_in_memory_as_the_compiled_one() -> None:
    torch.manual_seed(2)
    small, weight, bias = torch.randn(2, 32, 3, 4), torch.randn(32, 3, 3, 4), torch.randn(3)
    arguments = (small, weight, bias, 2, 3, 1, 0, 6, 14)
    plain, compiled = patches.patch_scatter(*arguments), scatter(*arguments)
    assert plain.stride() == compiled.stride()
    torch.testing.assert_close(plain, compiled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["conv2d", "conv_transpose2d"])
def test_a_stage_of_it_agrees_with_torch(kind: str) -> None:
    torch.manual_seed(3)
    stage = Stage(kind, (2, 1), (1, 0), output_padding=(1, 0) if kind != "conv2d" else (0, 0))
    weight, maps = torch.randn(32, 3, 4, 3), torch.randn(2, 32, 5, 6)
    bias = torch.randn(3)
    wide = F.conv_transpose2d(maps, weight, bias, (2, 1), (1, 0), (1, 0))
    if kind == "conv2d":
        image = torch.empty_like(wide)
        found = Patches().input_gradient(stage, maps, image, weight)
        found = found + bias[:, None, None]
    else:
        found = Patches().forward(stage, maps, weight, bias)
    torch.testing.assert_close(found, wide, rtol=1e-4, atol=1e-4)


def test_doctor_looks_for_it_on_cpus_alone() -> None:
    found = {(row.op, row.device) for row in op_paths()}
    assert ("patch_scatter", "cpu") in found
    assert ("winograd_gather", "cuda") not in found
    assert ("adam_step_", "cuda") in found
    assert "(None)" not in op_path("patch_scatter", "cuda").reason
