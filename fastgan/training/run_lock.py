"""A lock, so that only one process writes into a run's folder."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastgan._util.locks import try_lock
from fastgan._util.reading import one_line, printable
from fastgan.errors import OutputError

LOCK = ".lock"

# Folders locked by this process, by device and inode: record locks don't exclude their own process.
_held: set[tuple[int, int]] = set()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the folder's lock for the block; it always ends with this process.

    The lock is a record lock (``fcntl``) of the file ``.lock``, which also names the holder. Record
    locks belong to one process, so data workers that outlive it don't keep the lock. The file is
    removed after the block; a killed process's file is reused.

    Raises:
        OutputError: another process holds it, or this one does; or the folder can't be locked.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, run_lock(Path(folder)):
        ...     with run_lock(Path(folder)):
        ...         pass
        Traceback (most recent call last):
        fastgan.errors.OutputError: ...: another run of this process writes there
    """
    path = folder / LOCK
    # Checked before opening: closing any handle of it would release the lock.
    if path.exists() and _key(path) in _held:
        raise OutputError(f"{folder}: another run of this process writes there")
    handle = _locked(path)
    key = _key(handle)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        # Removed while we hold it: processes that opened it before notice, and retry.
        with suppress(OSError):  # Windows keeps an open file, which the next run reuses
            path.unlink()
        os.close(handle)


def _key(file: Path | int) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _locked(path: Path) -> int:
    """The open, locked lock file, after checking that it still has its name."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
    while True:
        try:
            handle = os.open(path, flags, 0o666)
        except OSError as error:
            raise OutputError(f"{path}: can't be written: {one_line(error)}") from error
        try:
            _lock(handle, path.parent)
            with suppress(FileNotFoundError):
                if _key(path) == _key(handle):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        free = try_lock(handle)
        os.lseek(handle, 0, os.SEEK_SET)
        holder = "" if free else printable(os.read(handle, 200).decode("utf-8", "replace").strip())
    except OSError as error:
        raise OutputError(
            f"{folder}: can't be locked ({one_line(error)}); this file system has no locks, without"
            " which two runs could spoil each other: choose a folder on another"
        ) from error
    if not free:
        raise OutputError(
            f"{folder}: {holder or 'another process'} writes there; wait for it to end, or choose"
            " another folder"
        )
    text = f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T %z')}\n"
    with suppress(OSError):  # a full disk doesn't affect the lock
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())
