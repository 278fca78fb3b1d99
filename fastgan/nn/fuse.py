"""``fastgan.fuse``: fuses any module in place."""

from __future__ import annotations

import functools
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrizations

from fastgan.errors import ConfigError
from fastgan.nn.fused_sequential import FusedSequential
from fastgan.nn.recorder import run_recorded
from fastgan.nn.spectral_norm import FusedSpectralNorm

__all__ = ["fuse"]

Module = TypeVar("Module", bound=nn.Module)


#: Torch's class -> the fused one of the same attributes.
_CLASSES: dict[type, Any] = {
    nn.Sequential: FusedSequential,
    parametrizations._SpectralNorm: FusedSpectralNorm,
}


def fuse(module: Module) -> Module:
    """Makes a module's forward run fused, in place.

    While the forward runs, convolutions, linear layers, batch norms and activations wait until
    something needs their values, and then run together (:mod:`fastgan.nn.recorder`). So any forward
    works unchanged: hand-written ones, residual blocks, norms before the convolution, branches,
    loops, hooks, spectral norm. Parameters, buffers, names, hooks, memory formats and the objects
    stay the same. Their class becomes a subclass with the same name; every ``nn.Sequential``
    becomes a :class:`FusedSequential`, which also runs fused when called directly. For a module
    without a forward (``nn.ModuleDict``) the children are fused. :func:`fastgan.explain` shows how
    everything runs.

    Args:
        module: any module.

    Returns:
        The same module.

    Raises:
        ConfigError: ``module`` isn't a module (a ValueError).

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.norm, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)
        ...     def forward(self, x):
        ...         return x + self.conv(self.norm(x).relu())
        >>> block = fuse(Block())
        >>> isinstance(block, Block), list(block.state_dict())[:2]
        (True, ['norm.weight', 'norm.bias'])
    """
    if not isinstance(module, nn.Module):
        raise ConfigError(f"module is {type(module).__name__}; expected an nn.Module")
    for each in module.modules():
        other = _CLASSES.get(type(each))
        if other is not None:
            each.__class__ = other
    _fuse_outermost(module)
    return module


def _fuse_outermost(module: nn.Module) -> None:
    kind = type(module)
    if kind.forward is nn.Module.forward:
        for child in module.children():
            _fuse_outermost(child)
    elif not (
        issubclass(kind, FusedSequential)
        or hasattr(kind, "_fused_from")
        or kind.__module__.startswith("torch.nn.modules")
    ):
        module.__class__ = _fused_class(kind)


_classes: dict[Any, Any] = {}


def _fused_class(kind: Any) -> Any:
    """A subclass that runs recorded, and is pickled as its base class."""

    if kind in _classes:
        return _classes[kind]

    @functools.wraps(kind.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run_recorded(self, super(fused, self).forward, args, kwargs)

    def reduce_ex(self: Any, protocol: Any) -> tuple[Any, ...]:
        _, _, *rest = super(fused, self).__reduce_ex__(protocol)
        return (_new, (kind,), *rest)

    fused: Any = type(
        kind.__name__,
        (kind,),
        {
            "__doc__": kind.__doc__,
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
            "__reduce_ex__": reduce_ex,
            "_fused_from": kind,
            "forward": forward,
        },
    )
    _classes[kind] = fused
    return fused


def _new(kind: Any) -> Any:
    fused = _fused_class(kind)
    return fused.__new__(fused)
