"""A stage's convolution and its two gradients by ATen: oneDNN on CPUs, cuDNN on GPUs.

    forward           y  = conv(x, W) + b
    input_gradient    dx = conv^T(dy, W)
    weight_gradient   dW = sum over batch and places of x * dy,    db = sum of dy

The two gradients are asked for one by one and not together, so that what the one needs can be
freed before the other takes memory of its own.
"""

from __future__ import annotations

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
