"""Checkpoints: written atomically, verified on reading, and never executed.

A checkpoint is a file of ``torch.save`` with a dictionary of tensors and plain values:

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
``adaptive``       state of the augmentation's probability, or ``None``
``random``         states of every random number generator in use
``totals``         sums of the metrics since the last row
``logged``         sums of the caller's own metrics since then
``own``            classes of the networks and optimisers that the caller of the trainer made
=================  ===========================================================================

The zip archive's comment has a digest of all bytes before it, which detects any flipped bit.
Reading allocates no more than the file's size: members are stored, not deflated;
:mod:`fastgan._util.plain_pickle` reads the pickle; each tensor must lie within its bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan._util.files import atomic_write
from fastgan._util.plain_pickle import load_plain_pickle
from fastgan._util.reading import one_line, parsing, printable
from fastgan.errors import CheckpointError, ConfigError, OutputError
from fastgan.training.config import TrainConfig
from fastgan.training.networks import DataShape
from fastgan.training.optimizer_kinds import OPTIMIZER_KINDS

FORMAT = "fastgan-checkpoint"
VERSION = 1

_NAME = re.compile(r"checkpoint-(\d{7,})\.pt")
# atomic_write's name of an incomplete file.
_LEFTOVER = re.compile(
    r"\.(checkpoint-\d{7,}\.pt|samples(-\d{7,})?\.png|losses\.png|metrics\.csv|config\.toml"
    r"|index\.html|evaluations\.json|best\.pt"
    r"|backends(-\d+)?\.json)\..+"
)


def checkpoint_path(folder: Path, step: int) -> Path:
    """The path of ``step``'s checkpoint in a run's folder."""
    return folder / f"checkpoint-{step:07d}.pt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    numbered = [
        (int(m[1]), path) for path in folder.glob("*.pt") if (m := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(numbered)]


def remove_leftovers(folder: Path) -> None:
    """Removes a killed run's half-written temporary files."""
    for path in folder.glob(".*"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` atomically to ``path``.

    A temporary file in the same folder is written, synced (``fsync``) and renamed, so a crash or a
    full disk loses at most the newest checkpoint.

    Raises:
        OutputError: the folder can't be written; nothing is left behind.
    """
    try:
        with atomic_write(path, durable=True) as file:
            torch.save({"format": FORMAT, "version": VERSION, **content}, file)
            _seal(file)
    except RuntimeError as error:
        # torch's zip writer reports a full disk as a RuntimeError.
        raise OutputError(
            f"{path}: can't be written, the disk may be full ({_first_line(error)})"
        ) from error


# The zip archive's comment: this, and the BLAKE2b of all the bytes before it, in hexadecimal.
_SEAL = b"fastgan-blake2b:"
_SEAL_BYTES = len(_SEAL) + 64


def _seal(file: IO[bytes]) -> None:
    """Appends the digest of a zip archive's bytes as its comment."""
    end = file.seek(0, os.SEEK_END)
    file.seek(end - 22)
    if file.read(4) != b"PK\5\6":
        raise RuntimeError("the archive doesn't end as archives of torch.save do")
    # The last two bytes: the comment's length.
    file.seek(end - 2)
    file.write(struct.pack("<H", _SEAL_BYTES))
    digest = _digest(file, end)
    file.seek(end)
    file.write(_SEAL + digest)


def _digest(file: IO[bytes], length: int) -> bytes:
    file.seek(0)
    digest = hashlib.blake2b(digest_size=32)
    while length and (chunk := file.read(min(2**22, length))):
        digest.update(chunk)
        length -= len(chunk)
    return digest.hexdigest().encode()


def _check_seal(file: IO[bytes], comment: bytes, what: str) -> None:
    """Refuses a changed file; older releases' files have no digest."""
    if not comment:
        return
    end = file.seek(0, os.SEEK_END) - _SEAL_BYTES
    if len(comment) != _SEAL_BYTES or not comment.startswith(_SEAL):
        raise CheckpointError(f"{what}: truncated or damaged: its digest is not whole")
    if _digest(file, end) != comment.removeprefix(_SEAL):
        raise CheckpointError(
            f"{what}: damaged: its bytes are not those that were written (their digest is another)"
        )


_STORAGES = {
    ("torch", f"{name}Storage"): dtype
    for name, dtype in {
        "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
        "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
        "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
    }.items()
}  # fmt: skip


class _Tensors:
    """The tensors of an archive of ``torch.save``, for the names in its pickle."""

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}
        self._left = 0
        self.names = {
            **_STORAGES,
            ("collections", "OrderedDict"): dict,
            ("torch._utils", "_rebuild_tensor_v2"): self.rebuild,
        }

    def storage(self, reference: Any) -> Tensor:
        """The storage of a reference, as a 1-d tensor."""
        kind, dtype, key, _, count = reference
        dtype = getattr(dtype, "meaning", None)
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str:
            raise ValueError("a reference to something other than a tensor's bytes")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}/data/{key}"))
            if len(content) != count * dtype.itemsize:
                raise ValueError(f"{len(content)} bytes for {count} numbers of {dtype}")
            whole = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0)
            self._storages[key] = whole.to(dtype)
            # A tensor may be stored once and referenced twice; more means a forged size.
            self._left += 4 * len(whole)
        if self._storages[key].dtype != dtype:
            raise ValueError(f"{key} is of two dtypes")
        return self._storages[key]

    def rebuild(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
        """A view of a storage, after a bounds check."""
        whole = (offset, *size, *stride)
        if not isinstance(storage, Tensor) or any(type(n) is not int or n < 0 for n in whole):
            raise ValueError("a tensor of a strange shape")
        if len(size) != len(stride) or len(size) > 8:
            raise ValueError("a tensor of a strange shape")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        self._left -= count
        if count and (last >= len(storage) or count > len(storage) or self._left < 0):
            raise ValueError("a tensor that is larger than its bytes")
        return storage.as_strided(size, stride, offset)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint, with tensors on the CPU, without unpickling code.

    Raises:
        CheckpointError: if the file is missing, truncated, other than it was written, holds
            anything but tensors and plain values (such a file could run code; it is refused before
            any of it runs), or is not a checkpoint of a version this release reads.
    """
    what = str(path)
    if not path.is_file():
        raise CheckpointError(f"{what}: there is no such checkpoint file")
    with parsing(f"{what}: damaged", CheckpointError), path.open("rb") as file:
        # Everything torch.save has written since 1.6 is a zip archive, whose directory stands at
        # the end: a truncated file has none.
        begins_like_one = file.read(2) in (b"PK", b"P", b"")
        if not zipfile.is_zipfile(file):
            kind = "truncated" if begins_like_one else "not a fastgan checkpoint"
            raise CheckpointError(f"{what}: {kind}")
        try:
            with zipfile.ZipFile(file) as archive:
                _check_seal(file, archive.comment, what)
                content = _read_archive(archive, what)
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{what}: damaged ({one_line(error)})") from error
    if not isinstance(content, dict) or not _is_ours(content.get("format")):
        raise CheckpointError(f"{what}: a torch file, but not a fastgan checkpoint")
    version = content.get("version")
    if type(version) is not int or version != VERSION:  # a tensor has no truth value
        number = version if isinstance(version, int) else type(version).__name__
        raise CheckpointError(f"{what}: written in layout {number}, this release reads {VERSION}")
    return content


def _is_ours(format_name: object) -> bool:
    return isinstance(format_name, str) and format_name == FORMAT


def _read_archive(archive: zipfile.ZipFile, what: str) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    pickled = [name for name in members if name.endswith("/data.pkl")]
    if len(pickled) != 1 or len(members) != len(archive.infolist()):
        raise CheckpointError(f"{what}: not a fastgan checkpoint: a zip archive of another kind")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise CheckpointError(f"{what}: refused: compressed, which torch.save never does")
    assert archive.fp is not None
    if sum(info.file_size for info in members.values()) > archive.fp.seek(0, os.SEEK_END):
        raise CheckpointError(f"{what}: refused: its members are larger than the file")
    folder = pickled[0].removesuffix("/data.pkl")
    order = f"{folder}/byteorder"
    if order in members and archive.read(order) != sys.byteorder.encode():
        raise CheckpointError(f"{what}: written on a machine of another byte order")
    tensors = _Tensors(archive, folder)
    return load_plain_pickle(
        archive.read(pickled[0]),
        what,
        kind=CheckpointError,
        names=tensors.names,
        persistent=tensors.storage,
    )


def newest_checkpoint(
    checkpoints: Iterable[Path], read: Callable[[Path], Any] = load_checkpoint
) -> tuple[Path, Any, list[str]]:
    """The newest of these checkpoints that can be read.

    Args:
        checkpoints: their paths, oldest first, at least one.
        read: reads one.

    Returns:
        Its path, what was read, and why the newer ones couldn't be.

    Raises:
        CheckpointError: none can be read; what is wrong with the newest.
    """
    failures: list[CheckpointError] = []
    for path in reversed(list(checkpoints)):
        try:
            return path, read(path), [str(error) for error in failures]
        except CheckpointError as error:
            failures.append(error)
    raise failures[0]


def read_description(path: Path, content: Mapping[str, Any]) -> tuple[TrainConfig, DataShape]:
    """The configuration and the data's shape that a checkpoint was made with, checked."""
    try:
        config = TrainConfig.from_run(content["config"])
        values = dict(content["data"])
        names = values.get("class_names")
        if names is not None:
            names = tuple(map(_text, names))
        data = DataShape(**{**values, "name": _text(values["name"]), "class_names": names})
        for name in ("channels", "image_size", "length", "num_classes"):
            if type(value := getattr(data, name)) is not int and value is not None:
                raise ConfigError(f"{name}: expected a whole number, got {type(value).__name__}")
        TrainConfig(channels=int(data.channels), image_size=int(data.image_size)).validate()
        if data.num_classes is not None and not 1 <= int(data.num_classes) <= 100_000:
            raise ConfigError(f"num_classes: expected 1 to 100000, got {data.num_classes}")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its description is damaged: {_first_line(error)}"
        ) from error
    return config, data


def _text(value: object) -> str:
    """Text of a checkpoint as it may be shown."""
    if not isinstance(value, str) or len(value) > 1000:
        raise ConfigError(f"a name: expected text, got {type(value).__name__}")
    return printable(value)


def load_generator(
    path: str | os.PathLike[str], *, ema: bool = True
) -> tuple[nn.Module, TrainConfig, DataShape]:
    """The generator of a checkpoint as a module; :func:`fastgan.load_generator` has more to it.

    Args:
        path: the checkpoint file, or a run's folder for its newest intact one; a
            :class:`fastgan.DataWarning` names damaged ones.
        ema: take the moving average if the checkpoint has one.

    Returns:
        The generator in eval mode on the CPU, with contiguous weights for safetensors'
        ``save_file``; the run's configuration; the data's shape.

    Raises:
        CheckpointError: see :func:`load_checkpoint`; also if the weights don't fit the checkpoint's
            model.
    """
    from fastgan.trained import load_generator as load

    loaded = load(path, ema=ema)
    return loaded.module, loaded.config, loaded.data


def restore_module(path: Path, name: str, build: Any, weights: object) -> nn.Module:
    """Builds a network with saved weights.

    Shapes are compared on the meta device first, so that a forged file with a million channels
    can't exhaust the memory.
    """
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: has no weights for the {name}")
    with torch.device("meta"), _NothingDrawn():
        expected = build().state_dict()
    given, wanted = _forms(weights), _forms(expected)
    if given != wanted:
        keys = sorted(set(given.items()) ^ set(wanted.items()), key=str)
        raise CheckpointError(
            f"{path}: its {name} is of another model than it says; the first difference is"
            f" {keys[0][0]!r}"
        )
    module: nn.Module = build()
    module.load_state_dict(weights, strict=True)
    return module


_DRAWING = frozenset(
    (
        *(torch.Tensor.normal_, torch.Tensor.uniform_),
        *(nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_),
    )
)


class _NothingDrawn(TorchFunctionMode):
    """Skips weight initialisation, whose first call on the meta device takes a second."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def _forms(weights: Mapping[str, Any]) -> dict[str, object]:
    """The parts of a state_dict that must agree: shapes, dtypes, and layouts."""
    return {
        key: (tuple(value.shape), value.dtype, value.layout)
        if isinstance(value, torch.Tensor)
        else None
        for key, value in weights.items()
    }


def restore_optimizer(
    name: str, kind: str | None, optimizer: torch.optim.Optimizer, saved: Any, step: int
) -> None:
    """Checks a saved state, and loads it into a new optimiser.

    Settings (learning rate, decay and so on) come from the configuration; the file's are ignored.

    Args:
        name: how messages refer to it.
        kind: a name of :data:`fastgan.training.optimizer_kinds.OPTIMIZER_KINDS`; None for the
            caller's own, with any finite state.
        optimizer: the optimiser.
        saved: its saved state_dict.
        step: generator updates done: after the first, every parameter has state.

    Raises:
        ValueError: state of another kind, for other parameters, or that isn't finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    states = saved.get("state") if isinstance(saved, dict) else None
    if not isinstance(states, dict):
        raise ValueError(f"has no state of the {name}")
    stateless = kind == "sgd" and optimizer.param_groups[0]["momentum"] == 0
    if any(type(index) is not int or not 0 <= index < len(parameters) for index in states) or (
        kind is not None and step > 0 and not stateless and len(states) != len(parameters)
    ):
        raise ValueError(
            f"its {name} has the state of {len(states)} of {len(parameters)} parameters"
        )
    for index, state in states.items():
        if kind is None:
            _check_own_state(name, state)
            continue
        if (
            not isinstance(state, dict)
            or not set(state) <= set(OPTIMIZER_KINDS[kind].state)
            or (not stateless and len(state) != len(OPTIMIZER_KINDS[kind].state))
        ):
            raise ValueError(f"its {name} has the state of another optimiser than {kind}")
        for key, value in state.items():
            if stateless and value is None:
                continue
            shape = () if key == "step" else parameters[index].shape
            if (
                not isinstance(value, Tensor)
                or value.shape != shape
                or not value.is_floating_point()
            ):
                raise ValueError(f"its {name}'s {key} has another shape")
            if not bool(value.isfinite().all()) or (
                (key == "step" or "sq" in key) and bool((value < 0).any())
            ):
                raise ValueError(f"its {name}'s {key} can't be: NaN or below zero")
    try:
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    except (KeyError, TypeError, RuntimeError) as error:  # of the caller's own class
        raise ValueError(f"its {name} doesn't take its state: {one_line(error)}") from error


def _check_own_state(name: str, state: object) -> None:
    if not isinstance(state, dict) or not all(type(key) is str for key in state):
        raise ValueError(f"its {name} has a state that can't be")
    for key, value in state.items():
        numbers = torch.as_tensor(value) if isinstance(value, (float, Tensor)) else torch.zeros(())
        if not bool(numbers.isfinite().all()):
            raise ValueError(f"its {name}'s {key} isn't finite")


def restore_scaler(name: str, scaler: torch.amp.GradScaler, saved: Any) -> None:
    """Restores a scaler's scale, unless it is disabled, as in float32.

    Raises:
        ValueError: an invalid scale.
    """
    if not scaler.is_enabled():
        return
    state = saved if isinstance(saved, dict) else {}
    scale, steps = state.get("scale"), state.get("_growth_tracker")
    if type(scale) is not float or not 0 < scale < math.inf or type(steps) is not int or steps < 0:
        raise ValueError(f"its {name} has no scale, or one that can't be")
    scaler.load_state_dict({**scaler.state_dict(), "scale": scale, "_growth_tracker": steps})


def describe(config: TrainConfig, data: DataShape) -> dict[str, Any]:
    """The part of a checkpoint that :func:`read_description` reads."""
    values = dataclasses.asdict(data)
    if data.class_names is not None:
        values["class_names"] = list(data.class_names)
    return {"config": config.to_dict(), "data": values}


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
