"""Files of measured choices: the user's cache, a run's own, and the tables committed here.

A file is JSON::

    {"format": "fastgan backends", "version": 1,
     "choices": {DEVICE: {PROBLEM: {"backend": NAME, "milliseconds": {NAME: 1.5, ...},
                                    "exhaustive": false}}}}

DEVICE is :func:`fastgan.ops.backends.devices.fingerprint`, or :func:`device_name` in committed
tables; PROBLEM is :attr:`Problem.key`. Files are written under another name and then renamed, so
readers never see half a file; writers merge their choices into the file under the folder's lock. An
invalid file is ignored with one warning, and replaced by the next write.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastgan._util.files import atomic_write
from fastgan._util.locks import fcntl
from fastgan.errors import OutputError
from fastgan.explaining.fallback import warn_once

_FORMAT = "fastgan backends"
_VERSION = 1
#: Larger files are ignored; thousands of choices take less than 1 MB.
_MOST_BYTES = 16 << 20
#: Seconds that a writer waits for another one before it writes anyway.
_PATIENCE = 2.0
#: Seconds after which a half-written file is considered abandoned.
_ABANDONED = 3600.0


@dataclass(frozen=True)
class Choice:
    """A problem's backend.

    Attributes:
        backend: its name.
        milliseconds: each backend's time; empty if nothing was measured.
        exhaustive: whether slow backends were measured as often as fast ones.
    """

    backend: str
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    exhaustive: bool = False

    def __str__(self) -> str:
        if not self.milliseconds:
            return f"{self.backend}, not measured"
        times = sorted(self.milliseconds.items(), key=lambda item: item[1])
        others = ", ".join(f"{name} {ms:.3g}" for name, ms in times if name != self.backend)
        return f"{self.backend} {self.milliseconds[self.backend]:.3g} ms ({others})"


#: By device, then by problem.
Choices = dict[str, dict[str, Choice]]


def cache_folder() -> Path:
    """The folder of the user's choices.

    That is ``$FASTGAN_CACHE_DIR``, else ``fastgan`` in ``$XDG_CACHE_HOME``, else in ``~/.cache``.
    """
    own = os.environ.get("FASTGAN_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "fastgan"


def cache_path(fingerprint: str) -> Path:
    """The user's file for a device and its software versions."""
    readable = re.sub(r"[^a-z0-9]+", "-", fingerprint.partition(";")[0].lower()).strip("-")[:60]
    name = f"{readable}-{sha256(fingerprint.encode()).hexdigest()[:12]}.json"
    return cache_folder() / "backends" / name


class ChoicesFile:
    """One file of choices.

    Args:
        path: the file; it and its folder needn't exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Choices:
        """All choices in the file; none if it doesn't exist or isn't valid."""
        try:
            # Don't block if it is a pipe.
            with open(os.open(self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
                content = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            warn_once(f"{self.path}: can't be read, backends are measured: {error.strerror}")
            return {}
        try:
            return _parsed(content)
        except (ValueError, OverflowError, RecursionError) as error:
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            warn_once(f"{self.path}: ignored, not a file of measured backends: {reason}")
            return {}

    def merge(self, choices: Choices) -> None:
        """Adds choices to the file's, replacing those of the same problem.

        Warns once if the file can't be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.parent):
                together = self.read()
                for device, of_device in choices.items():
                    together.setdefault(device, {}).update(of_device)
                with atomic_write(self.path) as file:
                    file.write(_text(together).encode())
                _remove_abandoned(self.path)
        except (OSError, OutputError) as error:
            reason = str(error) if isinstance(error, OutputError) else error.strerror
            warn_once(f"{self.path}: measured backends can't be kept there: {reason}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder's lock. Waiting is bounded: its holder may have been stopped."""
    if fcntl is None:  # Windows can't open folders: the last writer merges
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.005)
            except OSError:  # a file system without locks: the last writer merges
                break
        yield
    finally:
        os.close(handle)


def _remove_abandoned(path: Path) -> None:
    """Removes half-written files of killed processes."""
    for left in path.parent.glob(f".{path.name}.*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def _text(choices: Choices) -> str:
    listed = {
        device: {
            problem: {
                "backend": choice.backend,
                "milliseconds": {name: round(ms, 6) for name, ms in choice.milliseconds.items()},
                "exhaustive": choice.exhaustive,
            }
            for problem, choice in sorted(of_device.items())
        }
        for device, of_device in sorted(choices.items())
    }
    return json.dumps({"format": _FORMAT, "version": _VERSION, "choices": listed}, indent=1) + "\n"


def _parsed(content: bytes) -> Choices:
    """Raises ValueError unless the text has the format that :func:`_text` writes."""
    if len(content) > _MOST_BYTES:
        raise ValueError(f"more than {_MOST_BYTES} bytes")
    outer = json.loads(content)
    if not isinstance(outer, dict) or outer.get("format") != _FORMAT:
        raise ValueError("its format is another")
    if outer.get("version") != _VERSION:
        raise ValueError(f"version {str(outer.get('version'))[:20]}, this release reads {_VERSION}")
    return {
        device: {problem: _choice(of_problem) for problem, of_problem in _items(of_device)}
        for device, of_device in _items(outer.get("choices"))
    }


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} in the place of a table")
    yield from value.items()


def _choice(value: Any) -> Choice:
    fields = dict(_items(value))
    backend, exhaustive = fields.get("backend"), fields.get("exhaustive", False)
    times = dict(_items(fields.get("milliseconds", {})))
    if not isinstance(backend, str) or not isinstance(exhaustive, bool):
        raise ValueError("a choice without a backend's name")
    if any(type(ms) not in (int, float) or not 0 <= ms < math.inf for ms in times.values()):
        raise ValueError("a time that is no number of milliseconds")
    if times and backend not in times:
        raise ValueError("a choice without its own time")
    return Choice(backend, {name: float(ms) for name, ms in times.items()}, exhaustive)
