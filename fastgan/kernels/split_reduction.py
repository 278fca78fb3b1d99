"""The weight gradient: a matrix product over positions, split-K style, with a second stage.

Pixel q of a convolution's *paired* side and tap r meet at pixel q stride - padding + r dilation of
its *gathered* side. The paired side is a Conv2d's output or a ConvTranspose2d's input, and its
channels are the weight's first dimension. Both weight gradients are

    grad_weight[c, k, r] = sum over samples n and pixels q of
                           paired[n, q, c] * gathered[n, q stride - padding + r dilation, k]

with a prologue on either operand. As a matrix product: rows are (r, k), taps slow, channels fast,
columns the channels c, summed over the positions (n, q). Few weights would occupy few
multiprocessors, so the positions are split; each split writes its sum to its own buffer, and
``sum_splits_kernel`` adds them in a fixed order: no atomics, and bitwise reproducible.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.index_maps import pixel_of, quotient, tap_and_channel, within
from fastgan.kernels.launch import UNSPECIALISED
from fastgan.kernels.prologues import after_prologue, load_vectors


@triton.jit(do_not_specialize=UNSPECIALISED)
def weight_gradient_kernel(
    # The two operands, each with its prologue's tensors.
    paired,  # logically (N, paired_channels, paired_height, paired_width)
    paired_other,  # as paired, in the same strides; or None
    paired_mean,  # (paired_channels,) float32; or None, as the next four
    paired_scale,
    paired_bias,
    paired_slope,
    paired_offset,
    gathered,  # logically (N, gathered_channels, gathered_height, gathered_width)
    gathered_other,  # as gathered, in the same strides; or None
    gathered_mean,  # (gathered_channels,) float32; or None, as the next four
    gathered_scale,
    gathered_bias,
    gathered_slope,
    gathered_offset,
    grad_weight,  # splits x paired_channels x gathered_channels x kernel_height x kernel_width
    paired_negative_slope,
    gathered_negative_slope,
    batch,
    paired_height,
    paired_width,
    gathered_height,
    gathered_width,
    paired_channels,
    gathered_channels,
    paired_stride_n,
    paired_stride_h,
    paired_stride_w,
    paired_stride_c,
    gathered_stride_n,
    gathered_stride_h,
    gathered_stride_w,
    gathered_stride_c,
    weight_stride_split,
    weight_stride_paired,
    weight_stride_gathered,
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
    row_multiplier,  # for a quotient by paired_width
    row_shift,
    sample_multiplier,  # for one by paired_height paired_width
    sample_shift,
    steps_per_split,  # of BLOCK_K positions each
    tiles_m,
    tiles_n,
    PAIRED_PROLOGUE: tl.constexpr,  # or None
    PAIRED_FUNCTION: tl.constexpr,
    GATHERED_PROLOGUE: tl.constexpr,  # or None
    GATHERED_FUNCTION: tl.constexpr,
    ONE_TAP: tl.constexpr,  # whether a tile's rows stay within one tap
    POSITION: tl.constexpr,  # the integer type that holds the number of positions
    OFFSET: tl.constexpr,  # the integer type that holds offsets into paired and gathered
    PRECISION: tl.constexpr,  # of float32 products
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_M rows (tap, gathered channel) by BLOCK_N paired channels, over one split."""
    # Neighbouring programs share the positions of their split.
    program = tl.program_id(0)
    tile_n = program % tiles_n
    tile_m = program // tiles_n % tiles_m
    split = program // tiles_n // tiles_m

    tap_h, tap_w, channel, known = tap_and_channel(
        tile_m, kernel_height, kernel_width, gathered_channels, BLOCK_M, ONE_TAP
    )
    from_h = tap_h * dilation_height - padding_height
    from_w = tap_w * dilation_width - padding_width
    # Offset from the paired pixel, scaled by the stride, to the tap's element.
    row_offset = (
        from_h.to(OFFSET) * gathered_stride_h
        + from_w.to(OFFSET) * gathered_stride_w
        + channel.to(OFFSET) * gathered_stride_c
    )
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < paired_channels
    column_offset = column.to(OFFSET) * paired_stride_c

    gathered_vectors = load_vectors(
        gathered_mean,
        gathered_scale,
        gathered_bias,
        gathered_slope,
        gathered_offset,
        channel,
        known,
    )
    paired_vectors = load_vectors(
        paired_mean,
        paired_scale,
        paired_bias,
        paired_slope,
        paired_offset,
        column,
        column_exists,
    )

    positions = batch.to(POSITION) * paired_height * paired_width
    start = split.to(POSITION) * steps_per_split * BLOCK_K
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for step in range(steps_per_split):
        position = start + step * BLOCK_K + tl.arange(0, BLOCK_K)
        exists = position < positions
        if POSITION.primitive_bitwidth == 32:
            per_sample = paired_height * paired_width
            sample = quotient(position, per_sample, sample_multiplier, sample_shift)
            in_sample = position - sample * per_sample
            q_h = quotient(in_sample, paired_width, row_multiplier, row_shift)
            q_w = in_sample - q_h * paired_width
        else:
            sample, q_h, q_w = pixel_of(position, paired_height, paired_width, POSITION)

        paired_offset_2d = (
            sample.to(OFFSET) * paired_stride_n
            + q_h.to(OFFSET) * paired_stride_h
            + q_w.to(OFFSET) * paired_stride_w
        )[:, None] + column_offset[None, :]
        paired_inside = exists[:, None] & column_exists[None, :]
        b = tl.load(paired + paired_offset_2d, mask=paired_inside, other=0.0)

        scaled_h = q_h * stride_height
        scaled_w = q_w * stride_width
        at_h = scaled_h[:, None] + from_h[None, :]
        at_w = scaled_w[:, None] + from_w[None, :]
        inside = within(at_h, gathered_height) & within(at_w, gathered_width)
        inside = inside & exists[:, None] & known[None, :]
        gathered_offset_2d = (
            sample.to(OFFSET) * gathered_stride_n
            + scaled_h.to(OFFSET) * gathered_stride_h
            + scaled_w.to(OFFSET) * gathered_stride_w
        )[:, None] + row_offset[None, :]
        a = tl.load(gathered + gathered_offset_2d, mask=inside, other=0.0)

        a = after_prologue(
            a,
            gathered_other,
            gathered_offset_2d,
            inside,
            gathered_vectors,
            gathered_negative_slope,
            GATHERED_PROLOGUE,
            GATHERED_FUNCTION,
        )
        b = after_prologue(
            b,
            paired_other,
            paired_offset_2d,
            paired_inside,
            paired_vectors,
            paired_negative_slope,
            PAIRED_PROLOGUE,
            PAIRED_FUNCTION,
        )
        accumulator = tl.dot(tl.trans(a), b, accumulator, input_precision=PRECISION)

    weight_row = (
        split.to(tl.int64) * weight_stride_split
        + channel.to(tl.int64) * weight_stride_gathered
        + tap_h.to(tl.int64) * weight_stride_h
        + tap_w.to(tl.int64) * weight_stride_w
    )
    tl.store(
        grad_weight + (weight_row[:, None] + (column.to(tl.int64) * weight_stride_paired)[None, :]),
        accumulator.to(grad_weight.dtype.element_ty),
        mask=known[:, None] & column_exists[None, :],
    )


