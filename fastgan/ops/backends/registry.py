"""The backends, in the fixed table's order; the last supports everything."""

from __future__ import annotations

from fastgan.ops.backends.aten import ATen, RearrangedATen
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.few_channels import FewChannels
from fastgan.ops.backends.matrix_product import MatrixProduct
from fastgan.ops.backends.patches import Patches
from fastgan.ops.backends.triton import Triton
from fastgan.ops.backends.winograd import Winograd

TRITON = Triton("triton", loads=True)
TRITON_AFTER_PASSES = Triton("triton_after_passes", loads=False)
TRITON_TMA = Triton("triton_tma", loads=False, descriptors=True)
WINOGRAD, ATEN = Winograd(), ATen()

BACKENDS: tuple[Backend, ...] = (
    FewChannels(),
    TRITON,
    TRITON_AFTER_PASSES,
    TRITON_TMA,
    WINOGRAD,
    Patches(),
    MatrixProduct(),
    RearrangedATen("aten_channels_last", channels_last=True),
    RearrangedATen("aten_contiguous", channels_last=False),
    ATEN,
)
