"""Lazy attributes of packages (PEP 562), for names that need torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, names: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: the package's ``__name__``.
        names: name -> its module. A submodule's own name stands for the submodule.

    Example:
        >>> getattr_, dir_ = attach("fastgan", {"sampling": "fastgan.sampling"})
        >>> getattr_("sampling").__name__
        'fastgan.sampling'
        >>> "sampling" in dir_()
        True
        >>> getattr_("nothing")
        Traceback (most recent call last):
        AttributeError: module 'fastgan' has no attribute 'nothing'
    """

    def module_getattr(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        # First, and not from one of our modules: the ops, defined with torch, need some of them.
        importlib.import_module("torch")
        value: Any = importlib.import_module(names[name])
        if names[name] != f"{package}.{name}":
            value = getattr(value, name)
        # Later accesses don't call this function.
        setattr(sys.modules[package], name, value)
        return value

    def module_dir() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return module_getattr, module_dir
