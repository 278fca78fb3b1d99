"""``torch.ops.fastgan.few_channels_*``: convolutions with few channels on one side, on GPUs.

``few_channels_gather(input, weight, bias, kept, ...)``::

    output = z(conv(input, weight) + bias)    or    conv(input, weight) * z'(kept)

conv is Conv2d, or ConvTranspose2d if ``transposed``; z the activation of that code
(:mod:`fastgan.activations`), z' its derivative from the tensor that it keeps, ``kept``. The first
is a layer's forward, the second an input gradient with the one of the activation before.

``input`` (N, C_in, H, W) in any layout; ``weight`` as the layer's, in any layout; ``bias`` (C_out,)
or None; ``kept`` of the output's shape or None, and then there is no bias. All of one dtype:
float32, bfloat16, float16 or float64. ``size`` is (rows, columns) of the output, which is
channels-last or contiguous. 16-bit products are summed in float32, by tensor cores from compute
capability 8.0 on; float32's are float32's, not TF32's. Formula: ``csrc/math/few_channels.h``. An
infinite or NaN input may make all outputs NaN whose windows it is in, also those that it has no tap
of.

``few_channels_weight_gradient(small, wide, ...)``: the weight's gradient, small's channels first::

    dw(m, f, t) = sum over samples and places o of small(m, o) wide(f, o * stride - padding + t)

a Conv2d's with the gradient of its output for ``small`` and its input for ``wide``, a
ConvTranspose2d's the other way round. One of them has at most four channels; ``small`` only at
stride 1. The error does not grow with the batch: at most 1024 places are added up in float32,
compensated sums (``csrc/math/compensated_sum.h``) do the rest.

The kernels are for CUDA devices; otherwise torch's convolutions run. Results are the same at each
run.

Order of gradients supported: none. They raise if autograd would have to record them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fastgan.activations import ACTIVATIONS, BY_CODE
from fastgan.ops.define import define_op
from fastgan.ops.memory_format import empty_map

#: Most channels of one map of a weight's gradient.
CHANNELS = 4
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def _left_over(
    op: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor | None,
    transposed: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
) -> list[int]:
    """Checks all arguments; returns a transposed convolution's output padding."""
    if input.dim() != 4 or weight.dim() != 4:
        raise RuntimeError(
            f"fastgan::{op}: input has shape {tuple(input.shape)} and weight "
            f"{tuple(weight.shape)}; expected four dimensions"
        )
    if input.dtype not in DTYPES or weight.dtype != input.dtype:
        raise RuntimeError(
            f"fastgan::{op}: dtypes {input.dtype} and {weight.dtype}; expected one of "
            f"{', '.join(map(str, DTYPES))} for both"
        )
    channels = weight.shape[:2] if transposed else weight.shape[1::-1]
    if channels[0] != input.shape[1]:
        raise RuntimeError(
            f"fastgan::{op}: weight has shape {tuple(weight.shape)} and input "
            f"{tuple(input.shape)}; expected channels to match"
        )
    if len(stride) != 2 or len(padding) != 2 or len(size) != 2:
        raise RuntimeError(f"fastgan::{op}: stride, padding and size should be two numbers each")
    if min(stride) < 1 or min(padding) < 0 or min(size) < 1:
        raise RuntimeError(
            f"fastgan::{op}: stride {tuple(stride)}, padding {tuple(padding)} and size "
            f"{tuple(size)}; expected 1, 0 and 1 or more"
        )
    places = tuple(input.shape[2:]), tuple(size)
    small, wide = places if transposed else places[::-1]
    left_over = [
        many + 2 * added - (few - 1) * step - taps
        for few, many, added, step, taps in zip(
            small, wide, padding, stride, weight.shape[2:], strict=True
        )
    ]
    fit = all(0 <= rest < step for rest, step in zip(left_over, stride, strict=True))
    if not fit or min(input.shape[2:]) < 1:
        raise RuntimeError(
            f"fastgan::{op}: maps of {places[0]} and {places[1]} places do not belong together at "
            f"stride {tuple(stride)}, padding {tuple(padding)} and {tuple(weight.shape[2:])} taps"
        )
    if bias is not None and (tuple(bias.shape) != (channels[1],) or bias.dtype != input.dtype):
        shape = ", ".join(map(str, bias.shape))
        raise RuntimeError(
            f"fastgan::{op}: bias has shape ({shape}) and dtype {bias.dtype}; expected "
            f"({channels[1]}) and {input.dtype}"
        )
    shape_of_output = (input.shape[0], channels[1], *size)
    if kept is not None and (
        tuple(kept.shape) != shape_of_output or kept.dtype != input.dtype or bias is not None
    ):
        raise RuntimeError(
            f"fastgan::{op}: kept has shape {tuple(kept.shape)} and dtype {kept.dtype}; expected "
            f"{shape_of_output} and {input.dtype}, and no bias"
        )
    return left_over


