"""Picture files: grids, strips and animations of generated images.

Functions take a generator's output, float ``(N, C, H, W)`` in ``[-1, 1]`` with one or three
channels, and write it with Pillow, atomically (:mod:`fastgan._util.files`).
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastgan._util.files import atomic_write, check_writable
from fastgan.errors import ConfigError, DataError, ImageSizeError, OutputError, printable

ByteImage = npt.NDArray[np.uint8]

STILL_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
ANIMATED_FORMATS = {".gif": "GIF"}
VIDEO_FORMATS = {".mp4": "MP4"}

# A mid-dark grey separates both black and white images.
PADDING_VALUE = 72
PADDING = 2

# Small images are enlarged to at least this many pixels.
SMALLEST_CELL = 48
# An animation of a single image.
SMALLEST_FRAME = 256
# With more classes, one column for each would make a strip.
MOST_CLASS_COLUMNS = 16
CAPTION_HEIGHT = 16
CAPTION_VALUE = 255


def to_bytes(images: Tensor, argument: str = "images") -> ByteImage:
    """Converts images to bytes.

    Args:
        images: floating-point tensor (N, C, H, W) in [-1, 1], C 1 or 3; values beyond are clipped.
        argument: its name in messages.

    Returns:
        uint8 array (N, H, W, C): ``round((x + 1) * 127.5)``.

    Raises:
        TypeError, ImageSizeError, DataError: as :func:`make_grid`.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"{argument}: expected a floating-point tensor, got {kind}")
    if images.dim() != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise ImageSizeError(
            f"{argument}: expected shape (N, C, H, W) with C 1 or 3 and nothing empty, "
            f"got {tuple(images.shape)}"
        )
    values = images.detach().to(device="cpu", dtype=torch.float32)
    broken = int((~torch.isfinite(values)).flatten(1).any(dim=1).sum())
    if broken:
        raise DataError(
            f"{argument}: {broken} of {len(values)} images hold NaN or infinity; "
            "expected finite values in [-1, 1]"
        )
    # 255 equal steps: -1 is exactly 0 and 1 exactly 255; values beyond are clipped.
    scaled = (values.clamp(-1.0, 1.0) + 1.0).mul(127.5).round().to(torch.uint8)
    pixels: ByteImage = scaled.permute(0, 2, 3, 1).contiguous().numpy()
    return pixels


