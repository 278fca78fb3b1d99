"""One process at a time writes into a run's folder."""

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

__all__ = ["run_lock"]

LOCK = ".lock"

# By device and inode: a process's own locks don't keep it out, these do.
_held: set[tuple[int, int]] = set()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds the folder's lock for the block; it ends with this process, however that ends.

    The lock is a record lock (``fcntl``) of the file ``.lock``, which also says who holds it. Such
    locks belong to one process: data workers that outlive it for a moment don't keep it. The file
    goes with the block; one that a killed process left is taken over.

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
    # Before it is opened: to close any handle of it lets go of it.
    if path.exists() and _key(path) in _held:
        raise OutputError(f"{folder}: another run of this process writes there")
    handle = _locked(path)
    key = _key(handle)
    _held.add(key)
    try:
        yield
    finally:
        _held.discard(key)
        # While it is still ours: whoever opened it before finds that it is gone, and looks again.
        with suppress(OSError):  # Windows keeps an open file, and the next run takes it over
            path.unlink()
        os.close(handle)


def _key(file: Path | int) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino


def _locked(path: Path) -> int:
    """The open lock file, locked, and still the one of that name."""
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
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.write(handle, text.encode())
