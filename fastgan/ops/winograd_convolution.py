"""A stage's convolution and its two gradients with fewer products, on CPUs, where that pays.

Of 3x3 taps and stride 1, 4x4 and stride 2, and 5x5 and stride 2, by the ops of
:mod:`fastgan.ops.winograd`: 16 products where the formula has 36, 36 for 64, and 49 for 100. In
float32 that is faster than oneDNN, whose convolutions fastgan otherwise uses on CPUs, from a few
dozen tiles of 2x2 places on; in bfloat16 too, computed in float32, where the processor has no tiles
for bfloat16 (AMX).

The same functions as :mod:`fastgan.ops.aten_convolution`, with the same arguments.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

from fastgan.ops import winograd
from fastgan.ops.stages import Stage
from fastgan.ops.vector_units import has_bfloat16_tiles, has_vectors

__all__ = ["can", "forward", "input_gradient", "pays", "saved", "weight_gradient"]

#: Measured: from so many tiles on, what is saved is more than what transforming the weight costs.
FEWEST_TILES = 32

_ops = torch.ops.fastgan


def can(stage: Stage, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a batch on a CPU may come for which it pays.

    Args:
        stage: geometry.
        weight: of the layer's shape and layout; its values are not read.
        dtype: of both maps and the weight.
    """
    return (
        stage.stride[0] == stage.stride[1]
        and weight.shape[2] == weight.shape[3]
        and (weight.shape[2], stage.stride[0]) in winograd.PRODUCTS
        and stage.dilation == (1, 1)
        and stage.groups == 1
        and weight.shape[0] % winograd.CHANNELS == 0
        and weight.shape[1] % winograd.CHANNELS == 0
        and max(stage.output_padding) < stage.stride[0]
        and weight.is_contiguous(memory_format=torch.channels_last)
        and (dtype == torch.float32 or (dtype == torch.bfloat16 and not has_bfloat16_tiles()))
        and has_vectors()
    )


def pays(stage: Stage, input: Tensor, weight: Tensor) -> bool:
    """Whether these functions can do it, and are the faster way.

    Args:
        stage: geometry.
        input: (N, C, H, W), of what the layer takes; its values are not read.
        weight: the layer's.
    """
    if weight.dtype != input.dtype or input.device.type != "cpu":
        return False
    if not can(stage, weight, input.dtype):
        return False
    rows, columns = _small_places(stage, input, weight)
    if rows < 1 or columns < 1:
        return False
    tiles = len(input) * ((rows + 1) // 2) * ((columns + 1) // 2)
    # Of a map with an odd number of places some tiles lie outside in part.
    products = winograd.PRODUCTS[weight.shape[2], stage.stride[0]] * tiles
    products_of_formula = weight.shape[2] ** 2 * len(input) * rows * columns
    return tiles >= FEWEST_TILES and products * 5 <= products_of_formula * 4


def saved(stage: Stage, weight: Tensor) -> str:
    """For people: the products that are left, for a stage for which :func:`can` is true.

    Example:
        >>> saved(Stage("conv2d"), torch.empty(32, 32, 3, 3))
        '4 products in place of 9'
    """
    of_formula = 4 * weight.shape[2] ** 2
    products = winograd.PRODUCTS[weight.shape[2], stage.stride[0]]
    shared = gcd(products, of_formula)
    return f"{products // shared} products in place of {of_formula // shared}"


def forward(stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """conv(input, weight) + bias; not differentiable by autograd."""
    op = _ops.winograd_gather if stage.kind == "conv2d" else _ops.winograd_scatter
    places = stage.output_places((input.shape[2], input.shape[3]), weight)
    output: Tensor = op(input, weight, bias, stage.stride[0], *stage.padding, *places)
    return output


def input_gradient(stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """The gradient of ``forward``'s input."""
    op = _ops.winograd_scatter if stage.kind == "conv2d" else _ops.winograd_gather
    gradient: Tensor = op(
        grad_output, weight, None, stage.stride[0], *stage.padding, *input.shape[2:]
    )
    return gradient


def weight_gradient(
    stage: Stage, grad_output: Tensor, input: Tensor, weight: Tensor, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients of ``forward``'s weight and bias."""
    small, wide = (grad_output, input) if stage.kind == "conv2d" else (input, grad_output)
    gradient: Tensor = _ops.winograd_weight_gradient(
        small, wide, weight.shape[2], stage.stride[0], *stage.padding
    )
    return gradient, grad_output.sum((0, 2, 3)) if with_bias else None


def _small_places(stage: Stage, input: Tensor, weight: Tensor) -> tuple[int, int]:
    places = (input.shape[2], input.shape[3])
    return places if stage.kind == "conv_transpose2d" else stage.output_places(places, weight)
