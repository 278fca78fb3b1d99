"""Convolution backends, and the selection of the fastest one for each problem.

few_channels        at most four channels on one side, on GPUs; bias and activation on store
triton              kernels that fuse neighbouring norms and activations, on GPUs
triton_after_passes the same kernels, with separate passes instead of fusion on load
triton_tma          the same in 16 bits on sm_90 and sm_100, their operands copied by TMA
winograd            3x3 and 4x4 taps with stride 1 or 2, 5x5 with 2, on CPUs: fewer products
patches             the pass whose output is an image, on CPUs
matrix_product      matrix products of patches, on CPUs
aten_channels_last  ATen after a copy to that layout; aten_contiguous likewise
aten                everything else: oneDNN on CPUs, cuDNN on GPUs

A new backend is a file with a subclass of :class:`Backend` and its line in ``registry.py``.
"""

from __future__ import annotations

from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.describe import describe_layer
from fastgan.ops.backends.problem import PASSES, UNFUSED, Fusion, Pass, Problem, fusion
from fastgan.ops.backends.registry import ATEN, BACKENDS, TRITON, WINOGRAD
from fastgan.ops.backends.selection import (
    BY_TORCH,
    Selector,
    Way,
    measuring_nothing,
    recorded_choices,
    select_backend,
    select_layout,
    using,
)
from fastgan.ops.backends.triton import Triton

__all__ = [
    "ATEN",
    "BACKENDS",
    "BY_TORCH",
    "PASSES",
    "TRITON",
    "UNFUSED",
    "WINOGRAD",
    "Backend",
    "Fusion",
    "Pass",
    "Problem",
    "Selector",
    "Triton",
    "Way",
    "describe_layer",
    "fusion",
    "measuring_nothing",
    "recorded_choices",
    "select_backend",
    "select_layout",
    "using",
]
