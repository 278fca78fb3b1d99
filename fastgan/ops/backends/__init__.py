"""Convolution backends: what can compute one, and which is the fastest for the case.

triton              kernels that fuse what lies around the convolution, on GPUs
triton_after_passes the same after passes that do what they would do on load
winograd            3x3 taps with stride 1, 4x4 and 5x5 with stride 2, on CPUs: fewer products
patches             the pass that makes an image, on CPUs
matrix_product      products of matrices over patches, on CPUs
aten_channels_last  ATen's after a copy to that layout, and aten_contiguous
aten                all else: oneDNN on CPUs, cuDNN on GPUs

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
    "Way",
    "describe_layer",
    "fusion",
    "measuring_nothing",
    "recorded_choices",
    "select_backend",
    "select_layout",
    "using",
]
