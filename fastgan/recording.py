"""Says whether a forward pass is being recorded: then fused modules run as their children."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["active", "is_recording"]

_state = threading.local()


@contextmanager
def active() -> Iterator[None]:
    """Within it, :func:`is_recording` is true in this thread."""
    earlier = is_recording()
    _state.recording = True
    try:
        yield
    finally:
        _state.recording = earlier


def is_recording() -> bool:
    """Whether this thread records what a module does, op by op.

    Example:
        >>> is_recording()
        False
    """
    return getattr(_state, "recording", False)