@triton.jit(do_not_specialize=UNSPECIALISED)
def sum_splits_kernel(
    partial,  # (splits, elements) float32
    total,  # (elements,)
    splits,
    elements,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = the sum over the splits, in float32, in a fixed order.

    At most 128 splits: up to 8 blocks of BLOCK_SPLITS, each summed by a tree, are added in turn.
    """
    element = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = element < elements
    accumulator = tl.full([BLOCK], 0.0, tl.float32)
    for first in range(0, splits, BLOCK_SPLITS):
        split = first + tl.arange(0, BLOCK_SPLITS)
        block = tl.load(
            partial + (split.to(tl.int64) * elements)[:, None] + element[None, :],
            mask=(split < splits)[:, None] & exists[None, :],
            other=0.0,
        )
        accumulator += tl.sum(block, axis=0)
    tl.store(total + element, accumulator.to(total.dtype.element_ty), mask=exists)


@triton.jit(do_not_specialize=UNSPECIALISED)
def channel_sums_kernel(
    value,  # logically (N, channels, height, width)
    other,  # as value, in the same strides; or None
    mean,  # (channels,) float32; or None, as the next four
    scale,
    bias,
    slope,
    offset,
    partial,  # (splits, channels) float32
    negative_slope,
    batch,
    height,
    width,
    channels,
    stride_n,
    stride_h,
    stride_w,
    stride_c,
    steps_per_split,  # of BLOCK_M positions each
    tiles_n,
    PROLOGUE: tl.constexpr,  # or None
    FUNCTION: tl.constexpr,
    POSITION: tl.constexpr,  # the integer type that holds the number of positions
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The bias gradient of one split: the sum over its positions, after the prologue.

    Each of BLOCK_M rows is a compensated sum (csrc/math/compensated_sum.h); a tree adds the rows.
    For any number of positions the error for terms t is at most 10 u sum(|t|), u = 2^-24, plus 16 u
    for adding up to 128 splits.
    """
    program = tl.program_id(0)
    tile_n = program % tiles_n
    split = program // tiles_n
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < channels
    column_offset = column.to(tl.int64) * stride_c
    vectors = load_vectors(mean, scale, bias, slope, offset, column, column_exists)
    positions = batch.to(POSITION) * height * width
    start = split.to(POSITION) * steps_per_split * BLOCK_M
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    lost = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for step in range(steps_per_split):
        position = start + step * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (position < positions)[:, None] & column_exists[None, :]
        sample, row, pixel_column = pixel_of(position, height, width, POSITION)
        offset_2d = (
            sample * stride_n + row.to(tl.int64) * stride_h + pixel_column.to(tl.int64) * stride_w
        )[:, None] + column_offset[None, :]
        x = tl.load(value + offset_2d, mask=inside, other=0.0)
        # Rounded to the storage dtype after the prologue, as the weight gradient sees it.
        x = after_prologue(x, other, offset_2d, inside, vectors, negative_slope, PROLOGUE, FUNCTION)
        x = x.to(tl.float32)
        total = accumulator + x
        taken = total - accumulator
        lost += (accumulator - (total - taken)) + (x - taken)
        accumulator = total
    # If the sum is infinite, the compensation is NaN.
    accumulator = tl.where(lost - lost == 0, accumulator + lost, accumulator)
    tl.store(
        partial + split.to(tl.int64) * channels + column,
        tl.sum(accumulator, axis=0),
        mask=column_exists,
    )
