"""``fastgan.fuse``: someone else's module, fused in place."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from fastgan.errors import ConfigError
from fastgan.nn.fused_sequential import FusedSequential

__all__ = ["fuse"]

Module = TypeVar("Module", bound=nn.Module)


def fuse(module: Module) -> Module:
    """Makes every ``nn.Sequential`` in a module a :class:`FusedSequential`, in place.

    Parameters, buffers, names, hooks and the objects themselves stay: only how a sequence of
    layers runs changes. A subclass of ``nn.Sequential``, and layers that a ``forward`` of its own
    calls one by one, stay as they are; :func:`fastgan.explain` shows what runs how.

    Args:
        module: any module.

    Returns:
        The same module.

    Raises:
        ConfigError: ``module`` is no module (a ValueError).

    Example:
        >>> block = fuse(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU()))
        >>> type(block).__name__
        'FusedSequential'
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"module is {type(module).__name__}; expected an nn.Module")
    for each in module.modules():
        if type(each) is nn.Sequential:
            each.__class__ = FusedSequential
    return module
