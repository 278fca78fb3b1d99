"""Processes that start in milliseconds: forked from one that has imported fastgan and done no more.

They run the command line, or any function, with streams, environment and signals of their own.
What a test asks of Python's own start and end needs a real process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from fastgan.cli import main

_CONTEXT = multiprocessing.get_context("forkserver")
# What runs and tests import; of this folder's modules the server knows nothing.
_CONTEXT.set_forkserver_preload(
    [
        *("fastgan.cli.train", "fastgan.cli.evaluate", "fastgan.cli.check", "fastgan.nn"),
        *(
            "torch.utils.tensorboard",
            "torch.distributed",
            "pytest",
            "PIL.Image",
        ),
        *("matplotlib.figure", "matplotlib.backends.backend_agg"),
    ]
)


class Forked:
    """A process that calls a function, and ends with the code that it returns.

    Args:
        function: of a module that can be imported.
        arguments: its own.
        folder: where ``PID.out`` and ``PID.err`` have what it prints, unless ``stdout`` or
            ``stderr`` names a file to open.
        environment: beyond this process's.
        stdout: a file, a FIFO or a terminal.
        stderr: likewise.
    """

    def __init__(
        self,
        function: Callable[..., int | None],
        *arguments: Any,
        folder: Path,
        environment: Mapping[str, str] | None = None,
        stdout: str | None = None,
        stderr: str | None = None,
    ) -> None:
        self._folder = folder
        streams = {1: stdout, 2: stderr}
        changed = {**os.environ, **(environment or {})}
        self._process = _CONTEXT.Process(
            target=_call, args=(function, arguments, folder, changed, streams), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def ended(self, seconds: float = 60) -> int:
        """The code that it ended with, or minus the signal; it has so many seconds to end."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise AssertionError(f"still running after {seconds} s: {self.errors}")
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    def wait_for(self, happened: Callable[[], object], seconds: float = 60) -> None:
        """Waits until something is true, which must be while it runs."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self._process.is_alive(), self.errors
            assert time.monotonic() < deadline, self.errors
            time.sleep(0.01)

    @property
    def printed(self) -> str:
        """What it has printed."""
        return self._read("out")

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        return self._read("err")

    def _read(self, suffix: str) -> str:
        path = self._folder / f"{self.pid}.{suffix}"
        return path.read_text() if path.exists() else ""


def fastgan_process(*arguments: object, folder: Path, **options: Any) -> Forked:
    """``fastgan ARGUMENTS``."""
    return Forked(main, [str(each) for each in arguments], folder=folder, **options)


def _call(
    function: Callable[..., int | None],
    arguments: tuple[Any, ...],
    folder: Path,
    environment: dict[str, str],
    streams: dict[int, str | None],
) -> None:
    for number, suffix in ((1, "out"), (2, "err")):
        path = streams[number] or str(folder / f"{os.getpid()}.{suffix}")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
