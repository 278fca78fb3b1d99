"""The interface of convolution backends."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.kernels.fusion import ActivationGradient
from fastgan.ops.backends.problem import Problem
from fastgan.ops.stages import Stage


class Backend(ABC):
    """A way to compute a convolution and its two gradients.

        forward           y  = conv(x, W) + b
        input_gradient    dx = conv^T(dy, W)
        weight_gradient   dW = sum over batch and places of x * dy,    db = sum of dy

    Maps are returned contiguous or channels-last as by torch's convolutions
    (:mod:`fastgan.ops.memory_format`), except by Triton's kernels; a weight's gradient has the
    weight's layout. Only ATen's forward is differentiable by autograd.

    Attributes:
        name: its name in choices' files and in tables.
        path: "triton", "cuda" and "cpu" (C++ of fastgan's own) or "aten", as ``fastgan.explain``
            shows it.
        fuses: whether it supports a :class:`Fusion` on store.
        loads: whether it supports one on load.
    """

    name: str
    path: str
    fuses = False
    loads = False

    @abstractmethod
    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why the backend can't compute a problem; None if it can.

        Args:
            problem: with ``input_shape`` None, for any input.
        """

    @abstractmethod
    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias.

        Args:
            stage: geometry; its norm and activation are not applied.
            input: (N, C_in, H, W), or (N, C_in) for a linear layer.
            weight: as the layer's.
            bias: (C_out,) or None.

        Returns:
            (N, C_out, H_out, W_out) or (N, C_out).
        """

    def activated_forward(
        self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """z(conv(input, weight) + bias), z the stage's activation; else as :meth:`forward`."""
        output = self.forward(stage, input, weight, bias)
        return ACTIVATIONS[stage.activation].forward_(output, stage.negative_slope)

    @abstractmethod
    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input.

        Args:
            stage: geometry.
            grad_output: the gradient of the output.
            input: a tensor with the input's shape and layout; its values aren't read.
            weight: the layer's.
        """

    def masked_input_gradient(
        self,
        stage: Stage,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        mask: ActivationGradient,
    ) -> Tensor:
        """The input gradient times the derivative of the activation before.

        Args:
            stage: geometry.
            grad_output: the gradient of the output.
            input: as in :meth:`input_gradient`.
            weight: the layer's.
            mask: the activation, and the tensor it kept.
        """
        grad = self.input_gradient(stage, grad_output, input, weight)
        code = ACTIVATIONS[mask.activation].code
        torch.ops.fastgan.act_gradient_(grad, mask.kept, code, mask.negative_slope)
        return grad

    @abstractmethod
    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias.

        Args:
            stage: geometry.
            grad_output: the gradient of the output.
            input: the layer's input.
            weight: a tensor with the weight's shape and layout; its values aren't read.
            with_bias: whether to return the bias's gradient, (C_out,), too.
        """

    def __repr__(self) -> str:
        return f"<backend {self.name}>"
