"""A result's context: machine, versions, commit, and load by other processes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from fastgan._native import build_info
from fastgan._version import __version__
from fastgan.ops.backends.devices import processor

_ROOT = Path(__file__).resolve().parent.parent.parent
#: The assumed cache size if unknown: larger than most.
_UNKNOWN_CACHE = 64 << 20


def utc_now() -> str:
    """The time in results' format.

    Example:
        >>> len(utc_now())
        20
    """
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def machine_facts(device: torch.device) -> dict[str, str | int]:
    """The processor or GPU, the cores, torch's threads.

    Args:
        device: the measured device.

    Example:
        >>> sorted(machine_facts(torch.device("cpu")))
        ['cores', 'device', 'memory_bytes', 'processor', 'threads']
    """
    facts: dict[str, str | int] = {
        "device": device.type,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts["gpu"] = properties.name
        facts["compute_capability"] = f"{properties.major}.{properties.minor}"
        facts["gpu_memory_bytes"] = properties.total_memory
    return facts


def versions() -> dict[str, str]:
    """Versions of python, torch, triton and fastgan, and the CPU loops' instruction set."""
    info = build_info()
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastgan": __version__,
        "cpu_instruction_set": info.cpu_instruction_set or "none: plain PyTorch",
    }
    try:
        facts["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        facts["triton"] = "not installed"
    if torch.version.cuda is not None:
        facts["cuda"] = torch.version.cuda
    return facts


def commit() -> str | None:
    """The running code's commit, with ``-dirty`` if files differ; None outside a clone."""
    answers = []
    for arguments in (
        ("rev-parse", "--show-prefix", "HEAD"),
        ("status", "--porcelain", "--untracked-files=no", "--", "csrc", "fastgan", "benchmarks"),
    ):
        try:
            result = subprocess.run(
                ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        if result.returncode != 0:
            return None
        answers.append(result.stdout)
    prefix, head = answers[0].split("\n")[:2]
    if prefix:
        # An install inside another repository: its commit isn't ours.
        return None
    return head + ("-dirty" if answers[1].strip() else "")


def context(device: torch.device) -> dict[str, Any]:
    """A result's ``time``, ``commit``, ``machine`` and ``versions``, as of now.

    Example:
        >>> sorted(context(torch.device("cpu")))
        ['commit', 'machine', 'time', 'versions']
    """
    return {
        "time": utc_now(),
        "commit": commit(),
        "machine": machine_facts(device),
        "versions": versions(),
    }


def cache_bytes(device: torch.device) -> int:
    """The size of the last-level cache: larger sets of inputs aren't cached.

    Example:
        >>> cache_bytes(torch.device("cpu")) > 0
        True
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    largest = 0
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM]?)", path.read_text(encoding="ascii").strip())
        if match is not None:
            largest = max(largest, int(match[1]) << {"": 0, "K": 10, "M": 20}[match[2]])
    return largest or _UNKNOWN_CACHE


class DisturbanceMeter:
    """Measures other processes' share of all cores' time during a block.

    Attributes:
        percent: after the block, of all cores' time; 0 without ``/proc/stat``.

    Example:
        >>> with DisturbanceMeter() as meter:
        ...     _ = sum(range(1000))
        >>> 0 <= meter.percent <= 100
        True
    """

    def __init__(self) -> None:
        self.percent = 0.0

    def __enter__(self) -> DisturbanceMeter:
        self._start = time.monotonic()
        self._before = _busy_seconds()
        return self

    def __exit__(self, *_: object) -> None:
        after = _busy_seconds()
        capacity = (time.monotonic() - self._start) * (os.cpu_count() or 1)
        others = (after[0] - self._before[0]) - (after[1] - self._before[1])
        if capacity > 0:
            self.percent = min(100.0, max(0.0, 100 * others / capacity))


def _busy_seconds() -> tuple[float, float]:
    """Seconds of processor time used by all processes and by this one, so far."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return 0.0, 0.0
    user, nice, system, _idle, _wait, irq, soft_irq, steal = map(float, first.split()[1:9])
    ticks = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + soft_irq + steal) / ticks, sum(os.times()[:2])
