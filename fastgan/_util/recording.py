"""Says whether a forward pass is being recorded; fused modules then run layer by layer."""

from __future__ import annotations

import threading

from torch import Tensor


class _OfThread(threading.local):
    # Of the class: an attribute that is absent takes five times as long to ask for.
    recording = False
    offered: Tensor | None = None


_state = _OfThread()


def start() -> bool:
    """Makes :func:`is_recording` true in this thread; returns its previous value."""
    earlier = is_recording()
    _state.recording = True
    return earlier


def end(earlier: bool) -> None:
    """Restores the previous value.

    Args:
        earlier: the result of :func:`start`.
    """
    _state.recording = earlier
    _state.offered = None


def offer(tensor: Tensor | None) -> None:
    """Marks a tensor that only the next layer will use, so that its memory may be reused."""
    _state.offered = tensor


def offered(tensor: Tensor) -> bool:
    """Whether a tensor is the last one offered; clears the mark.

    Example:
        >>> import torch
        >>> tensor = torch.zeros(1)
        >>> offer(tensor)
        >>> offered(tensor), offered(tensor)
        (True, False)
    """
    if _state.offered is not tensor:
        return False
    _state.offered = None
    return True


def is_recording() -> bool:
    """Whether this thread records what a module does, op by op.

    Example:
        >>> is_recording()
        False
    """
    return _state.recording
