"""Whose convolution runs where Triton's kernels don't: of four ways the fastest for the case.

winograd_convolution    4x4 taps, stride 2, on a CPU: 9 products in place of 16
matrix_convolution      few places and many channels, on a CPU: products of matrices
patch_convolution       the pass that makes an image, on a CPU
aten_convolution        all else: oneDNN on CPUs, cuDNN on GPUs
"""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from fastgan.ops import (
    aten_convolution,
    matrix_convolution,
    patch_convolution,
    winograd_convolution,
)
from fastgan.ops.stages import Stage

__all__ = ["fastest"]


def fastest(stage: Stage, input: Tensor, weight: Tensor, of: str) -> ModuleType:
    """The module whose function of that name is the fastest for a stage.

    Args:
        stage: geometry.
        input: of the shape and dtype of what the layer takes; its values are not read.
        weight: the layer's.
        of: "forward", "input_gradient" or "weight_gradient".

    Returns:
        One of the four modules; but for ATen's none is differentiable by autograd.
    """
    if input.device.type == "cpu" and stage.kind != "linear":
        if winograd_convolution.pays(stage, input, weight):
            return winograd_convolution
        if patch_convolution.pays(stage, input, weight, of):
            return patch_convolution
        if matrix_convolution.pays(stage, input, weight, of):
            return matrix_convolution
    return aten_convolution
