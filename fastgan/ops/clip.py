"""``torch.ops.fastgan.clip_(Tensor(a!) self, float min, float max) -> ()``.

Clips a tensor to [min, max] in place::

    self[i] = min where self[i] < min, max where self[i] > max, else self[i]

This is the weight clipping of WGAN (Arjovsky et al. 2017, arXiv 1701.07875, algorithm 1, line 7).
NaN stays NaN, infinities are clipped, a zero keeps its sign: ``torch.clamp_``'s results, bit for
bit. Kernels: ``csrc/cpu/clip.cpp``, ``csrc/cuda/clip.cu``; the formula: ``csrc/math/clip.h``.

Order of gradients supported: none. The op writes in place and refuses, in grad mode, a tensor that
requires grad.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import ConfigError, DtypeError, FastganError
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    library,
    register_fallback,
    register_in_place_without_gradient,
)

__all__ = ["DTYPES", "SCHEMA", "check", "clip_"]

#: As in csrc/ops.cpp.
SCHEMA = "clip_(Tensor(a!) self, float min, float max) -> ()"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def clip_(self: Tensor, min: float, max: float) -> Tensor:
    """Clips `self` to [`min`, `max`] in place, and returns it, as ``torch.clamp_`` does.

    Args:
        self: any shape, layout and device; float64, float32, float16 or bfloat16. Not expanded.
        min: lower bound; rounded to the dtype of `self`. ``-math.inf`` for none.
        max: upper bound, at least `min`; rounded likewise. ``math.inf`` for none.

    Returns:
        `self`.

    Raises:
        ConfigError: `min` exceeds `max`, or one is NaN. (There
            ``torch.clamp_`` fills with `max`, or with NaN.)
        DtypeError: the dtype is none of the four.
        RuntimeError: `self` requires grad and grad mode is on; `self` is expanded, so that elements
            share memory; a finite bound is beyond what the dtype holds.

    Example:
        >>> import torch
        >>> from fastgan.ops import clip_
        >>> clip_(torch.tensor([-0.5, 0.004, float("nan"), float("inf")]), -0.01, 0.01)
        tensor([-0.0100,  0.0040,     nan,  0.0100])
    """
    if not min <= max:
        raise ConfigError(f"clip_: min must not exceed max, got min = {min}, max = {max}")
    if self.dtype not in DTYPES:
        raise DtypeError(f"clip_: self {_dtype_problem(self)}")
    torch.ops.fastgan.clip_(self, min, max)
    return self


def _dtype_problem(tensor: Tensor) -> str:
    return f"has dtype {tensor.dtype}; expected float64, float32, float16 or bfloat16"


def _check_arguments(self: Tensor, min: float, max: float) -> None:
    """What csrc/ops.cpp checks, for the kernel in Python."""
    if self.dtype not in DTYPES:
        raise RuntimeError(f"fastgan::clip_: self {_dtype_problem(self)}")
    if math.isnan(min) or math.isnan(max):
        raise RuntimeError(
            f"fastgan::clip_: min and max must be numbers, got min = {min}, max = {max}"
        )
    if min > max:
        raise RuntimeError(f"fastgan::clip_: min must not exceed max, got min = {min}, max = {max}")
    for name, bound in (("min", min), ("max", max)):
        if math.isfinite(bound) and abs(bound) > torch.finfo(self.dtype).max:
            raise RuntimeError(
                f"fastgan::clip_: {name} = {bound} is beyond what {self.dtype} holds; "
                "for no bound pass an infinity"
            )


def _plain_clip_(self: Tensor, min: float, max: float) -> None:
    _check_arguments(self, min, max)
    self.clamp_(min, max)


def _negated_clip_(self: Tensor, min: float, max: float) -> None:
    # `self` is stored negated (as x.conj().imag is), and torch's way of resolving that is for ops
    # that return what they wrote. clip(-y; min, max) = -clip(y; -max, -min), y being the stored.
    _op(torch._neg_view(self), -max, -min)


def _batched_clip_(
    info: Any, in_dims: tuple[int | None, ...], self: Tensor, min: float, max: float
) -> tuple[None, None]:
    _op(self, min, max)  # elementwise: the batch is one more dimension
    return None, None


def _fake_clip_(self: Tensor, min: float, max: float) -> None:
    # The bounds are checked when the op runs; a check here would bake them into the graph.
    if self.dtype not in DTYPES:
        raise RuntimeError(f"fastgan::clip_: self {_dtype_problem(self)}")


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with what the formula says; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong. The message names the dtype and layout.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        # An odd length and an odd start: vectors, their head and their tail are all met.
        values = torch.randn(4099, generator=generator, dtype=torch.float64).to(dtype)
        values[::97] = math.nan
        values[1::97] = math.inf
        for layout, start, step in (("dense", 1, 1), ("strided", 1, 3)):
            base = values.to(device, copy=True)
            clip_(base[start::step], -0.5, 0.25)
            expected = values.clone()
            part = expected[start::step]
            part.copy_(torch.where(part < -0.5, -0.5, torch.where(part > 0.25, 0.25, part)))
            if not torch.equal(base.cpu().nan_to_num(9.0), expected.nan_to_num(9.0)):
                raise FastganError(
                    f"fastgan::clip_ gives wrong values on {device}, for {dtype}, {layout}"
                )


define_if_absent(SCHEMA)
_op = torch.ops.fastgan.clip_.default
register_fallback("clip_", _plain_clip_)
library.impl("clip_", _negated_clip_, "Negative")
torch.library.register_fake(f"{NAMESPACE}::clip_", _fake_clip_)
torch.library.register_vmap(f"{NAMESPACE}::clip_", _batched_clip_)
register_in_place_without_gradient(_op)
