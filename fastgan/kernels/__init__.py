"""The convolutions in Triton."""

from __future__ import annotations

from fastgan.kernels.geometry import ConvGeometry

__all__ = ["ConvGeometry"]
