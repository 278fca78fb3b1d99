"""Casts the parameters of a recorded critic together: one launch on a GPU instead of one for each.

A recording remembers which parameters autocast cast. The next one casts them all as soon as the
first is cast, and returns each copy when its turn comes, unless the parameter has changed since.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _Copy(NamedTuple):
    cast: Tensor
    #: The parameter's version counter, memory and storage when it was cast.
    version: int
    pointer: int
    storage: int


Cast = tuple[weakref.ref[Tensor], torch.dtype]
"""A parameter and the dtype that it was cast to."""


class Casts:
    """The casts of parameters in one recording.

    Args:
        before: those of the critic's last recording.

    Attributes:
        made: those of this one, in order.

    Example:
        >>> weight = torch.ones(2)
        >>> first = Casts([])
        >>> _ = first.cast(weight, torch.bfloat16)
        >>> Casts(first.made).cast(weight, torch.bfloat16)
        tensor([1., 1.], dtype=torch.bfloat16)
    """

    def __init__(self, before: Sequence[Cast]) -> None:
        self.made: list[Cast] = []
        self._before = before
        self._copies: dict[int, _Copy] | None = None

    def end(self) -> None:
        """Frees copies that weren't asked for."""
        self._copies = {}

    def cast(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        """``parameter.to(dtype)``, in new memory."""
        if self._copies is None:
            self._copies = self._together(parameter, dtype)
        self.made.append((weakref.ref(parameter), dtype))
        copy = self._copies.pop(id(parameter), None)
        if (
            copy is None
            or copy.cast.dtype != dtype
            or (copy.version, copy.pointer) != (parameter._version, parameter.data_ptr())
        ):
            return parameter.to(dtype, copy=True)
        return copy.cast

    def written(self, tensors: Iterable[Tensor]) -> None:
        """Forgets the copies of parameters whose memory is about to be written.

        Writes through ``.data`` aren't counted by the parameters' versions.
        """
        if self._copies:
            storages = {storage_of(tensor) for tensor in tensors}
            for key in [key for key, copy in self._copies.items() if copy.storage in storages]:
                del self._copies[key]

    def _together(self, first: Tensor, dtype: torch.dtype) -> dict[int, _Copy]:
        like = (first.dtype, first.device)
        tensors: dict[int, Tensor] = {}
        for ref, to in self._before:
            tensor = ref()
            if tensor is not None and to == dtype and (tensor.dtype, tensor.device) == like:
                tensors[id(tensor)] = tensor
        if id(first) not in tensors:
            return {}
        copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors.values()]
        torch._foreach_copy_(copies, list(tensors.values()))
        return {
            key: _Copy(copy, tensor._version, tensor.data_ptr(), storage_of(tensor))
            for (key, tensor), copy in zip(tensors.items(), copies, strict=True)
        }


def storage_of(tensor: Tensor) -> int:
    """A number that tensors of the same memory share."""
    return int(tensor.untyped_storage()._cdata)


def casts_alone(kwargs: dict[str, Any]) -> bool:
    """Whether ``aten._to_copy`` with these arguments changes only the dtype."""
    given = {name for name, value in kwargs.items() if value not in (None, False)}
    return given == {"dtype"}
