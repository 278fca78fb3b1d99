"""Images in a numpy ``.npz`` file.

The zip's directory and each array's header are checked before allocating, and pickled arrays aren't
read.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastgan._util.reading import one_line, parsing
from fastgan.data.limits import check_expansion, file_size, quoted, read_exactly
from fastgan.data.source import ImageArrays
from fastgan.errors import DataError

IMAGE_KEYS = ("images", "x", "x_train", "train_images", "data", "arr_0")
"""Names of the images' array, in this order; a single array may have any name."""

LABEL_KEYS = ("labels", "y", "y_train", "train_labels", "targets")
"""Names of the labels' array, in this order."""

# Float images may exceed their range by rounding.
_SLACK = 1e-4


def load_npz(path: Path) -> ImageArrays:
    """Reads images, and labels if there are any, from an ``.npz`` file.

    Images are (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3; if both of the last fit,
    channels come last. Values, by dtype:

    - uint8, or other whole numbers all within 0..255: 0 is black, 255 white;
    - bool: False is black, True white;
    - float: if any value is below 0, [-1, 1]; else [0, 1]. Anything else is refused.

    Args:
        path: the file.

    Raises:
        DataError: missing, corrupt, an object array, or values, shapes or labels other than
            the above; NaN and infinity too.
    """
    what = quoted(path)
    stored = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            keys = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            images_key = _choose(what, keys)
            images = _read_array(archive, keys[images_key], f"{what}, array {images_key!r}", stored)
            labels_key = next((key for key in LABEL_KEYS if key in keys), None)
            labels = None
            if labels_key is not None:
                labels = _labels(
                    _read_array(archive, keys[labels_key], f"{what}, array {labels_key!r}", stored),
                    f"{what}, array {labels_key!r}",
                )
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise DataError(f"{what}: not a readable npz (zip) file: {one_line(error)}") from error
    except (OSError, RuntimeError, NotImplementedError) as error:
        # The last two are zipfile's errors for encryption and unknown compression.
        raise DataError(f"{what}: can't be read: {one_line(error)}") from error
    return ImageArrays(_to_range(_channels_first(images, what), what), labels)


def _choose(what: str, keys: dict[str, zipfile.ZipInfo]) -> str:
    for key in IMAGE_KEYS:
        if key in keys:
            return key
    if len(keys) == 1:
        return next(iter(keys))
    names = ", ".join(sorted(keys)) or "none"
    raise DataError(f"{what}: arrays {names}; expected one of {', '.join(IMAGE_KEYS)}")


def _read_array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, what: str, file_bytes: int
) -> npt.NDArray[np.generic]:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{what}: zip compression {info.compress_type}; expected none or deflate")
    with archive.open(info) as stream:
        with parsing(f"{what}: not a numpy array", DataError):
            # numpy parses the header, of at most 10,000 bytes, as a Python literal.
            version = np.lib.format.read_magic(stream)
            if version == (1, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
            elif version == (2, 0):
                shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream)
            else:
                raise ValueError(f"npy format version {version}; expected 1.0 or 2.0")
        if dtype.kind not in "buif":
            raise DataError(f"{what}: dtype {dtype}; expected bytes, whole numbers or floats")
        if len(shape) > 32 or any(type(size) is not int or size < 0 for size in shape):
            raise DataError(f"{what}: shape {shape} in its header")
        length = math.prod(shape) * dtype.itemsize
        if length > info.file_size:
            raise DataError(
                f"{what}: truncated: its header promises {length} bytes for {shape} {dtype}; "
                f"the file holds {info.file_size}"
            )
        check_expansion(what, length, min(info.compress_size, file_bytes))
        content = read_exactly(stream, length, what)
    array = np.frombuffer(content, dtype=dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _channels_first(images: npt.NDArray[np.generic], what: str) -> npt.NDArray[np.generic]:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim != 4:
        raise DataError(
            f"{what}: images of shape {images.shape}; expected (N, H, W), (N, H, W, C) or "
            "(N, C, H, W)"
        )
    elif images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    elif images.shape[1] not in (1, 3):
        raise DataError(
            f"{what}: wrong channel count: images of shape {images.shape}; expected 1 or 3 "
            "channels, last or second"
        )
    if 0 in images.shape:
        raise DataError(f"{what}: holds no images (shape {images.shape}); expected at least one")
    return images


def _to_range(images: npt.NDArray[np.generic], what: str) -> Tensor:
    """Returns uint8 unchanged, and other dtypes as float32 in [-1, 1]."""
    if images.dtype == np.bool_:
        return torch.from_numpy(images.astype(np.uint8) * np.uint8(255))
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images))
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind in "ui":
        if low < 0 or high > 255:
            raise DataError(f"{what}: values from {low:g} to {high:g}; expected 0 to 255")
        return torch.from_numpy(np.ascontiguousarray(images.astype(np.uint8)))
    # min and max propagate NaN, so these two detect every value that isn't finite.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{what}: NaN or infinity among the values; expected finite numbers")
    if low < -1 - _SLACK or high > 1 + _SLACK:
        raise DataError(
            f"{what}: float values from {low:g} to {high:g}; expected -1 to 1, or 0 to 1"
        )
    values = np.ascontiguousarray(images.astype(np.float32))
    if low >= 0:
        values = values * np.float32(2) - np.float32(1)
    return torch.from_numpy(values)


def _labels(labels: npt.NDArray[np.generic], what: str) -> Tensor:
    if labels.dtype.kind not in "ui":
        raise DataError(f"{what}: labels of dtype {labels.dtype}; expected whole numbers")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.size and int(labels.max()) > np.iinfo(np.int64).max:
        raise DataError(f"{what}: label {labels.max()}; expected 0 to 65535")
    return torch.from_numpy(labels.astype(np.int64))
