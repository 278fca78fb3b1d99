"""The weight gradient: a matrix product summed over positions, cut into splits, then added up.

A convolution pairs the pixels of its two sides through its taps: pixel q of the *paired* side and
tap r meet at pixel q stride - padding + r dilation of the *gathered* side. For a Conv2d the paired
side is its output and the gathered one its input; for a ConvTranspose2d it is the other way round.
A weight has the paired side's channels first, in both. So both weight gradients are

    grad_weight[c, k, r] = sum over samples n and pixels q of
                           paired[n, q, c] * gathered[n, q stride - padding + r dilation, k]

with a prologue on either operand. As a matrix product: rows are (r, k), taps slow, channels fast,
columns the channels c, summed over the positions (n, q). Few weights and many positions would keep
few multiprocessors busy, so the positions are cut into splits; each leaves its sum in a buffer of
its own, and ``sum_splits_kernel`` adds these in the order of the splits: no atomics, and the same
bits in every run.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.prologues import load_vector

__all__ = ["channel_sums_kernel", "sum_splits_kernel", "weight_gradient_kernel"]


@triton.jit
def after_prologue(
    value,
    other_pointer,
    offset,
    inside,
    mean,
    scale,
    bias,
    slope,
    shift,
    negative_slope,
    PROLOGUE: tl.constexpr,
    FUNCTION: tl.constexpr,
):
    """The operand's tile after its prologue, in its own dtype, and 0 where there is no element."""
    result = value
    if PROLOGUE is not None:
        x = value.to(tl.float32)
        other = x
        if other_pointer is not None:
            other = tl.load(other_pointer + offset, mask=inside, other=0.0).to(tl.float32)
        x = PROLOGUE(x, other, mean, scale, bias, slope, shift, negative_slope, FUNCTION)
        result = tl.where(inside, x, 0.0).to(value.dtype)
    return result


