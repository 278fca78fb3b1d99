"""One image file: what its header says, and its pixels as bytes of the wanted size.

Pillow reads the file; what is decided here is which formats are let in, how large an image may
be, and what becomes of orientation tags, transparency, palettes and 16-bit values.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from fastgan.data.limits import MAX_FILE_BYTES, MAX_PIXELS, file_size, one_line, quoted
from fastgan.errors import DataError

__all__ = ["EXTENSIONS", "decode_image", "is_grey_image", "quiet_about_bombs"]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
"""Endings (in lower case) of the files that count as images."""

# By content, whatever the name says: a PostScript file called x.png must not start Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")

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
    """Silence Pillow's warning about large images: here they are an error, said once.

    Python's warning filters belong to the process, so this wraps whole passes, not single files.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def is_grey_image(path: Path) -> bool:
    """Read the header of an image file, without its pixels, and say whether it is grey.

    Raises:
        DataError: missing, empty, not an image, or larger than the limits.
    """
    _check_file(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_pixels(image, path)
            return _is_grey(image)
    except Exception as error:
        raise _unreadable(path, error) from error


def decode_image(path: Path, *, image_size: int, channels: int) -> npt.NDArray[np.uint8]:
    """Decode an image file, upright, centre-cropped to a square and resized.

    Bilinear with antialiasing. Transparent pixels are laid over white. 16-bit grey values are
    rounded to 8 bits; of an animation, the first picture counts.

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
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_pixels(image, path)
            if image.format == "PNG":
                # Decoding skips the chunks' checksums; this reads them, then is used up.
                image.verify()
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            image.load()
            upright = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
            plain = _without_alpha(_to_eight_bits(image)).convert("L" if channels == 1 else "RGB")
    except Exception as error:
        # Whatever a decoder raises on a hostile file (struct.error, SyntaxError, KeyError...).
        raise _unreadable(path, error) from error
    if upright is not None:
        plain = plain.transpose(upright)
    side = min(plain.size)
    left, top = (plain.width - side) // 2, (plain.height - side) // 2
    square = plain.crop((left, top, left + side, top + side))
    if side != image_size:
        square = square.resize((image_size, image_size), Image.Resampling.BILINEAR)
    # Pillow lends its own memory, read-only; the copy belongs to the caller.
    pixels = np.array(square, dtype=np.uint8).reshape(image_size, image_size, channels)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


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
        return DataError(f"{quoted(path)}: not an image; expected PNG, JPEG, BMP or WebP")
    return DataError(f"{quoted(path)}: corrupt or unreadable image: {one_line(error)}")


def _is_grey(image: Image.Image) -> bool:
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return True
    if image.mode == "P" and image.palette is not None:
        layout, colours = image.palette.getdata()
        return layout == "RGB" and colours[0::3] == colours[1::3] == colours[2::3]
    return False


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Round 16-bit grey to 8 bits; Pillow's own conversion would cut everything above 255."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ValueError(f"grey values from {low} to {high}; expected 16 bits, 0 to 65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode not in _ALPHA_MODES and "transparency" not in image.info:
        return image
    picture = image.convert("RGBA")
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, picture)
