"""Fault injection: each kind of fault, and what must hold afterwards.

A trial injects one fault, drawn from its own random numbers, and says how it ended: ``survived``
(the work was done, and rightly), ``refused`` (one line of fastgan's own that names the file), or
``lost``: anything else. ``test_injections.py`` runs some of each kind, ``attack.py`` thousands.
"""

from __future__ import annotations

import builtins
import copy
import errno
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import socket
import struct
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from sanitized import SanitizedOps, instruction_sets
from sanitized import build as build_sanitized
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan.bench.schema import read_result
from fastgan.data import load_data
from fastgan.errors import FastganError
from fastgan.ops import check_op, op_paths
from fastgan.training import TrainConfig, Trainer, joined_processes, load_generator
from fastgan.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from fastgan.training.recorder import read_metrics

#: Where ``make attack`` writes.
RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "faults.json"

SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 1, "precision": "fp32"}

#: An op with its arguments.
_Call = tuple[Any, tuple[Any, ...], dict[str, Any]]

SURVIVED, REFUSED, LOST = "survived", "refused", "lost"


@dataclass
class Ground:
    """Where trials happen: a run that ended well, good files, and room to spoil copies.

    Attributes:
        folder: holds all of it.
    """

    folder: Path
    _count: int = field(default=0, repr=False)

    @cached_property
    def checkpoint(self) -> Path:
        """The newest checkpoint of a run of two steps."""
        return Trainer(TrainConfig(out=str(self.folder / "run"), steps=2, **SMALL)).run().checkpoint

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return load_generator(self.checkpoint)[0].state_dict()

    @cached_property
    def calls(self) -> list[_Call]:
        """See :func:`recorded_calls`."""
        return recorded_calls()

    @cached_property
    def sanitized(self) -> list[SanitizedOps]:
        """The ops built with sanitizers, once for each instruction set of this processor."""
        package = build_sanitized()
        return [SanitizedOps(package, name) for name in instruction_sets()]

    @cached_property
    def longer(self) -> TrainConfig:
        """A run that saves at every third step."""
        out = str(self.folder / "longer")
        return TrainConfig(out=out, steps=40, checkpoint_every=3, log_every=2, **SMALL)

    @cached_property
    def undisturbed(self) -> dict[str, torch.Tensor]:
        """The weights that run ends in."""
        weights = load_checkpoint(Trainer(self.longer).run().checkpoint)["generator"]
        assert isinstance(weights, dict)
        return weights

    @cached_property
    def data(self) -> dict[str, bytes]:
        """A good file of each kind, by ending."""
        pixels = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
        picture, arrays, digits = io.BytesIO(), io.BytesIO(), pixels[:, :64].reshape(6, 8, 8)
        Image.fromarray(pixels[0, :768].reshape(16, 16, 3)).save(picture, "PNG")
        np.savez(arrays, images=digits, labels=np.arange(6))
        labels = list(range(6))
        return {
            "png": picture.getvalue(),
            "npz": arrays.getvalue(),
            "idx": struct.pack(">I3I", 0x803, 6, 8, 8) + digits.tobytes(),
            "cifar10": pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2),
        }

    def place(self) -> Path:
        """An empty folder, the last one's successor."""
        shutil.rmtree(self.folder / f"{self._count}", ignore_errors=True)
        self._count += 1
        place = self.folder / f"{self._count}"
        place.mkdir()
        return place


