"""What ``--precision auto`` is: bf16 where the hardware is fast at it, once it is shown to train
as well as fp32, and fp32 everywhere else.

Fast: CUDA devices of compute capability 8.0 and above, and processors with AMX, unless torch was
told to leave its instructions alone (``ATEN_CPU_CAPABILITY``). Those with AVX512-BF16 alone
multiply bfloat16 at half float32's rate (benchmarks/results/bench-cpu-training.json: torch's own
iterations take longer in it), and small networks, whose time goes into casts, lose by it.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from fastgan._util.devices import choose_device

__all__ = ["BF16_TRAINS_AS_WELL", "automatic_precision", "bf16_is_fast"]

BF16_TRAINS_AS_WELL: dict[str, bool] = {"cpu": True, "cuda": False}
"""By kind of device: whether benchmarks/results/precision-KIND.json shows bf16 no worse than fp32.

Set by hand to what that file's ``no_worse`` says; a test holds the two together.
"""

_FLAGS = frozenset({"amx_bf16"})


def automatic_precision(device: str) -> str:
    """What "auto" stands for on a device.

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
    """The processor's features, as Linux names them; none where it doesn't say."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").partition(":")[2].split())
