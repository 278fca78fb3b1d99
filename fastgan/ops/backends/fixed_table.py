"""Choices without measurement, for ``FASTGAN_AUTOTUNE=0`` and deterministic algorithms.

On GPUs the kernels for few channels of whole images, then Triton's; from compute capability 9.0
on without fusion on load, which would take several times the instructions of the products. On CPUs
the thresholds below, measured on two processors with AVX-512. Otherwise backends are measured,
without thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from fastgan.ops import winograd
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem

#: Fewest pixels of the small map at which tiles of 8 by 16 of them aren't mostly empty: a critic's
#: last layer has one.
FEWEST_CELLS = 64
#: Least number of 2x2 tiles at which Winograd saves more than the weight's transform costs.
FEWEST_TILES = 32
#: Most pixels of the small map, and fewest channels on either side, at which matrix products beat
#: oneDNN.
MOST_PLACES = 16
FEWEST_CHANNELS = 64
#: Fewest products per thread at which a fused module runs a convolution itself.
FEWEST_PRODUCTS = 25_000_000
#: Fewest values of a map at which activations run in place, and norms in one pass.
FEWEST_VALUES = 400_000
#: Cost of recording a convolution with its activation, forward and backward.
RECORDING_MILLISECONDS = 0.5


def fixed_choice(problem: Problem, backends: Sequence[Backend]) -> Backend:
    """The table's backend for a problem.

    Args:
        problem: with its input's shape.
        backends: the backends that can compute it, in the registry's order; the last is ATen's.
    """
    return next(
        backend for backend in backends if backend.name in _TABLE and _TABLE[backend.name](problem)
    )


def takes(problem: Problem, choice: str) -> bool:
    """Whether a fused module runs a convolution instead of torch.

    Args:
        problem: with its input's shape.
        choice: the backend's name.
    """
    small = (
        problem.input_shape if problem.stage.kind == "conv_transpose2d" else problem.output_shape
    )
    assert small is not None
    # Each value of that side is multiplied with each tap of each channel of the other.
    products = math.prod(small) * math.prod(problem.weight_shape) // small[1]
    return choice != "aten" and products >= FEWEST_PRODUCTS * problem.threads


def _few_channels(problem: Problem) -> bool:
    rows, columns = _small_places(problem)
    return rows * columns >= FEWEST_CELLS


def _loads_in_the_loop(problem: Problem) -> bool:
    around = problem.fusion
    if not (around.input or around.grad) or problem.device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(problem.device) < (9, 0)


def _winograd(problem: Problem) -> bool:
    rows, columns = _small_places(problem)
    if not problem.gives_channels_last or min(rows, columns) < 1:
        return False
    batch = problem.output_shape[0]
    tiles = batch * ((rows + 1) // 2) * ((columns + 1) // 2)
    # Some tiles of maps with odd sizes lie partly outside.
    taps, stride = problem.weight_shape[2], problem.stage.stride[0]
    products = winograd.PRODUCTS[taps, stride] * tiles
    products_of_formula = taps**2 * batch * rows * columns
    return tiles >= FEWEST_TILES and products * 5 <= products_of_formula * 4


def _patches(problem: Problem) -> bool:
    # Each thread computes whole images (oneDNN divides them), so few threads may idle.
    images = problem.output_shape[0]
    turns = -(-images // problem.threads)
    return turns * problem.threads <= 2 * images


def _matrix_product(problem: Problem) -> bool:
    stage, shape = problem.stage, problem.weight_shape
    input, output = problem.input_shape, problem.output_shape
    assert input is not None
    wide = input if stage.kind == "conv2d" else output
    if stage.padding == (0, 0) and wide[2:] == shape[2:]:
        return True  # the kernel covers the whole wide map
    dtypes = {torch.float32, *([torch.bfloat16] if problem.which == "weight_gradient" else [])}
    if problem.dtype not in dtypes or not problem.weight_channels_last:
        return False
    rows, columns = _small_places(problem)
    return min(shape[:2]) >= FEWEST_CHANNELS and 0 < rows * columns <= MOST_PLACES


def _small_places(problem: Problem) -> tuple[int, int]:
    assert problem.input_shape is not None
    small = problem.output_shape if problem.stage.kind == "conv2d" else problem.input_shape
    return small[2], small[3]


#: Other backends are only chosen by measurement.
_TABLE: dict[str, Callable[[Problem], bool]] = {
    "few_channels": _few_channels,
    "triton": _loads_in_the_loop,
    "triton_after_passes": lambda problem: True,
    "winograd": _winograd,
    "patches": _patches,
    "matrix_product": _matrix_product,
    "aten": lambda problem: True,
}