def outcome(path: Path, act: Callable[[], object]) -> str:
    """How an attempt at a file ended: an error is right if it is fastgan's, one line, and plain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            act()
        except FastganError as error:
            text = str(error)
            names_it = path.name in text or str(path.parent) in text
            return REFUSED if names_it and text.isprintable() and len(text) < 2000 else LOST
        except BaseException:
            return LOST
    return SURVIVED


# --- Bytes that changed ---------------------------------------------------------------------------


def spoiled(draw: random.Random, content: bytes) -> bytes:
    """The content with bits flipped, cut short, or with a part that is doubled, moved or zeroed."""
    spoilt = bytearray(content)
    kind = draw.choice(["flip", "flip", "flips", "cut", "zeros", "double", "noise"])
    start = draw.randrange(len(spoilt))
    end = min(len(spoilt), start + draw.choice([1, 4, 64, 4096]))
    if kind in ("flip", "flips"):
        for _ in range(1 if kind == "flip" else 8):
            spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del spoilt[start:]
    elif kind == "zeros":
        spoilt[start:end] = bytes(end - start)
    elif kind == "double":
        spoilt[start:start] = spoilt[start:end]
    else:
        spoilt[start:end] = draw.randbytes(end - start)
    return bytes(spoilt)


def damaged_checkpoint(draw: random.Random, ground: Ground) -> str:
    """A checkpoint whose bytes changed is refused: never other weights than those written."""
    path = ground.place() / "checkpoint-0000002.pt"
    content = spoiled(draw, whole := ground.checkpoint.read_bytes())
    path.write_bytes(content)
    ended = outcome(path, lambda: load_checkpoint(path))
    return LOST if ended == SURVIVED and content != whole else ended


def damaged_newest(draw: random.Random, ground: Ground) -> str:
    """Where the newest checkpoint is damaged, a run goes on from the one before, and says so."""
    out = ground.place()
    good, bad = out / "checkpoint-0000002.pt", out / "checkpoint-0000009.pt"
    whole = ground.checkpoint.read_bytes()
    good.write_bytes(whole)
    while (content := spoiled(draw, whole)) == whole:
        pass
    bad.write_bytes(content)
    found: list[torch.nn.Module] = []
    ended = outcome(out, lambda: found.append(load_generator(out)[0]))
    if ended != SURVIVED:
        return LOST
    return SURVIVED if _same(found[0].state_dict(), ground.weights) else LOST


def damaged_data(draw: random.Random, ground: Ground) -> str:
    """Data whose bytes changed are other images of the same kind, or refused by name."""
    place = ground.place()
    kind = draw.choice(sorted(ground.data))
    content = spoiled(draw, ground.data[kind])
    for _ in range(draw.randrange(3)):
        content = spoiled(draw, content) if content else content
    return _read(kind, place, content)


def _read(kind: str, place: Path, content: bytes) -> str:
    names = {"png": "a.png", "npz": "a.npz", "idx": "train-images-idx3-ubyte"}
    path = place / names.get(kind, "data_batch_1")
    path.write_bytes(content)
    spec = {"png": f"folder:{place}", "npz": f"npz:{path}"}.get(kind, f"{kind}:{place}")

    def act() -> None:
        images, _ = load_data(spec, image_size=16).get([0])
        assert bool((images.abs() <= 1.001).all())

    return outcome(path, act)


# --- Files that mean harm -------------------------------------------------------------------------


def hostile_pickle(draw: random.Random, ground: Ground) -> str:
    """A pickle of any operations, in a checkpoint or a CIFAR batch, is refused or plain data."""
    place = ground.place()
    content = _hostile_operations(draw)
    if draw.random() < 0.5:
        return _read("cifar10", place, content)
    path = place / "checkpoint-0000001.pt"
    compression = draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(draw.choice([0, 16, 2**20])))
    return outcome(path, lambda: load_generator(path))


def _hostile_operations(draw: random.Random) -> bytes:
    deep, wide = draw.choice([50, 5000, 200_000]), draw.choice([20, 60])
    laughs = b"]q\0" + b"".join(b"](h%ch%ceq%c" % (k, k, k + 1) for k in range(wide))
    pieces = [
        b"]" * deep + b"a" * (deep - 1),  # lists in lists
        b")" + b"\x85" * deep,  # tuples in tuples
        b"}(" + b")" + b"\x85" * deep + b"K\1u",  # ... as a key
        laughs,  # each holds the one before twice
        b")q\0" + b"".join(b"h%ch%c\x86q%c" % (k, k, k + 1) for k in range(wide)),
        b"]q\0h\0a",  # itself
        b"}q\0(K\1h\0u",
        b"c_codecs\nencode\n(X\x04\0\0\0aaaaX\x06\0\0\0latin1tR" * 50,
        b"cos\nsystem\n(X\x04\0\0\0truetR",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\1K\1K\1tR",
        b"\x8b\x20\0\0\0" + b"\xff" * 32,  # a number of 256 bits
        b"\x8b\xff\xff\xff\x7f",
        b"(((((",
        b"}(X\x07\0\0\0versionX\x01\0\0\0\x1bu",
        b"]" * draw.randrange(1, 300_000),
        draw.randbytes(draw.randrange(1, 200)),
    ]
    names = [b"format", b"version", b"config", b"data"]
    if draw.random() < 0.4:  # within something that is nearly a checkpoint
        key = draw.choice(names)
        return (
            b"\x80\2}(X\x06\0\0\0formatX\x12\0\0\0fastgan-checkpointX\x07\0\0\0versionK\1"
            + b"X"
            + struct.pack("<I", len(key))
            + key
            + draw.choice(pieces)
            + b"u."
        )
    return b"\x80\2" + b"".join(draw.choices(pieces, k=draw.choice([1, 1, 3]))) + b"."


def hostile_values(draw: random.Random, ground: Ground) -> str:
    """A checkpoint with a value that can't be is refused before it is used."""
    path = ground.place() / "checkpoint-0000002.pt"
    content = load_checkpoint(ground.checkpoint)
    strange = [
        *(None, -1, 2**70, float("nan"), "\x1b[2J", b"", [], {}, [[[]]], True),
        *(torch.zeros(3), torch.full((2, 2), float("nan")), torch.zeros(0)),
    ]
    holder = content
    while True:  # somewhere in it
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        inner = holder[key]
        if isinstance(inner, (dict, list)) and inner and draw.random() < 0.8:
            holder = inner
            continue
        break
    holder[key] = draw.choice(strange)
    save_checkpoint(path, content)

    def act() -> None:
        shutil.rmtree(path.parent / "tensorboard", ignore_errors=True)
        asked = TrainConfig(out=str(path.parent), steps=3)
        Trainer(asked, resume=True, explicit=frozenset({"steps"})).run()

    return outcome(path, act)


