"""``torch.ops.fastgan.clip_tensors_``: clips a list of tensors in place, in one launch.

    clip_tensors_(Tensor(a!)[] tensors, Tensor(b!)[] shadows, float min, float max,
                  Tensor? found_inf) -> ()

The tensors have one dtype and one device. ``shadows`` is empty, or has a float16 or bfloat16 copy
of each tensor, written in the same pass. If ``found_inf`` is given and not zero, nothing is
written. Values are those of ``torch.clamp_``; NaN stays. Kernels: ``csrc/cpu/optimizers.cpp``,
``csrc/cuda/clip_tensors.cu``.

Order of gradients supported: none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.define import define_op
from fastgan.ops.dtypes import DTYPES
from fastgan.ops.weight_lists import check_bounds, check_lists, check_not_expanded, clip_list


def _examples() -> Iterator[tuple[Any, ...]]:
    random = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        values = torch.randn(3, 1367, generator=random).to(dtype)
        tensors = [values[0, :0], values[0, :1], values[1, :17], values[2], values[:, ::3]]
        yield tensors, [tensor.to(torch.bfloat16) for tensor in tensors], -0.5, 0.25, None
        yield tensors, [], -math.inf, 0.25, torch.tensor(1.0)


def _fake(tensors: Sequence[Tensor], shadows: Sequence[Tensor], *args: Any) -> None:
    check_lists("fastgan::clip_tensors_", [("tensors", tensors)], shadows)


@define_op(
    "clip_tensors_(Tensor(a!)[] tensors, Tensor(b!)[] shadows, float min, float max, "
    "Tensor? found_inf) -> ()",
    examples=_examples,
    as_given=("shadows",),
    fake=_fake,
)
def _clip_tensors_(
    tensors: Sequence[Tensor],
    shadows: Sequence[Tensor],
    min: float,
    max: float,
    found_inf: Tensor | None,
) -> None:
    check_lists("fastgan::clip_tensors_", [("tensors", tensors)], shadows)
    if not tensors:
        return
    check_not_expanded("fastgan::clip_tensors_", [("tensors", tensors), ("shadows", shadows)])
    check_bounds("fastgan::clip_tensors_", tensors[0].dtype, min, max)
    if found_inf is None or found_inf.item() == 0:
        clip_list(tensors, shadows, min, max)


def clip_tensors_(
    tensors: Sequence[Tensor], min: float, max: float, *, shadows: Sequence[Tensor] = ()
) -> None:
    """Clips every tensor of a list to [`min`, `max`] in place, as ``torch.clamp_``, in one launch.

    Args:
        tensors: any shapes and layouts; one dtype (float64, float32, float16 or bfloat16), one
            device.
        min: lower bound; rounded to the dtype. ``-math.inf`` for none.
        max: upper bound, at least `min`; rounded likewise. ``math.inf`` for none.
        shadows: none, or for each tensor a float16 or bfloat16 tensor of its shape for the rounded
            copy.

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
