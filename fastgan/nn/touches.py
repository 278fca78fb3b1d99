"""Reads and writes of torch functions that affect waiting tensors."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import BY_FUNCTION
from fastgan.nn.waiting import Waiting

__all__ = [
    "ANYTHING",
    "CONVOLUTIONS",
    "KEEPS_LAYOUT",
    "METADATA",
    "same_memory",
    "tensors_in",
    "written_by",
]

#: Instead of a list of tensors, if they are unknown.
ANYTHING: Any = object()

_words = str.split

#: Attributes of a waiting tensor that don't need its values.
METADATA = frozenset(
    getattr(Tensor, name).__get__
    for name in _words("shape ndim dtype device layout is_cuda is_cpu is_meta is_sparse")
) | frozenset(
    getattr(home, name)
    for home, names in (
        (Tensor, "size dim ndimension numel nelement __len__ element_size get_device"),
        (Tensor, "is_floating_point is_complex"),
        (torch, "numel is_floating_point is_complex"),
    )
    for name in _words(names)
)
CONVOLUTIONS = frozenset((F.conv2d, torch.conv2d, F.conv_transpose2d, torch.conv_transpose2d))
#: Functions whose results on channels-last maps are the same, in that layout.
KEEPS_LAYOUT = frozenset(
    getattr(home, name)
    for home, names in (
        (F, "interpolate upsample avg_pool2d max_pool2d adaptive_avg_pool2d pad pixel_shuffle"),
        (F, "batch_norm group_norm instance_norm"),
        (torch, "cat concat add sub mul div neg sum mean abs square clamp"),
        (Tensor, "add sub mul div neg sum mean abs square clamp add_ sub_ mul_ div_"),
        (Tensor, "__add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __neg__"),
        (Tensor, "__mul__ __rmul__ __imul__ __truediv__ __itruediv__"),
    )
    for name in _words(names)
).union(CONVOLUTIONS, BY_FUNCTION)
_WRITE_IN_PLACE = frozenset(
    f"__{name}__"
    for name in _words(
        "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift setitem set"
    )
)
#: Functions that change torch's state, or expose memory for writes outside torch.
_REACH_FURTHER = frozenset(
    _words(
        "backward grad numpy __array__ data_ptr untyped_storage storage "
        "_typed_storage __dlpack__ share_memory_ __cuda_array_interface__"
    )
)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from tensors_in(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from tensors_in(each)


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensors that a function writes to, or :data:`ANYTHING`.

    Example:
        >>> x = torch.ones(2)
        >>> written_by(Tensor.add_, (x, 1), {})[0] is x, written_by(torch.add, (x, 1), {})
        (True, [])
    """
    written: list[Tensor] = list(tensors_in(kwargs.get("out"))) if kwargs else []
    how = _writes(func)
    if how is ANYTHING:
        return how
    if (
        how is True
        or kwargs.get("inplace")
        or (how is not False and args[how : how + 1] == (True,))
    ):
        target = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(target, Tensor):
            return ANYTHING
        if target.is_floating_point() or target.is_complex() or target._is_view():
            written.append(target)
    return written


@lru_cache(maxsize=4096)
def _writes(func: Any) -> Any:
    """Whether a function writes to its first argument, or the position of an in-place flag."""
    name = getattr(func, "__name__", "")
    if name in _REACH_FURTHER or _schema_writes(func):
        return ANYTHING
    if name in _WRITE_IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        return True
    if getattr(func, "__module__", None) == "torch.nn.functional":
        names = list(inspect.signature(func).parameters)
        return names.index("inplace") if "inplace" in names else False
    return False


def _schema_writes(func: Any) -> bool:
    """Whether the schema of an op of ``torch.ops`` has a written argument."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    if isinstance(func, torch._ops.OpOverloadPacket):
        return any(getattr(func, each)._schema.is_mutable for each in func.overloads())
    return False


def same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors share storage; waiting ones have none."""
    if type(one) is Waiting or type(other) is Waiting:
        return one is other
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
