"""What the processor can do at once, as far as the choice between two ways of computing goes."""

from __future__ import annotations

from functools import cache

import torch

from fastgan import _native

__all__ = ["has_bfloat16_tiles", "has_vectors"]


@cache
def has_vectors() -> bool:
    """Whether the compiled part runs products of matrices on wide vectors: AVX2 or AVX-512."""
    return _native.build_info().cpu_instruction_set in ("avx2", "avx512")


@cache
def has_bfloat16_tiles() -> bool:
    """Whether the processor multiplies bfloat16 matrices in tiles (AMX), far faster than float32.

    One that has instructions for bfloat16 but no tiles does it at half float32's rate.
    """
    return torch.cpu._is_amx_tile_supported()
