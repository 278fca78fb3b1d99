"""Convolutions by the Triton kernels of ``fastgan.kernels``.

They apply :mod:`fastgan.kernels.fusion` on load and on store. A linear layer is a convolution of
one pixel.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastgan import kernels
from fastgan.kernels.fusion import (
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
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem, product_precision
from fastgan.ops.stages import Stage


class Triton(Backend):
    """Three implicit-GEMM kernels that normalise, activate and reduce on load and on store.

    Fusion on load runs in the products' loop, for each tap again. On GPUs with fast products a
    separate pass before takes less time.

    Args:
        name: of the backend.
        loads: whether it fuses on load; otherwise the caller uses separate passes.
        descriptors: whether the tensor memory accelerator copies the operands, as they are.
    """

    path = "triton"
    fuses = True

    def __init__(self, name: str, *, loads: bool, descriptors: bool = False) -> None:
        self.name = name
        self.loads = loads
        self._descriptors = descriptors

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why the kernels can't run a problem."""
        around = problem.fusion
        if not (self.loads or self._descriptors or around.input or around.grad):
            return "nothing is to be done on load"
        stage, shape = problem.stage, problem.weight_shape
        kernel_size = (1, 1) if problem.is_linear else shape[2:]
        geometry = _geometry_of(stage, kernel_size)
        # Without a device only the layer is checked.
        device = None if problem.device.type == "meta" else problem.device
        reason = kernels.unsupported_reason(geometry, problem.dtype, stage.groups, device=device)
        if reason is None and self._descriptors:
            input = (0, 0, 1, 1) if problem.is_linear else problem.input_shape
            reason = kernels.no_descriptors_reason(
                problem.which,
                geometry,
                problem.dtype,
                (*shape[:2], *kernel_size),
                input_size=None if input is None else (input[2], input[3]),
                device=device,
            )
        # The kernels use the setting for convolutions.
        of_products = problem.is_linear and problem.precision
        if reason is None and of_products and problem.precision != product_precision():
            return "a float32 product whose TF32 setting is not that of convolutions"
        return reason

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias; not differentiable by autograd."""
        return self.fused_forward(stage, input, weight, None, BiasActivation(bias))[0]

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        return self.fused_input_gradient(stage, grad_output, input, weight, None, None)[0]

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias."""
        return self.fused_weight_gradient(stage, grad_output, input, weight, None, None, with_bias)

    def fused_forward(
        self,
        stage: Stage,
        input: Tensor,
        weight: Tensor,
        prologue: NormActivation | None,
        epilogue: Statistics | BiasActivation | ActivationGradient,
        out: Tensor | None = None,
    ) -> tuple[Tensor, PartialStatistics | None]:
        """The epilogue's result, in ``out`` if given, and its statistics.

        ``out``, as that of the kernels, is for maps and not for linear layers.
        """
        output, statistics = kernels.forward(
            _placed(stage, input),
            _placed(stage, weight),
            _geometry(stage, weight),
            prologue=prologue,
            epilogue=_placed_fusion(stage, epilogue),
            out=out,
            descriptors=self._descriptors,
        )
        return _flat(stage, output), statistics

    def fused_input_gradient(
        self,
        stage: Stage,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        prologue: GradPrologue | None,
        epilogue: NormActivationGradient | ActivationGradient | None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, GradientSums | None]:
        """The epilogue's input gradient, and the norm's sums.

        ``out``, as that of the kernels, is for maps and not for linear layers.
        """
        grad, sums = kernels.input_gradient(
            _placed(stage, grad_output),
            _placed(stage, weight),
            _geometry(stage, weight),
            (1, 1) if stage.kind == "linear" else (input.shape[2], input.shape[3]),
            prologue=_placed_fusion(stage, prologue),
            epilogue=_placed_fusion(stage, epilogue),
            out=out,
            descriptors=self._descriptors,
        )
        return _flat(stage, grad), sums

    def fused_weight_gradient(
        self,
        stage: Stage,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        input_prologue: NormActivation | None,
        grad_prologue: GradPrologue | None,
        with_bias: bool,
        dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of weight and bias, in ``dtype``; None is the weight's."""
        grad_weight, grad_bias = kernels.weight_gradient(
            _placed(stage, input),
            _placed(stage, grad_output),
            _geometry(stage, weight),
            _placed(stage, weight),
            input_prologue=input_prologue,
            grad_prologue=_placed_fusion(stage, grad_prologue),
            with_bias=with_bias,
            dtype=dtype,
            descriptors=self._descriptors,
        )
        return _flat(stage, grad_weight), grad_bias


def _geometry(stage: Stage, weight: Tensor) -> kernels.ConvGeometry:
    return _geometry_of(stage, (1, 1) if stage.kind == "linear" else tuple(weight.shape[2:]))


@lru_cache(maxsize=1024)
def _geometry_of(stage: Stage, kernel_size: Any) -> kernels.ConvGeometry:
    return kernels.ConvGeometry(
        kernel_size=kernel_size,
        stride=stage.stride,
        padding=stage.padding,
        dilation=stage.dilation,
        output_padding=stage.output_padding,
        transposed=stage.kind == "conv_transpose2d",
    )


def _placed_fusion(stage: Stage, fusion: Any) -> Any:
    """A prologue or epilogue with its full-size tensor, if any, as a map of one pixel."""
    if stage.kind == "linear":
        if isinstance(fusion, (BatchNormGradient, NormActivationGradient)):
            return replace(fusion, input=_placed(stage, fusion.input))
        if isinstance(fusion, ActivationGradient):
            return replace(fusion, kept=_placed(stage, fusion.kept))
    return fusion


def _placed(stage: Stage, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if stage.kind == "linear" else tensor


def _flat(stage: Stage, tensor: Tensor) -> Tensor:
    if stage.kind != "linear":
        return tensor
    # Not a view for autograd, which forbids writing into views from a custom function.
    flat: Tensor = torch.ops.aten._unsafe_view(tensor, tensor.shape[:2])
    return flat
