"""csrc/cuda/few_channels.cu, run on the host as test_cuda_kernels_on_host.py's are.

Compared with float64's convolutions: an error is at most twice that of a sum in float32 (float64)
rounded to the dtype.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from host_harness import SCHEDULES, Case, HostHarness
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastgan.activations import ACTIVATIONS
from fastgan.ops.backends.few_channels import CHANNELS, FLOAT64_TAPS, STRIDE, TAPS

LAST, FIRST = torch.channels_last, torch.contiguous_format
HALVES = torch.float16, torch.bfloat16


def drawn(*shape: int, dtype: torch.dtype, format: Any = FIRST) -> Tensor:
    return torch.randn(*shape).to(dtype).contiguous(memory_format=format)


def within_rounding(found: Tensor, right: Tensor, sizes: Tensor) -> Tensor:
    """``sizes``: the sums of the products' magnitudes."""
    dtype = found.dtype
    arithmetic = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    bound = 64 * arithmetic * (sizes + 1) + torch.finfo(dtype).eps * right.abs()
    return (found.double() - right).abs() <= bound


def gather_case(
    label: str,
    input: Tensor,
    weight: Tensor,
    transposed: bool,
    stride: tuple[int, int],
    padding: tuple[int, int],
    *,
    bias: Tensor | None = None,
    activation: str = "none",
    gradient: bool = False,
    output_padding: tuple[int, int] = (0, 0),
    output_format: Any = FIRST,
) -> tuple[Case, Tensor, Tensor]:
    """The case, the right output and its products' magnitudes."""

    def convolved(x: Tensor, w: Tensor) -> Tensor:
        if transposed:
            return F.conv_transpose2d(x, w, None, stride, padding, output_padding)
        return F.conv2d(x, w, None, stride, padding)

    wide, sizes = (
        convolved(*pair)
        for pair in (
            (input.double(), weight.double()),
            (input.double().abs(), weight.double().abs()),
        )
    )
    row = ACTIVATIONS[activation]
    tensors = {"input": input, "weight": weight}
    if gradient:
        kept = drawn(*wide.shape, dtype=input.dtype, format=output_format)
        tensors["kept"] = kept
        right = row.gradient(wide, kept.double(), 0.2)
        # z' is computed in the arithmetic's precision.
        sizes = sizes * 4
    else:
        if bias is not None:
            tensors["bias"] = bias
            wide = wide + bias.double()[:, None, None]
        right = row.forward(wide, 0.2)
    tensors["output"] = torch.empty_like(
        wide.to(input.dtype).contiguous(memory_format=output_format)
    )
    integers = {
        "transposed": int(transposed),
        "row_stride": stride[0],
        "column_stride": stride[1],
        "row_padding": padding[0],
        "column_padding": padding[1],
        "activation": row.code,
    }
    numbers = {"negative_slope": 0.2}
    case = Case(
        *("gather", tensors, numbers, integers), uninitialised=frozenset({"output"}), label=label
    )
    return case, right, sizes


