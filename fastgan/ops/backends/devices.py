"""Names of devices, and of the software versions for which a measurement is valid."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastgan import _native
from fastgan._version import __version__


@cache
def processor() -> str:
    """The CPU's own name."""
    return _cpu_facts().get("model name") or platform.processor() or platform.machine()


@cache
def device_name(device: torch.device) -> str:
    """The device's model, the key of committed tables.

    Example:
        >>> device_name(torch.device("cpu")).startswith("cpu: ")
        True
    """
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"cuda: {properties.name}, sm_{properties.major}{properties.minor}"
    facts = _cpu_facts()
    numbers = [f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts]
    instructions = _native.build_info().cpu_instruction_set or "no compiled part"
    return "cpu: " + ", ".join([processor(), *numbers, instructions])


@cache
def fingerprint(device: torch.device) -> str:
    """The device with all software versions that affect its speed, the key in files of choices."""
    parts = [device_name(device), f"torch {torch.__version__}", f"fastgan {__version__}"]
    if device.type == "cuda":
        built_with_cuda: Any = torch._C
        parts.append(f"driver {built_with_cuda._cuda_getDriverVersion()}")
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
        if importlib.util.find_spec("triton") is not None:
            parts.append(f"triton {importlib.metadata.version('triton')}")
    return "; ".join(parts)


@cache
def _cpu_facts() -> dict[str, str]:
    """The first processor's entries in /proc/cpuinfo; empty if there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
