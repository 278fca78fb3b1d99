"""Argument checks and the clip of the ops on lists of weights, in plain PyTorch.

The checks are those of ``csrc/ops.cpp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastgan.ops.dtypes import DTYPES


def clip_list(
    tensors: Sequence[Tensor], shadows: Sequence[Tensor], lower: float, upper: float
) -> None:
    """Clips each tensor in place, then copies it to its shadow, if there is one."""
    for i, tensor in enumerate(tensors):
        if not (lower == -math.inf and upper == math.inf):
            below, above = tensor.lt(lower), tensor.gt(upper)  # not clamp_: bounds in any order
            tensor.masked_fill_(below, lower).masked_fill_(above, upper)
        if shadows:
            shadows[i].copy_(tensor)


def check_bounds(op: str, dtype: torch.dtype, lower: float, upper: float) -> None:
    """The checks of two bounds."""
    if math.isnan(lower) or math.isnan(upper):
        raise RuntimeError(f"{op}: min and max must be numbers, got min = {lower}, max = {upper}")
    if lower > upper:
        raise RuntimeError(f"{op}: min must not exceed max, got min = {lower}, max = {upper}")
    for name, bound in (("min", lower), ("max", upper)):
        if math.isfinite(bound) and abs(bound) > torch.finfo(dtype).max:
            raise RuntimeError(
                f"{op}: {name} = {bound} is beyond what {dtype} holds; "
                "for no bound pass an infinity"
            )


def check_apart(op: str, grads: Sequence[Tensor]) -> None:
    """Checks that gradients to unscale don't share memory."""
    by_storage: dict[int, list[Tensor]] = {}
    for grad in grads:
        if grad.numel() > 0:
            by_storage.setdefault(grad.untyped_storage().data_ptr(), []).append(grad)
    for sharing in by_storage.values():
        if len(sharing) == 1:
            continue
        places = torch.arange(sharing[0].untyped_storage().nbytes() // sharing[0].element_size())
        used = [
            places.as_strided(grad.shape, grad.stride(), grad.storage_offset()).flatten()
            for grad in sharing
        ]
        if torch.cat(used).unique().numel() < sum(map(len, used)):
            raise RuntimeError(
                f"{op}: gradients that share memory would be divided by grad_scale twice; list "
                "each parameter once, with a gradient of its own"
            )


def check_not_expanded(op: str, lists: Sequence[tuple[str, Sequence[Tensor]]]) -> None:
    """Checks that a written tensor's elements don't overlap."""
    for name, tensors in lists:
        for i, tensor in enumerate(tensors):
            sizes = zip(tensor.shape, tensor.stride(), strict=True)
            if tensor.numel() > 0 and any(size > 1 and stride == 0 for size, stride in sizes):
                raise RuntimeError(
                    f"{op}: {name}[{i}] is expanded: more than one of its elements refers to a "
                    "single memory location. Please clone() the tensor before performing the "
                    "operation."
                )


def check_lists(
    op: str, lists: Sequence[tuple[str, Sequence[Tensor]]], shadows: Sequence[Tensor]
) -> None:
    """Checks lists of tensors, the first being the parameters."""
    first_name, params = lists[0]
    if shadows:
        lists = [*lists, ("shadows", shadows)]
    for name, tensors in lists:
        if len(tensors) != len(params):
            raise RuntimeError(
                f"{op}: {name} has {len(tensors)} tensors for {len(params)} in {first_name}"
            )
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            if name == "shadows":
                if tensor.dtype not in (torch.float16, torch.bfloat16):
                    raise RuntimeError(
                        f"{op}: shadows must all be float16 or all bfloat16, one is {tensor.dtype}"
                    )
            elif tensor.dtype != params[0].dtype or tensor.dtype not in DTYPES:
                expected = params[0].dtype if params[0].dtype in DTYPES else "a floating-point one"
                raise RuntimeError(
                    f"{op}: {name}[{i}] has dtype {tensor.dtype}; expected {expected}"
                )
            if tensor.shape != param.shape:
                raise RuntimeError(
                    f"{op}: {name}[{i}] has shape {tuple(tensor.shape)}, its parameter has shape "
                    f"{tuple(param.shape)}"
                )
