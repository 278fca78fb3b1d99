"""``fastgan sample``: images from a checkpoint, as a grid or one by one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgan._util.devices import choose_device
from fastgan._util.files import atomic_write, check_writable
from fastgan.cli.terminal import say
from fastgan.errors import ConfigError, OutputError
from fastgan.sampling.images import class_grid, save_grid, save_image, to_bytes
from fastgan.trained import TrainedGenerator, load_generator


def run(options: argparse.Namespace) -> int:
    """Writes the grid, the single images, or both; returns 0."""
    if options.out is None and options.to is None:
        raise ConfigError("out: expected --out FILE.png for a grid, or --to DIR or --to FILE.npz")
    device = choose_device(options.device)
    generator = load_generator(options.checkpoint, ema=not options.no_ema).to(device)
    if options.standing_statistics:
        generator = generator.with_standing_statistics(options.truncation)
    if options.style_mixing is not None:
        return _save_mixed(generator, options)
    if options.code_walk is not None:
        return _save_walk(generator, options)
    count, columns, classes = options.n or 64, None, options.label
    if options.out is not None and generator.num_classes is not None and classes is None:
        classes, columns = class_grid(count, generator.num_classes)
        # Without --n, fill whole rows.
        count = options.n or len(classes)
    labels = generator.labels(count, classes)
    images = generator.sample(
        count, seed=options.seed, truncation=options.truncation, classes=classes
    )
    if options.out is not None:
        captions = None
        if labels is not None:
            captions = [generator.data.class_name(label) for label in labels.tolist()]
        save_grid(images, options.out, columns=columns, captions=captions)
        say(f"{count} images: {options.out}")
    if options.to is not None:
        say(f"{count} images: {_save_singly(images, labels, Path(options.to))}")
    return 0


def _check_sheet(name: str, options: argparse.Namespace) -> None:
    if options.out is None or options.to is not None or options.n is not None:
        raise ConfigError(f"{name}: expected --out FILE.png for a sheet, without --to and --n")


def _save_walk(generator: TrainedGenerator, options: argparse.Namespace) -> int:
    _check_sheet("code_walk", options)
    if options.label is not None or options.truncation is not None:
        raise ConfigError("code_walk: expected neither --class nor --truncation")
    rows, columns = generator.num_classes or 1, 9
    images = generator.code_walk(options.code_walk, rows, columns, seed=options.seed)
    save_grid(images, options.out, columns=columns)
    say(f"{rows} times {columns} images: {options.out}")
    return 0


def _save_mixed(generator: TrainedGenerator, options: argparse.Namespace) -> int:
    _check_sheet("style_mixing", options)
    rows, columns = options.style_mixing
    images = generator.style_mixing(
        rows,
        columns,
        seed=options.seed,
        truncation=options.truncation,
        classes=options.label,
    )
    save_grid(images, options.out, columns=columns + 1)
    say(f"{rows} times {columns} images: {options.out}")
    return 0


def _save_singly(images: torch.Tensor, labels: torch.Tensor | None, place: Path) -> Path:
    """Writes a folder of PNGs, or an ``.npz`` for ``--data npz:``."""
    if place.suffix == ".npz":
        arrays: dict[str, Any] = {"images": to_bytes(images)}
        if labels is not None:
            arrays["labels"] = labels.numpy()
        check_writable(place)
        with atomic_write(place) as file:
            np.savez(file, **arrays)
        return place
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise OutputError(f"{place}: expected a new or empty folder, or a name that ends in .npz")
    digits = len(str(len(images) - 1))
    for number, image in enumerate(images):
        folder = place
        if labels is not None:
            folder = place / f"{int(labels[number]):03d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: can't be made: {error.strerror}") from error
        save_image(image, folder / f"{number:0{digits}d}.png")
    return place
