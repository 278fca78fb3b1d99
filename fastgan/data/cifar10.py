"""CIFAR-10's Python version: a folder, or a tar.gz, of pickled batches.

Each batch is a dictionary with ``data``, uint8 (n, 3072), each row the red, green and blue 32 x 32
planes, and ``labels``. (Krizhevsky, Learning multiple layers of features from tiny images, 2009.)
The pickles are read as data, see :mod:`fastgan._util.plain_pickle`.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastgan._util.plain_pickle import Record, load_plain_pickle
from fastgan._util.reading import one_line
from fastgan.data.limits import file_size, quoted
from fastgan.data.source import ImageArrays
from fastgan.errors import DataError

_FOLDER = "cifar-10-batches-py"
_ARCHIVE = "cifar-10-python.tar.gz"
_WANTED = re.compile(r"data_batch_([1-9][0-9]?)|batches\.meta")
_CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

# The published batches are 31 MB each and the whole archive unpacks to 186 MB.
_MAX_BATCH_BYTES = 2**27
_MAX_ARCHIVE_BYTES = 2**31


def load_cifar10(place: Path) -> ImageArrays:
    """Reads the training images of CIFAR-10: ``data_batch_1`` to ``data_batch_5``.

    Args:
        place: the folder ``cifar-10-batches-py``, a folder that holds it or the archive, or
            the archive ``cifar-10-python.tar.gz`` itself, which is read without unpacking it.

    Raises:
        DataError: missing, corrupt or truncated, a batch missing from the middle, or a pickle with
            code, which isn't run.
    """
    members = _read_members(place)
    class_names = _class_names(members.pop("batches.meta", None))
    numbers = sorted(int(member.rpartition("_")[2]) for member in members)
    for expected, number in enumerate(numbers, start=1):
        if number != expected:
            raise DataError(f"{quoted(place)}: data_batch_{expected} is missing")
    parts = [_read_batch(*members[f"data_batch_{number}"]) for number in numbers]
    rows = np.concatenate([part_rows for part_rows, _ in parts])
    pixels = rows.reshape(len(rows), 3, 32, 32)
    labels = np.concatenate([row_labels for _, row_labels in parts])
    return ImageArrays(torch.from_numpy(pixels), torch.from_numpy(labels), class_names)


def _read_members(place: Path) -> dict[str, tuple[bytes, str]]:
    """Reads the batches' files: file name -> (content, name in messages)."""
    if not place.exists():
        raise DataError(f"{quoted(place)}: not found; expected the folder {_FOLDER} or its tar.gz")
    if place.is_file():
        members = _members_of_archive(place)
    elif (place / _FOLDER).is_dir():
        members = _members_of_folder(place / _FOLDER)
    elif (place / _ARCHIVE).is_file() and not (place / "data_batch_1").exists():
        members = _members_of_archive(place / _ARCHIVE)
    else:
        members = _members_of_folder(place)
    if not any(member.startswith("data_batch_") for member in members):
        raise DataError(f"{quoted(place)}: no CIFAR-10 batches; expected data_batch_1 to _5")
    return members


def _members_of_folder(folder: Path) -> dict[str, tuple[bytes, str]]:
    members = {}
    try:
        for path in sorted(folder.iterdir()):
            if _WANTED.fullmatch(path.name):
                size = file_size(path)
                if size > _MAX_BATCH_BYTES:
                    raise DataError(
                        f"{quoted(path)}: {size} bytes; expected at most {_MAX_BATCH_BYTES}"
                    )
                members[path.name] = (path.read_bytes(), quoted(path))
    except OSError as error:
        raise DataError(f"{quoted(folder)}: can't be read: {one_line(error)}") from error
    return members


class _BoundedStream(io.RawIOBase):
    """A decompressed stream with a bounded length."""

    def __init__(self, stream: io.BufferedIOBase | gzip.GzipFile, what: str) -> None:
        self._stream = stream
        self._what = what
        self._left = _MAX_ARCHIVE_BYTES

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        content = self._stream.read(self._left + 1 if size < 0 else size)
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"{self._what}: unpacks to over {_MAX_ARCHIVE_BYTES} bytes")
        return content