def gather_cases() -> list[tuple[Case, Tensor, Tensor]]:
    cases = []

    def add(label: str, *arguments: Any, **settings: Any) -> None:
        cases.append(gather_case(label, *arguments, **settings))

    # A generator's last layer, an image's convolution, and their input gradients: of maps that end
    # within a tile of cells, and with whole vectors of channels and without. Both 16-bit dtypes
    # together run all of it.
    for dtype in (torch.float64, torch.float32, *HALVES):
        name = str(dtype).removeprefix("torch.")
        image, geometry = drawn(1, 3, 20, 35, dtype=dtype), ((2, 2), (1, 1))
        if dtype != torch.bfloat16:
            x, weight = drawn(1, 40, 9, 18, dtype=dtype, format=LAST), (40, 3, 4, 4)
            settings = {"bias": drawn(3, dtype=dtype), "activation": "tanh"}
            add(f"{name}, generator", x, drawn(*weight, dtype=dtype), True, *geometry, **settings)
            add(
                *(f"{name}, gradient of the generator", image.contiguous(memory_format=LAST)),
                *(drawn(*weight, dtype=dtype), False, *geometry),
                gradient=True,
                activation="relu",
                output_format=LAST,
            )
        if dtype != torch.float16:
            settings = {"bias": drawn(24, dtype=dtype), "activation": "leaky_relu"}
            add(
                *(f"{name}, image", image, drawn(24, 3, 4, 4, dtype=dtype), False, *geometry),
                **{**settings, "output_format": LAST},
            )
            add(
                *(f"{name}, gradient of the image", drawn(1, 24, 10, 17, dtype=dtype)),
                *(drawn(24, 3, 4, 4, dtype=dtype, format=LAST), True, *geometry),
                output_padding=(0, 1),
                output_format=LAST,
            )
    for format in (FIRST, LAST):
        # 3x3 with stride 1, kernels that aren't square, strides and paddings that differ; one
        # channel, four, seven; a critic's last layer.
        x = drawn(1, 7, 6, 5, dtype=torch.bfloat16, format=format)
        add("3x3", x, drawn(2, 7, 3, 3, dtype=torch.bfloat16), False, (1, 1), (1, 1))
        add("3x3 back", x, drawn(7, 4, 3, 3, dtype=torch.bfloat16), True, (1, 1), (1, 1))
        add("rows", x, drawn(1, 7, 5, 2, dtype=torch.bfloat16), False, (1, 2), (2, 0))
        add(
            *("uneven", x.float(), drawn(7, 1, 2, 5, dtype=torch.float32, format=format), True),
            *((2, 1), (0, 2)),
            gradient=True,
            activation="silu",
        )
        x = drawn(2, 9, 4, 4, dtype=torch.float16, format=format)
        add("critic", x, drawn(1, 9, 4, 4, dtype=torch.float16), False, (1, 1), (0, 0))
        y = drawn(2, 1, 1, 1, dtype=torch.float16)
        add("critic back", y, drawn(1, 9, 4, 4, dtype=torch.float16), True, (1, 1), (0, 0))
    return cases


def test_gathers_with_few_channels_are_float64s_convolutions(harness: HostHarness) -> None:
    torch.manual_seed(0)
    cases = gather_cases()
    results = harness.kernels("few_channels").check(
        [case for case, *_ in cases], schedules=SCHEDULES[-1:]
    )
    for (case, right, sizes), result in zip(cases, results, strict=True):
        assert result.error == "", case.label
        output = result.tensors["output"]
        assert isinstance(output, Tensor)
        assert within_rounding(output, right, sizes).all(), case.label


