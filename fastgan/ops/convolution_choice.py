"""Whose convolution runs where Triton's kernels don't: of four ways the fastest for the case.

winograd_convolution    3x3 taps and stride 1, 4x4 or 5x5 and stride 2, on a CPU: fewer products
matrix_convolution      few places and many channels, on a CPU: products of matrices
patch_convolution       the pass that makes an image, on a CPU
aten_convolution        all else: oneDNN on CPUs, cuDNN on GPUs
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from fastgan import _native
from fastgan.ops import (
    aten_convolution,
    matrix_convolution,
    patch_convolution,
    winograd_convolution,
)
from fastgan.ops.stages import Stage

__all__ = ["explained", "fastest"]


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


def explained(stage: Stage, weight: Tensor, dtype: torch.dtype) -> tuple[str, str]:
    """Of a stage on a CPU the path, "cpu" or "aten", and why.

    Args:
        stage: geometry.
        weight: of the layer's shape and layout; its values are not read.
        dtype: of the layer's input.
    """
    compiled = f"C++, {_native.build_info().cpu_instruction_set}"
    if stage.kind != "linear":
        if winograd_convolution.can(stage, weight, dtype):
            fewest = winograd_convolution.FEWEST_TILES
            return "cpu", (
                f"{winograd_convolution.saved(stage, weight)} ({compiled}) from {fewest} tiles of "
                "2x2 places on; smaller batches: oneDNN or products of matrices"
            )
        if patch_convolution.can(stage, weight, dtype):
            return "cpu", (
                f"the pass that makes the image by patches ({compiled}), of as many images as keep "
                "the threads at work; else oneDNN"
            )
        rearranged = weight.contiguous(memory_format=torch.channels_last)
        if winograd_convolution.can(stage, rearranged, dtype):
            return "aten", (
                "on a CPU: oneDNN; faster with the weight channels last, "
                "module.to(memory_format=torch.channels_last)"
            )
    return "aten", "on a CPU: oneDNN, or products of matrices where places are few"