def _positive(value: int, argument: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{argument}: expected a whole number of at least 1, got {value!r}")
    return value


def enlarge(pixels: ByteImage, scale: int | None, smallest: int = SMALLEST_CELL) -> ByteImage:
    """Repeat every pixel ``scale`` times both ways; None makes images ``smallest`` pixels wide."""
    if scale is None:
        scale = max(1, math.ceil(smallest / min(pixels.shape[1:3])))
    _positive(scale, "scale")
    return pixels.repeat(scale, axis=1).repeat(scale, axis=2)


def grid_columns(n: int) -> int:
    """The number of columns in a grid of ``n`` images.

    The divisor of ``n`` for the grid nearest to a square, at least as wide as high, so that its
    last row is full; ``ceil(sqrt(n))`` if that grid would be more than four times as wide as high.

    Raises:
        ValueError: ``n`` is below 1.

    Example:
        >>> [grid_columns(n) for n in (1, 3, 12, 60, 64, 13)]
        [1, 3, 4, 10, 8, 4]
    """
    square = math.ceil(math.sqrt(_positive(n, "n")))
    columns = next(count for count in range(square, n + 1) if n % count == 0)
    return columns if columns**2 <= 4 * n else square


def class_grid(n: int, num_classes: int) -> tuple[list[int], int]:
    """The classes in a grid of about ``n`` images, near a square and with a full last row.

    Up to 16 classes have equal numbers of columns each; more follow one another.

    Args:
        n: images wanted.
        num_classes: how many classes there are.

    Returns:
        The class of each image, row by row, and the number of columns.

    Raises:
        ValueError: either number is below 1.

    Example:
        >>> labels, columns = class_grid(20, 3)
        >>> labels, columns
        ([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2], 3)
        >>> labels, columns = class_grid(64, 3)
        >>> labels[:columns], len(labels)
        ([0, 0, 0, 1, 1, 1, 2, 2, 2], 63)
    """
    _positive(n, "n")
    if _positive(num_classes, "num_classes") > MOST_CLASS_COLUMNS:
        columns = max(1, round(math.sqrt(n)))
        count = columns * math.ceil(n / columns)
        return [image % num_classes for image in range(count)], columns
    width = max(1, round(math.sqrt(n) / num_classes))
    columns = width * num_classes
    row = [column // width for column in range(columns)]
    return row * max(1, round(n / columns)), columns


def _arrange(
    pixels: ByteImage,
    columns: int | None,
    padding: int,
    captions: Sequence[str] | None = None,
) -> ByteImage:
    """Lay uint8 (N, H, W, C) out row by row, ``padding`` pixels around and between."""
    if isinstance(padding, bool) or not isinstance(padding, int) or padding < 0:
        raise ValueError(f"padding: expected a whole number of at least 0, got {padding!r}")
    count, height, width, channels = pixels.shape
    if captions is not None and len(captions) != count:
        raise ValueError(f"captions: expected {count}, one for each image, got {len(captions)}")
    columns = min(_positive(grid_columns(count) if columns is None else columns, "columns"), count)
    lines = _caption_lines(captions, columns) if captions is not None else {}
    parts = []
    for start in range(0, count, columns):
        if start in lines:
            shape = (CAPTION_HEIGHT, columns * (width + padding) + padding, channels)
            parts.append(_caption_strip(lines[start], shape, width + padding, padding))
        row: ByteImage = np.full(
            (height + padding, columns * (width + padding) + padding, channels),
            PADDING_VALUE,
            dtype=np.uint8,
        )
        for column, image in enumerate(pixels[start : start + columns]):
            left = padding + column * (width + padding)
            row[padding:, left : left + width] = image
        parts.append(row)
    parts.append(np.full((padding, *parts[-1].shape[1:]), PADDING_VALUE, dtype=np.uint8))
    grid: ByteImage = np.concatenate(parts)
    return grid


def _caption_lines(captions: Sequence[str], columns: int) -> dict[int, list[tuple[int, int, str]]]:
    """The captions above each row that has new ones, by its first image: first column, end, text.

    Adjacent images with the same caption share it, also vertically.
    """
    lines = {}
    for start in range(0, len(captions), columns):
        row = captions[start : start + columns]
        if start and list(row) == list(captions[start - columns : start - columns + len(row)]):
            continue
        starts = [k for k in range(len(row)) if k == 0 or row[k] != row[k - 1]]
        ends = [*starts[1:], len(row)]
        lines[start] = [(k, end, row[k]) for k, end in zip(starts, ends, strict=True)]
    return lines


def _caption_strip(
    captions: list[tuple[int, int, str]], shape: tuple[int, ...], cell: int, padding: int
) -> ByteImage:
    """A strip (height, width, C) with each caption above its columns, cut where they end."""
    font = ImageFont.load_default(CAPTION_HEIGHT - 4)
    strip = Image.new("L", (shape[1], shape[0]), PADDING_VALUE)
    for first, end, text in captions:
        caption = Image.new("L", ((end - first) * cell - padding, shape[0]), PADDING_VALUE)
        ImageDraw.Draw(caption).text((0, 1), printable(text), fill=CAPTION_VALUE, font=font)
        strip.paste(caption, (padding + first * cell, 0))
    filled: ByteImage = np.broadcast_to(np.asarray(strip)[:, :, None], shape).copy()
    return filled


def make_grid(images: Tensor, *, columns: int | None = None, padding: int = PADDING) -> ByteImage:
    """Lay images out as one picture, row by row.

    Args:
        images: floating-point tensor ``(N, C, H, W)`` with ``C`` 1 or 3, on any device. -1 is
            black and 1 white (``round((x + 1) * 127.5)``); values beyond are clipped.
        columns: images a row, never more than ``N``; None means :func:`grid_columns`.
        padding: grey pixels around and between the images.

    Returns:
        uint8 array ``(rows * (H + padding) + padding, columns * (W + padding) + padding, C)``.

    Raises:
        TypeError: ``images`` is not a floating-point tensor.
        ImageSizeError: another rank or channel count, or nothing to show.
        DataError: a value is NaN or infinite.
        ValueError: ``columns`` or ``padding`` out of range.

    Example:
        >>> import torch
        >>> from fastgan.sampling.images import make_grid
        >>> make_grid(torch.zeros(6, 1, 16, 16), columns=3, padding=2).shape
        (38, 56, 1)
    """
    return _arrange(to_bytes(images), columns, padding)


def _picture(pixels: ByteImage) -> Image.Image:
    """Wrap uint8 (H, W, C) as a Pillow image."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _format_for(path: Path, formats: dict[str, str]) -> str:
    image_format = formats.get(path.suffix.lower())
    if image_format is None:
        expected = ", ".join(formats)
        raise OutputError(
            f"{path}: can't write a {path.suffix or 'file without'} extension; "
            f"expected one of {expected}"
        )
    return image_format


def _save_still(pixels: ByteImage, path: str | os.PathLike[str]) -> None:
    path = Path(path)
    image_format = _format_for(path, STILL_FORMATS)
    picture = _picture(pixels)
    check_writable(path)
    with atomic_write(path) as file:
        picture.save(file, format=image_format)


def save_grid(
    images: Tensor,
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    scale: int | None = None,
    captions: Sequence[str] | None = None,
) -> None:
    """Write images as one picture, row by row, enlarged so that small ones can be seen.

    Args:
        images: floating-point tensor ``(N, C, H, W)`` in ``[-1, 1]``, ``C`` 1 or 3.
        path: a ``.png`` (exact) or ``.jpg`` file in a folder that exists; replaced if there.
        columns: images a row; None means :func:`grid_columns`.
        scale: each pixel becomes ``scale`` by ``scale`` pixels; None takes the smallest that makes
            an image at least 48 pixels high and wide (3 for 16x16, 1 for 64x64).
        captions: a text for each image, such as its class, written above it in Latin letters;
            neighbours side by side or below one another with the same text share it.

    Raises:
        OutputError: the folder is missing or can't be written, or the extension is unknown.
            Nothing half-written is left, and an earlier file of that name stays as it was.
        TypeError, ImageSizeError, DataError, ValueError: as :func:`make_grid`.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from fastgan.sampling.images import save_grid
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_grid(torch.zeros(4, 3, 16, 16), Path(folder) / "grid.png")
        ...     [file.name for file in Path(folder).iterdir()]
        ['grid.png']
    """
    pixels = enlarge(to_bytes(images), scale)
    _save_still(_arrange(pixels, columns, PADDING, captions), path)


def save_image(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Writes one image (C, H, W) as it is, pixel by pixel.

    Errors are those of :func:`save_grid`.
    """
    _save_still(to_bytes(image[None])[0], path)


def save_strip(images: Tensor, path: str | os.PathLike[str], *, scale: int | None = None) -> None:
    """Write images side by side in one row, as for the steps of an interpolation.

    Arguments and errors are those of :func:`save_grid`.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from fastgan.sampling.images import save_strip
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_strip(torch.zeros(5, 1, 16, 16), Path(folder) / "strip.png")
        ...     with Image.open(Path(folder) / "strip.png") as picture:
        ...         picture.size
        (252, 52)
    """
    pixels = enlarge(to_bytes(images), scale)
    _save_still(_arrange(pixels, len(pixels), PADDING), path)


def save_gif(
    frames: Tensor,
    path: str | os.PathLike[str],
    *,
    milliseconds: int = 60,
    loop: int = 0,
    scale: int | None = None,
) -> None:
    """Write an animation.

    Grey frames are stored exactly; colour ones are reduced to the 256 colours a GIF frame holds.
    Equal neighbouring frames are stored once and shown longer.

    Args:
        frames: floating-point tensor in ``[-1, 1]``, ``C`` 1 or 3: ``(T, C, H, W)``, one image a
            frame, or ``(T, N, C, H, W)``, a grid of ``N`` images a frame.
        path: a ``.gif`` file in a folder that exists; replaced if there.
        milliseconds: how long each frame shows, at least 10; the format counts in hundredths of a
            second, so it is rounded down to a multiple of 10.
        loop: how often the animation repeats; 0 means for ever.
        scale: as in :func:`save_grid`; single images are at least 256 pixels high and wide.

    Raises:
        ValueError: ``milliseconds``, ``loop`` or ``scale`` out of range.
        OutputError, TypeError, ImageSizeError, DataError: as :func:`save_grid`.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from fastgan.sampling.images import save_gif
        >>> frames = torch.linspace(-1, 1, 8).reshape(8, 1, 1, 1).expand(8, 1, 16, 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_gif(frames, Path(folder) / "morph.gif")
        ...     with Image.open(Path(folder) / "morph.gif") as picture:
        ...         picture.n_frames, picture.size
        (8, (256, 256))
    """
    path = Path(path)
    image_format = _format_for(path, ANIMATED_FORMATS)
    _check_milliseconds(milliseconds)
    if isinstance(loop, bool) or not isinstance(loop, int) or not 0 <= loop <= 65535:
        raise ValueError(f"loop: expected a whole number from 0 to 65535, got {loop!r}")
    if isinstance(frames, Tensor) and frames.dim() == 5:
        if frames.numel() == 0:
            raise ImageSizeError(f"frames: nothing to show in shape {tuple(frames.shape)}")
        pixels = enlarge(to_bytes(frames.flatten(0, 1), "frames"), scale)
        pixels = pixels.reshape(*frames.shape[:2], *pixels.shape[1:])
        pictures = [_picture(_arrange(cells, None, PADDING)) for cells in pixels]
    else:
        cells = enlarge(to_bytes(frames, "frames"), scale, SMALLEST_FRAME)
        pictures = [_picture(cell) for cell in cells]
    if pictures[0].mode == "RGB":
        # Without dithering, flat areas stay flat and don't flicker between frames.
        pictures = [picture.quantize(256, dither=Image.Dither.NONE) for picture in pictures]

    check_writable(path)
    with atomic_write(path) as file:
        pictures[0].save(
            file,
            format=image_format,
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds // 10 * 10,
            loop=loop,
        )


def save_video(
    frames: Tensor,
    path: str | os.PathLike[str],
    *,
    milliseconds: int = 60,
    scale: int | None = None,
) -> None:
    """Write an MP4 (H.264) of single images; needs imageio with ffmpeg, ``fastgan[video]``.

    Args:
        frames: floating-point tensor ``(T, C, H, W)`` in ``[-1, 1]``, ``C`` 1 or 3.
        path: a ``.mp4`` file in a folder that exists; replaced if there.
        milliseconds: how long each frame shows, at least 10.
        scale: as in :func:`save_gif`.

    Raises:
        ConfigError: imageio or its ffmpeg isn't installed.
        ValueError, OutputError, TypeError, ImageSizeError, DataError: as :func:`save_gif`.
    """
    path = Path(path)
    _format_for(path, VIDEO_FORMATS)
    _check_milliseconds(milliseconds)
    if any(importlib.util.find_spec(package) is None for package in ("imageio", "imageio_ffmpeg")):
        raise ConfigError(f"{path}: imageio isn't installed: pip install 'imageio[ffmpeg]'")
    from imageio import v3 as imageio

    cells = enlarge(to_bytes(frames, "frames"), scale, SMALLEST_FRAME)
    # Even sides, which the format asks for.
    cells = cells[:, : len(cells[0]) // 2 * 2, : len(cells[0][0]) // 2 * 2]
    cells = np.broadcast_to(cells, (*cells.shape[:3], 3))
    check_writable(path)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "video.mp4"
        imageio.imwrite(
            made, cells, plugin="FFMPEG", fps=1000 / milliseconds, codec="libx264",
            macro_block_size=2,
        )  # fmt: skip
        with atomic_write(path) as file:
            file.write(made.read_bytes())


def _check_milliseconds(milliseconds: int) -> None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int) or milliseconds < 10:
        raise ValueError(
            f"milliseconds: expected a whole number of at least 10, got {milliseconds!r}"
        )
