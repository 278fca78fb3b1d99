"""``torch.ops.fastgan.clip_tensors_``: clips a list of tensors in place, in one launch.

    clip_tensors_(Tensor(a!)[] tensors, Tensor(b!)[] shadows, float min, float max,
                  Tensor? found_inf) -> ()

The tensors are of one dtype and on one device. ``shadows`` is empty, or holds a float16 or bfloat16
copy of each tensor, which is written in the same pass. Where ``found_inf`` is given and not zero,
nothing happens. Values as ``torch.clamp_``; a NaN stays. Kernels:
``csrc/cpu/optimizers.cpp``, ``csrc/cuda/clip_tensors.cu``.

Order of gradients supported: none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.errors import FastganError
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.plain_step import check_bounds, check_lists, clip_list
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_in_place_on_lists,
    register_list_fallback,
)

__all__ = ["SCHEMA", "check", "clip_tensors_"]

#: As in csrc/ops.cpp.
SCHEMA = (
    "clip_tensors_(Tensor(a!)[] tensors, Tensor(b!)[] shadows, float min, float max, "
    "Tensor? found_inf) -> ()"
)


def clip_tensors_(
    tensors: Sequence[Tensor], min: float, max: float, *, shadows: Sequence[Tensor] = ()
) -> None:
    """Clips every tensor of a list to [`min`, `max`] in place, as ``torch.clamp_``, in one launch.

    Args:
        tensors: any shapes and layouts; one dtype (float64, float32, float16 or bfloat16), one
            device.
        min: lower bound; rounded to the dtype. ``-math.inf`` for none.
        max: upper bound, at least `min`; rounded likewise. ``math.inf`` for none.
        shadows: none, or for each tensor one of its shape, float16 or bfloat16, that becomes its
            rounded copy.

    Raises:
        RuntimeError: bounds out of order, NaN or beyond the dtype; lists that don't match; a tensor
            that requires grad, in grad mode.

    Example:
        >>> import torch
        >>> from fastgan.ops import clip_tensors_
        >>> weights = [torch.tensor([2.0, -2.0]), torch.tensor(0.5)]
        >>> clip_tensors_(weights, -1.0, 1.0)
        >>> weights
        [tensor([ 1., -1.]), tensor(0.5000)]
    """
    if len(tensors) == 0:
        return
    torch.ops.fastgan.clip_tensors_(tensors, shadows, min, max, None)


def _plain(
    tensors: Sequence[Tensor],
    shadows: Sequence[Tensor],
    min: float,
    max: float,
    found_inf: Tensor | None,
) -> None:
    check_lists(f"{NAMESPACE}::clip_tensors_", [("tensors", tensors)], shadows)
    if not tensors:
        return
    check_bounds(f"{NAMESPACE}::clip_tensors_", tensors[0].dtype, min, max)
    if found_inf is None or found_inf.item() == 0:
        clip_list(tensors, shadows, min, max)


def _fake(
    tensors: Sequence[Tensor],
    shadows: Sequence[Tensor],
    min: float,
    max: float,
    found_inf: Tensor | None,
) -> None:
    check_lists(f"{NAMESPACE}::clip_tensors_", [("tensors", tensors)], shadows)


def _written(args: Sequence[Any]) -> list[Tensor]:
    return [*args[0], *args[1]]


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with what the formula says; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        values = [torch.randn(n, generator=generator).to(dtype) for n in (0, 1, 17, 4099)]
        values[2][3] = math.nan
        tensors = [value.to(device, copy=True) for value in values]
        shadows = [tensor.to(torch.bfloat16) for tensor in tensors]
        clip_tensors_(tensors, -0.5, 0.25, shadows=shadows)
        for tensor, shadow, value in zip(tensors, shadows, values, strict=True):
            expected = torch.where(value < -0.5, -0.5, torch.where(value > 0.25, 0.25, value))
            same = torch.equal(tensor.cpu().nan_to_num(9.0), expected.to(dtype).nan_to_num(9.0))
            low = expected.to(torch.bfloat16)
            if not same or not torch.equal(shadow.cpu().nan_to_num(9.0), low.nan_to_num(9.0)):
                raise FastganError(
                    f"fastgan::clip_tensors_ gives wrong values on {device}, for {dtype}"
                )


define_if_absent(SCHEMA)
register_list_fallback("clip_tensors_", _plain)
torch.library.register_fake(f"{NAMESPACE}::clip_tensors_", _fake)
register_in_place_on_lists(torch.ops.fastgan.clip_tensors_.default, _written)
