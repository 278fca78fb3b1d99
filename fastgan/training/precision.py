"""``--precision auto``: bf16 on hardware that is fast at it, if shown to train as well as fp32;
otherwise fp32.

Fast are CUDA devices of compute capability 8.0 and above, and processors with AMX unless
``ATEN_CPU_CAPABILITY`` disables it in torch. With only AVX512-BF16, oneDNN's bfloat16 products run
at half float32's rate on some processors and at twice on others, and casts slow small networks
down.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from fastgan._util.devices import choose_device

BF16_TRAINS_AS_WELL: dict[str, bool] = {"cpu": True, "cuda": False}
"""Kind of device -> whether benchmarks/results/precision-KIND.json shows bf16 no worse than fp32.

Set by hand from that file's ``no_worse``; a test compares the two.
"""

_FLAGS = frozenset({"amx_bf16"})


def automatic_precision(device: str) -> str:
    """The precision for "auto" on a device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        "bf16" or "fp32".

    Example:
        >>> automatic_precision("cpu") in ("bf16", "fp32")
        True
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trains_as_well = BF16_TRAINS_AS_WELL[device.partition(":")[0]]
    return "bf16" if trains_as_well and bf16_is_fast(device) else "fp32"


def bf16_is_fast(device: str) -> bool:
    """Whether this machine multiplies bfloat16 matrices faster than float32 ones.

    Args:
        device: "cpu", "cuda" or "cuda:1".

    Raises:
        ConfigError: there is no such GPU.
    """
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            return False
        return torch.cuda.get_device_capability(choose_device(device)) >= (8, 0)
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return wide and bool(_FLAGS & _processor_flags())


@functools.cache
def _processor_flags() -> frozenset[str]:
    """The processor's features by Linux's names; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())
