"""File locks on every system that runs Python."""

from __future__ import annotations

import os
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: On Windows others can't read the locked byte, so it is beyond the content.
_LOCKED_BYTE = 1 << 16


def try_lock(handle: int) -> bool:
    """Locks an open file for this process until the file is closed; False if another has it.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        if fcntl is not None:
            # A record lock isn't inherited by child processes.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            windows: Any = __import__("msvcrt")
            os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
            windows.locking(handle, windows.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True
