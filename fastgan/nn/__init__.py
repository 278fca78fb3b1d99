"""Modules that run fused, like ``torch.nn``."""

from __future__ import annotations

from fastgan.nn.fuse import fuse
from fastgan.nn.fused_sequential import FusedSequential
from fastgan.nn.minibatch_stddev import MinibatchStdDev
from fastgan.nn.spectral_norm import spectral_norm

__all__ = ["FusedSequential", "MinibatchStdDev", "fuse", "spectral_norm"]
