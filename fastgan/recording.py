"""Says whether a forward pass is being recorded: then fused modules run as their children."""

from __future__ import annotations

import threading

__all__ = ["end", "is_recording", "start"]

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


def is_recording() -> bool:
    """Whether this thread records what a module does, op by op.

    Example:
        >>> is_recording()
        False
    """
    return getattr(_state, "recording", False)
