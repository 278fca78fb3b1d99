"""The maps from output pixels and taps to input pixels, for gather and scatter.

Both kernels loop over taps and channels; along each axis they differ by a linear map. The q-th
output of a phase and its j-th tap are

    output = first_output + q output_step,    tap = first_tap + j tap_step,

and they meet at the input

    first_input + q input_per_output + j input_per_tap.

A map takes a phase and the geometry of an axis and returns an :class:`Axis`. For its derivation see
:mod:`fastgan.kernels.geometry`.

The numbering of pixels by positions, and of taps and channels by blocks, is here for all kernels.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl


class Axis(NamedTuple):
    """A phase along an axis: the names of the module's formulas, and the numbers of q and j."""

    outputs: tl.tensor
    first_output: tl.tensor
    output_step: tl.tensor
    taps: tl.tensor
    first_tap: tl.tensor
    tap_step: tl.tensor
    first_input: tl.tensor
    input_per_output: tl.tensor
    input_per_tap: tl.tensor


@triton.jit
def gather_axis(phase, outputs, kernel, stride, padding, dilation, common, inverse):
    """Output o and tap r meet at input o stride - padding + r dilation; there is one phase."""
    return Axis(outputs, 0, 1, kernel, 0, 1, -padding, stride, dilation)


@triton.jit
def scatter_axis(phase, outputs, kernel, stride, padding, dilation, common, inverse):
    """Input i and tap r meet at output i stride - padding + r dilation; as many phases as stride.

    Args:
        phase: (output + padding) mod stride.
        outputs: the number of outputs of all phases.
        kernel: number of taps.
        stride: of the transposed convolution.
        padding: of the transposed convolution.
        dilation: of the transposed convolution.
        common: gcd(dilation, stride).
        inverse: of dilation / common, modulo stride / common.
    """
    first_output = (phase + stride - padding % stride) % stride
    phase_outputs = (outputs - first_output + stride - 1) // stride
    tap_step = stride // common
    first_tap = (phase // common) * inverse % tap_step
    # 0 or 1: the taps reach only every common-th phase.
    reached = (phase % common == 0).to(tl.int32)
    taps = (kernel - first_tap + tap_step - 1) // tap_step * reached
    # An exact division, so that its rounding of negative numbers doesn't matter.
    first_input = (first_output + padding - first_tap * dilation) // stride
    return Axis(
        phase_outputs,
        first_output,
        stride,
        taps,
        first_tap,
        tap_step,
        first_input,
        1,
        -(dilation // common),
    )


@triton.jit
def quotient(number, divisor, multiplier, shift):
    """number // divisor for 0 <= number < 2^31, by a product (geometry.division_by)."""
    factor = multiplier.to(tl.uint32, bitcast=True)
    product = tl.umulhi(number.to(tl.uint32, bitcast=True), factor) >> shift
    return tl.where(divisor == 1, number, product.to(tl.int32, bitcast=True))


@triton.jit
def within(place, size):
    """0 <= place < size in one unsigned comparison."""
    return place.to(tl.uint32, bitcast=True) < size.to(tl.uint32, bitcast=True)


@triton.jit
def pixel_of(position, height, width, POSITION: tl.constexpr):
    """Sample, row and column of a position among the pixels of a batch of images."""
    # Phases differ in size; avoid dividing by 0 for one without outputs.
    per_row = tl.maximum(width, 1)
    per_sample = tl.maximum(height, 1).to(POSITION) * per_row
    in_sample = (position % per_sample).to(tl.int32)
    return (position // per_sample).to(tl.int64), in_sample // per_row, in_sample % per_row


@triton.jit
def tap_and_channel(
    block, tap_rows, tap_columns, channels, BLOCK: tl.constexpr, ONE_TAP: tl.constexpr
):
    """A block of (tap, channel), taps slow: tap row, tap column, channel, and a mask.

    With ONE_TAP a block has one tap, of shape [1]: masks are per position, and loads along the
    channels are vectors. Otherwise (few channels) taps and channels are numbered together and the
    taps are [BLOCK].
    """
    if ONE_TAP:
        blocks_per_tap = tl.cdiv(channels, BLOCK)
        tap = block // blocks_per_tap + tl.full([1], 0, tl.int32)
        channel = block % blocks_per_tap * BLOCK + tl.arange(0, BLOCK)
        known = channel < channels
    else:
        k = block * BLOCK + tl.arange(0, BLOCK)
        tap = k // channels
        channel = k % channels
        known = tap < tap_rows * tap_columns
    # Avoid dividing by 0 for a phase without taps, which has no blocks.
    tap_columns = tl.maximum(tap_columns, 1)
    return tap // tap_columns, tap % tap_columns, channel, known
