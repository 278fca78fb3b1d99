"""Says whether a forward pass is being recorded; fused modules then run layer by layer."""

from __future__ import annotations

import threading

from torch import Tensor


class _OfThread(threading.local):
    # Of the class: an attribute that is absent takes five times as long to ask for.
    recording = False
    offered: Tensor | None = None


#: This thread's state.
of_thread = _OfThread()


def start() -> bool:
    """Makes :func:`is_recording` true in this thread; returns its previous value."""
    earlier = is_recording()
    of_thread.recording = True
    return earlier


def end(earlier: bool) -> None:
    """Restores the previous value.

    Args:
        earlier: the result of :func:`start`.
    """
    of_thread.recording = earlier
    of_thread.offered = None


def offer(tensor: Tensor | None) -> None:
    """Marks a tensor that only the next layer will use, so that its memory may be reused."""
    of_thread.offered = tensor


def offered(tensor: Tensor) -> bool:
    """Whether a tensor is the last one offered; clears the mark.

    Example:
        >>> import torch
        >>> tensor = torch.zeros(1)
        >>> offer(tensor)
        >>> offered(tensor), offered(tensor)
        (True, False)
    """
    if of_thread.offered is not tensor:
        return False
    of_thread.offered = None
    return True


def is_recording() -> bool:
    """Whether this thread records what a module does, op by op.

    Example:
        >>> is_recording()
        False
    """
    return of_thread.recording
