"""Says whether a forward pass is being recorded: then fused modules run as their children."""

from __future__ import annotations

import threading

from torch import Tensor

__all__ = ["end", "is_recording", "offer", "offered", "start"]

_state = threading.local()


def start() -> bool:
    """From here on :func:`is_recording` is true in this thread; returns what it was."""
    earlier = is_recording()
    _state.recording = True
    return earlier


def end(earlier: bool) -> None:
    """As it was before.

    Args:
        earlier: what :func:`start` returned.
    """
    _state.recording = earlier
    _state.offered = None


def offer(tensor: Tensor | None) -> None:
    """Says that nobody but the next layer will see a tensor, so that its memory may be reused."""
    _state.offered = tensor


def offered(tensor: Tensor) -> bool:
    """Whether that was said of a tensor, the last that it was said of; then it is no longer.

    Example:
        >>> import torch
        >>> tensor = torch.zeros(1)
        >>> offer(tensor)
        >>> offered(tensor), offered(tensor)
        (True, False)
    """
    if getattr(_state, "offered", None) is not tensor:
        return False
    _state.offered = None
    return True


def is_recording() -> bool:
    """Whether this thread records what a module does, op by op.

    Example:
        >>> is_recording()
        False
    """
    return getattr(_state, "recording", False)
