"""Calls that torch's modes don't see: their arguments are computed, and they aren't recorded.

These are ``autograd.Function``, scripted and traced code, the transforms of ``torch.func``, and the
saving of inputs in ``torch.utils.checkpoint``. They are wrapped for the whole process from the
first recording on, and first compute all waiting results of this thread's current forward pass, if
any.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch._functorch import eager_transforms, vmap
from torch.utils import checkpoint

from fastgan.nn.pending import Pending

__all__ = ["current", "see", "set_current"]

_local = threading.local()


def current() -> Pending | None:
    """The pending calls of this thread's recorded forward pass, or None."""
    return getattr(_local, "pending", None)


def set_current(pending: Pending | None) -> None:
    """Sets :func:`current`."""
    _local.pending = pending


def _with_values(function: Any) -> Any:
    """The function, after computing all referenced waiting tensors."""

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        pending = current()
        if pending is None or not pending.watches:
            return function(*args, **kwargs)
        pending.flush()
        with pending.unwatched():
            return function(*args, **kwargs)

    return called


def _entering(increment: Any) -> Any:
    """A transform's entry, after computing all referenced waiting tensors; nothing is recorded
    until :func:`_leaving`."""

    @functools.wraps(increment)
    def called(*args: Any) -> Any:
        pending = current()
        watched = pending is not None and pending.watches
        if pending is not None and watched:
            pending.flush()
        level = increment(*args)
        if pending is not None and watched:
            pending.watches = False
            pending.transform = level
        return level

    return called


def _leaving(decrement: Any) -> Any:
    @functools.wraps(decrement)
    def called() -> Any:
        level, pending = decrement(), current()
        if pending is not None and pending.transform == level:
            pending.watches, pending.transform = True, None
        return level

    return called


@functools.cache
def see() -> None:
    """Wraps them once."""
    of_function = torch.autograd.Function.__dict__["apply"]
    # Until torch 2.13 a classmethod. Later ones are C's, which is called as its function is.
    of_function = getattr(of_function, "__func__", of_function)
    setattr(torch.autograd.Function, "apply", classmethod(_with_values(of_function)))  # noqa: B010
    scripted: Any
    for scripted in (torch._C.ScriptFunction, torch._C.ScriptMethod):
        scripted.__call__ = _with_values(scripted.__call__)
    frame: Any = checkpoint._CheckpointFrame
    frame.__init__ = _with_values(frame.__init__)
    home: Any
    for home, name in ((vmap, "vmap"), (eager_transforms, "grad"), (eager_transforms, "jvp")):
        for step, wrapped in (("increment", _entering), ("decrement", _leaving)):
            name_of_step = f"_{name}_{step}_nesting"
            setattr(home, name_of_step, wrapped(getattr(home, name_of_step)))
