"""Convolutions with fewer products, on CPUs: 3x3 and 4x4 taps and stride 1 or 2, 5x5 and stride 2.

Runs :mod:`fastgan.ops.winograd`, which computes in float32, and of bfloat16 with AVX-512 VNNI in
16-bit integers: processors with tiles for bfloat16 (AMX) don't use it for bfloat16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops import winograd
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem
from fastgan.ops.backends.vector_units import has_bfloat16_tiles, has_vectors
from fastgan.ops.memory_format import is_channels_last, laid_out
from fastgan.ops.stages import Stage

_ops = torch.ops.fastgan


class Winograd(Backend):
    """F(2x2, 3x3), and F(2, 2) and F(2, 3) on halves of 3, 4 and 5 taps."""

    name = "winograd"
    path = "cpu"

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why the ops can't run a problem here."""
        stage, weight = problem.stage, problem.weight_shape
        if problem.device.type != "cpu":
            return "made for CPUs"
        if not has_vectors():
            return "the compiled part has no AVX2 or AVX-512 here"
        kernels = [((taps, taps), (stride, stride)) for taps, stride in winograd.PRODUCTS]
        if stage.kind == "linear" or (tuple(weight[2:]), stage.stride) not in kernels:
            return "not 3x3 or 4x4 taps with stride 1 or 2, nor 5x5 with stride 2"
        if stage.groups != 1 or stage.dilation != (1, 1):
            return "groups or dilation"
        if any(channels % winograd.CHANNELS != 0 for channels in weight[:2]):
            return f"{weight[0]} and {weight[1]} channels"
        if max(stage.output_padding) >= stage.stride[0]:
            return "its output_padding is not below its stride"
        if problem.dtype == torch.bfloat16:
            return "the processor has tiles for bfloat16" if has_bfloat16_tiles() else None
        return None if problem.dtype == torch.float32 else f"{problem.dtype}"

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias; not differentiable by autograd."""
        return self.modulated_forward(stage, input, weight, bias, None, None, None)

    def modulated_forward(
        self,
        stage: Stage,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        input_scale: Tensor | None,
        output_scale: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        """output_scale * conv(input_scale * input, weight) + bias + noise; see the ops."""
        op = _ops.winograd_gather if stage.kind == "conv2d" else _ops.winograd_scatter
        size = stage.output_size((input.shape[2], input.shape[3]), weight)
        factors = (input_scale, output_scale, noise)
        output: Tensor = op(input, weight, bias, stage.stride[0], *stage.padding, *size, *factors)
        return output

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        op = _ops.winograd_scatter if stage.kind == "conv2d" else _ops.winograd_gather
        size = input.shape[2:]
        gradient: Tensor = op(grad_output, weight, None, stage.stride[0], *stage.padding, *size)
        return gradient

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias."""
        small, wide = (grad_output, input) if stage.kind == "conv2d" else (input, grad_output)
        gradient: Tensor = _ops.winograd_weight_gradient(
            small, wide, weight.shape[2], stage.stride[0], *stage.padding
        )
        grad_bias = grad_output.sum((0, 2, 3)) if with_bias else None
        return laid_out(gradient, is_channels_last(weight)), grad_bias
