"""Writes files atomically."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fastgan._util.reading import one_line
from fastgan.errors import OutputError

#: Not inherited by child processes; on Windows without newline translation.
_AS_IT_IS = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises if a file can't be written there; called before the work.

    Raises:
        OutputError: the folder is missing or can't be written, or the path is a folder itself.

    Example:
        >>> check_writable("/no/such/folder/a.png")
        Traceback (most recent call last):
        fastgan.errors.OutputError: /no/such/folder/a.png: the folder /no/such/folder does not exist
    """
    path = _possible(path)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder, expected a file name")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the folder {path.parent} can't be written")


def _possible(path: str | os.PathLike[str]) -> Path:
    if "\0" in os.fspath(path):
        raise OutputError(f"{os.fspath(path)}: no file can have such a name")
    return Path(path)


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[IO[bytes]]:
    """Opens a temporary file in the same folder, renamed to ``path`` if the block succeeds.

    ``path`` always has either its previous content or all of the new one.

    Args:
        path: the file to write or replace.
        durable: also wait until the bytes are on the disk (``fsync``), for safety in power
            failures.

    Yields:
        The file, opened for binary writing and reading.

    Raises:
        OutputError: it can't be written; nothing is left behind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "a.txt") as file:
        ...         _ = file.write(b"whole")
        ...     (Path(folder) / "a.txt").read_bytes()
        b'whole'
    """
    path = _possible(path)
    temporary: Path | None = None
    try:
        # The mode of ordinary files: the system applies the umask.
        name = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _AS_IT_IS, 0o666)
        temporary = name
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        temporary = None
        if durable and os.name != "nt":  # Windows can't open folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {one_line(error)}") from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()
