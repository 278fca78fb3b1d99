"""``conv2d_resample.conv2d_resample``: see :mod:`fastgan.ops.conv2d_resample`."""

from __future__ import annotations

from fastgan.ops.conv2d_resample import conv2d_resample

__all__ = ["conv2d_resample"]
