"""What each convolution backend answers and computes."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from fastgan.ops.backends.problem import Problem
from fastgan.ops.stages import Stage

__all__ = ["Backend"]


class Backend(ABC):
    """A way to compute a convolution and its two gradients.

        forward           y  = conv(x, W) + b
        input_gradient    dx = conv^T(dy, W)
        weight_gradient   dW = sum over batch and places of x * dy,    db = sum of dy

    Maps are returned contiguous or channels-last as torch's own convolutions return them
    (:mod:`fastgan.ops.memory_format`), except by Triton's kernels; a weight's gradient is laid out
    as the weight. Only ATen's forward is differentiable by autograd.

    Attributes:
        name: in files of choices and in tables.
        path: "triton", "cpu" (C++ of fastgan's own) or "aten", as ``fastgan.explain`` shows it.
        fuses: whether it can do what a :class:`Fusion` asks for on store.
        loads: whether it can do what one asks for on load.
    """

    name: str
    path: str
    fuses = False
    loads = False

    @abstractmethod
    def unsupported_reason(self, problem: Problem) -> str | None:
        """Why it can't compute a problem; None where it can.

        Args:
            problem: where ``input_shape`` is None, any input's.
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

    @abstractmethod
    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input.

        Args:
            stage: geometry.
            grad_output: the gradient of the output.
            input: of the input's shape and layout; its values are not read.
            weight: the layer's.
        """

    @abstractmethod
    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The gradients of ``forward``'s weight and bias.

        Args:
            stage: geometry.
            grad_output: the gradient of the output.
            input: what the layer took.
            weight: of the weight's shape and layout; its values are not read.
            with_bias: whether to return the bias's gradient, (C_out,), too.
        """

    def __repr__(self) -> str:
        return f"<backend {self.name}>"
