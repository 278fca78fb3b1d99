"""A stage's convolution and its two gradients by the Triton kernels of ``fastgan.kernels``.

The same three functions as :mod:`fastgan.ops.aten_convolution`, but for what is done on load and on
store (:mod:`fastgan.fusion`). A linear layer is a convolution of one place.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastgan import kernels
from fastgan.fusion import (
    ActivationGradient,
    BatchNormGradient,
    BiasActivation,
    GradientSums,
    GradPrologue,
    NormActivation,
    NormActivationGradient,
    PartialStatistics,
    Statistics,
)
from fastgan.ops.stages import Stage

__all__ = ["forward", "input_gradient", "uncovered", "weight_gradient"]


def uncovered(
    stage: Stage, weight: Tensor, device: torch.device | None, dtype: torch.dtype
) -> str | None:
    """Why the kernels can't run the stage, in words; None where they can."""
    return kernels.covers(_geometry(stage, weight), dtype, stage.groups, device=device)


def forward(
    stage: Stage,
    input: Tensor,
    weight: Tensor,
    prologue: NormActivation | None,
    epilogue: Statistics | BiasActivation | ActivationGradient,
    out: Tensor | None = None,
) -> tuple[Tensor, PartialStatistics | None]:
    """The stage's result as the epilogue leaves it, in ``out`` if given; the statistics it takes.

    ``out``, as that of the kernels, is for maps and not for linear layers.
    """
    output, statistics = kernels.forward(
        _placed(stage, input),
        _placed(stage, weight),
        _geometry(stage, weight),
        prologue=prologue,
        epilogue=_placed_fusion(stage, epilogue),
        out=out,
    )
    return _flat(stage, output), statistics


def input_gradient(
    stage: Stage,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    prologue: GradPrologue | None,
    epilogue: NormActivationGradient | ActivationGradient | None,
    out: Tensor | None = None,
) -> tuple[Tensor, GradientSums | None]:
    """The gradient of the stage's input as the epilogue leaves it, and the norm's sums.

    ``out``, as that of the kernels, is for maps and not for linear layers.
    """
    linear = stage.kind == "linear"
    grad, sums = kernels.input_gradient(
        _placed(stage, grad_output),
        _placed(stage, weight),
        _geometry(stage, weight),
        (1, 1) if linear else (input.shape[2], input.shape[3]),
        prologue=_placed_fusion(stage, prologue),
        epilogue=_placed_fusion(stage, epilogue),
        out=out,
    )
    return _flat(stage, grad), sums


def weight_gradient(
    stage: Stage,
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    input_prologue: NormActivation | None,
    grad_prologue: GradPrologue | None,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of weight and bias."""
    grad_weight, grad_bias = kernels.weight_gradient(
        _placed(stage, input),
        _placed(stage, grad_output),
        _geometry(stage, weight),
        _placed(stage, weight),
        input_prologue=input_prologue,
        grad_prologue=_placed_fusion(stage, grad_prologue),
        with_bias=with_bias,
    )
    return _flat(stage, grad_weight), grad_bias


def _geometry(stage: Stage, weight: Tensor) -> kernels.ConvGeometry:
    return _geometry_of(stage, (1, 1) if stage.kind == "linear" else tuple(weight.shape[2:]))


@lru_cache(maxsize=1024)
def _geometry_of(stage: Stage, kernel_size: tuple[int, int]) -> kernels.ConvGeometry:
    return kernels.ConvGeometry(
        kernel_size=kernel_size,
        stride=stage.stride,
        padding=stage.padding,
        dilation=stage.dilation,
        output_padding=stage.output_padding,
        transposed=stage.kind == "conv_transpose2d",
    )


def _placed_fusion(stage: Stage, fusion: Any) -> Any:
    """A prologue or epilogue with its full-size tensor, if it has one, as a map of one place."""
    if stage.kind == "linear":
        if isinstance(fusion, (BatchNormGradient, NormActivationGradient)):
            return replace(fusion, input=_placed(stage, fusion.input))
        if isinstance(fusion, ActivationGradient):
            return replace(fusion, output=_placed(stage, fusion.output))
    return fusion


def _placed(stage: Stage, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if stage.kind == "linear" else tensor


def _flat(stage: Stage, tensor: Tensor) -> Tensor:
    if stage.kind != "linear":
        return tensor
    # Not a view in autograd's eyes, which lets nobody write into one that it is given.
    flat: Tensor = torch.ops.aten._unsafe_view(tensor, tensor.shape[:2])
    return flat
