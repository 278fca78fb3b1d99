"""Gather and scatter: convolution forward and input gradient as a matrix product never laid out.

    output[n, o, c] = epilogue( sum over taps r and channels k of
                                prologue(input)[n, i(o, r), k] * weight[k, c, r] )

with o, i, r each a pair along height and width. As a matrix product: its rows are the positions
(n, o) of a phase, its columns the channels c, and it is summed over (r, k), taps slow, channels
fast. Which input i the output o and the tap r meet at is the map given as AXIS
(:mod:`fastgan.kernels.index_maps`), and all that tells the two kernels apart:

    gather     Conv2d forward, ConvTranspose2d input gradient
    scatter    ConvTranspose2d forward, Conv2d input gradient

A program owns BLOCK_M positions of one phase by BLOCK_N channels. Zero padding is zero after the
prologue: taps beside the input add nothing, whatever the prologue makes of 0.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.prologues import load_vector

__all__ = ["implicit_gemm_kernel", "tap_and_channel"]


@triton.jit
def tap_and_channel(
    step, tap_rows, tap_columns, channels, BLOCK_K: tl.constexpr, ONE_TAP: tl.constexpr
):
    """What the step sums over: tap row, tap column, channel, and whether there is such a one.

    With ONE_TAP every step stays within one tap, and the taps are [1]: its masks are made per row,
    and the loads along the channels are whole vectors. Else, for a few channels, taps and channels
    are numbered through and the taps are [BLOCK_K].
    """
    if ONE_TAP:
        steps_per_tap = tl.cdiv(channels, BLOCK_K)
        tap = step // steps_per_tap + tl.full([1], 0, tl.int32)
        channel = step % steps_per_tap * BLOCK_K + tl.arange(0, BLOCK_K)
        known = channel < channels
    else:
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        tap = k // channels
        channel = k % channels
        known = tap < tap_rows * tap_columns
    # A phase without taps has no columns to divide by, and no step that asks.
    tap_columns = tl.maximum(tap_columns, 1)
    return tap // tap_columns, tap % tap_columns, channel, known


@triton.jit(
    do_not_specialize=[
        "batch",
        "input_height",
        "input_width",
        "output_height",
        "output_width",
        "kernel_height",
        "kernel_width",
        "stride_height",
        "stride_width",
        "padding_height",
        "padding_width",
        "dilation_height",
        "dilation_width",
        "common_height",
        "common_width",
        "inverse_height",
        "inverse_width",
        "phases_height",
        "phases_width",
        "tiles_m",
        "tiles_n",
    ]
)
def implicit_gemm_kernel(
    # The operand, logically (N, in_channels, H, W), and what its prologue reads.
    input,
    input_other,  # as input, in the same strides; or None
    input_mean,  # (in_channels,) float32; or None, as the next four
    input_scale,
    input_bias,
    input_slope,
    input_offset,
    weight,  # in_channels x out_channels x kernel_height x kernel_width, in its own strides
    output,  # channels-last (N, out_channels, H, W)
    # What the epilogue reads.
    output_other,  # as output, in the same strides; or None
    output_bias,  # (out_channels,) float32; or None, as the next three
    output_mean,
    output_scale,
    output_invstd,
    # What the reduction leaves; or None.
    tile_count,  # (tiles,) float32
    tile_first,  # (tiles, out_channels) float32
    tile_second,  # (tiles, out_channels) float32
    input_negative_slope,
    output_negative_slope,
    batch,
    input_height,
    input_width,
    output_height,
    output_width,
    in_channels,
    out_channels,
    input_stride_n,
    input_stride_h,
    input_stride_w,
    input_stride_c,
    weight_stride_k,  # from one of in_channels to the next
    weight_stride_n,  # from one of out_channels to the next
    weight_stride_h,
    weight_stride_w,
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    padding_height,
    padding_width,
    dilation_height,
    dilation_width,
    common_height,  # gcd(dilation, stride)
    common_width,
    inverse_height,  # of dilation / common, modulo stride / common
    inverse_width,
    phases_height,
    phases_width,
    tiles_m,  # per phase
    tiles_n,
    AXIS: tl.constexpr,  # gather_axis or scatter_axis
    PROLOGUE: tl.constexpr,  # or None
    INPUT_FUNCTION: tl.constexpr,
    EPILOGUE: tl.constexpr,
    OUTPUT_FUNCTION: tl.constexpr,
    REDUCTION: tl.constexpr,  # or None
    ONE_TAP: tl.constexpr,
    POSITION: tl.constexpr,  # the integer type that holds the number of positions
    PRECISION: tl.constexpr,  # of float32 products
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output; see the module's docstring."""
    # Neighbouring programs share their positions, then their phase's input: both stay in the cache.
    program = tl.program_id(0)
    tile_n = program % tiles_n
    phase = program // tiles_n % (phases_height * phases_width)
    tile_m = program // tiles_n // (phases_height * phases_width)
    (
        outputs_h,
        first_output_h,
        output_step_h,
        taps_h,
        first_tap_h,
        tap_step_h,
        first_input_h,
        input_per_output_h,
        input_per_tap_h,
    ) = AXIS(
        phase // phases_width,
        output_height,
        kernel_height,
        stride_height,
        padding_height,
        dilation_height,
        common_height,
        inverse_height,
    )
    (
        outputs_w,
        first_output_w,
        output_step_w,
        taps_w,
        first_tap_w,
        tap_step_w,
        first_input_w,
        input_per_output_w,
        input_per_tap_w,
    ) = AXIS(
        phase % phases_width,
        output_width,
        kernel_width,
        stride_width,
        padding_width,
        dilation_width,
        common_width,
        inverse_width,
    )

    # Row m of the tile is the output (sample, q_h, q_w) of the phase. Offsets are 64 bits wide from
    # the first product on: a tensor may have more than 2^31 elements.
    positions = batch.to(POSITION) * outputs_h * outputs_w
    position = tile_m.to(POSITION) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = position < positions
    # Phases may differ in size; one without outputs has nothing to divide by.
    per_row = tl.maximum(outputs_w, 1)
    per_sample = tl.maximum(outputs_h, 1).to(POSITION) * per_row
    sample = (position // per_sample).to(tl.int64)
    in_sample = (position % per_sample).to(tl.int32)
    q_h = in_sample // per_row
    q_w = in_sample % per_row
    input_h = first_input_h + q_h * input_per_output_h
    input_w = first_input_w + q_w * input_per_output_w
    row_offset = (
        sample * input_stride_n
        + input_h.to(tl.int64) * input_stride_h
        + input_w.to(tl.int64) * input_stride_w
    )
    output_h = (first_output_h + q_h * output_step_h).to(tl.int64)
    output_w = (first_output_w + q_w * output_step_w).to(tl.int64)
    output_row = ((sample * output_height + output_h) * output_width + output_w) * out_channels
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < out_channels
    column_offset = column.to(tl.int64) * weight_stride_n

    if ONE_TAP:
        steps = taps_h * taps_w * tl.cdiv(in_channels, BLOCK_K)
    else:
        steps = tl.cdiv(taps_h * taps_w * in_channels, BLOCK_K)
    # The last tiles of a smaller phase are empty.
    steps = tl.where(tile_m.to(POSITION) * BLOCK_M < positions, steps, 0)
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for step in range(steps):
        tap_h, tap_w, channel, known = tap_and_channel(
            step, taps_h, taps_w, in_channels, BLOCK_K, ONE_TAP
        )
        at_h = input_h[:, None] + (tap_h * input_per_tap_h)[None, :]
        at_w = input_w[:, None] + (tap_w * input_per_tap_w)[None, :]
        inside = (at_h >= 0) & (at_h < input_height) & (at_w >= 0) & (at_w < input_width)
        inside = inside & exists[:, None] & known[None, :]
        k_offset = (
            (tap_h * input_per_tap_h).to(tl.int64) * input_stride_h
            + (tap_w * input_per_tap_w).to(tl.int64) * input_stride_w
            + channel.to(tl.int64) * input_stride_c
        )
        offset = row_offset[:, None] + k_offset[None, :]
        a = tl.load(input + offset, mask=inside, other=0.0)

        weight_offset = (
            (first_tap_h + tap_h * tap_step_h).to(tl.int64) * weight_stride_h
            + (first_tap_w + tap_w * tap_step_w).to(tl.int64) * weight_stride_w
            + channel.to(tl.int64) * weight_stride_k
        )
        b = tl.load(
            weight + (weight_offset[:, None] + column_offset[None, :]),
            mask=known[:, None] & column_exists[None, :],
            other=0.0,
        )

        if PROLOGUE is not None:
            value = a.to(tl.float32)
            other = value
            if input_other is not None:
                other = tl.load(input_other + offset, mask=inside, other=0.0).to(tl.float32)
            value = PROLOGUE(
                value,
                other,
                load_vector(input_mean, channel, known),
                load_vector(input_scale, channel, known),
                load_vector(input_bias, channel, known),
                load_vector(input_slope, channel, known),
                load_vector(input_offset, channel, known),
                input_negative_slope,
                INPUT_FUNCTION,
            )
            a = tl.where(inside, value, 0.0).to(b.dtype)
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)

    kept = exists[:, None] & column_exists[None, :]
    output_offset = output_row[:, None] + column[None, :]
    output_value = accumulator
    if output_other is not None:
        output_value = tl.load(output_other + output_offset, mask=kept, other=0.0).to(tl.float32)
    mean = load_vector(output_mean, column, column_exists)
    result = EPILOGUE(
        accumulator,
        output_value,
        load_vector(output_bias, column, column_exists),
        mean,
        load_vector(output_scale, column, column_exists),
        output_negative_slope,
        OUTPUT_FUNCTION,
    ).to(output.dtype.element_ty)
    tl.store(output + output_offset, result, mask=kept)

    if REDUCTION is not None:
        count = tl.sum(exists.to(tl.float32), axis=0)
        first, second = REDUCTION(
            result.to(tl.float32),
            output_value,
            mean,
            load_vector(output_invstd, column, column_exists),
            kept,
            tl.maximum(count, 1.0),
        )
        tile = (phase * tiles_m + tile_m).to(tl.int64)
        tl.store(tile_first + tile * out_channels + column, first, mask=column_exists)
        tl.store(tile_second + tile * out_channels + column, second, mask=column_exists)
        if tile_count is not None:
            tl.store(tile_count + tile, count, mask=tile_n == 0)
