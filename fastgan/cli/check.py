"""``fastgan check``: verifies a run's files."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from fastgan.cli.terminal import say
from fastgan.errors import CheckpointError, FastganError
from fastgan.trained import read_generator
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint, read_description
from fastgan.training.config_files import read_settings
from fastgan.training.own import own_names
from fastgan.training.recorder import read_metrics


def run(options: argparse.Namespace) -> int:
    """Prints a line for each file; returns 0 if all are good, else 1."""
    place = Path(options.run)
    if not place.exists():
        raise CheckpointError(f"{place}: there is no such run or checkpoint")
    checks: dict[Path, Callable[[Path], object]] = {}
    if place.is_dir():
        checks = dict.fromkeys(list_checkpoints(place), _read_checkpoint)
        others = {"config.toml": read_settings, "metrics.csv": read_metrics}
        checks |= {place / name: read for name, read in others.items() if (place / name).exists()}
        if not checks:
            raise CheckpointError(f"{place}: holds no run")
    else:
        checks = {place: _read_checkpoint}
    failures = 0
    for path, read in checks.items():
        try:
            read(path)
        except FastganError as error:
            failures += 1
            say(str(error))
        else:
            say(f"{path}: good")
    return int(failures > 0)


def _read_checkpoint(path: Path) -> None:
    content = load_checkpoint(path)
    if "generator" in own_names(path, content):
        read_description(path, content)  # there is no model for the weights
    else:
        read_generator(path, content)
