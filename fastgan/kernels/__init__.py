"""Convolutions in Triton: three kernels, each with prologues and epilogues.

======================================  =========================================================
:mod:`~fastgan.kernels.convolution`     ``forward``, ``input_gradient``, ``weight_gradient``
:mod:`~fastgan.kernels.geometry`        output sizes, phases and taps
``implicit_gemm``, ``index_maps``       the gather and the scatter kernel
``split_reduction``                     the weight gradient, in two stages
``prologues``, ``epilogues``,           what they do when loading and storing, in Triton:
``activations``                         :mod:`fastgan.kernels.fusion` and :mod:`fastgan.activations`
``tiles``, ``tile_tables``              tile choices, as data
``plans``, ``launch``                   plans, computed once per problem, and launches
``toolchain``                           whether Triton can compile on this machine
======================================  =========================================================

Importing this needs no Triton; running a kernel does. ``unsupported_reason`` says what can't run.
"""

from __future__ import annotations

from fastgan.kernels.convolution import (
    forward,
    input_gradient,
    no_descriptors_reason,
    unsupported_reason,
    weight_gradient,
)
from fastgan.kernels.geometry import ConvGeometry
from fastgan.kernels.launch import interpreted

__all__ = [
    "ConvGeometry",
    "forward",
    "input_gradient",
    "interpreted",
    "no_descriptors_reason",
    "unsupported_reason",
    "weight_gradient",
]
