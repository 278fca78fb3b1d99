"""Locks of files, on every system that Python runs on."""

from __future__ import annotations

import os
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["try_lock"]

#: On Windows the byte that is locked can't be read by others: one beyond all that is written.
_LOCKED_BYTE = 1 << 16


def try_lock(handle: int) -> bool:
    """Locks an open file for this process until the file is closed; False if another has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if fcntl is not None:
            # A record lock: it belongs to this process alone, not to those that it starts.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            windows: Any = __import__("msvcrt")
            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            windows.locking(handle, windows.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True
