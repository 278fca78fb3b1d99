"""Decodes an image file: its header, and its pixels as bytes of a given size.

Pillow reads the file; this module defines the accepted formats, the largest size, and the handling
of orientation tags, transparency, palettes and 16-bit values.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fastgan._util.reading import one_line
from fastgan.data.limits import MAX_FILE_BYTES, MAX_PIXELS, file_size, quoted
from fastgan.errors import DataError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
"""Endings (in lower case) of the files that count as images."""

# By content, not by name: a PostScript file named x.png must not start Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that aren't pixels: texts and the colour profile. Pillow unpacks them and refuses files
# with one above a megabyte, so they are removed first.
_PNG_METADATA = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP"})
# Except the two texts that Pillow searches for an orientation, up to its own limit.
_ORIENTATION_KEYWORDS = frozenset({b"Raw profile type exif", b"XML:com.adobe.xmp"})
_MAX_TEXT_BYTES = 2**20

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F"})
_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})

# EXIF tag 0x0112: how to turn the stored pixels upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@contextmanager
def quiet_about_bombs() -> Iterator[None]:
    """Silence Pillow's warnings about large images and malformed EXIF.

    Large images are errors here; a malformed EXIF block is ignored. Python's warning filters are
    per process, so this wraps whole passes, not single files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
        yield


def is_grey_image(path: Path) -> bool:
    """Read the header of an image file, without its pixels, and say whether it is grey.

    Raises:
        DataError: missing, empty, not an image, or larger than the limits.
    """
    _check_file(path)
    try:
        with (
            path.open("rb") as file,
            Image.open(_without_metadata(file, header_only=True), formats=_FORMATS) as image,
        ):
            _check_pixels(image, path)
            return _is_grey(image)
    except Exception as error:
        raise _unreadable(path, error) from error


def decode_image(path: Path, *, image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    """Decode an image file, upright, centre-cropped to a square and resized.

    Bilinear with antialiasing. Transparent pixels are composited over white. 16-bit grey values are
    rounded to 8 bits. Animations give their first picture.

    Args:
        path: the file; its content, not its name, decides how it is decoded.
        image_size: side of the result in pixels.
        channels: 1 (grey, BT.601) or 3 (RGB).

    Returns:
        uint8 (channels, image_size, image_size).

    Raises:
        DataError: missing, corrupt, truncated, or larger than the limits; names the file.
    """
    _check_file(path)
    try:
        with path.open("rb") as file:
            content = _without_metadata(file, header_only=False).read()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_pixels(image, path)
            if image.format == "PNG":
                # Decoding skips the chunks' checksums; verify() checks them, after which the file
                # must be reopened.
                image.verify()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            plain = _without_alpha(_to_eight_bits(image)).convert("L" if channels == 1 else "RGB")
    except Exception as error:
        # Decoders raise anything on hostile files (struct.error, SyntaxError, KeyError...).
        raise _unreadable(path, error) from error
    if upright is not None:
        plain = plain.transpose(upright)
    side = min(plain.size)
    left, top = (plain.width - side) // 2, (plain.height - side) // 2
    square = plain.crop((left, top, left + side, top + side))
    if side != image_size:
        square = square.resize((image_size, image_size), Image.Resampling.BILINEAR)
    # Pillow's memory is read-only, so copy.
    pixels = np.array(square, dtype=np.uint8).reshape(image_size, image_size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _without_metadata(file: BinaryIO, *, header_only: bool) -> BinaryIO:
    """A PNG without the chunks of :data:`_PNG_METADATA`; any other file unchanged.

    Args:
        file: at its beginning.
        header_only: stop at the pixels.
    """
    start = file.read(len(_PNG_SIGNATURE))
    if start != _PNG_SIGNATURE:
        file.seek(0)
        return file
    kept = io.BytesIO()
    kept.write(start)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if header_only and kind == b"IDAT":
            break
        if kind not in _PNG_METADATA:
            kept.write(head + file.read(length + 4))
        elif kind == b"iCCP" or length > _MAX_TEXT_BYTES:
            file.seek(length + 4, io.SEEK_CUR)
        else:
            content = file.read(length + 4)
            if _may_tell_orientation(kind, content[:length]):
                kept.write(head + content)
    kept.write(head)
    kept.seek(0)
    return kept


def _may_tell_orientation(kind: bytes, text: bytes) -> bool:
    """Whether Pillow reads a PNG's text chunk for an orientation, and accepts its size."""
    keyword, _, rest = text.partition(b"\0")
    if keyword not in _ORIENTATION_KEYWORDS:
        return False
    if kind == b"tEXt" or (kind == b"iTXt" and rest[:1] != b"\1"):
        return True
    # zTXt: method, text. iTXt: flag, method, language, 0, translated keyword, 0, text.
    packed = rest[1:] if kind == b"zTXt" else rest[2:].split(b"\0", 2)[-1]
    inflating = zlib.decompressobj()
    try:
        inflating.decompress(packed, _MAX_TEXT_BYTES)
    except zlib.error:
        return False
    return not inflating.unconsumed_tail


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, if it is missing or malformed."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a parser may raise anything; the picture is still good
        return 1


def _check_file(path: Path) -> None:
    size = file_size(path)
    if size == 0:
        raise DataError(f"{quoted(path)}: empty file; expected an image")
    if size > MAX_FILE_BYTES:
        raise DataError(f"{quoted(path)}: {size} bytes; expected at most {MAX_FILE_BYTES}")


def _check_pixels(image: Image.Image, path: Path) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{quoted(path)}: {width} x {height} pixels; expected at most {MAX_PIXELS} in all "
            "(more is taken for a decompression bomb)"
        )


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return DataError(
            f"{quoted(path)}: not an image; expected PNG, JPEG, BMP, WebP, GIF or TIFF"
        )
    return DataError(f"{quoted(path)}: corrupt or unreadable image: {one_line(error)}")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return True
    if image.mode == "P" and image.palette is not None:
        layout, colours = image.palette.getdata()
        return layout == "RGB" and colours[0::3] == colours[1::3] == colours[2::3]
    return False


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Round 16-bit grey to 8 bits; Pillow's own conversion clips at 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"grey values from {low} to {high}; expected 16 bits, 0 to 65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels; expected whole numbers of 8 or 16 bits")
    return image


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture)
