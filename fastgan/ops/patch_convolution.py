"""Of a stage whose wide map is an image: the pass that makes the image, on CPUs.

That is the forward pass of a generator's last layer, and the input gradient of a critic's first, by
:mod:`fastgan.ops.patches`. oneDNN vectorises both over the image's channels, of which there are
three. In the other passes it is fast.

The same functions as :mod:`fastgan.ops.aten_convolution`, with the same arguments, but for the
weight gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.ops import patches
from fastgan.ops.memory_format import gives_channels_last
from fastgan.ops.stages import Stage
from fastgan.ops.vector_units import has_vectors

__all__ = ["PASSES", "can", "forward", "input_gradient", "pays"]

#: Kind of a stage -> the pass that makes its wide map.
PASSES = {"conv2d": "input_gradient", "conv_transpose2d": "forward"}
_DTYPES = (torch.float32, torch.bfloat16)


def can(stage: Stage, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a batch on a CPU may come for which it pays, in the stage's pass of :data:`PASSES`.

    Args:
        stage: geometry.
        weight: of the layer's shape; its values are not read.
        dtype: of both maps and the weight.
    """
    return (
        stage.kind in PASSES
        and weight.shape[1] <= 4
        and weight[0].numel() <= patches.PATCH_SIZE
        and weight.shape[0] % patches.CHANNELS == 0
        and stage.dilation == (1, 1)
        and stage.groups == 1
        and all(e < s for e, s in zip(stage.output_padding, stage.stride, strict=True))
        and dtype in _DTYPES
        and has_vectors()
    )


def pays(stage: Stage, input: Tensor, weight: Tensor, of: str) -> bool:
    """Whether a pass can be done, and is faster, this way.

    Args:
        stage: geometry.
        input: (N, C, H, W), of what the layer takes; its values are not read.
        weight: the layer's.
        of: "forward", "input_gradient" or "weight_gradient".
    """
    return (
        PASSES.get(stage.kind) == of
        and input.device.type == "cpu"
        and weight.dtype == input.dtype
        and _keeps_threads_at_work(len(input))
        and can(stage, weight, input.dtype)
    )


def _keeps_threads_at_work(images: int) -> bool:
    """Whether not too many threads wait: each makes whole images, where oneDNN divides them.

    Measured: on one thread this takes less than half as long as oneDNN.
    """
    threads = torch.get_num_threads()
    turns = -(-images // threads)
    return turns * threads <= 2 * images


def forward(stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(input, weight) + bias; not differentiable by autograd."""
    places = stage.output_places((input.shape[2], input.shape[3]), weight)
    channels_last = gives_channels_last(input, weight)
    return _scatter(stage, input, weight, bias, places, channels_last)


def input_gradient(stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``forward``'s input."""
    places = (input.shape[2], input.shape[3])
    channels_last = gives_channels_last(input, weight)
    return _scatter(stage, grad_output, weight, None, places, channels_last)


def _scatter(
    stage: Stage,
    small: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    places: tuple[int, int],
    channels_last: bool,
) -> Tensor:
    wide: Tensor = torch.ops.fastgan.patch_scatter(
        small, weight, bias, *stage.stride, *stage.padding, *places, channels_last
    )
    return wide
