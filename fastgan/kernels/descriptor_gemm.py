"""Convolutions as implicit matrix products of tiles that the tensor memory accelerator copies.

The products are those of :mod:`fastgan.kernels.implicit_gemm` and
:mod:`fastgan.kernels.split_reduction`. Here a tile's positions are a box, samples x rows x columns,
so that the input of each tap is a box as well: on sm_90 and later one instruction copies it to
shared memory, with zeros outside the input, and no thread computes an address.

With inputs s apart for neighbouring outputs (a gather of stride s), output q and an input
coordinate i = s (q + p) + r meet at plane position q + p of parity r. The descriptor sees
channels-last input (N, H, W, C) as

    (N, H / s_h, s_h, W / s_w, s_w C)    at (n, q_h + p_h, r_h, q_w + p_w, r_w C + c)

so H and W are multiples of s, and C, if s_w > 1, of BLOCK_K. A scatter has s = 1 within a phase.

The weight is channels-last: (out_channels, taps, in_channels) in memory for a gather,
(in_channels, taps, out_channels) for a scatter. In a weight gradient the gathered side is such an
input, the paired side one with s = 1.

Nothing is done on load: the descriptor copies memory as it is.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

from fastgan.kernels.implicit_gemm import store_tile
from fastgan.kernels.launch import UNSPECIALISED


@triton.jit(do_not_specialize=UNSPECIALISED)
def descriptor_gemm_kernel(
    output,  # channels-last (N, out_channels, H, W)
    # The epilogue's tensors, as implicit_gemm_kernel's.
    output_other,
    output_bias,
    output_mean,
    output_scale,
    output_invstd,
    tile_count,
    tile_first,
    tile_second,
    input,  # a descriptor of (N, H / s_h, s_h, W / s_w, s_w C)
    weight,  # a descriptor of (out_channels, taps, in_channels), or with both swapped
    output_negative_slope,
    batch,
    output_height,
    output_width,
    in_channels,
    out_channels,
    kernel_height,
    kernel_width,
    stride_height,
    stride_width,
    padding_height,
    padding_width,
    dilation_height,
    dilation_width,
    common_height,
    common_width,
    inverse_height,
    inverse_width,
    phases_height,
    phases_width,
    boxes_h,  # per phase and group of samples
    boxes_w,
    tiles_m,  # per phase
    tiles_n,
    AXIS: tl.constexpr,  # gather_axis or scatter_axis
    SCATTER: tl.constexpr,
    SHIFT_H: tl.constexpr,  # s = 2^SHIFT, the distance of neighbouring outputs' inputs
    SHIFT_W: tl.constexpr,
    EPILOGUE: tl.constexpr,
    OUTPUT_FUNCTION: tl.constexpr,
    REDUCTION: tl.constexpr,  # or None
    BOX_N: tl.constexpr,  # samples
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of the output; see the module's docstring."""
    BLOCK_M: tl.constexpr = BOX_N * BOX_H * BOX_W
    # As in implicit_gemm_kernel: neighbouring programs share positions, then their phase's input.
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
    first_w = tile_m % boxes_w * BOX_W
    first_h = tile_m // boxes_w % boxes_h * BOX_H
    first_sample = tile_m // boxes_w // boxes_h * BOX_N

    blocks = tl.cdiv(in_channels, BLOCK_K)
    steps = axis_h.taps * axis_w.taps * blocks
    # The last tiles of a smaller phase are empty.
    steps = tl.where((first_h < axis_h.outputs) & (first_w < axis_w.outputs), steps, 0)
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    row, col, channel = 0, 0, 0
    for _step in range(steps):
        at_h = axis_h.first_input + row * axis_h.input_per_tap
        at_w = axis_w.first_input + col * axis_w.input_per_tap
        # Shifts round down, as the tap before the first pixel needs.
        a = input.load(
            [
                first_sample,
                first_h + (at_h >> SHIFT_H),
                at_h & ((1 << SHIFT_H) - 1),
                first_w + (at_w >> SHIFT_W),
                (at_w & ((1 << SHIFT_W) - 1)) * in_channels + channel,
            ]
        ).reshape(BLOCK_M, BLOCK_K)
        tap = (
            (axis_h.first_tap + row * axis_h.tap_step) * kernel_width
            + axis_w.first_tap
            + col * axis_w.tap_step
        )
        if SCATTER:
            b = weight.load([channel, tap, tile_n * BLOCK_N]).reshape(BLOCK_K, BLOCK_N)
        else:
            b = weight.load([tile_n * BLOCK_N, tap, channel]).reshape(BLOCK_N, BLOCK_K).T
        accumulator = tl.dot(a, b, accumulator)
        channel += BLOCK_K
        col = tl.where(channel < in_channels, col, col + 1)
        channel = tl.where(channel < in_channels, channel, 0)
        row = tl.where(col < axis_w.taps, row, row + 1)
        col = tl.where(col < axis_w.taps, col, 0)

    m = tl.arange(0, BLOCK_M)
    sample = first_sample + m // (BOX_H * BOX_W)
    q_h, q_w = first_h + m // BOX_W % BOX_H, first_w + m % BOX_W
    exists = (sample < batch) & (q_h < axis_h.outputs) & (q_w < axis_w.outputs)
    output_h = (axis_h.first_output + q_h * axis_h.output_step).to(tl.int64)
    output_w = (axis_w.first_output + q_w * axis_w.output_step).to(tl.int64)
    store_tile(
        accumulator,
        ((sample.to(tl.int64) * output_height + output_h) * output_width + output_w) * out_channels,
        exists,
        tile_n * BLOCK_N + tl.arange(0, BLOCK_N),
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


@triton.jit(do_not_specialize=UNSPECIALISED)
def descriptor_weight_gradient_kernel(
    grad_weight,  # splits x paired_channels x gathered_channels x kernel_height x kernel_width
    paired,  # a descriptor of (N, H', 1, W', C')
    gathered,  # a descriptor of (N, H / s_h, s_h, W / s_w, s_w C)
    paired_channels,
    gathered_channels,
    weight_stride_split,
    weight_stride_paired,
    weight_stride_gathered,
    weight_stride_h,
    weight_stride_w,
    kernel_width,
    padding_height,
    padding_width,
    dilation_height,
    dilation_width,
    boxes_h,  # per group of samples
    boxes_w,
    steps_per_split,  # of a box each
    tiles_m,
    tiles_n,
    SHIFT_H: tl.constexpr,  # s = 2^SHIFT, the stride
    SHIFT_W: tl.constexpr,
    BOX_N: tl.constexpr,
    BOX_H: tl.constexpr,
    BOX_W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """BLOCK_M gathered channels of a tap by BLOCK_N paired channels, over one split.

    Boxes divide the paired map's height and width, so that beyond it lie only samples, which are
    zero on both sides.
    """
    BLOCK_K: tl.constexpr = BOX_N * BOX_H * BOX_W
    program = tl.program_id(0)
    tile_n = program % tiles_n
    tile_m = program // tiles_n % tiles_m
    split = program // tiles_n // tiles_m
    blocks = tl.cdiv(gathered_channels, BLOCK_M)
    tap = tile_m // blocks
    tap_h, tap_w = tap // kernel_width, tap % kernel_width
    first_channel = tile_m % blocks * BLOCK_M
    from_h = tap_h * dilation_height - padding_height
    from_w = tap_w * dilation_width - padding_width
    plane_h, parity_h = from_h >> SHIFT_H, from_h & ((1 << SHIFT_H) - 1)
    plane_w, parity_w = from_w >> SHIFT_W, from_w & ((1 << SHIFT_W) - 1)
    gathered_channel = parity_w * gathered_channels + first_channel

    box = split * steps_per_split
    w = box % boxes_w * BOX_W
    h = box // boxes_w % boxes_h * BOX_H
    sample = box // boxes_w // boxes_h * BOX_N
    accumulator = tl.full([BLOCK_M, BLOCK_N], 0.0, tl.float32)
    for _step in range(steps_per_split):
        a = gathered.load([sample, h + plane_h, parity_h, w + plane_w, gathered_channel])
        b = paired.load([sample, h, 0, w, tile_n * BLOCK_N])
        accumulator = tl.dot(
            a.reshape(BLOCK_K, BLOCK_M).T, b.reshape(BLOCK_K, BLOCK_N), accumulator
        )
        w += BOX_W
        h = tl.where(w < boxes_w * BOX_W, h, h + BOX_H)
        w = tl.where(w < boxes_w * BOX_W, w, 0)
        sample = tl.where(h < boxes_h * BOX_H, sample, sample + BOX_N)
        h = tl.where(h < boxes_h * BOX_H, h, 0)

    channel = first_channel + tl.arange(0, BLOCK_M)
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row = (
        split.to(tl.int64) * weight_stride_split
        + channel.to(tl.int64) * weight_stride_gathered
        + tap_h.to(tl.int64) * weight_stride_h
        + tap_w.to(tl.int64) * weight_stride_w
    )
    tl.store(
        grad_weight + (row[:, None] + (column.to(tl.int64) * weight_stride_paired)[None, :]),
        accumulator.to(grad_weight.dtype.element_ty),
        mask=(channel < gathered_channels)[:, None] & (column < paired_channels)[None, :],
    )