@triton.jit(
    do_not_specialize=[
        "batch",
        "paired_height",
        "paired_width",
        "gathered_height",
        "gathered_width",
        "kernel_height",
        "kernel_width",
        "stride_height",
        "stride_width",
        "padding_height",
        "padding_width",
        "dilation_height",
        "dilation_width",
        "steps_per_split",
        "tiles_m",
        "tiles_n",
    ]
)
def weight_gradient_kernel(
    # The two operands, each with what its prologue reads.
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
    steps_per_split,  # of BLOCK_K positions each
    tiles_m,
    tiles_n,
    PAIRED_PROLOGUE: tl.constexpr,  # or None
    PAIRED_FUNCTION: tl.constexpr,
    GATHERED_PROLOGUE: tl.constexpr,  # or None
    GATHERED_FUNCTION: tl.constexpr,
    ONE_TAP: tl.constexpr,  # whether a tile's rows stay within one tap
    POSITION: tl.constexpr,  # the integer type that holds the number of positions
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

    if ONE_TAP:
        tiles_per_tap = tl.cdiv(gathered_channels, BLOCK_M)
        tap = tile_m // tiles_per_tap + tl.full([1], 0, tl.int32)
        channel = tile_m % tiles_per_tap * BLOCK_M + tl.arange(0, BLOCK_M)
        known = channel < gathered_channels
    else:
        row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        tap = row // gathered_channels
        channel = row % gathered_channels
        known = tap < kernel_height * kernel_width
    tap_h = tap // kernel_width
    tap_w = tap % kernel_width
    from_h = tap_h * dilation_height - padding_height
    from_w = tap_w * dilation_width - padding_width
    # From the paired pixel, scaled by the stride, to the element that its tap reads.
    row_offset = (
        from_h.to(tl.int64) * gathered_stride_h
        + from_w.to(tl.int64) * gathered_stride_w
        + channel.to(tl.int64) * gathered_stride_c
    )
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < paired_channels
    column_offset = column.to(tl.int64) * paired_stride_c

    gathered_mean_row = load_vector(gathered_mean, channel, known)
    gathered_scale_row = load_vector(gathered_scale, channel, known)
    gathered_bias_row = load_vector(gathered_bias, channel, known)
    gathered_slope_row = load_vector(gathered_slope, channel, known)
    gathered_offset_row = load_vector(gathered_offset, channel, known)
    paired_mean_row = load_vector(paired_mean, column, column_exists)
    paired_scale_row = load_vector(paired_scale, column, column_exists)
    paired_bias_row = load_vector(paired_bias, column, column_exists)
    paired_slope_row = load_vector(paired_slope, column, column_exists)
    paired_offset_row = load_vector(paired_offset, column, column_exists)

    per_sample = paired_height.to(POSITION) * paired_width
    positions = batch.to(POSITION) * per_sample
    start = split.to(POSITION) * steps_per_split * BLOCK_K
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for step in range(steps_per_split):
        position = start + step * BLOCK_K + tl.arange(0, BLOCK_K)
        exists = position < positions
        sample = (position // per_sample).to(tl.int64)
        in_sample = (position % per_sample).to(tl.int32)
        q_h = in_sample // paired_width
        q_w = in_sample % paired_width

        paired_offset_2d = (
            sample * paired_stride_n
            + q_h.to(tl.int64) * paired_stride_h
            + q_w.to(tl.int64) * paired_stride_w
        )[:, None] + column_offset[None, :]
        paired_inside = exists[:, None] & column_exists[None, :]
        b = tl.load(paired + paired_offset_2d, mask=paired_inside, other=0.0)

        scaled_h = q_h * stride_height
        scaled_w = q_w * stride_width
        at_h = scaled_h[:, None] + from_h[None, :]
        at_w = scaled_w[:, None] + from_w[None, :]
        inside = (at_h >= 0) & (at_h < gathered_height) & (at_w >= 0) & (at_w < gathered_width)
        inside = inside & exists[:, None] & known[None, :]
        gathered_offset_2d = (
            sample * gathered_stride_n
            + scaled_h.to(tl.int64) * gathered_stride_h
            + scaled_w.to(tl.int64) * gathered_stride_w
        )[:, None] + row_offset[None, :]
        a = tl.load(gathered + gathered_offset_2d, mask=inside, other=0.0)

        a = after_prologue(
            a,
            gathered_other,
            gathered_offset_2d,
            inside,
            gathered_mean_row,
            gathered_scale_row,
            gathered_bias_row,
            gathered_slope_row,
            gathered_offset_row,
            gathered_negative_slope,
            GATHERED_PROLOGUE,
            GATHERED_FUNCTION,
        )
        b = after_prologue(
            b,
            paired_other,
            paired_offset_2d,
            paired_inside,
            paired_mean_row,
            paired_scale_row,
            paired_bias_row,
            paired_slope_row,
            paired_offset_row,
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


@triton.jit(do_not_specialize=["splits", "elements"])
def sum_splits_kernel(
    partial,  # (splits, elements) float32
    total,  # (elements,)
    splits,
    elements,
    BLOCK_SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """total = the sum over the splits, in float32 and in an order that is always the same."""
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


@triton.jit(do_not_specialize=["batch", "height", "width", "steps_per_split", "tiles_n"])
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
    """The bias gradient: the sum over a split's positions, after the prologue."""
    program = tl.program_id(0)
    tile_n = program % tiles_n
    split = program // tiles_n
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    column_exists = column < channels
    column_offset = column.to(tl.int64) * stride_c
    mean_row = load_vector(mean, column, column_exists)
    scale_row = load_vector(scale, column, column_exists)
    bias_row = load_vector(bias, column, column_exists)
    slope_row = load_vector(slope, column, column_exists)
    offset_row = load_vector(offset, column, column_exists)
    per_sample = height.to(POSITION) * width
    positions = batch.to(POSITION) * per_sample
    start = split.to(POSITION) * steps_per_split * BLOCK_M
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for step in range(steps_per_split):
        position = start + step * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = (position < positions)[:, None] & column_exists[None, :]
        sample = (position // per_sample).to(tl.int64)
        in_sample = (position % per_sample).to(tl.int32)
        offset_2d = (
            sample * stride_n
            + (in_sample // width).to(tl.int64) * stride_h
            + (in_sample % width).to(tl.int64) * stride_w
        )[:, None] + column_offset[None, :]
        x = tl.load(value + offset_2d, mask=inside, other=0.0)
        # Rounded to the storage dtype after the prologue, as the weight gradient sees it.
        accumulator += after_prologue(
            x,
            other,
            offset_2d,
            inside,
            mean_row,
            scale_row,
            bias_row,
            slope_row,
            offset_row,
            negative_slope,
            PROLOGUE,
            FUNCTION,
        ).to(tl.float32)
    tl.store(
        partial + split.to(tl.int64) * channels + column,
        tl.sum(accumulator, axis=0),
        mask=column_exists,
    )
