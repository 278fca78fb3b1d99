"""Checks whether this build's CUDA kernels can run on this machine's GPUs; if not, uses plain
PyTorch.

A library of CUDA kernels holds machine code ("sm_90a") for some GPUs and PTX ("compute_120"), which
the driver compiles for later ones. Every launch fails on a GPU with neither, or with a driver older
than the CUDA runtime. Both are checked when torch initialises CUDA; then all ops use plain PyTorch
on CUDA devices, as in a build without CUDA.

CUDA C++ Programming Guide, "Application compatibility"; CUDA Compatibility, "Minor version
compatibility".
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from functools import cache

import torch

from fastgan import _native

Version = tuple[int, int]

NO_COMPILED_PART = "this install of fastgan has no compiled part (FASTGAN_BUILD_NATIVE=0)"


@cache
def cuda_obstacle() -> str | None:
    """Says why the CUDA kernels don't run here; None if they do, or if there is no GPU.

    Checked once per process. Initialises CUDA if there is a GPU.

    Example:
        >>> from fastgan import build_info
        >>> cuda_obstacle() is None or torch.cuda.is_available() or not build_info().cuda
        True
    """
    if not _native.load():
        return NO_COMPILED_PART
    info = _native.build_info()
    if not info.cuda:
        return f"this build of fastgan has no CUDA kernels ({info.cuda_left_out_because})"
    if not torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "this torch is built for ROCm; fastgan's kernels are for CUDA"
    toolkit = _version(info.cuda_toolkit or "")
    driver = driver_version()
    if driver is not None and driver[0] < toolkit[0]:
        return (
            f"the GPU driver supports CUDA {driver[0]}.{driver[1]}, and this build of fastgan "
            f"needs a driver for CUDA {toolkit[0]} or later: update the driver, or build fastgan "
            f"with nvcc {driver[0]}"
        )
    # An older driver of the same major version runs machine code but can't compile newer PTX.
    compiles = driver is None or driver >= toolkit
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if not has_code_for(capability, info.cuda_architectures, driver_compiles=compiles):
            major, minor = capability
            return (
                f"this build of fastgan has no code for GPU {index}, "
                f"{torch.cuda.get_device_name(index)}, of compute capability {major}.{minor} (it "
                f"has {' '.join(info.cuda_architectures)}): build it with "
                f"FASTGAN_CUDA_ARCHS={major}.{minor}, or hide the GPU with CUDA_VISIBLE_DEVICES"
            )
    return None


def has_code_for(
    capability: Version, architectures: Iterable[str], *, driver_compiles: bool = True
) -> bool:
    """Whether a GPU runs code for any of these architectures.

    Machine code runs on GPUs of its major version with the same or a later minor version, PTX on
    all later GPUs; architecture-specific code (``a``) only on that architecture, family-specific
    code (``f``) on its major version.

    Args:
        capability: the GPU's, such as (9, 0).
        architectures: nvcc's names, "sm_90a" for machine code, "compute_120" for PTX.
        driver_compiles: whether the driver can compile this PTX.

    Example:
        >>> has_code_for((8, 6), ["sm_80", "sm_90a"]), has_code_for((7, 5), ["sm_80", "sm_90a"])
        (True, False)
        >>> has_code_for((12, 0), ["compute_100"]), has_code_for((9, 1), ["sm_90a"])
        (True, False)
    """
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name)
        assert match is not None, name
        target = int(match[2]), int(match[3])
        if match[1] == "compute" and not driver_compiles:
            continue
        if match[4] == "a":
            runs = capability == target
        elif match[1] == "sm" or match[4] == "f":
            runs = capability[0] == target[0] and capability >= target
        else:
            runs = capability >= target
        if runs:
            return True
    return False


@cache
def driver_version() -> Version | None:
    """The CUDA version that the GPU driver supports; None without a driver."""
    try:
        ask = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion
    except (OSError, AttributeError):
        return None
    number = ctypes.c_int()
    if ask(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _version(text: str) -> Version:
    major, minor, *_ = [*text.split("."), "0", "0"]
    return int(major or 0), int(minor)
