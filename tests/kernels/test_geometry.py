"""The geometry of convolutions against torch, and against taps counted one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fastgan import ConfigError
from fastgan.kernels import ConvGeometry
from fastgan.kernels.geometry import division_by

pairs = st.tuples


@st.composite
def geometries(draw: st.DrawFn, transposed: bool) -> tuple[ConvGeometry, tuple[int, int]]:
    """A geometry and an input size that has an output."""
    size = draw(pairs(st.integers(1, 7), st.integers(1, 7)))
    kernel = draw(pairs(st.integers(1, 5), st.integers(1, 5)))
    stride = draw(pairs(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(pairs(st.integers(1, 4), st.integers(1, 4)))
    padding, output_padding = [], []
    for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
        reach = d * (k - 1) + 1
        if transposed:
            extra = draw(st.integers(0, max(s, d) - 1))
            output_padding.append(extra)
            padding.append(draw(st.integers(0, min(6, ((n - 1) * s + reach + extra - 1) // 2))))
        else:
            output_padding.append(0)
            padding.append(draw(st.integers(max(0, (reach - n + 1) // 2), max(0, reach - n) + 3)))
    return (
        ConvGeometry(kernel, stride, tuple(padding), dilation, tuple(output_padding), transposed),
        size,
    )


@settings(max_examples=150, deadline=None)
@given(case=st.booleans().flatmap(geometries))
def test_output_size_is_torchs(case: tuple[ConvGeometry, tuple[int, int]]):
    geometry, size = case
    weight = torch.zeros(1, 1, *geometry.kernel_size)
    if geometry.transposed:
        expected = F.conv_transpose2d(
            torch.zeros(1, 1, *size),
            weight,
            stride=geometry.stride,
            padding=geometry.padding,
            output_padding=geometry.output_padding,
            dilation=geometry.dilation,
        )
    else:
        expected = F.conv2d(
            torch.zeros(1, 1, *size),
            weight,
            stride=geometry.stride,
            padding=geometry.padding,
            dilation=geometry.dilation,
        )
    assert geometry.output_size(size) == tuple(expected.shape[2:])


@settings(max_examples=150, deadline=None)
@given(case=geometries(transposed=True), free=st.booleans())
def test_phases_hold_every_pair_of_input_and_tap_once(case, free: bool):
    geometry, size = case
    output = geometry.output_size(size)
    decomposed = geometry.with_free_strides(size) if free else geometry
    assert decomposed.output_size(size) == output
    for axis in range(2):
        stride, padding = geometry.stride[axis], geometry.padding[axis]
        expected = {
            (i * stride - padding + tap * geometry.dilation[axis], i, tap)
            for i in range(size[axis])
            for tap in range(geometry.kernel_size[axis])
        }
        expected = {triple for triple in expected if 0 <= triple[0] < output[axis]}
        found = [
            (phase.first_output + q * decomposed.stride[axis], i, tap)
            for phase in decomposed.phases(output)[axis]
            for q in range(phase.outputs)
            for j, tap in enumerate(phase.taps)
            if 0 <= (i := phase.first_input + q + j * phase.input_step) < size[axis]
        ]
        assert len(found) == len(set(found))
        assert set(found) == expected
        outputs = [
            phase.first_output + q * decomposed.stride[axis]
            for phase in decomposed.phases(output)[axis]
            for q in range(phase.outputs)
        ]
        assert sorted(outputs) == list(range(output[axis]))


def test_dcgan_phases_read_two_taps_each():
    geometry = ConvGeometry((4, 4), (2, 2), (1, 1), transposed=True)
    assert [phase.taps for phase in geometry.phases((16, 16))[0]] == [(0, 2), (1, 3)]


def test_each_output_of_a_single_pixel_has_a_phase_of_one_tap():
    geometry = ConvGeometry((4, 4), transposed=True).with_free_strides((1, 1))
    phases = geometry.phases((4, 4))[0]
    assert [phase.taps for phase in phases] == [(0,), (1,), (2,), (3,)]
    assert [phase.outputs for phase in phases] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel_size": (0, 4)}, "kernel_size is (0, 4)"),
        ({"kernel_size": (4, 4), "stride": (2, 0)}, "stride is (2, 0)"),
        ({"kernel_size": (4, 4), "padding": (-1, 0)}, "padding is (-1, 0)"),
        ({"kernel_size": (4, 4), "dilation": (1, 0)}, "dilation is (1, 0)"),
        ({"kernel_size": (4, 4), "output_padding": (1, 1)}, "output_padding is (1, 1)"),
        (
            {"kernel_size": (4, 4), "stride": (2, 2), "output_padding": (2, 0), "transposed": True},
            "output_padding is (2, 0); expected less than the stride (2, 2)",
        ),
    ],
)
def test_impossible_geometries_are_refused(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError) as error:
        ConvGeometry(**settings)
    assert message in str(error.value)


def test_an_input_without_output_is_refused():
    with pytest.raises(ConfigError, match="an input of 2x8 gives an output of -1x5"):
        ConvGeometry((4, 4)).output_size((2, 8))


def test_a_product_and_a_shift_divide_exactly():
    largest = 2**31 - 1
    divisors = [*range(2, 200), 2**16 - 1, 2**16, 2**16 + 1, 10**9 + 7, largest - 1, largest]
    for divisor in divisors:
        multiplier, shift = division_by(divisor)
        assert -(2**31) <= multiplier < 2**31
        last = largest // divisor * divisor
        for number in (0, 1, divisor - 1, divisor, last - 1, last, largest):
            assert number * (multiplier % 2**32) >> 32 + shift == number // divisor
    assert division_by(1)[1] == 0  # the kernels take the number itself
