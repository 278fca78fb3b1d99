"""The steps a fused gradient-penalty pass is made of: what each has to know of itself.

A step knows its function f, the derivative J of f at a point, J's transpose, and the gradient of
its parameters. One call of :meth:`Step.run` works on a batch whose first ``primal`` rows hold
values and whose other rows hold *tangents*: f for the former, J (no bias; the mask of the point
that the tangent belongs to) for the latter. So real and fake images and the penalty's tangents
go through a layer in one convolution.

    run          values x -> f(x),  tangents t -> J t
    signal       d -> J^T d
    gradients    of  sum over values of <d, f(x)>  +  sum over tangents of <d, J t>

The steps themselves: :mod:`fastgan.penalty.linear_steps`, :mod:`fastgan.penalty.bent_steps`
and :mod:`fastgan.penalty.curved_steps`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Gradients", "PairedRows", "Parameters", "Rows", "Step", "Target", "Tensors"]

Tensors = Sequence[Tensor]
Parameters = Sequence["Tensor | None"]
Gradients = list["Tensor | None"]


@dataclass
class Rows:
    """How a batch in :meth:`Step.run` is divided.

    Attributes:
        primal: how many rows, from the first, hold values; the others hold tangents.
        points: what an earlier run kept of the points that the tangents belong to.
        overwrite: whether the input's memory may be reused.
    """

    primal: int
    points: Any = None
    overwrite: bool = False


@dataclass
class Target:
    """Where a signal goes.

    Attributes:
        kept: what ``run`` kept of the points.
        shapes: each input's shape, without the batch.
        wanted: which inputs' signals are asked for.
        overwrite: whether the incoming signal's memory may be reused.
        out: where the result is wanted; a step may ignore it.
        mask: what the activation kept whose output the step takes, if the step is to apply that
            one's mask to the result.
    """

    kept: Any
    shapes: Sequence[Sequence[int]]
    wanted: Sequence[bool]
    overwrite: bool = False
    out: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class PairedRows:
    """Rows of inputs and the signals they are paired with.

    Attributes:
        wanted: which parameters' gradients are asked for.
        primal: how many rows, from the first, hold values; the others hold tangents.
        kept: what ``run`` kept of the values' points; None if there are none.
        points: what ``run`` kept of the tangents' points; None if there are none.
    """

    wanted: Sequence[bool]
    primal: int
    kept: Any
    points: Any


class Step(ABC):
    """One node of a critic's graph.

    Attributes:
        op: the word for tables.
        casts: whether autocast runs it in its lower precision.
        fresh: whether its output shares no memory with its inputs.
        bends: whether it isn't linear.
        curved: whether its second derivative isn't zero: a
            :class:`fastgan.penalty.curved_steps.CurvedStep`.
        offsets: which of its parameters only shift the output: no penalty depends on them.
        keeps_output: whether ``run`` keeps the output, which so must not be written over.
        channels_last: whether maps (N, C, H, W) lie channels-last in memory; the plan says.
        kernel: an op of ``torch.ops.fastgan`` that stands for those which do its arithmetic; None
            where aten's ops do.
        path: whose arithmetic it is where ``kernel`` is None: :class:`fastgan.report.Row`'s word.
    """

    op = "map"
    casts = False
    fresh = True
    bends = False
    curved = False
    offsets: tuple[int, ...] = ()
    keeps_output = False
    channels_last = False
    kernel: str | None = None
    path = "aten"

    @abstractmethod
    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        """f in plain, differentiable torch functions."""

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        """The output's shape and dtype, as a tensor without memory, of such inputs."""
        return self.apply(inputs, parameters)

    def prepare(self, parameters: Parameters) -> list[Tensor | None]:
        """The parameters as ``run`` and the others want them, converted once for all passes."""
        return list(parameters)

    @abstractmethod
    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        """f of the values and J of the tangents; and what ``signal`` needs of the values."""

    @abstractmethod
    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        """J^T grad, for each wanted input."""

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        """The gradient of each wanted parameter."""
        return [None] * len(rows.wanted)


def over_samples_and_positions(input: Tensor) -> Tensor:
    """The sum over every dimension but the channels', in float32 or wider: shape (C,)."""
    others = [i for i in range(input.dim()) if i != 1]
    if input.dtype not in (torch.float16, torch.bfloat16):
        return input.sum(dim=others)
    if input.device.type != "cpu":
        return input.sum(dim=others, dtype=torch.float32)
    # On the CPU, torch widens all before it sums: in pieces, which are small enough for its caches.
    pieces = input.split(max(1, input.size(0) // 16))
    return torch.stack([piece.sum(dim=others, dtype=torch.float32) for piece in pieces]).sum(0)
