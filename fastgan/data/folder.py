"""A folder of images: its files, its classes, and when they are read.

Small folders are decoded when they are opened, so training never waits for a disk, and corrupt
files are found before training begins. Large ones are read on demand.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fastgan._util.reading import one_line
from fastgan.data.decoding import EXTENSIONS, decode_image, is_grey_image, quiet_about_bombs
from fastgan.data.limits import quoted
from fastgan.data.pixels import bytes_to_unit_range
from fastgan.data.source import ImageSource, MemorySource, choose_channels, fits_in_memory
from fastgan.errors import DataError, DataWarning

VERIFIED_FILES = 20_000
"""Folders of up to this many images are decoded when opened; for larger ones only headers are
read."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all) while a folder is being opened."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Files per batch of the threads: enough to keep them busy, few enough for a prompt Ctrl-C.
_FILES_AT_ONCE = 256

# Number of skipped files' endings in the warning.
_ENDINGS_NAMED = 5


class FolderSource(ImageSource):
    """Image files that are decoded on demand.

    Args:
        files: absolute or relative paths, in the order of the set's indices.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        *,
        image_size: int,
        channels: int,
        labels: Tensor | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            name,
            length=len(files),
            channels=channels,
            image_size=image_size,
            labels=labels,
            class_names=class_names,
        )
        self.files = list(files)
        self._stamps = [_stamp(path) for path in self.files]

    def _parts(self) -> Iterable[bytes | memoryview]:
        place = os.path.commonpath(self.files) if self.files else ""
        return (
            f"{os.path.relpath(path, place)!r} {stamp[0]}\n".encode()
            for path, stamp in zip(self.files, self._stamps, strict=True)
        )

    def read(self, indices: Sequence[int]) -> Tensor:
        """Decode the files at ``indices``: uint8 (n, channels, image_size, image_size)."""
        size = (self.channels, self.image_size, self.image_size)
        images = np.empty((len(indices), *size), dtype=np.uint8)
        with quiet_about_bombs():
            for place, index in enumerate(indices):
                path = self.files[index]
                self._check_unchanged(index)
                try:
                    images[place] = decode_image(
                        path, image_size=self.image_size, channels=self.channels
                    )
                except DataError:
                    self._check_unchanged(index)  # it may have changed meanwhile
                    raise
        return torch.from_numpy(images)

    def _check_unchanged(self, index: int) -> None:
        if _stamp(self.files[index]) != self._stamps[index]:
            raise DataError(
                f"{quoted(self.files[index])}: replaced or written to since the folder was"
                " opened; expected data that stays as it is"
            )


def _stamp(path: Path) -> tuple[int, int]:
    """A file's size and modification time."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise DataError(f"{quoted(path)}: not found; expected a file") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{quoted(path)}: can't be read: {one_line(error)}") from error
    return status.st_size, status.st_mtime_ns


