"""The processor's vector and matrix units that affect the choice of a backend."""

from __future__ import annotations

from functools import cache

import torch

from fastgan import _native


@cache
def has_vectors() -> bool:
    """Whether the compiled part runs matrix products with AVX2 or AVX-512."""
    return _native.build_info().cpu_instruction_set in ("avx2", "avx512", "avx512_vnni")


@cache
def has_bfloat16_tiles() -> bool:
    """Whether the processor multiplies bfloat16 matrices in tiles (AMX), far faster than float32.

    A processor with bfloat16 instructions but no tiles runs at half to twice float32's rate.
    """
    return torch.cpu._is_amx_tile_supported()
