"""Checkpoints: written whole or not at all, read without running anything they hold.

A checkpoint is a file of ``torch.save`` that holds one dictionary of tensors and plain values:

=================  ===========================================================================
``format``         ``"fastgan-checkpoint"``
``version``        layout of this dictionary, now 1
``config``         :meth:`fastgan.training.TrainConfig.to_dict`
``data``           the fields of :class:`fastgan.training.networks.DataShape`
``step``           generator updates done
``generator``      state_dict
``ema_generator``  state_dict of the moving average, or ``None``
``discriminator``  state_dict
``optimizer_g``    state_dict, as ``optimizer_d`` and (fp16 only) ``scaler``
``random``         states of every random number generator in use
=================  ===========================================================================
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastgan.errors import CheckpointError, ConfigError, OutputError
from fastgan.files import atomic_write
from fastgan.training.config import TrainConfig
from fastgan.training.networks import DataShape, build_generator

__all__ = [
    "checkpoint_path",
    "list_checkpoints",
    "load_checkpoint",
    "load_generator",
    "remove_leftovers",
    "save_checkpoint",
]

FORMAT = "fastgan-checkpoint"
VERSION = 1

_NAME = re.compile(r"checkpoint-(\d{7,})\.pt")
# What atomic_write calls a file until it is whole.
_LEFTOVER = re.compile(
    r"\.(checkpoint-\d{7,}\.pt|samples(-\d{7,})?\.png|losses\.png|metrics\.csv|config\.toml"
    r"|backends(-\d+)?\.json)\..+"
)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies in a run's folder."""
    return folder / f"checkpoint-{step:07d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [(int(m[1]), path) for path in folder.glob("*.pt") if (m := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def remove_leftovers(folder: Path) -> None:
    """Removes the half-written files that a killed run left; they never took their names."""
    for path in folder.glob(".*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` so that ``path`` holds either the old file or the whole new one.

    The bytes go to a temporary file beside it, reach the disk (``fsync``), and then take the
    name in one step, so a crash or a full disk at any moment loses at most the newest save.

    Raises:
        OutputError: when the folder can't be written; nothing is left behind.
    """
    try:
        with atomic_write(path, durable=True) as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
    except RuntimeError as error:
        # torch's zip writer reports a full disk as a RuntimeError.
        raise OutputError(
            f"{path}: can't be written, the disk may be full ({_first_line(error)})"
        ) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of ours, its tensors on the CPU, without unpickling code.

    Raises:
        CheckpointError: if the file is missing, truncated, holds anything but tensors and plain
            values (such a file could run code; it is refused before any of it runs), or is not a
            checkpoint of a version this release reads.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such checkpoint file")
    # Everything torch.save has written since 1.6 is a zip archive, whose directory stands at the
    # end: a truncated file has none.
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            begins_like_one = file.read(2) in (b"PK", b"P", b"")
        what = "truncated" if begins_like_one else "not a fastgan checkpoint"
        raise CheckpointError(f"{path}: {what}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, it holds more than tensors and plain values, and could run code"
        ) from error
    except Exception as error:  # a damaged archive raises almost anything
        raise CheckpointError(f"{path}: damaged ({_first_line(error)})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a torch file, but not a fastgan checkpoint")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: written in layout {content.get('version')!r}, this release reads {VERSION}"
        )
    return content


def read_description(path: Path, content: Mapping[str, Any]) -> tuple[TrainConfig, DataShape]:
    """The configuration and the data's shape that a checkpoint was made with, checked."""
    try:
        config = TrainConfig.from_dict(content["config"]).resolved()
        values = dict(content["data"])
        names = values.get("class_names")
        values["class_names"] = None if names is None else tuple(str(name) for name in names)
        data = DataShape(**values)
        TrainConfig(channels=int(data.channels), image_size=int(data.image_size)).validate()
        if data.num_classes is not None and not 1 <= int(data.num_classes) <= 100_000:
            raise ConfigError(f"num_classes: expected 1 to 100000, got {data.num_classes}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its description is damaged: {_first_line(error)}"
        ) from error
    return config, data


def load_generator(
    path: str | os.PathLike[str], *, ema: bool = True
) -> tuple[nn.Module, TrainConfig, DataShape]:
    """The generator of a checkpoint, ready to sample from.

    Args:
        path: the checkpoint file, or a run's folder for its newest one.
        ema: take the moving average where the checkpoint has one.

    Returns:
        The generator in eval mode on the CPU, the run's configuration and the data's shape.

    Raises:
        CheckpointError: see :func:`load_checkpoint`; also when the weights don't fit the model
            that the checkpoint names.
    """
    path = Path(path)
    if path.is_dir():
        found = list_checkpoints(path)
        if not found:
            raise CheckpointError(f"{path}: this folder holds no checkpoint")
        path = found[-1]
    content = load_checkpoint(path)
    config, data = read_description(path, content)
    weights = content.get("ema_generator") if ema else None
    if weights is None:
        weights = content.get("generator")
    generator = restore_module(path, "generator", lambda: build_generator(config, data), weights)
    return generator.eval(), config, data


def restore_module(path: Path, name: str, build: Any, weights: object) -> nn.Module:
    """Builds a network and gives it saved weights.

    The shapes are compared on torch's meta device first, which allocates nothing, so that a file
    that names a network of a million channels can't make this process run out of memory.
    """
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: has no weights for the {name}")
    with torch.device("meta"):
        expected = build().state_dict()
    found, wanted = _forms(weights), _forms(expected)
    if found != wanted:
        keys = sorted(set(found.items()) ^ set(wanted.items()), key=str)
        raise CheckpointError(
            f"{path}: its {name} is of another model than it says; the first difference is"
            f" {keys[0][0]!r}"
        )
    module: nn.Module = build()
    module.load_state_dict(weights, strict=True)
    return module


def _forms(weights: Mapping[str, Any]) -> dict[str, object]:
    """What of a state_dict must agree: shapes, dtypes, and that the tensors are ordinary ones."""
    return {
        key: (tuple(value.shape), value.dtype, value.layout)
        if isinstance(value, torch.Tensor)
        else None
        for key, value in weights.items()
    }


def check_optimizer(path: Path, name: str, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Refuses a restored optimiser whose state doesn't fit its parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    stateless = isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"] == 0
    if step > 0 and not stateless and len(optimizer.state) != len(parameters):
        raise CheckpointError(
            f"{path}: its {name} has the state of {len(optimizer.state)} of"
            f" {len(parameters)} parameters"
        )
    for parameter in parameters:
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor) and (
                value.layout != torch.strided
                or (value.dim() > 0 and value.shape != parameter.shape)
            ):
                raise CheckpointError(f"{path}: its {name} has a {key} of another shape")


def describe(config: TrainConfig, data: DataShape) -> dict[str, Any]:
    """The part of a checkpoint that :func:`read_description` reads."""
    values = dataclasses.asdict(data)
    if data.class_names is not None:
        values["class_names"] = list(data.class_names)
    return {"config": config.to_dict(), "data": values}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