def load_folder(
    folder: Path,
    *,
    name: str,
    image_size: int,
    channels: int | None = None,
    in_memory: bool | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Open a folder of PNG, JPEG, BMP, WebP, GIF and TIFF files.

    A :class:`fastgan.DataWarning` reports files skipped because of their endings.

    Args:
        folder: searched at any depth, except hidden files and folders.
        name: how messages refer to the set.
        image_size: side of the images it gives.
        channels: 1, 3, or None: 1 if every image is grey, else 3.
        in_memory: True or False forces the choice; None: decoded and kept if at most
            :data:`VERIFIED_FILES` files and within ``limits.IN_MEMORY_BYTES``.
        progress: called with (done, total) now and then.

    Raises:
        DataError: no such folder, no images, or a file that can't be read, which it names.
    """
    files, labels, class_names = find_images(folder)
    with quiet_about_bombs():
        grey = all(list(_in_threads(is_grey_image, files, None)))
        channels = choose_channels(name, 1 if grey else 3, channels)
        source = FolderSource(
            name,
            files,
            image_size=image_size,
            channels=channels,
            labels=labels,
            class_names=class_names,
        )
        source.file_names = [path.relative_to(folder).as_posix() for path in files]
        keep = fits_in_memory(len(files), channels, image_size, in_memory) and (
            in_memory is True or len(files) <= VERIFIED_FILES
        )
        if not keep and len(files) > VERIFIED_FILES:
            return source

        def decode(path: Path) -> Tensor:
            return torch.from_numpy(decode_image(path, image_size=image_size, channels=channels))

        if not keep:
            for _ in _in_threads(decode, files, progress):
                pass
            return source
        images = torch.empty(len(files), channels, image_size, image_size)
        for index, image in enumerate(_in_threads(decode, files, progress)):
            images[index] = bytes_to_unit_range(image)
    kept = MemorySource(name, images, labels=labels, class_names=class_names)
    kept.file_names = source.file_names
    return kept


def find_images(folder: Path) -> tuple[list[Path], Tensor | None, list[str] | None]:
    """List a folder's image files in a fixed order, with their classes if it has any.

    Subfolders are classes if at least two contain images, at any depth, and no image is next to
    them; they are numbered by name. Symbolic links are followed, each folder once.

    Returns:
        Files, and int64 labels with class names, or None and None.

    Raises:
        DataError: not a folder, unreadable, or without images.
    """
    if not folder.exists():
        raise DataError(f"{quoted(folder)}: not found; expected a folder of images")
    if not folder.is_dir():
        raise DataError(f"{quoted(folder)}: not a folder; expected a folder of images")
    paths = sorted(_walk(folder), key=lambda path: path.parts)
    files = [path for path in paths if path.suffix.lower() in EXTENSIONS]
    skipped = Counter(
        path.suffix.lower() for path in paths if path.suffix.lower() not in EXTENSIONS
    )
    endings = " ".join(sorted(ending[1:] for ending in EXTENSIONS))
    if not files:
        also = f"; found {_counted(skipped)}" if skipped else ""
        raise DataError(
            f"{quoted(folder)}: holds no images; expected files ending in {endings}{also}"
        )
    if skipped:
        warnings.warn(
            f"{quoted(folder)}: skipped {skipped.total()} of {len(paths)} files, which don't end "
            f"in {endings}: {_counted(skipped)}",
            DataWarning,
            stacklevel=2,
        )
    depth = len(folder.parts)
    first_parts = [path.parts[depth] for path in files]
    class_names = sorted(set(first_parts))
    beside = any(len(path.parts) == depth + 1 for path in files)
    if beside or len(class_names) < 2:
        return files, None, None
    numbers = {name: number for number, name in enumerate(class_names)}
    labels = torch.tensor([numbers[part] for part in first_parts], dtype=torch.int64)
    return files, labels, class_names


def available_processors() -> int:
    """Count the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DataError(f"{quoted(folder)}: can't be listed: {one_line(error)}") from error

    # Links may form a loop, so folders are identified by device and inode.
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Sorted, so that of two links to one folder the same one is always used.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                yield Path(place, name)


def _counted(endings: Counter[str]) -> str:
    """Endings with how many files have them, the most frequent first, on one line."""
    most = endings.most_common(_ENDINGS_NAMED)
    parts = [f"{count} {repr(ending)[1:-1] or 'without an ending'}" for ending, count in most]
    rest = endings.total() - sum(count for _, count in most)
    return ", ".join([*parts, f"{rest} others"] if rest else parts)


def _in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item], progress: Progress | None
) -> Iterator[_Result]:
    """Apply ``function`` in threads (Pillow lets go of the interpreter); results in order."""
    items = list(items)
    remaining = iter(items)
    done = 0
    with ThreadPoolExecutor(max_workers=min(8, available_processors())) as pool:
        while batch := list(islice(remaining, _FILES_AT_ONCE)):
            yield from pool.map(function, batch)
            done += len(batch)
            if progress is not None:
                progress(done, len(items))