def hostile_header(draw: random.Random, ground: Ground) -> str:
    """An .npy header of any text within an npz is refused or an array."""
    shapes = ["(2, 8, 8)", "(True, 8, 8)", "(2,", "(" * 3000, str((1,) * 71), "(-1,)", "[]"]
    shape = draw.choice([*shapes, "(2**70, 1)", "(1180591620717411303424, 1)"])
    key = draw.choice(["'descr'", "b'descr'", "[]", "{}", "1", "'a'"])
    dtype = draw.choice(["'|u1'", "'|O'", "b'|u1'", "[('a', '|u1')]", "'<f8'", "None", "'|u1'"])
    text = f"{{{key}: {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        member = b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + bytes(128)
        archive.writestr(draw.choice(["images.npy", "\x1b[31m.npy", "x.npy"]), member)
    return _read("npz", ground.place(), content.getvalue())


def hostile_text(draw: random.Random, ground: Ground) -> str:
    """Settings, results and metrics of any text are refused in a line, or mean something."""
    place = ground.place()
    piece = draw.choice(
        [
            *("[" * 100_000, "9" * 10_000, "0x" + "f" * 10_000, "nan", "1e999", '"\\u0000"'),
            *('"\x1b[2J"', "{" * 5000, "'abc'", "[1, [2]]", '"abc"', "-1", "", "\0"),
        ]
    )
    kind = draw.choice(["toml", "json", "csv"])
    if kind == "toml":
        name = draw.choice(["out", "steps", "lr", "model", "\x1b[31m", "a.b", '"\x1b"'])
        path = place / "config.toml"
        path.write_text(f'out = "{place}"\nmodel = "dcgan"\n{name} = {piece}\n')
        return outcome(path, lambda: Trainer(TrainConfig(out=str(place)), resume=True))
    if kind == "json":
        path = place / "old.json"
        field = draw.choice(["rows", "schema", "machine", "notes", "versions"])
        path.write_text(json.dumps({"schema": 1})[:-1] + f', "{field}": {piece}}}')
        return outcome(path, lambda: read_result(path))
    path = place / "metrics.csv"
    path.write_text(f"step,images,seconds,loss_d\n1,2,3,{piece}\n{piece},1,1,1\n")
    return outcome(path, lambda: read_metrics(path))


