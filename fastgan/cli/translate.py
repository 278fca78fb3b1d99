"""``fastgan translate``: translates images by a CycleGAN or pix2pix."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from fastgan._util.devices import choose_device
from fastgan._util.reading import one_line, printable
from fastgan.cli.terminal import say
from fastgan.data.decoding import decode_image, quiet_about_bombs
from fastgan.data.folder import find_images
from fastgan.data.pixels import bytes_to_unit_range
from fastgan.errors import DataError, OutputError
from fastgan.sampling.images import STILL_FORMATS, save_image
from fastgan.trained import load_generator

_AT_ONCE = 32


def run(options: argparse.Namespace) -> int:
    """Writes the translations; returns 0."""
    device = choose_device(options.device)
    generator = load_generator(options.checkpoint, ema=not options.no_ema).to(device)
    size, channels = generator.data.image_size, generator.data.channels
    # Check the direction before reading anything.
    generator.translate(torch.zeros(1, channels, size, size), options.direction)
    inputs = _named(options.data)
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out}: expected a new or empty folder")
    with quiet_about_bombs():

        def decoded(files: Iterable[Path]) -> Iterator[torch.Tensor]:
            for file in files:
                image = torch.from_numpy(decode_image(file, image_size=size, channels=channels))
                yield bytes_to_unit_range(image)

        for _ in decoded(inputs.values()):  # find damaged files before writing anything
            pass
        for start in range(0, len(inputs), _AT_ONCE):
            names = list(inputs)[start : start + _AT_ONCE]
            images = torch.stack(list(decoded(inputs[name] for name in names)))
            for name, image in zip(
                names, generator.translate(images, options.direction), strict=True
            ):
                path = out / name
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise OutputError(f"{path.parent}: can't be made: {one_line(error)}") from error
                save_image(image, path)
    say(f"{len(inputs)} images: {out}")
    return 0


def _named(asked: list[str]) -> dict[str, Path]:
    """Output file name -> file to translate; outputs are PNG unless the input is JPEG."""
    files: list[tuple[str, Path]] = []
    for spec in asked:
        kind, colon, place = spec.partition(":")
        if colon and kind == "folder":
            if not place or "\0" in place:
                raise DataError(f"data {spec!r}: no path; expected folder:DIR")
            folder = Path(place).expanduser()
            files += [(str(file.relative_to(folder)), file) for file in find_images(folder)[0]]
        elif Path(spec).name:
            files.append((Path(spec).name, Path(spec)))
        else:
            raise DataError(f"data {spec!r}: no file; expected one, or folder:DIR")
    by_name: dict[str, Path] = {}
    for name, file in files:
        written = Path(name)
        if written.suffix.lower() not in STILL_FORMATS:
            written = written.with_suffix(".png")
        if str(written) in by_name:
            raise DataError(
                f"{printable(str(file))}: has the name of {printable(str(by_name[str(written)]))};"
                " expected different ones"
            )
        by_name[str(written)] = file
    return by_name
