"""Makes a source from the text of ``--data``: ``digits``, ``folder:DIR``, ``idx:DIR`` and so on."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from fastgan._util.data_kinds import DATA_KINDS
from fastgan._util.reading import parsing
from fastgan.data.folder import Progress
from fastgan.data.source import ImageArrays, ImageSource, choose_channels, source_from_array
from fastgan.errors import DataError, ImageSizeError

GIVEN = "source"
"""Prefix, in a run's settings, of the names of data given in Python."""

_MAX_IMAGE_SIZE = 4096


def load_data(
    spec: str,
    *,
    image_size: int,
    channels: int | None = None,
    in_memory: bool | None = None,
    progress: Progress | None = None,
) -> ImageSource:
    """Opens a set of images, and checks it as far as affordable before training.

    Args:
        spec: ``digits`` (1,797 real handwritten digits, no download),
            ``digit-outlines`` (their outlines), ``folder:DIR`` (image
            files; subfolders are classes), ``idx:DIR`` (MNIST-style), ``cifar10:DIR`` (its
            python archive, packed or not) or ``npz:FILE``. ``~`` stands for the home folder.
        image_size: side of the images in pixels; data of another size are centre-cropped to
            a square and resized (bilinear, antialiased).
        channels: 1 (grey) or 3 (RGB) converts; None keeps the data's own.
        in_memory: True keeps the converted set in memory, False never; None (default) keeps sets of
            up to 1 GiB as float32, and folders of up to 20,000 files.
        progress: called with (files done, files in all) while a folder is decoded.

    Raises:
        DataError: an unknown spec; data missing, corrupt, empty, or with a channel count
            other than 1 or 3. One line with the file, the found and the expected value.
        ImageSizeError: ``image_size`` outside 1..4096.

    >>> source = load_data("digits", image_size=16, channels=3)
    >>> source
    MemorySource('digits': 1797 images, 3 x 16 x 16, 10 classes)
    """
    if not 1 <= image_size <= _MAX_IMAGE_SIZE:
        raise ImageSizeError(f"image_size: {image_size}; expected 1 to {_MAX_IMAGE_SIZE}")
    choose_channels(spec, 1, channels)
    name, separator, place = spec.partition(":")
    if name == GIVEN and separator:
        raise DataError(
            f"data {spec!r}: was given to Trainer(source=...) in Python, and can't be loaded from"
            " here; give it again, or name other data"
        )
    kind = DATA_KINDS.get(name)
    if kind is None or (":" in kind.form) != (separator == ":"):
        forms = ", ".join(kind.form for kind in DATA_KINDS.values())
        raise DataError(f"data {spec!r}: unknown; expected {forms}")
    module, _, function = kind.loader.partition(".")
    load = getattr(importlib.import_module(f"fastgan.data.{module}"), function)
    given: dict[str, Any] = {"image_size": image_size, "channels": channels, "name": spec}
    given |= {"in_memory": in_memory, "progress": progress}
    path: tuple[Path, ...] = ()
    if separator:
        if not place or "\0" in place:
            raise DataError(f"data {spec!r}: no path; expected {name}:PATH")
        try:
            path = (Path(place).expanduser(),)
        except RuntimeError as error:
            raise DataError(f"data {spec!r}: no such home folder") from error
    # Readers report known problems with the file's name; this handles all others.
    with parsing(f"data {spec!r}: can't be read", DataError):
        loaded: ImageSource | ImageArrays = load(*path, **{key: given[key] for key in kind.options})
        if isinstance(loaded, ImageSource):
            source = loaded
        else:
            source = source_from_array(
                spec,
                loaded.images,
                image_size=image_size,
                channels=channels,
                labels=loaded.labels,
                class_names=loaded.class_names,
                in_memory=in_memory,
            )
        source.spec = spec
        return source
