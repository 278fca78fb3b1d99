"""Limits on what a data file may ask for, and reading within them.

A header can promise anything. Every reader here first compares it with what the file can contain,
and only then allocates.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from fastgan._util.reading import one_line
from fastgan.errors import DataError

__all__ = [
    "IN_MEMORY_BYTES",
    "MAX_ARRAY_BYTES",
    "MAX_CLASSES",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "Readable",
    "check_expansion",
    "file_size",
    "quoted",
    "read_exactly",
]

IN_MEMORY_BYTES = 2**30
"""Float32 bytes up to which a data set is kept converted, whole, in memory and on the device."""

MAX_PIXELS = 2**26
"""Pixels of one image file (8192 x 8192); more is taken for a decompression bomb."""

MAX_FILE_BYTES = 2**29
"""Bytes of one image file; an uncompressed one of :data:`MAX_PIXELS` pixels is half of that."""

MAX_ARRAY_BYTES = 2**34
"""Bytes of one decompressed array (16 GiB)."""

MAX_CLASSES = 2**16
"""Classes a labelled set may have; a larger label is taken for an id or a mistake."""

# Photographs and digits shrink 2 to 10-fold; deflate can't exceed 1032-fold. Small sets may
# still be all blank (tests, masks), so only large promises are held against this.
_BOMB_RATIO = 200
_BOMB_BYTES = 2**28

_CHUNK_BYTES = 2**24


class Readable(Protocol):
    """A stream of bytes, also gzip's and zipfile's."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes; none at the end."""


def quoted(path: str | os.PathLike[str]) -> str:
    """Give ``path`` in quotes, on one line whatever characters its name has."""
    return repr(os.fspath(path))


def file_size(path: Path) -> int:
    """Give the size of a regular file in bytes.

    Raises:
        DataError: the file is missing, unreadable, or a folder or device.
    """
    try:
        if not path.exists():
            raise DataError(f"{quoted(path)}: not found; expected a file")
        if not path.is_file():
            raise DataError(f"{quoted(path)}: not a regular file")
        return path.stat().st_size
    except OSError as error:
        raise DataError(f"{quoted(path)}: can't be read: {one_line(error)}") from error


def check_expansion(what: str, promised: int, stored: int) -> None:
    """Refuse ``promised`` decompressed bytes that ``stored`` compressed ones don't make credible.

    Raises:
        DataError: over :data:`MAX_ARRAY_BYTES`, or over 256 MiB and over 200-fold.
    """
    if promised > MAX_ARRAY_BYTES:
        raise DataError(
            f"{what}: its header promises {promised} bytes; expected at most {MAX_ARRAY_BYTES}"
        )
    if promised > _BOMB_BYTES and promised > _BOMB_RATIO * stored:
        raise DataError(
            f"{what}: its header promises {promised} bytes from {stored} compressed ones; "
            f"over {_BOMB_RATIO}-fold is taken for a decompression bomb"
        )


def read_exactly(stream: Readable, length: int, what: str) -> bytearray:
    """Read ``length`` bytes from ``stream``, which must end there.

    Memory grows with what arrives, so a stream that ends early never costs ``length`` bytes.
    The byte after the end is asked for too: compressed streams check their sums on reaching it.

    Raises:
        DataError: the stream is shorter or longer; ``what`` names it.
    """
    content = bytearray()
    while len(content) < length:
        chunk = stream.read(min(_CHUNK_BYTES, length - len(content)))
        if not chunk:
            raise DataError(
                f"{what}: truncated: {len(content)} bytes of pixels or labels; expected {length}"
            )
        content += chunk
    if stream.read(1):
        raise DataError(f"{what}: more bytes than its header says; expected {length}")
    return content
