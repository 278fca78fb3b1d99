"""What a plan depends on beside its input: the critic's structure, modes, settings and hooks.

Settings are compared by value, wherever ``forward`` may find them: in attributes of modules, of
their classes, and of the plain objects that these hold. Which tensors there are counts, but not
what they hold.
"""

from __future__ import annotations

import functools
import numbers
import types
from collections.abc import Hashable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]

_SCALARS = frozenset((bool, int, float, str, type(None)))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
#: What every module holds, and is walked or of no consequence to what forward computes.
_COMMON = set(vars(nn.Module())) - {"training"} | {"_compiled_call_impl"}
#: What is never changed, or only by its class.
_FIXED = (
    bytes,
    complex,
    range,
    slice,
    Enum,
    numbers.Number,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    type(Ellipsis),
    types.BuiltinFunctionType,
    types.CodeType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.MethodDescriptorType,
    types.ModuleType,
    types.WrapperDescriptorType,
)
#: Of a class, its functions: another one is another object.
_OF_CLASSES = (types.FunctionType, property, staticmethod, classmethod, functools.cached_property)
_UNINTERESTING = {"__dict__", "__weakref__", "__doc__", "__annotations__", "_abc_impl"}
_DEEPEST = 8
_MOST = 10_000


class _Opaque(Exception):
    """Something whose state can't be seen."""


def fingerprint(critic: nn.Module) -> Hashable | None:
    """A value that is another one after any change that a plan must follow.

    Args:
        critic: walked with all its layers.

    Returns:
        None where the critic holds an object whose state can't be seen: then no plan may be kept.
    """
    walk = _Walk()
    try:
        walk.module(critic)
    except _Opaque:
        return None
    return tuple(walk.found)


class _Walk:
    def __init__(self) -> None:
        self.found: list[Any] = []  # hashable, all of it
        self.classes: set[type] = set()
        self.seen: dict[int, int] = {}

    # Once per call of the penalty, so it counts: no generators, no names of modules.
    def module(self, module: nn.Module) -> None:
        add = self.found.append
        attributes = module.__dict__
        kind = type(module)
        add(id(module))
        add(kind)
        if kind not in self.classes:
            self.class_of_forward(kind)
        # A sequential that only runs its children in another way has no settings.
        chain = isinstance(module, nn.Sequential) and getattr(module, "fused_sequential", False)
        for key, value in attributes.items():
            if key in _COMMON or isinstance(value, Tensor) or (chain and key != "training"):
                continue
            add(key)
            self.value(value, 0)
        for tensors in (attributes["_parameters"], attributes["_buffers"]):
            for key, tensor in tensors.items():
                add(key)
                add(tensor is None)
        for name in _HOOKS:
            hooks = attributes[name]
            add(tuple(hooks) if hooks else ())
        for key, child in attributes["_modules"].items():
            add(key)
            if child is not None:
                self.module(child)
        add(None)  # where the children end

    def class_of_forward(self, kind: type) -> None:
        """The attributes of a class and its bases, but for torch's and Python's own."""
        self.classes.add(kind)
        for base in kind.__mro__:
            if base.__module__.partition(".")[0] in ("torch", "builtins", "typing", "abc"):
                continue
            for key, value in vars(base).items():
                if key in _UNINTERESTING:
                    continue
                self.found.append(key)
                if isinstance(value, _OF_CLASSES):
                    self.found.append(value)
                elif not key.startswith("__"):
                    self.value(value, 0)

    def value(self, value: Any, depth: int) -> None:
        """By value, as deep as that takes; objects met before by where they were met."""
        add = self.found.append
        kind = type(value)
        add(kind)
        if kind in _SCALARS or (kind is tuple and _SCALARS.issuperset(map(type, value))):
            add(value)
            return
        if isinstance(value, _FIXED):
            # A slice can't be hashed before Python 3.12.
            add(repr(value) if kind is slice else value)
            return
        if isinstance(value, Tensor):
            add(id(value))
            return
        if id(value) in self.seen:
            add(self.seen[id(value)])
            return
        self.seen[id(value)] = len(self.seen)
        if depth > _DEEPEST or len(self.found) > _MOST:
            raise _Opaque
        if isinstance(value, nn.Module):
            self.held(value, {k: v for k, v in vars(value).items() if k not in _COMMON}, depth)
        elif isinstance(value, (tuple, list)):
            add(len(value))
            for item in value:
                self.value(item, depth + 1)
            self.held(value, getattr(value, "__dict__", {}), depth)
        elif isinstance(value, dict):
            add(len(value))
            for key, item in value.items():
                self.value(key, depth + 1)
                self.value(item, depth + 1)
            self.held(value, getattr(value, "__dict__", {}), depth)
        elif kind in (set, frozenset):
            if not _SCALARS.issuperset(map(type, value)):
                raise _Opaque
            add(frozenset(value))
        elif kind is types.FunctionType:
            self.function(value, depth)
        elif kind is types.MethodType:
            self.value(value.__func__, depth + 1)
            self.value(value.__self__, depth + 1)
        elif kind is functools.partial:
            for part in (value.func, value.args, value.keywords):
                self.value(part, depth + 1)
        elif isinstance(value, type):
            add(value)
            if value not in self.classes:
                self.class_of_forward(value)
        else:
            self.object(value, depth)

    def function(self, function: types.FunctionType, depth: int) -> None:
        self.found.append(function.__code__)
        cells = function.__closure__ or ()
        for part in (function.__defaults__, function.__kwdefaults__, function.__dict__):
            self.value(part, depth + 1)
        for cell in cells:
            try:
                inside = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            self.value(inside, depth + 1)

    def object(self, value: Any, depth: int) -> None:
        """An instance of a class written in Python, whose state is in its attributes."""
        kind = type(value)
        slots = [
            slot
            for base in kind.__mro__
            for slot in _names(vars(base).get("__slots__", ()))
            if slot not in ("__dict__", "__weakref__")
        ]
        foreign = any(
            base is not object and not base.__flags__ & _WRITTEN_IN_PYTHON for base in kind.__mro__
        )
        if kind is not types.SimpleNamespace and foreign:
            raise _Opaque
        if kind not in self.classes:
            self.class_of_forward(kind)
        attributes = dict(getattr(value, "__dict__", {}))
        for slot in slots:
            if hasattr(value, slot):
                attributes[slot] = getattr(value, slot)
        self.held(value, attributes, depth)

    def held(self, owner: Any, attributes: dict[str, Any], depth: int) -> None:
        for key, item in attributes.items():
            self.found.append(key)
            self.value(item, depth + 1)


#: CPython's Py_TPFLAGS_HEAPTYPE: a class that a class statement has made (or C code at run time).
_WRITTEN_IN_PYTHON = 1 << 9


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
