"""Convolutions by ATen: oneDNN on CPUs, cuDNN on GPUs.

The two gradients are computed separately, so that one's memory can be freed before the other
allocates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem
from fastgan.ops.memory_format import (
    empty_map,
    gives_channels_last,
    is_channels_last,
    laid_out,
)
from fastgan.ops.stages import Stage

_backward = torch.ops.aten.convolution_backward.default


class ATen(Backend):
    """Torch's convolution on the given tensors; its forward is differentiable."""

    name = "aten"
    path = "aten"

    def unsupported_reason(self, problem: Problem) -> str | None:
        """None: it supports all that torch supports."""
        return None

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias; differentiable by autograd."""
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

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        if stage.kind == "linear":
            return grad_output @ weight
        wanted = [True, False, False]
        return _call_backward(stage, grad_output, input, weight, None, wanted)[0]

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias."""
        if stage.kind == "linear":
            return grad_output.t() @ input, grad_output.sum(0) if with_bias else None
        channels = [grad_output.shape[1]] if with_bias else None
        wanted = [False, True, with_bias]
        return _call_backward(stage, grad_output, input, weight, channels, wanted)[1:]


class RearrangedATen(ATen):
    """ATen's convolution with every tensor copied to one memory format first.

    The faster layout depends on the convolution and the processor. Results have the layout that
    they would have without copies.

    Args:
        name: of the backend.
        channels_last: the memory format.
    """

    def __init__(self, name: str, channels_last: bool) -> None:
        self.name = name
        self._channels_last = channels_last

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why there is nothing to copy."""
        if problem.is_linear:
            return "a linear layer has one layout"
        lie = (problem.input_channels_last, problem.weight_channels_last)
        if lie == (self._channels_last, self._channels_last):
            return "input and weight have this layout already"
        return None

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias."""
        output = super().forward(stage, self._copied(input), self._copied(weight), bias)
        return laid_out(output, gives_channels_last(input, weight))

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        like = empty_map(input, input.shape, self._channels_last)
        grad = super().input_gradient(stage, self._copied(grad_output), like, self._copied(weight))
        return laid_out(grad, gives_channels_last(input, weight))

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias."""
        grad_weight, grad_bias = super().weight_gradient(
            stage, self._copied(grad_output), self._copied(input), self._copied(weight), with_bias
        )
        return laid_out(grad_weight, is_channels_last(weight)), grad_bias

    def _copied(self, map: Tensor) -> Tensor:
        return laid_out(map, self._channels_last)


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
