"""Gather and scatter: convolution forward and input gradient as an implicit matrix product.

    output[n, o, c] = epilogue( sum over taps r and channels k of
                                prologue(input)[n, i(o, r), k] * weight[k, c, r] )

with o, i, r pairs along height and width. As a matrix product: rows are the positions (n, o) of a
phase, columns the channels c, summed over (r, k), taps slow, channels fast. The map AXIS
(:mod:`fastgan.kernels.index_maps`) gives the input i for output o and tap r; it is the kernels'
only difference:

    gather     Conv2d forward, ConvTranspose2d input gradient
    scatter    ConvTranspose2d forward, Conv2d input gradient

A program owns BLOCK_M positions of one phase by BLOCK_N channels. Zero padding is zero after the
prologue: taps outside the input add nothing, even if the prologue of 0 isn't 0.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.index_maps import pixel_of, quotient, within
from fastgan.kernels.launch import UNSPECIALISED
from fastgan.kernels.prologues import after_prologue, load_vector, load_vectors


@triton.jit(do_not_specialize=UNSPECIALISED)
def implicit_gemm_kernel(
    # The operand, logically (N, in_channels, H, W), and its prologue's tensors.
    input,
    input_other,  # as input, in the same strides; or None
    input_mean,  # (in_channels,) float32; or None, as the next four
    input_scale,
    input_bias,
    input_slope,
    input_offset,
    weight,  # in_channels x out_channels x kernel_height x kernel_width, in its own strides
    output,  # channels-last (N, out_channels, H, W)
    # The epilogue's tensors.
    output_other,  # as output, in the same strides; or None
    output_bias,  # (out_channels,) float32; or None, as the next three
    output_mean,
    output_scale,
    output_invstd,
    # The reduction's results; or None.
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
    channel_multiplier,  # for a quotient by in_channels
    channel_shift,
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
    ONE_TAP: tl.constexpr,  # whether a step stays within one tap
    WHOLE_BLOCKS: tl.constexpr,  # whether in_channels is a multiple of BLOCK_K
    POSITION: tl.constexpr,  # the integer type that holds the number of positions
    OFFSET: tl.constexpr,  # the integer type that holds offsets into input and weight
    PRECISION: tl.constexpr,  # of float32 products
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output; see the module's docstring."""
    # Neighbouring programs share positions, then their phase's input, which stay in the cache.
    program = tl.program_id(0)
    tile_n = program % tiles_n
    phase = program // tiles_n % (phases_height * phases_width)
    tile_m = program // tiles_n // (phases_height * phases_width)
    axis_h = AXIS(
        phase // phases_width,
        output_height,
        kernel_height,
        stride_height,
        padding_height,
        dilation_height,
        common_height,
        inverse_height,
    )
    axis_w = AXIS(
        phase % phases_width,
        output_width,
        kernel_width,
        stride_width,
        padding_width,
        dilation_width,
        common_width,
        inverse_width,
    )

    # Row m of the tile is the output (sample, q_h, q_w) of the phase. Offsets into operands are
    # OFFSET from the first product on: a tensor may have more than 2^31 elements.
    positions = batch.to(POSITION) * axis_h.outputs * axis_w.outputs
    position = tile_m.to(POSITION) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = position < positions
    sample, q_h, q_w = pixel_of(position, axis_h.outputs, axis_w.outputs, POSITION)
    input_h = axis_h.first_input + q_h * axis_h.input_per_output
    input_w = axis_w.first_input + q_w * axis_w.input_per_output
    row_offset = (
        sample.to(OFFSET) * input_stride_n
        + input_h.to(OFFSET) * input_stride_h
        + input_w.to(OFFSET) * input_stride_w
    )
    output_h = (axis_h.first_output + q_h * axis_h.output_step).to(tl.int64)
    output_w = (axis_w.first_output + q_w * axis_w.output_step).to(tl.int64)
    output_row = ((sample * output_height + output_h) * output_width + output_w) * out_channels
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < out_channels
    column_offset = column.to(OFFSET) * weight_stride_n

    if ONE_TAP:
        steps = axis_h.taps * axis_w.taps * tl.cdiv(in_channels, BLOCK_K)
    else:
        steps = tl.cdiv(axis_h.taps * axis_w.taps * in_channels, BLOCK_K)
    # The last tiles of a smaller phase are empty.
    steps = tl.where(tile_m.to(POSITION) * BLOCK_M < positions, steps, 0)
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    k = tl.arange(0, BLOCK_K)
    row, col, first_channel = 0, 0, 0
    # Exact while number * divisor is below 2^32. A phase without taps has no steps.
    row_multiplier = (2**32 - 1) // tl.maximum(axis_w.taps, 1).to(tl.uint32) + 1
    for step in range(steps):
        if ONE_TAP:
            channel = first_channel + k
            known = k < BLOCK_K if WHOLE_BLOCKS else channel < in_channels
            tap_h, tap_w = row + tl.full([1], 0, tl.int32), col + tl.full([1], 0, tl.int32)
            # Incremented, because a division per step would take longer than the products.
            first_channel += BLOCK_K
            col = tl.where(first_channel < in_channels, col, col + 1)
            first_channel = tl.where(first_channel < in_channels, first_channel, 0)
            row = tl.where(col < axis_w.taps, row, row + 1)
            col = tl.where(col < axis_w.taps, col, 0)
        else:
            number = step * BLOCK_K + k
            tap = quotient(number, in_channels, channel_multiplier, channel_shift)
            channel = number - tap * in_channels
            known = tap < axis_h.taps * axis_w.taps
            tap_h = quotient(tap, axis_w.taps, row_multiplier, 0)
            tap_w = tap - tap_h * axis_w.taps
        step_h, step_w = tap_h * axis_h.input_per_tap, tap_w * axis_w.input_per_tap
        at_h, at_w = input_h[:, None] + step_h[None, :], input_w[:, None] + step_w[None, :]
        inside = within(at_h, input_height) & within(at_w, input_width)
        inside = inside & exists[:, None] & known[None, :]
        k_offset = (
            step_h.to(OFFSET) * input_stride_h
            + step_w.to(OFFSET) * input_stride_w
            + channel.to(OFFSET) * input_stride_c
        )
        offset = row_offset[:, None] + k_offset[None, :]
        a = tl.load(input + offset, mask=inside, other=0.0)

        weight_offset = (
            (axis_h.first_tap + tap_h * axis_h.tap_step).to(OFFSET) * weight_stride_h
            + (axis_w.first_tap + tap_w * axis_w.tap_step).to(OFFSET) * weight_stride_w
            + channel.to(OFFSET) * weight_stride_k
        )
        b = tl.load(
            weight + (weight_offset[:, None] + column_offset[None, :]),
            mask=known[:, None] & column_exists[None, :],
            other=0.0,
        )

        vectors = load_vectors(
            input_mean, input_scale, input_bias, input_slope, input_offset, channel, known
        )
        a = after_prologue(
            a, input_other, offset, inside, vectors, input_negative_slope, PROLOGUE, INPUT_FUNCTION
        )
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)

    store_tile(
        accumulator,
        output_row,
        exists,
        column,
        tile_n,
        phase * tiles_m + tile_m,
        out_channels,
        output,
        output_other,
        output_bias,
        output_mean,
        output_scale,
        output_invstd,
        tile_count,
        tile_first,
        tile_second,
        output_negative_slope,
        EPILOGUE,
        OUTPUT_FUNCTION,
        REDUCTION,
    )


@triton.jit
def store_tile(
    accumulator,
    output_row,  # offsets of the rows in the output
    exists,  # which rows exist
    column,  # channels of the output
    tile_n,  # of how many in a row
    tile,  # of how many along the rows
    out_channels,
    output,
    output_other,
    output_bias,
    output_mean,
    output_scale,
    output_invstd,
    tile_count,
    tile_first,
    tile_second,
    output_negative_slope,
    EPILOGUE: tl.constexpr,
    OUTPUT_FUNCTION: tl.constexpr,
    REDUCTION: tl.constexpr,
):
    """Applies the epilogue to a tile of the product and stores it, and the reduction's results."""
    column_exists = column < out_channels
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
        tile = tile.to(tl.int64)
        tl.store(tile_first + tile * out_channels + column, first, mask=column_exists)
        tl.store(tile_second + tile * out_channels + column, second, mask=column_exists)
        if tile_count is not None:
            tl.store(tile_count + tile, count, mask=tile_n == 0)
