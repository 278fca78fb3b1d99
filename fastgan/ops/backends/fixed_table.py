"""The choice that measures nothing, for ``FASTGAN_AUTOTUNE=0`` and deterministic algorithms.

Triton's kernels wherever they can run; from compute capability 9.0 on with nothing done on load,
which would take several times the instructions of their products. On CPUs the thresholds below,
measured on two processors with AVX-512. These are the only thresholds there are: otherwise backends
are measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from fastgan.ops import winograd
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem

__all__ = ["FEWEST_PRODUCTS", "FEWEST_VALUES", "RECORDING_MILLISECONDS", "fixed_choice", "takes"]

#: Tiles of 2x2 places from which Winograd saves more than transforming the weight costs.
FEWEST_TILES = 32
#: Places of the small map up to which products of matrices are faster than oneDNN, and the channels
#: on either side from which they are.
MOST_PLACES = 16
FEWEST_CHANNELS = 64
#: Products a thread from which a fused module takes a convolution from torch.
FEWEST_PRODUCTS = 25_000_000
#: Values of a map from which what follows a convolution is done in place, and a norm in one pass.
FEWEST_VALUES = 400_000
#: What recording a convolution with its activation costs, there and back.
RECORDING_MILLISECONDS = 0.5


def fixed_choice(problem: Problem, backends: Sequence[Backend]) -> Backend:
    """The backend that the table has for a problem.

    Args:
        problem: with its input's shape.
        backends: those that can compute it, in the registry's order, the last being ATen's.
    """
    return next(each for each in backends if each.name in _TABLE and _TABLE[each.name](problem))


def takes(problem: Problem, choice: str) -> bool:
    """Whether a fused module takes a convolution from torch.

    Args:
        problem: with its input's shape.
        choice: the backend's name.
    """
    small = (
        problem.input_shape if problem.stage.kind == "conv_transpose2d" else problem.output_shape
    )
    assert small is not None
    # Each value of that side meets each tap of each channel of the other.
    products = math.prod(small) * math.prod(problem.weight_shape) // small[1]
    return choice != "aten" and products >= FEWEST_PRODUCTS * problem.threads


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
    # Some tiles of a map with an odd number of places lie partly outside.
    taps, stride = problem.weight_shape[2], problem.stage.stride[0]
    products = winograd.PRODUCTS[taps, stride] * tiles
    products_of_formula = taps**2 * batch * rows * columns
    return tiles >= FEWEST_TILES and products * 5 <= products_of_formula * 4


def _patches(problem: Problem) -> bool:
    # Each thread makes whole images, where oneDNN divides them: not too many threads may wait.
    images = problem.output_shape[0]
    turns = -(-images // problem.threads)
    return turns * problem.threads <= 2 * images


def _matrix_product(problem: Problem) -> bool:
    stage, shape = problem.stage, problem.weight_shape
    input, output = problem.input_shape, problem.output_shape
    assert input is not None
    wide = input if stage.kind == "conv2d" else output
    if stage.padding == (0, 0) and wide[2:] == shape[2:]:
        return True  # the kernel meets the wide map in one place
    dtypes = {torch.float32, *([torch.bfloat16] if problem.which == "weight_gradient" else [])}
    if problem.dtype not in dtypes or not problem.weight_channels_last:
        return False
    rows, columns = _small_places(problem)
    return min(shape[:2]) >= FEWEST_CHANNELS and 0 < rows * columns <= MOST_PLACES


def _small_places(problem: Problem) -> tuple[int, int]:
    assert problem.input_shape is not None
    small = problem.output_shape if problem.stage.kind == "conv2d" else problem.input_shape
    return small[2], small[3]


#: A backend that isn't here is only chosen by measurement.
_TABLE: dict[str, Callable[[Problem], bool]] = {
    "triton": _loads_in_the_loop,
    "triton_after_passes": lambda problem: True,
    "winograd": _winograd,
    "patches": _patches,
    "matrix_product": _matrix_product,
    "aten": lambda problem: True,
}