def sums_case(
    label: str, many: Tensor, few: Tensor, taps: tuple[int, int], step: int, padding: int, **at: int
) -> tuple[Case, Tensor, Tensor]:
    """The case, the right gradient (many, few, taps) and its products' magnitudes.

    ``at``: ``backwards``, where the few channels are the small map's.
    """
    backwards = bool(at.get("backwards"))

    def gradient(many: Tensor, few: Tensor) -> Tensor:
        small, wide = (few, many) if backwards else (many, few)
        shape = (small.shape[1], wide.shape[1], *taps)
        result = conv2d_weight(wide, shape, small, stride=step, padding=padding)
        return result.transpose(0, 1) if backwards else result

    right = gradient(many.double(), few.double())
    sizes = gradient(many.double().abs(), few.double().abs())
    dtype = many.dtype
    # csrc/cuda/few_channels.cu, sums_plan_of.
    channels = 32 if dtype == torch.float64 else 64
    blocks = -(-many.shape[1] // channels), -(-taps[0] * taps[1] // 16)
    tiles = many.shape[0] * -(-many.shape[2] // 4) * -(-many.shape[3] // 16)
    splits = -(-tiles // min(max(tiles * blocks[0] * blocks[1] // 256, 1), 16))
    wide_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    tensors = {
        "many": many,
        "few": few,
        "gradient": torch.empty_like(right.to(dtype)),
        "workspace": torch.empty(splits * blocks[0] * channels * blocks[1] * 64, dtype=wide_dtype),
    }
    added = [taps[0] - 1 - padding, taps[1] - 1 - padding] if backwards else [padding] * 2
    integers = {"row_stride": step, "column_stride": step, "backwards": int(backwards)}
    integers |= {"row_padding": added[0], "column_padding": added[1]}
    case = Case(
        *("sums", tensors, {}, integers),
        uninitialised=frozenset({"gradient", "workspace"}),
        label=label,
    )
    return case, right, sizes


def sums_cases() -> list[tuple[Case, Tensor, Tensor]]:
    cases = []
    for dtype, format in zip(
        (torch.float64, torch.float32, *HALVES), (LAST, FIRST) * 2, strict=True
    ):
        name = str(dtype).removeprefix("torch.")
        # Maps that end within a tile, whole vectors of channels and more than a block's.
        many = drawn(2, 72 if dtype == torch.float32 else 40, 5, 18, dtype=dtype, format=format)
        few = drawn(2, 3, 10, 36, dtype=dtype, format=format)
        cases.append(sums_case(f"{name}, 4x4", many, few, (4, 4), 2, 1))
    for format in (FIRST, LAST):
        few = drawn(3, 1, 2, 1, dtype=torch.bfloat16)
        many = drawn(3, 5, 5, 3, dtype=torch.bfloat16, format=format)
        cases.append(sums_case("critic", many, few, (4, 3), 1, 0, backwards=1))
        many, few = many.float(), drawn(3, 4, 9, 7, dtype=torch.float32, format=format)
        cases.append(sums_case("5x5", many, few, (5, 5), 1, 0))
    return cases


def test_weight_gradients_are_float64s(harness: HostHarness) -> None:
    torch.manual_seed(0)
    cases = sums_cases()
    results = harness.kernels("few_channels").check(
        [case for case, *_ in cases], schedules=SCHEDULES[-1:]
    )
    for (case, right, sizes), result in zip(cases, results, strict=True):
        assert result.error == "", case.label
        gradient = result.tensors["gradient"]
        assert isinstance(gradient, Tensor)
        assert within_rounding(gradient, right, sizes).all(), case.label


def test_a_weight_gradients_error_does_not_grow_with_the_batch(harness: HostHarness) -> None:
    """One after another, float32s of over 2^13 would lose the 2^-15s."""
    many = torch.ones(600, 1, 4, 4)
    few = torch.full((600, 1, 4, 4), 1 + 2.0**-15)
    case, right, _ = sums_case("large", many, few, (1, 1), 1, 0)
    (result,) = harness.kernels("few_channels").check([case], ["sanitized"], SCHEDULES[-1:])
    found = result.tensors["gradient"]
    assert isinstance(found, Tensor)
    assert abs(found.item() / right.item() - 1) <= 3 * torch.finfo(torch.float32).eps


def test_blocks_take_several_tiles_of_large_batches(harness: HostHarness) -> None:
    x = drawn(1100, 3, 4, 4, dtype=torch.float32)
    w = drawn(8, 3, 3, 3, dtype=torch.float32)
    case, right, sizes = gather_case("large", x, w, False, (1, 1), (1, 1))
    case = replace(case, only_blocks=(0, -1))
    (result,) = harness.kernels("few_channels").check([case], schedules=SCHEDULES[-1:])
    ends = [0, 1, -2, -1]
    output = result.tensors["output"]
    assert isinstance(output, Tensor)
    assert within_rounding(output[ends], right[ends], sizes[ends]).all()


def test_all_that_the_backend_takes_fits_in_shared_memory(harness: HostHarness) -> None:
    """And what does not is refused."""
    cases, expected = [], []
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        taps = FLOAT64_TAPS if dtype == torch.float64 else TAPS
        for transposed in (False, True):
            for step, size in ((1, taps), (STRIDE, taps), (4, 200)):
                few = torch.zeros(1, CHANNELS, 1, 1, dtype=dtype)
                # Of its size, but not of so much memory.
                weight = torch.zeros(CHANNELS, 64, 1, 1, dtype=dtype).expand(-1, -1, size, size)
                if not transposed:
                    weight = weight.transpose(0, 1)
                output = torch.zeros(1, 64, 1, 1, dtype=dtype)
                tensors = {"input": few, "weight": weight, "output": output}
                integers = {"transposed": transposed, "row_stride": step, "column_stride": step}
                integers |= {"row_padding": size - 1, "column_padding": 0, "activation": 0}
                cases.append(Case("obstacle", tensors, {"negative_slope": 0}, integers))
                expected.append("more than a block's shared memory" if size == 200 else "")
    results = harness.kernels("few_channels").run(cases, "traced")
    assert all(
        want in result.error and bool(want) == bool(result.error)
        for want, result in zip(expected, results, strict=True)
    ), [result.error for result in results]