def _gather_examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)

    leaky, tanh = ACTIVATIONS["leaky_relu"].code, ACTIVATIONS["tanh"].code
    for dtype in DTYPES:
        image, small, weight, bias = (
            torch.randn(shape, generator=generator).to(dtype)
            for shape in ((2, 3, 12, 18), (2, 24, 6, 9), (24, 3, 4, 4), (24,))
        )
        geometry = [2, 2], [1, 1]
        yield image, weight, bias, None, False, *geometry, [6, 9], leaky, 0.2, True
        yield small, weight, bias[:3].clone(), None, True, *geometry, [12, 18], tanh, 0.0, False
        yield image, weight, None, small, False, *geometry, [6, 9], leaky, 0.2, True


@define_op(
    "few_channels_gather(Tensor input, Tensor weight, Tensor? bias, Tensor? kept, bool transposed, "
    "int[] stride, int[] padding, int[] size, int activation, float negative_slope, "
    "bool channels_last) -> Tensor",
    examples=_gather_examples,
)
def few_channels_gather(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: Tensor | None,
    transposed: bool,
    stride: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
    activation: int,
    negative_slope: float,
    channels_last: bool,
) -> Tensor:
    """Torch's convolution and activation."""
    left_over = _left_over(
        "few_channels_gather", input, weight, bias, kept, transposed, stride, padding, size
    )
    stride, padding, row = list(stride), list(padding), BY_CODE[activation]
    if transposed:
        wide = F.conv_transpose2d(input, weight, bias, stride, padding, left_over)
    else:
        wide = F.conv2d(input, weight, bias, stride, padding)
    wide = (
        row.forward(wide, negative_slope)
        if kept is None
        else row.gradient(wide, kept, negative_slope)
    )
    output = empty_map(input, wide.shape, channels_last)
    return output.copy_(wide)


def _weight_gradient_examples() -> Iterator[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        small, wide, scores = (
            torch.randn(shape, generator=generator).to(dtype)
            for shape in ((2, 24, 6, 9), (2, 3, 12, 18), (2, 1, 3, 6))
        )
        yield small, wide, [4, 4], [2, 2], [1, 1], False
        yield scores, small, [4, 4], [1, 1], [0, 0], True


@define_op(
    "few_channels_weight_gradient(Tensor small, Tensor wide, int[] taps, int[] stride, "
    "int[] padding, bool channels_last) -> Tensor",
    examples=_weight_gradient_examples,
)
def few_channels_weight_gradient(
    small: Tensor,
    wide: Tensor,
    taps: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    channels_last: bool,
) -> Tensor:
    """Torch's weight gradient."""
    op = "few_channels_weight_gradient"
    if small.dim() != 4 or wide.dim() != 4 or small.shape[0] != wide.shape[0]:
        raise RuntimeError(
            f"fastgan::{op}: maps of shapes {tuple(small.shape)} and {tuple(wide.shape)}; expected "
            "(N, C, H, W), one N"
        )
    if len(taps) != 2 or len(stride) != 2 or len(padding) != 2:
        raise RuntimeError(f"fastgan::{op}: taps, stride and padding should be two numbers each")
    if wide.shape[1] > CHANNELS and (small.shape[1] > CHANNELS or max(stride) > 1):
        raise RuntimeError(
            f"fastgan::{op}: small has {small.shape[1]} channels and wide {wide.shape[1]}; "
            f"expected at most {CHANNELS} of wide's, or of small's at stride 1"
        )
    shape = (small.shape[1], wide.shape[1], *taps)
    like = small.new_empty(1).expand(shape)
    _left_over(op, wide, like, None, None, False, stride, padding, small.shape[2:])
    gradient = conv2d_weight(wide, shape, small, stride=tuple(stride), padding=tuple(padding))
    return empty_map(small, shape, channels_last).copy_(gradient)
