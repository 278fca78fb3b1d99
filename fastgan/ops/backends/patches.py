"""The pass whose output is an image, on CPUs: a generator's last layer, a critic's first backward.

Runs :mod:`fastgan.ops.patches`. oneDNN vectorises both over the image's three channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops import patches
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem
from fastgan.ops.backends.vector_units import has_vectors
from fastgan.ops.memory_format import gives_channels_last
from fastgan.ops.stages import Stage

#: Kind of a stage -> the pass whose output is its wide map.
_PASSES = {"conv2d": "input_gradient", "conv_transpose2d": "forward"}
_DTYPES = (torch.float32, torch.bfloat16)


class Patches(Backend):
    """A matrix product with patches summed in the cache; each thread computes whole images."""

    name = "patches"
    path = "cpu"

    def unsupported_reason(self, problem: Problem) -> str | None:
        """Says why ``patch_scatter`` can't run a problem, or has no vector instructions for it."""
        stage, weight = problem.stage, problem.weight_shape
        if problem.device.type != "cpu":
            return "made for CPUs"
        if not has_vectors():
            return "the compiled part has no AVX2 or AVX-512 here"
        if _PASSES.get(stage.kind) != problem.which:
            return "not the pass that makes an image"
        if problem.dtype not in _DTYPES:
            return f"{problem.dtype}"
        if stage.groups != 1 or stage.dilation != (1, 1):
            return "groups or dilation"
        if weight[0] % patches.CHANNELS != 0 or weight[1] > 4:
            return f"{weight[0]} and {weight[1]} channels"
        if weight[1] * weight[2] * weight[3] > patches.PATCH_SIZE:
            return f"patches of more than {patches.PATCH_SIZE} values"
        if any(e >= s for e, s in zip(stage.output_padding, stage.stride, strict=True)):
            return "its output_padding is not below its stride"
        return None

    def forward(self, stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """conv(input, weight) + bias; not differentiable by autograd."""
        size = stage.output_size((input.shape[2], input.shape[3]), weight)
        return _scatter(stage, input, weight, bias, size, gives_channels_last(input, weight))

    def input_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor
    ) -> Tensor:
        """The gradient of ``forward``'s input."""
        size = (input.shape[2], input.shape[3])
        channels_last = gives_channels_last(input, weight)
        return _scatter(stage, grad_output, weight, None, size, channels_last)

    def weight_gradient(
        self, stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Raises: ``unsupported_reason`` excludes this pass."""
        raise NotImplementedError("the patches backend has no weight gradient")


def _scatter(
    stage: Stage,
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    channels_last: bool,
) -> Tensor:
    wide: Tensor = torch.ops.fastgan.patch_scatter(
        small, weight, bias, *stage.stride, *stage.padding, *size, channels_last
    )
    return wide
