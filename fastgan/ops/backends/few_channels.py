"""Convolutions with at most four channels on one side, on GPUs: an image's, or a critic's scores.

Runs :mod:`fastgan.ops.few_channels`. Kernels for many channels compute tiles of 16 or 64 channels
on both sides, most of them in vain here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.kernels.fusion import ActivationGradient
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem
from fastgan.ops.cuda_support import cuda_obstacle
from fastgan.ops.few_channels import CHANNELS, DTYPES
from fastgan.ops.memory_format import gives_channels_last, is_channels_last
from fastgan.ops.stages import Stage

#: Most rows or columns of taps, and strides, whose windows fit in a block's shared memory.
TAPS, FLOAT64_TAPS, STRIDE = 7, 5, 2


class FewChannels(Backend):
    """Products over windows of places in shared memory; activates on store."""

    name = "few_channels"
    path = "cuda"

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why the kernel can't run a problem here."""
        stage, weight, device = problem.stage, problem.weight_shape, problem.device
        if device.type != "cuda":
            return "made for GPUs"
        if stage.kind == "linear":
            return "a linear layer"
        if min(weight[:2]) > CHANNELS:
            return f"more than {CHANNELS} channels on both sides"
        if problem.which == "weight_gradient" and weight[1] > CHANNELS and stage.stride != (1, 1):
            return "a weight gradient whose few channels are the smaller map's"
        if problem.dtype not in DTYPES:
            return f"{problem.dtype}"
        if stage.groups != 1 or stage.dilation != (1, 1):
            return "groups or dilation"
        taps = FLOAT64_TAPS if problem.dtype == torch.float64 else TAPS
        if max(weight[2:]) > taps or max(stage.stride) > STRIDE:
            return f"more than {taps}x{taps} taps, or a stride above {STRIDE}"
        if any(e >= s for e, s in zip(stage.output_padding, stage.stride, strict=True)):
            return "its output_padding is not below its stride"
        obstacle = cuda_obstacle()
        if obstacle is not None:
            return obstacle
        capability = torch.cuda.get_device_capability(device)
        if problem.dtype.itemsize == 2 and capability < (8, 0):
            return "16-bit products need tensor cores of compute capability 8.0 or later"
        return None

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias; not differentiable by autograd."""
        return _gather(stage, input, weight, bias)

    def activated_forward(
        self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """z(conv(input, weight) + bias), in one kernel."""
        return _gather(stage, input, weight, bias, stage.activation_code, stage.negative_slope)

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        return _input_gradient(stage, grad_output, input, weight, None)

    def masked_input_gradient(
        self,
        stage: Stage,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        mask: ActivationGradient,
    ) -> Tensor:
        """The same times the derivative of the activation before, in one kernel."""
        return _input_gradient(stage, grad_output, input, weight, mask)

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias."""
        small, wide = (grad_output, input) if stage.kind == "conv2d" else (input, grad_output)
        gradient: Tensor = torch.ops.fastgan.few_channels_weight_gradient(
            small, wide, weight.shape[2:], stage.stride, stage.padding, is_channels_last(weight)
        )
        return gradient, grad_output.sum((0, 2, 3)) if with_bias else None


def _gather(
    stage: Stage,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    code: int = ACTIVATIONS["none"].code,
    negative_slope: float = 0.0,
) -> Tensor:
    output: Tensor = torch.ops.fastgan.few_channels_gather(
        input,
        weight,
        bias,
        None,
        stage.kind == "conv_transpose2d",
        stage.stride,
        stage.padding,
        stage.output_size((input.shape[2], input.shape[3]), weight),
        code,
        negative_slope,
        gives_channels_last(input, weight),
    )
    return output


def _input_gradient(
    stage: Stage,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: ActivationGradient | None,
) -> Tensor:
    # A convolution's is a transposed convolution by the same weight, and the other way round.
    grad: Tensor = torch.ops.fastgan.few_channels_gather(
        grad_output,
        weight,
        None,
        None if mask is None else mask.kept,
        stage.kind == "conv2d",
        stage.stride,
        stage.padding,
        input.shape[2:],
        ACTIVATIONS["none" if mask is None else mask.activation].code,
        0.0 if mask is None else mask.negative_slope,
        gives_channels_last(input, weight),
    )
    return grad