def _members_of_archive(path: Path) -> dict[str, tuple[bytes, str]]:
    what = quoted(path)
    file_size(path)
    members = {}
    try:
        # Streamed, never unpacked, so members' paths are harmless.
        with (
            gzip.open(path) as stream,
            tarfile.open(fileobj=_BoundedStream(stream, what), mode="r|") as archive,
        ):
            for member in archive:
                base = member.name.rpartition("/")[2]
                if not (member.isfile() and _WANTED.fullmatch(base)):
                    continue
                if member.size > _MAX_BATCH_BYTES:
                    raise DataError(
                        f"{what}: {base} has {member.size} bytes; "
                        f"expected at most {_MAX_BATCH_BYTES}"
                    )
                if base in members:
                    raise DataError(f"{what}: {base} occurs twice")
                extracted = archive.extractfile(member)
                content = b"" if extracted is None else extracted.read()
                if len(content) != member.size:
                    raise DataError(f"{what}: truncated in {base}")
                members[base] = (content, f"{what}, {base}")
            # Read to the end, which checks gzip's checksum.
            while stream.read(2**20):
                pass
    except EOFError as error:
        raise DataError(f"{what}: truncated: the gzip stream ends early") from error
    except (tarfile.TarError, OSError, zlib.error) as error:
        raise DataError(f"{what}: not a readable tar.gz: {one_line(error)}") from error
    return members


def _encode(text: object = None, encoding: object = None) -> bytes:
    """Replaces ``_codecs.encode``, with which Python 3 writes bytes in old protocols."""
    if isinstance(text, str) and encoding == "latin1":
        return text.encode("latin1")
    raise ValueError("_codecs.encode is called for something other than bytes")


# All names in numpy's arrays and Python 3's bytes; ``bytes`` is only called for an empty one.
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): Record,
    ("numpy._core.multiarray", "_reconstruct"): Record,
    ("numpy.core.numeric", "_frombuffer"): Record,
    ("numpy._core.numeric", "_frombuffer"): Record,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): Record,
    ("_codecs", "encode"): _encode,
    ("builtins", "bytes"): lambda: b"",
    ("__builtin__", "bytes"): lambda: b"",
}


def _load(content: bytes, what: str) -> Any:
    return load_plain_pickle(content, what, kind=DataError, names=_NAMES)


def _byte_array(value: object, what: str) -> npt.NDArray[np.uint8]:
    """Checks the record of a uint8 array, and returns the array.

    Raises:
        DataError: not a record of an array of bytes that match its shape.
    """
    state = value.state if isinstance(value, Record) else None
    if isinstance(value, Record) and value.name.endswith("_frombuffer"):
        # Of protocol 5: content, dtype, shape, order.
        parts = value.arguments
        state = (1, parts[2], parts[1], parts[3] == "F", parts[0]) if len(parts) == 4 else None
    if not (isinstance(state, tuple) and len(state) == 5):
        raise DataError(f"{what}: {type(value).__name__} found; expected an array of bytes")
    _, shape, dtype, fortran, content = state
    code = dtype.arguments[0] if isinstance(dtype, Record) and dtype.arguments else None
    if code not in ("u1", b"u1"):
        raise DataError(f"{what}: an array of another dtype; expected u1 (unsigned byte)")
    if not (
        isinstance(shape, tuple)
        and len(shape) < 8
        and all(type(size) is int and size >= 0 for size in shape)
        and isinstance(content, bytes)
        and len(content) == math.prod(shape)
    ):
        raise DataError(f"{what}: an array whose bytes don't match its shape {shape!r}")
    flat = np.frombuffer(content, dtype=np.uint8)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _entry(batch: Any, key: str, what: str) -> Any:
    """Looks up a key written by Python 2 (bytes) or Python 3 (text)."""
    if not isinstance(batch, dict):
        raise DataError(f"{what}: {type(batch).__name__} found; expected a dictionary")
    for spelling in (key.encode(), key):
        if spelling in batch:
            return batch[spelling]
    raise DataError(f"{what}: no {key!r}; expected a CIFAR-10 batch")


def _read_batch(content: bytes, what: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    batch = _load(content, what)
    pixels = _byte_array(_entry(batch, "data", what), f"{what}: data")
    if pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise DataError(
            f"{what}: data of shape {pixels.shape}; expected (n, 3072): 3 channels of 32 x 32"
        )
    labels = _entry(batch, "labels", what)
    if not (isinstance(labels, list) and all(type(label) is int for label in labels)):
        raise DataError(f"{what}: labels aren't a list of whole numbers")
    if len(labels) != len(pixels):
        raise DataError(f"{what}: {len(labels)} labels for {len(pixels)} images")
    if any(not 0 <= label < 10 for label in labels):
        raise DataError(f"{what}: labels from {min(labels)} to {max(labels)}; expected 0 to 9")
    return pixels, np.array(labels, dtype=np.int64)


def _class_names(meta: tuple[bytes, str] | None) -> list[str]:
    if meta is None:
        return list(_CLASS_NAMES)
    content, what = meta
    names = _entry(_load(content, what), "label_names", what)
    decoded = []
    for name in names if isinstance(names, list) else []:
        if isinstance(name, (str, bytes)):
            decoded.append(name if isinstance(name, str) else name.decode("utf-8", "replace"))
    if len(decoded) != 10:
        raise DataError(f"{what}: label_names isn't a list of ten names")
    return decoded
