"""``--profile``: a trace of a few steps, and a summary of where their time goes.

The trace is torch.profiler's, for https://ui.perfetto.dev or chrome://tracing. The summary splits
the traced steps' wall time into the trainer's phases, and lists the ops that take most of it.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fastgan._util.files import atomic_write
from fastgan.errors import OutputError
from fastgan.training.iteration import PHASES

# The first steps choose algorithms, create states and capture graphs, and aren't representative.
WAIT = 8
WARM_UP = 2
TRACED = 5
LONGEST_TABLE = 20


class StepProfiler:
    """Traces :data:`TRACED` steps after the first ten; used in a ``with`` statement.

    A shorter run is traced after its first step; a run of one step isn't traced.

    Args:
        folder: for ``trace.json`` and ``summary.txt``.
        device: the steps' device.
        steps: the run's remaining steps; ``None`` for many.
    """

    def __init__(self, folder: Path, device: torch.device, steps: int | None = None) -> None:
        self._folder = folder
        self._device = device
        many = steps is None or steps >= WAIT + WARM_UP + TRACED
        wait, warm_up = (WAIT, WARM_UP) if many else (0, 1)
        traced = TRACED if many or steps is None else max(1, steps - warm_up)
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=wait, warmup=warm_up, active=traced, repeat=1),
            on_trace_ready=self._write,
        )
        self._untraced = wait + warm_up
        self._done = 0
        self._began = 0.0
        self._seconds = 0.0

    def __enter__(self) -> StepProfiler:
        self._profile.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._profile.__exit__(kind, error, traceback)

    def step(self) -> None:
        """Called after each training step."""
        self._done += 1
        if self._device.type == "cuda" and self._done >= self._untraced:
            torch.cuda.synchronize(self._device)
        if self._done == self._untraced:
            self._began = time.perf_counter()
        elif self._done > self._untraced and not self._folder.exists():
            self._seconds = time.perf_counter() - self._began
        self._profile.step()

    def _write(self, traced: Any) -> None:
        try:
            self._folder.mkdir(exist_ok=True)
            traced.export_chrome_trace(str(self._folder / "trace.json"))
        except OSError as error:
            reason = error.strerror or error
            raise OutputError(f"{self._folder}: can't be written: {reason}") from error
        steps = max(1, self._done - self._untraced)
        text = summarize(traced.key_averages(), self._device, steps, self._seconds)
        with atomic_write(self._folder / "summary.txt") as file:
            file.write(text.encode())


def summarize(events: Sequence[Any], device: torch.device, steps: int, seconds: float) -> str:
    """The summary: phases, then ops by self time, both as shares of the wall time.

    Args:
        events: from ``torch.profiler.profile.key_averages``.
        device: the steps' device.
        steps: the number of traced steps.
        seconds: their wall time.
    """
    on_gpu = device.type == "cuda"
    wall = max(seconds, 1e-9) * 1e6
    name = (
        torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    )
    lines = [
        f"{steps} steps in {seconds * 1e3:.1f} ms, {seconds / steps * 1e3:.2f} ms a step",
        f"{name}; torch {torch.__version__}, Python {platform.python_version()}",
        "",
        "phase                              calls    ms/call   of the time",
    ]
    known = 0.0
    for event in events:
        if event.key in PHASES:
            total = event.cpu_time_total
            known += total
            lines.append(_line(event.key, event.count, total, wall))
    lines += [_line("everything else", steps, max(wall - known, 0.0), wall), ""]
    if on_gpu:
        busy = sum(event.self_device_time_total for event in events if event.key not in PHASES)
        lines += [f"the GPU is busy {100 * busy / wall:.1f}% of the time", ""]
    lines.append("op, its own time                   calls    ms/call   of the time")

    def own(event: Any) -> float:
        spent: float = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        return spent

    ops = sorted((e for e in events if e.key not in PHASES), key=own, reverse=True)
    lines += [_line(e.key, e.count, own(e), wall) for e in ops[:LONGEST_TABLE] if own(e) > 0]
    return "\n".join(lines) + "\n"


def _line(name: str, calls: int, microseconds: float, wall: float) -> str:
    shown = name if len(name) <= 32 else name[:29] + "..."
    milliseconds = microseconds / max(calls, 1) / 1e3
    return f"{shown:32} {calls:7d} {milliseconds:10.3f} {100 * microseconds / wall:12.1f}%"
