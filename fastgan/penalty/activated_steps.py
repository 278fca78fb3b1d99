"""Convolutions on ``fastgan.kernels``, with the activations beside them done on storing.

With W a convolution, z the activation after it and m its mask at the points, and m' the mask of the
activation before it, the kernels make each of these in one pass (:mod:`fastgan.fusion`):

    values      z(W x + b)
    tangents    m * (W t)
    signals     m' * (W^T d)

A mask is read off its activation's output. :func:`beside_convolutions` finds such neighbours among
a critic's steps: the activation after a convolution, if nothing else takes the convolution's
output, and the one before it, if nothing else takes the activation's. A convolution that has
neither stays with ATen.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.fusion import ActivationGradient, BiasActivation
from fastgan.ops import triton_convolution
from fastgan.ops.chain import convolution_path
from fastgan.penalty.bent_steps import Activation
from fastgan.penalty.linear_steps import Convolution
from fastgan.penalty.plan import PlannedStep
from fastgan.penalty.steps import (
    Gradients,
    PairedRows,
    Parameters,
    Rows,
    Step,
    Target,
    Tensors,
    over_samples_and_positions,
)

__all__ = ["ActivatedConvolution", "AppliedActivation", "beside_convolutions", "covered"]

#: An activation's name in :data:`fastgan.activations.ACTIVATIONS`, and its negative slope.
Fusion = tuple[str, float]


class ActivatedConvolution(Convolution):
    """A convolution in two dimensions by the kernels, with the activations beside it.

    Args:
        plain: the convolution, one that :func:`covered` says yes to.
        after: the activation of its output, or None. ``run`` applies it, and takes as
            ``rows.points`` what that activation kept of the points.
        before: the activation whose output it takes, or None. ``signal`` applies its mask, if given
            one as ``to.mask``.
    """

    path = "triton"

    def __init__(self, plain: Convolution, after: Fusion | None, before: Fusion | None) -> None:
        super().__init__(
            plain.stride,
            plain.padding,
            plain.dilation,
            plain.transposed,
            plain.output_padding,
            plain.groups,
        )
        self.after = after
        self.before = before

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        (input,) = inputs
        weight, bias = parameters
        assert weight is not None
        stage = self.stage
        assert stage is not None
        count, primal = input.size(0), rows.primal
        values = BiasActivation(bias, *(self.after or ()))
        if primal == count or (self.after is None and bias is None):
            return triton_convolution.forward(stage, input, weight, None, values)[0], None
        tangents: BiasActivation | ActivationGradient = BiasActivation()
        if self.after is not None:
            tangents = ActivationGradient(rows.points, *self.after)
        if primal == 0:
            return triton_convolution.forward(stage, input, weight, None, tangents)[0], None
        # A launch for each, into one tensor: no pass of its own adds the values' bias.
        channels = stage.channels(weight.shape)[1]
        places = stage.output_places((input.shape[2], input.shape[3]), weight)
        output = torch.empty(
            (count, channels, *places),
            dtype=input.dtype,
            device=input.device,
            memory_format=torch.channels_last,
        )
        triton_convolution.forward(stage, input[:primal], weight, None, values, output[:primal])
        triton_convolution.forward(stage, input[primal:], weight, None, tangents, output[primal:])
        return output, None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        weight = parameters[0]
        assert weight is not None
        assert self.stage is not None
        epilogue = None
        if to.mask is not None:
            assert self.before is not None
            epilogue = ActivationGradient(to.mask[: grad.size(0)], *self.before)
        input = grad.new_empty(()).expand(grad.size(0), *to.shapes[0])
        result, _ = triton_convolution.input_gradient(
            self.stage, grad, input, weight, None, epilogue, to.out
        )
        return [result]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        weight_grad = bias_grad = None
        weight = parameters[0]
        assert weight is not None
        assert self.stage is not None
        if rows.wanted[0]:
            weight_grad, _ = triton_convolution.weight_gradient(
                self.stage, grad, inputs[0], weight, None, None, False
            )
        if rows.wanted[1]:
            bias_grad = over_samples_and_positions(grad[: rows.primal])
        return [weight_grad, bias_grad]


class AppliedActivation(Activation):
    """An activation that the convolution before it has applied already."""

    path = "triton"

    def __init__(self, plain: Activation) -> None:
        super().__init__(
            plain.op, plain.function, plain.overwriting, plain.masked, plain.telling, plain.fusion
        )

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        return inputs[0], inputs[0]


def covered(step: Step, parameters: Parameters, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernels can run a step, and do on this device.

    Args:
        step: any.
        parameters: of which only shapes count.
        device: where the critic is.
        dtype: of the images as the step gets them. Autocast takes that to another which the kernels
            know, or leaves it alone.
    """
    if type(step) is not Convolution or step.stage is None:
        return False
    weight = parameters[0]
    assert weight is not None
    return convolution_path(step.stage, weight, device, dtype)[0] == "triton"


def beside_convolutions(steps: Sequence[PlannedStep]) -> None:
    """Has the covered convolutions do the activations beside them, in place.

    Args:
        steps: of a critic, in order; value i + 1 is step i's output.
    """
    users: list[list[int]] = [[] for _ in range(len(steps) + 1)]
    for index, planned in enumerate(steps):
        for value in planned.inputs:
            users[value].append(index)
    for index, planned in enumerate(steps):
        if not planned.covered:
            continue
        plain = planned.step
        assert isinstance(plain, Convolution)
        after = users[index + 1][0] if len(users[index + 1]) == 1 else None
        before = planned.inputs[0] - 1
        planned.applies = None if after is None or _fusion(steps[after]) is None else after
        if before >= 0 and len(users[before + 1]) == 1 and _fusion(steps[before]) is not None:
            planned.masks = before
        if planned.applies is None and planned.masks is None:
            continue
        planned.step = ActivatedConvolution(
            plain, _fusion_at(steps, planned.applies), _fusion_at(steps, planned.masks)
        )
        if planned.applies is not None:
            activation = steps[planned.applies].step
            assert isinstance(activation, Activation)
            steps[planned.applies].step = AppliedActivation(activation)


def _fusion(planned: PlannedStep) -> Fusion | None:
    return planned.step.fusion if isinstance(planned.step, Activation) else None


def _fusion_at(steps: Sequence[PlannedStep], index: int | None) -> Fusion | None:
    return None if index is None else _fusion(steps[index])
