"""Modules that run fused: what ``torch.nn`` is to torch."""

from __future__ import annotations

from fastgan.nn.fuse import fuse
from fastgan.nn.fused_sequential import FusedSequential
from fastgan.nn.minibatch_stddev import MinibatchStdDev

__all__ = ["FusedSequential", "MinibatchStdDev", "fuse"]
