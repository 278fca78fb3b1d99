"""The CUDA kernels of csrc/cuda, run on the host: no GPU is needed, and none is used.

Every case runs in two builds, under AddressSanitizer and UndefinedBehaviorSanitizer and with every
access traced, and in three orders of blocks and threads (docs/host-harness.md).
"""

from __future__ import annotations

import math

import pytest
import torch
from host_harness import SCHEDULES, Case, HostHarness, SparseTensor

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
SPECIALS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 0.5, -0.5, 1e-40, -6e-8, 65504.0]
BOUNDS = [
    (-0.01, 0.01),
    (0.0, 0.5),
    (-0.5, -0.0),
    (0.25, 0.25),
    (-math.inf, 0.1),
    (-math.inf, math.inf),
    (math.inf, math.inf),
]


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return HostHarness.of_session(tmp_path_factory)


def random_values(count, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator, dtype=torch.float64)
    special = torch.tensor(SPECIALS, dtype=torch.float64)
    choice = torch.randint(0, len(SPECIALS), (count,), generator=generator)
    takes_special = torch.rand(count, generator=generator) < 0.2
    return torch.where(takes_special, special[choice], values).to(dtype)


def as_bits(tensor):
    return tensor.contiguous().view(INTEGER_OF_SIZE[tensor.element_size()])


def held(bound, dtype):
    """The bound as the dtype holds it: what the op passes to its kernels."""
    return torch.tensor(bound, dtype=torch.float64).to(dtype).item()


# --- clip.cu --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(harness):
    return harness.kernels("clip")


def clip_case(values, bounds, misalignment=0):
    lower, upper = (held(bound, values.dtype) for bound in bounds)
    return Case(
        "clip",
        {"values": values},
        numbers={"lower": lower, "upper": upper},
        misalignment={"values": misalignment},
        label=f"clip of {values.dtype} {tuple(values.shape)}, strides {values.stride()}, to "
        f"[{lower}, {upper}], {misalignment} bytes after a boundary",
    )


def assert_clipped(case, result):
    """Against float64's comparison; a value within the bounds keeps its very bits, NaN included."""
    values = case.tensors["values"]
    wide = values.double()
    lower, upper = case.numbers["lower"], case.numbers["upper"]
    expected = values.clone()
    expected[wide < lower] = lower
    expected[wide > upper] = upper
    assert result.error == ""
    actual = result.tensors["values"]
    wrong = as_bits(actual) != as_bits(expected)
    assert not wrong.any(), f"{case.label}: {actual[wrong][:4]}, not {expected[wrong][:4]}"


def assert_rest_untouched(case, result):
    """What lies between the elements of a strided tensor has the bits it had."""
    values = case.tensors["values"]
    (after,) = result.extents["values"]
    before = values.as_strided(after.shape, (1,), values.storage_offset())
    is_element = torch.zeros(after.shape, dtype=torch.bool)
    is_element.as_strided(values.shape, values.stride()).fill_(True)
    assert torch.equal(as_bits(after)[~is_element], as_bits(before)[~is_element]), case.label


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_at_every_size_and_alignment(clip, dtype):
    vector = 16 // dtype.itemsize
    block = 256 * 4 * vector
    sizes = [*range(2 * vector + 2), *(n + d for n in (256, block) for d in (-1, 0, 1)), 5000]
    cases = []
    for size in sizes:
        offsets = range(vector) if size < 300 else (0, 1, vector - 1)
        for offset in offsets:
            seed = 31 * size + offset
            bounds = BOUNDS[seed % len(BOUNDS)]
            values = random_values(size, dtype, seed)
            cases.append(clip_case(values, bounds, offset * dtype.itemsize))
    for case, result in zip(cases, clip.check(cases), strict=True):
        assert_clipped(case, result)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_for_fuzzed_sizes_alignments_and_bounds(clip, dtype):
    generator = torch.Generator().manual_seed(dtype.itemsize)

    def below(limit):
        return int(torch.randint(0, limit, (), generator=generator))

    cases = []
    for _ in range(40):
        bounds = sorted((torch.randn(2, generator=generator) * 2).tolist())
        values = random_values(below(10 ** (1 + below(4))), dtype, below(10**9))
        cases.append(clip_case(values, bounds, below(16 // dtype.itemsize) * dtype.itemsize))
    for case, result in zip(cases, clip.check(cases), strict=True):
        assert_clipped(case, result)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clip_is_right_for_strided_layouts_and_leaves_the_gaps_alone(clip, dtype):
    def base(*shape, seed):
        return random_values(math.prod(shape), dtype, seed).view(shape)

    views = [
        base(40, 30, seed=1)[:, ::2],
        base(40, 30, seed=2).t()[3:, 1:],
        base(7, 5, 6, 4, seed=3)[::2, 1:4, :, ::3],
        base(2, 3, 8, 8, seed=4).contiguous(memory_format=torch.channels_last),  # dense
        base(2, 3, 8, 8, seed=5).contiguous(memory_format=torch.channels_last)[:, :2],
        base(600, seed=6)[5::7],
        base(3, 1, 700, seed=7).transpose(0, 2)[::3],
        base(1, seed=8)[0],
        base(4, 0, seed=9)[::2],
    ]
    cases = [clip_case(view, (-0.25, 0.5)) for view in views]
    for case, result in zip(cases, clip.check(cases), strict=True):
        assert_clipped(case, result)
        assert_rest_untouched(case, result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_clip_is_right_for_every_16_bit_pattern(clip, dtype):
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    case = clip_case(patterns, (-0.01, 7.0))
    (result,) = clip.check([case], schedules=SCHEDULES[-1:])
    assert_clipped(case, result)


def test_clip_counts_beyond_two_to_the_31_elements(clip):
    """The first and the last block alone; the memory between them is never touched."""
    count = 2**31 + 4096 + 37
    fives = torch.full((300,), 5.0, dtype=torch.bfloat16)
    case = Case(
        "clip",
        {"values": SparseTensor(torch.bfloat16, count, {0: fives, count - 300: fives})},
        numbers={"lower": -1.0, "upper": 1.0},
        only_blocks=(0, -1),
        label="clip of more than 2^31 elements",
    )
    (result,) = clip.check([case], builds=["sanitized"])
    for window in result.tensors["values"].values():
        assert window.eq(1).all()
