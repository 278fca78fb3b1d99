"""Limits of data files, and reading within them.

Headers can claim any size: readers check it against the file before they allocate.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from fastgan._util.reading import one_line
from fastgan.errors import DataError

IN_MEMORY_BYTES = 2**30
"""Largest data set, in float32 bytes, that is kept converted in memory and on the device."""

MAX_PIXELS = 2**26
"""Most pixels of an image file (8192 x 8192); more counts as a decompression bomb."""

MAX_FILE_BYTES = 2**29
"""Most bytes of an image file; an uncompressed one of :data:`MAX_PIXELS` pixels has half."""

MAX_ARRAY_BYTES = 2**34
"""Most bytes of a decompressed array (16 GiB)."""

MAX_CLASSES = 2**16
"""Most classes of a labelled set; a larger label is probably an id or a mistake."""

# Photographs and digits compress 2 to 10-fold, deflate at most 1032-fold. Small sets may be blank
# (tests, masks), so only large sizes are checked.
_BOMB_RATIO = 200
_BOMB_BYTES = 2**28

_CHUNK_BYTES = 2**24


class Readable(Protocol):
    """A stream of bytes, such as gzip's and zipfile's."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes; none at the end."""


def quoted(path: str | os.PathLike[str]) -> str:
    """Returns ``path`` in quotes and on one line, for any characters in its name."""
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
    """Refuses an implausible size of ``promised`` bytes from ``stored`` compressed ones.

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

    Memory grows with the received bytes, so a truncated stream never costs ``length`` bytes. Also
    reads past the end, which makes compressed streams check their checksums.

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
