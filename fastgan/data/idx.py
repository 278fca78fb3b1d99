"""IDX files, the format of MNIST and related sets, plain or gzip-compressed.

An IDX file is two zero bytes, a type code (8: unsigned byte), the number of dimensions, each
dimension as a big-endian 32-bit number, then the values. (The MNIST database's own page.)
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastgan._util.reading import one_line
from fastgan.data.limits import (
    Readable,
    check_expansion,
    file_size,
    quoted,
    read_exactly,
)
from fastgan.data.source import ImageArrays
from fastgan.errors import DataError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"
_SETS = ("train", "t10k")


def load_idx(place: Path) -> ImageArrays:
    """Reads MNIST-style images, with labels if their file is in the same folder.

    Args:
        place: a folder with ``train-images-idx3-ubyte`` (or ``t10k-...`` if it has no training
            set), also as ``train-images.idx3-ubyte`` and with ``.gz``; or one images file.

    Raises:
        DataError: missing, truncated, or not what its header says; names the file.
    """
    images_path = _images_file(place)
    pixels = read_idx(images_path, dimensions=3)
    labels_path = _labels_file(images_path)
    labels = None
    if labels_path is not None:
        labels = read_idx(labels_path, dimensions=1)
        if len(labels) != len(pixels):
            raise DataError(
                f"{quoted(labels_path)}: {len(labels)} labels; expected {len(pixels)}, one for "
                f"each image of {images_path.name!r}"
            )
    return ImageArrays(pixels.unsqueeze(1), labels)


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes.

    Args:
        path: the file; gzip is recognised by content, whatever its name.
        dimensions: how many it must have: 3 for grey images, 1 for labels.

    Returns:
        uint8, of the shape in the header.

    Raises:
        DataError: wrong magic, type or dimensions; too short, too long or corrupt.
    """
    what = quoted(path)
    stored = file_size(path)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
            raw.seek(0)
            if not compressed:
                return _read(raw, what, dimensions, plain_size=stored, stored=stored)
            with gzip.open(raw) as stream:
                return _read(stream, what, dimensions, plain_size=None, stored=stored)
    except EOFError as error:
        raise DataError(f"{what}: truncated: the gzip stream ends early") from error
    except (OSError, zlib.error) as error:
        raise DataError(f"{what}: can't be read: {one_line(error)}") from error


def _read(
    stream: Readable, what: str, dimensions: int, *, plain_size: int | None, stored: int
) -> Tensor:
    header = stream.read(4)
    if len(header) < 4:
        raise DataError(f"{what}: truncated: {len(header)} bytes; expected an IDX header")
    zeros, kind, actual = struct.unpack(">HBB", header)
    if zeros != 0:
        raise DataError(f"{what}: not an IDX file: starts with {header.hex()}; expected 0000")
    if kind != _UNSIGNED_BYTE:
        raise DataError(f"{what}: IDX type code 0x{kind:02x}; expected 0x08 (unsigned byte)")
    if actual != dimensions:
        raise DataError(f"{what}: {actual} dimensions; expected {dimensions}")
    sizes = stream.read(4 * dimensions)
    if len(sizes) < 4 * dimensions:
        raise DataError(f"{what}: truncated: the header ends early; expected {dimensions} sizes")
    shape = struct.unpack(f">{dimensions}I", sizes)
    length = math.prod(shape)
    if length == 0:
        raise DataError(f"{what}: holds nothing: its header says {shape}")
    if plain_size is not None and plain_size != 4 + 4 * dimensions + length:
        kind_of_error = "truncated" if plain_size < 4 + 4 * dimensions + length else "too long"
        raise DataError(
            f"{what}: {kind_of_error}: {plain_size} bytes; expected "
            f"{4 + 4 * dimensions + length} for {shape} as its header says"
        )
    check_expansion(what, length, stored)
    content = read_exactly(stream, length, what)
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).reshape(shape))


def _spellings(stem: str, dimensions: int) -> list[str]:
    plain = [f"{stem}-idx{dimensions}-ubyte", f"{stem}.idx{dimensions}-ubyte"]
    return plain + [name + ".gz" for name in plain]


def _images_file(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.exists():
        raise DataError(f"{quoted(place)}: not found; expected a folder of IDX files")
    for stem in _SETS:
        for spelling in _spellings(f"{stem}-images", 3):
            if (place / spelling).is_file():
                return place / spelling
    # Related sets prefix their name (emnist-letters-train-images-idx3-ubyte).
    for stem in _SETS:
        endings = tuple(_spellings(f"{stem}-images", 3))
        others = sorted(path for path in place.iterdir() if path.name.endswith(endings))
        if len(others) == 1:
            return others[0]
        if others:
            names = ", ".join(path.name for path in others)
            raise DataError(f"{quoted(place)}: several sets ({names}); name one file: idx:FILE")
    raise DataError(
        f"{quoted(place)}: no IDX images; expected train-images-idx3-ubyte, plain or .gz"
    )


def _labels_file(images: Path) -> Path | None:
    name = images.name.removesuffix(".gz")
    for separator in "-.":
        ending = f"images{separator}idx3-ubyte"
        if name.endswith(ending):
            stem = name.removesuffix(ending) + "labels"
            for spelling in _spellings(stem, 1):
                if (images.parent / spelling).is_file():
                    return images.parent / spelling
    return None
