"""A stage's convolution and its two gradients by ATen: oneDNN on CPUs, cuDNN on GPUs.

    forward           y  = conv(x, W) + b
    input_gradient    dx = conv^T(dy, W)
    weight_gradient   dW = sum over batch and places of x * dy,    db = sum of dy

The two gradients are asked for one by one and not together, so that what the one needs can be
freed before the other takes memory of its own.

A generator's first layer makes 4x4 places of one, a critic's last makes one of 4x4. Both are
products of matrices, and on a CPU are taken as such: oneDNN's convolution would first bring the
weights into an order of its own, which for so few places takes longer than the convolution (three
quarters of the first layer's time at batch 16).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.stages import Stage

__all__ = ["forward", "input_gradient", "weight_gradient"]

_backward = torch.ops.aten.convolution_backward.default


def forward(stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(input, weight) + bias; differentiable by autograd.

    Args:
        stage: geometry.
        input: (N, C_in, H, W), or (N, C_in) for a linear layer.
        weight: as the layer's.
        bias: (C_out,) or None.

    Returns:
        (N, C_out, H_out, W_out) or (N, C_out).
    """
    if stage.kind == "linear":
        return F.linear(input, weight, bias)
    if _is_product(stage, input, weight):
        return _product(stage, input, weight, bias)
    return torch.convolution(
        input,
        weight,
        bias,
        stage.stride,
        stage.padding,
        stage.dilation,
        stage.kind == "conv_transpose2d",
        stage.output_padding,
        stage.groups,
    )


def input_gradient(stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``forward``'s input.

    Args:
        stage: geometry.
        grad_output: the gradient of the output.
        input: of the input's shape and layout; its values are not read.
        weight: the layer's.
    """
    if stage.kind == "linear":
        return grad_output @ weight
    if _is_product(stage, input, weight):
        matrix = _rows(weight)
        if stage.kind == "conv2d":
            return _unrowed(grad_output.flatten(1) @ matrix, weight, input.shape[1:])
        return (_rows_as(weight, grad_output) @ matrix.t())[:, :, None, None]
    grad_input: Tensor = _call_backward(
        stage, grad_output, input, weight, None, [True, False, False]
    )[0]
    return grad_input


def weight_gradient(
    stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``forward``'s weight and bias.

    Args:
        stage: geometry.
        grad_output: the gradient of the output.
        input: what the layer took.
        weight: of the weight's shape and layout; its values are not read.
        with_bias: whether to return the bias's gradient, (C_out,), too.
    """
    if stage.kind == "linear":
        return grad_output.t() @ input, grad_output.sum(0) if with_bias else None
    if _is_product(stage, input, weight):
        grad_bias = grad_output.sum((0, 2, 3)) if with_bias else None
        if stage.kind == "conv2d":
            product = grad_output.flatten(1).t() @ _rows_as(weight, input)
        else:
            product = input.flatten(1).t() @ _rows_as(weight, grad_output)
        return _unrowed(product, weight, weight.shape[1:]), grad_bias
    channels = [grad_output.shape[1]] if with_bias else None
    _, grad_weight, grad_bias = _call_backward(
        stage, grad_output, input, weight, channels, [False, True, with_bias]
    )
    return grad_weight, grad_bias


def _call_backward(
    stage: Stage,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias_sizes: list[int] | None,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _backward(
        grad_output,
        input,
        weight,
        bias_sizes,
        stage.stride,
        stage.padding,
        stage.dilation,
        stage.kind == "conv_transpose2d",
        stage.output_padding,
        stage.groups,
        wanted,
    )
    return gradients


def _is_product(stage: Stage, input: Tensor, weight: Tensor) -> bool:
    """Whether every weight meets every sample exactly once."""
    if input.device.type != "cpu" or stage.groups != 1 or stage.padding != (0, 0):
        return False
    if stage.dilation != (1, 1) or stage.output_padding != (0, 0):
        return False
    places = input.shape[2:]
    return places == ((1, 1) if stage.kind == "conv_transpose2d" else weight.shape[2:])


def _product(stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if stage.kind == "conv2d":
        return F.linear(_rows_as(weight, input), _rows(weight), bias)[:, :, None, None]
    output = _unrowed(input.flatten(1) @ _rows(weight), weight, weight.shape[1:])
    return output if bias is None else output + bias[:, None, None]


def _is_channels_last(weight: Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


def _rows_as(weight: Tensor, tensor: Tensor) -> Tensor:
    """(N, C, H, W) as a matrix of N rows, in the order in which the weight lies in memory."""
    return (tensor.permute(0, 2, 3, 1) if _is_channels_last(weight) else tensor).flatten(1)


def _rows(tensor: Tensor) -> Tensor:
    return _rows_as(tensor, tensor)


def _unrowed(matrix: Tensor, weight: Tensor, shape: Sequence[int]) -> Tensor:
    """The reverse: a matrix's rows as maps of (C, H, W)."""
    channels, rows, columns = shape
    if _is_channels_last(weight):
        return matrix.view(len(matrix), rows, columns, channels).permute(0, 3, 1, 2)
    return matrix.view(len(matrix), channels, rows, columns)