# --- Writes that fail -----------------------------------------------------------------------------


class _Disk:
    """The files of a folder, as a disk that fails or takes writes in parts has them.

    Args:
        folder: where.
        number: which write, opening, renaming or syncing there fails.
        code: how, an ``errno``.
        lasts: whether all that follow fail as well.
        short: whether writes take half of what they are given.
    """

    def __init__(self, folder: Path, number: int, code: int, *, lasts: bool, short: bool) -> None:
        self._folder, self._left, self._lasts, self._short = folder, number, lasts, short
        self._error = OSError(code, os.strerror(code))
        self._io_open = io.open

    def tick(self) -> None:
        """One more thing is asked of the disk."""
        self._left -= self._folder.exists()
        if self._left == 0 or (self._left < 0 and self._lasts):
            raise self._error

    def open(self, file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **more: Any) -> Any:
        """As ``io.open``."""
        here = isinstance(file, int) or self._folder in Path(os.fsdecode(file)).parents
        if not here or not set(mode) & set("wax+"):
            return self._io_open(file, mode, buffering, *rest, **more)
        self.tick()
        disk = self

        class File(io.FileIO):
            def write(self, content: Any) -> int:
                disk.tick()
                view = memoryview(content).cast("B")
                return super().write(view[: max(1, len(view) // 2)] if disk._short else view) or 0

        raw = File(file, mode.replace("b", "").replace("t", ""))
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **more)

    def patches(self) -> Any:
        """Puts it under everything that Python opens, renames and syncs."""
        stack = ExitStack()
        for module in (io, builtins):
            stack.enter_context(mock.patch.object(module, "open", self.open))
        for name in ("replace", "fsync"):
            stack.enter_context(mock.patch.object(os, name, self._counted(getattr(os, name))))
        return stack

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.tick()
            return function(*arguments)

        return call


def failing_write(draw: random.Random, ground: Ground) -> str:
    """A write that fails, whatever file's, costs no checkpoint: the run can be gone on with."""
    out = ground.place() / "run"
    code = draw.choice([errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
    number, lasts = draw.randrange(1, 400), draw.random() < 0.5
    disk = _Disk(out, number, code, lasts=lasts, short=draw.random() < 0.3)
    settings = {**SMALL, "steps": 4, "checkpoint_every": 1, "sample_every": 2, "log_every": 1}
    config = TrainConfig(out=str(out), n_samples=4, **settings)
    with disk.patches():
        ended = outcome(out, lambda: Trainer(config).run())
    saved = list_checkpoints(out) if out.is_dir() else []
    steps = [load_checkpoint(path)["step"] for path in saved]  # each that has its name is whole
    begun = bool(steps) or (out / "config.toml").exists()
    if begun:
        resumed = Trainer(config, resume=True)
        if resumed.step != max(steps, default=0):
            return LOST
        resumed.run()
        if load_checkpoint(list_checkpoints(out)[-1])["step"] != 4:
            return LOST
    return ended


def short_write(draw: random.Random, ground: Ground) -> str:
    """A file that takes writes in parts gets all of them."""
    path = ground.place() / "checkpoint-0000002.pt"
    content = load_checkpoint(ground.checkpoint)
    with _Disk(path.parent, 10**9, errno.EIO, lasts=False, short=True).patches():
        ended = outcome(path, lambda: save_checkpoint(path, content))
    if ended != SURVIVED:
        return LOST
    return SURVIVED if _same(load_checkpoint(path)["generator"], content["generator"]) else LOST


# --- Arguments of ops -----------------------------------------------------------------------------


class _Recorder(TorchDispatchMode):
    """Keeps each call of an op of fastgan's, with copies of its arguments."""

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastgan":
            self._calls.append((func, *copy.deepcopy((args, kwargs or {}))))
        return func(*args, **(kwargs or {}))


def recorded_calls() -> list[_Call]:
    """A valid call or more of every op, as ``fastgan doctor`` makes them."""
    calls: list[_Call] = []
    with _Recorder(calls):
        for op in dict.fromkeys(path.op for path in op_paths()):
            check_op(op, "cpu")
    return calls


def _mutated(draw: random.Random, value: Any) -> Any:
    """Another value of the kind, or of another."""
    if isinstance(value, torch.Tensor):
        return _mutated_tensor(draw, value)
    if isinstance(value, (list, tuple)) and value:
        changed = list(value)
        place = draw.randrange(len(changed))
        if draw.random() < 0.3:
            del changed[place]
        else:
            changed[place] = _mutated(draw, changed[place])
        return changed
    strange: list[Any] = [None, 0, -1, 1, 2, 3, 7, 2**31, 2**62, -(2**63), 1.5, float("nan")]
    return draw.choice([*strange, float("inf"), 1e300, "text", True, [], [0], [-1, 2**40]])


def _mutated_tensor(draw: random.Random, value: torch.Tensor) -> Any:
    if value.layout != torch.strided or value.is_meta:
        return value
    shape = list(value.shape)
    kind = draw.randrange(9)
    if kind == 0:
        return None
    if kind == 1:  # another size
        if shape:
            shape[draw.randrange(len(shape))] = draw.choice([0, 1, 2, 3, 5, 17])
        return torch.rand(shape).to(value.dtype)
    if kind == 2:  # another number of dimensions
        return value.unsqueeze(draw.randrange(value.dim() + 1)) if draw.random() < 0.5 else (
            value.flatten() if draw.random() < 0.5 else value.sum()
        )  # fmt: skip
    if kind == 3:
        dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool)
        return value.to(draw.choice([*dtypes, torch.uint8, torch.complex64]))
    if kind == 4 and shape:  # other strides
        place = draw.randrange(len(shape))
        return value.transpose(place, draw.randrange(len(shape)))
    if kind == 5 and shape:
        place = draw.randrange(len(shape))
        return value.repeat_interleave(2, place)[(slice(None),) * place + (slice(None, None, 2),)]
    if kind == 6 and shape:
        return value[:1].expand(value.shape)
    if kind == 7:
        layouts = [lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t[..., :0]]
        with suppress(RuntimeError, IndexError, TypeError):
            return draw.choice(layouts)(value)
    return _with_edges(draw, value)


def _with_edges(draw: random.Random, value: torch.Tensor) -> torch.Tensor:
    """The tensor elsewhere in memory, off any boundary, with values at the edges of floats.

    Memory ends with the last element, so that a sanitizer sees the one after it.
    """
    sizes = zip(value.shape, value.stride(), strict=True)
    if not value.numel() or sum((n - 1) * stride for n, stride in sizes) + 1 != value.numel():
        return value  # with gaps
    offset = draw.randrange(4)
    buffer = torch.empty(offset + value.numel(), dtype=value.dtype)
    changed = buffer.as_strided(value.shape, value.stride(), offset).copy_(value)
    if value.is_floating_point():
        edges = [float("nan"), float("inf"), -float("inf"), 1e-42, 1e30, -1e30, 0.0]
        for place in draw.choices(range(value.numel()), k=3):
            buffer[offset + place] = draw.choice(edges)
    return changed


def op_arguments(draw: random.Random, ground: Ground) -> str:
    """Ops called with any arguments, half of them valid, compute or raise; no process dies."""
    seeds = [draw.randrange(2**32) for _ in range(25)]
    calls = ground.calls  # made here: what is made in the child is lost

    def act() -> None:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2**31,) * 2)
        warnings.simplefilter("ignore")
        for seed in seeds:
            call_with(random.Random(seed), calls)

    return SURVIVED if _ended(_forked(act), 120) == 0 else LOST


def sanitized_op_arguments(draw: random.Random, ground: Ground) -> str:
    """The same with AddressSanitizer and UBSan in all kernels: no finding."""
    seeds = [draw.randrange(2**32) for _ in range(25)]
    return SURVIVED if draw.choice(ground.sanitized).ended(seeds) == 0 else LOST


def call_with(draw: random.Random, calls: list[_Call]) -> None:
    """One call of one op; raises AssertionError where an error says what only we understand."""
    func, args, kwargs = copy.deepcopy(draw.choice(calls))
    args = list(args)
    valid = draw.random() < 0.5
    for place, value in enumerate(args):
        if isinstance(value, torch.Tensor) and draw.random() < 0.5:
            args[place] = _with_edges(draw, value)
    for _ in range(0 if valid else draw.choice([1, 1, 2])):
        place = draw.randrange(len(args))
        args[place] = _mutated(draw, args[place])
    try:
        func(*args, **kwargs)
    except Exception as error:
        if valid or "API call failed" in str(error):
            raise AssertionError(f"{func}: {error}") from error


# --- Processes that end, and that disagree --------------------------------------------------------


def _forked(act: Callable[[], object], environment: dict[str, str] | None = None) -> int:
    """Starts a process that acts and ends: by 0, by an error's code, or by 99 for a traceback."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.environ.update(environment or {})
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        act()
        code = 0
    except FastganError as error:
        code = error.exit_code
    finally:
        os._exit(code)
    return 0


def _ended(child: int, seconds: float) -> int | None:
    """How a process ended, or None: it didn't in so many seconds, and was killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def interrupted(draw: random.Random, ground: Ground) -> str:
    """A run that signals end at random moments ends, resumed, in the weights of one left alone."""
    out = ground.place() / "run"
    config = TrainConfig(**{**ground.longer.to_dict(), "out": str(out)})

    def go_on() -> None:
        begun = (out / "config.toml").exists() or (out.exists() and bool(list_checkpoints(out)))
        Trainer(config, resume=begun).run()

    for _ in range(draw.randrange(1, 4)):
        child = _forked(go_on)
        time.sleep(draw.uniform(0.0, 0.5))
        number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
        os.kill(child, number)
        if _ended(child, 60) not in (0, -number):
            return LOST
    if _ended(_forked(go_on), 60) != 0:
        return LOST
    found = load_checkpoint(list_checkpoints(out)[-1])["generator"]
    return SURVIVED if _same(found, ground.undisturbed) else LOST


def ranks(draw: random.Random, ground: Ground) -> str:
    """Of two processes that disagree, or one of which is killed, both end, and soon."""
    out = ground.place() / "run"
    changes: dict[str, Any] = draw.choice(
        [{"steps": 9}, {"lr": 0.5}, {"n_critic": 3}, {"seed": 1}, {"batch_size": 8}, {}]
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def act(rank: int) -> None:
        settings = {**SMALL, "steps": 300, "out": str(out), **(changes if rank else {})}
        with joined_processes("cpu") as processes:
            Trainer(TrainConfig(**settings), processes=processes).run()

    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        _forked(lambda rank=rank: act(rank), {**common, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"})
        for rank in (0, 1)
    ]
    killed = draw.randrange(2)
    if not changes:
        time.sleep(draw.uniform(0.3, 1.5))
        os.kill(children[killed], signal.SIGKILL)
    codes = [_ended(child, 60) for child in children]
    expected = [2, 2]
    if not changes:
        expected[killed] = -signal.SIGKILL
    return REFUSED if codes == expected else LOST


def _same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


KINDS: dict[str, Callable[[random.Random, Ground], str]] = {
    function.__name__: function
    for function in (
        *(damaged_checkpoint, damaged_newest, damaged_data, hostile_pickle, hostile_values),
        *(hostile_header, hostile_text, failing_write, short_write, op_arguments),
        *(interrupted, ranks),
    )
}


#: Those that a test has no time for.
SLOW_KINDS = {sanitized_op_arguments.__name__: sanitized_op_arguments}


def ground() -> tempfile.TemporaryDirectory[str]:
    """A folder for :class:`Ground`."""
    return tempfile.TemporaryDirectory(prefix="fastgan-faults-")
