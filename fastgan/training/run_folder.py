"""A run's folder: earlier calls' files, and the lock for writing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastgan._util.files import atomic_write
from fastgan._util.reading import parsing, read_text
from fastgan.data.loading import GIVEN
from fastgan.errors import CheckpointError, ConfigError, FastganError, OutputError
from fastgan.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_description,
    remove_leftovers,
)
from fastgan.training.config import RESUMABLE_CHANGES, TrainConfig
from fastgan.training.config_files import read_settings
from fastgan.training.networks import DataShape
from fastgan.training.own import own_names
from fastgan.training.recorder import read_metrics
from fastgan.training.run_lock import run_lock

SETTINGS = "config.toml"
#: The settings' file, readable by --config; and older releases' name.
_SETTINGS_FILES = (SETTINGS, "config.json")


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint to resume from.

    Attributes:
        path: the file.
        content: its content.
        config: the run's settings.
        data: its data's shape.
        own: classes of the caller's own parts, by name.
    """

    path: Path
    content: dict[str, Any]
    config: TrainConfig
    data: DataShape
    own: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> SavedRun:
        """Reads a checkpoint.

        Raises:
            CheckpointError: it is damaged.
        """
        content = load_checkpoint(path)
        return cls(path, content, *read_description(path, content), own_names(path, content))

    def check_data(self, data: DataShape) -> None:
        """Refuses to continue on data of another shape.

        Raises:
            CheckpointError: ``data`` differs in channels, number of images or classes.
        """
        for name in ("channels", "length", "class_names"):
            ours, theirs = getattr(data, name), getattr(self.data, name)
            if ours != theirs:
                raise CheckpointError(
                    f"{self.path}: trained on data with {name} {theirs}, but the data has {ours}"
                )


class RunFolder:
    """The folder that a run writes to.

    Args:
        path: the folder; it needn't exist.
        resume: whether to continue the run in it; otherwise it must not contain one.

    Attributes:
        path: the folder.
        saved: the newest intact checkpoint to resume from; None to start from the beginning.
        failures: why newer checkpoints were skipped, one line each.

    Raises:
        OutputError: the folder contains a run, or, with ``resume``, doesn't.
        CheckpointError: no checkpoint in it can be read.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        self.saved: SavedRun | None = None
        self.failures: list[str] = []
        self._damaged: list[Path] = []
        self._locked_before = False
        self._is_new = False
        checkpoints, self._settings = self._found = self._look()
        holds_run = bool(checkpoints) or self._settings is not None
        if holds_run and not resume:
            raise OutputError(
                f"{path}: already holds a run; add --resume to continue it, or choose another"
                " folder"
            )
        if resume and not holds_run:
            raise OutputError(
                f"{path}: holds no run to resume; leave out --resume to begin one there"
            )
        if checkpoints:
            newest, self.saved, self.failures = newest_checkpoint(checkpoints, SavedRun.read)
            self._damaged = checkpoints[checkpoints.index(newest) + 1 :]

    def settings(self, asked: TrainConfig, explicit: frozenset[str]) -> TrainConfig:
        """The settings for training: those of the folder's run, if there is one.

        Args:
            asked: the caller's settings.
            explicit: explicitly set fields of ``asked``. They replace the run's if a continued run
                may change them.

        Raises:
            ConfigError: an explicit setting contradicts the run's, or its settings can't be read.
        """
        if self.saved is not None:
            asked = _continued(self.saved.config, asked, explicit, self.saved.path)
        elif self._settings is not None:
            # The run ended before its first checkpoint and starts again.
            asked = _continued(_read_settings(self._settings), asked, explicit, self._settings)
        places = {name: getattr(asked, name) for name in ("data", "data_a", "data_b")}
        places = {name: _absolute(place) for name, place in places.items() if place is not None}
        return dataclasses.replace(asked, **places).resolved()

    def prepare(self) -> None:
        """Creates the folder.

        Raises:
            OutputError: it can't be created or written.
        """
        try:
            self._is_new = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be made: {error.strerror}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path}: can't be written")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder's lock, and renames damaged checkpoints.

        A folder that :meth:`prepare` made goes again if nothing was written there.

        Raises:
            OutputError: another process holds the lock, or has written there meanwhile.
        """
        try:
            with run_lock(self.path):
                if not self._locked_before and self._found != self._look():
                    raise OutputError(
                        f"{self.path}: another process has written there meanwhile; look at it, and"
                        " start again"
                    )
                for path in self._damaged:
                    try:
                        path.replace(path.with_name(path.name + ".damaged"))
                    except OSError as error:
                        raise OutputError(f"{path}: can't be renamed: {error.strerror}") from error
                self._damaged = []
                self._locked_before = True
                yield
        finally:
            if self._is_new:
                with suppress(OSError):  # it isn't empty
                    self.path.rmdir()

    def begin(self, config: TrainConfig) -> None:
        """Removes killed processes' files, and writes the settings."""
        remove_leftovers(self.path)
        with atomic_write(self.path / SETTINGS) as file:
            file.write(config.to_toml().encode())

    def seconds(self) -> float:
        """The training time of earlier calls, from the last row of metrics.csv."""
        rows = read_metrics(self.path / "metrics.csv")
        seconds = rows[-1].get("seconds", 0.0) if rows else 0.0
        return seconds if math.isfinite(seconds) else 0.0

    def _look(self) -> tuple[list[Path], Path | None]:
        """The folder's checkpoints and settings file."""
        with parsing(f"{self.path}: can't be looked at", OutputError):
            checkpoints = list_checkpoints(self.path) if self.path.is_dir() else []
            files = (self.path / name for name in _SETTINGS_FILES)
            return checkpoints, next((file for file in files if file.exists()), None)


def _continued(
    saved: TrainConfig, asked: TrainConfig, explicit: frozenset[str], path: Path
) -> TrainConfig:
    """The saved settings, with the changes that a continued run may make."""
    changes = {name: getattr(asked, name) for name in explicit}
    # A time limit belongs to a call, not to the run.
    changes = {"max_minutes": None, **changes, "out": asked.out}
    continued = dataclasses.replace(saved, **changes).resolved()
    for name in sorted(explicit - RESUMABLE_CHANGES):
        ours, theirs = getattr(continued, name), getattr(saved, name)
        if ours != theirs:
            raise ConfigError(f"{name}: {path} was made with {theirs}, can't go on with {ours}")
    return continued


def _read_settings(path: Path) -> TrainConfig:
    try:
        if path.suffix == ".json":
            with parsing("is not JSON", ConfigError):
                settings = json.loads(read_text(path, ConfigError))
        else:
            settings = read_settings(path)
        if isinstance(settings, dict) and "model" not in settings:
            raise ConfigError("names no model, as every run's does")
        return TrainConfig.from_run(settings)
    except FastganError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"{path}: can't be resumed from: {reason}") from error


def _absolute(data: str) -> str:
    """The data's name with an absolute path, to resume from another working directory."""
    kind, colon, place = data.partition(":")
    if not (colon and place) or kind == GIVEN:
        return data
    return f"{kind}:{Path(place).absolute()}"
