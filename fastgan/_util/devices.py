"""Resolves the names of devices: ``auto``, ``cpu``, ``cuda``, ``cuda:1``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fastgan.errors import ConfigError

if TYPE_CHECKING:
    import torch

#: For messages and help.
DEVICES = "auto, cpu, cuda or cuda:N"
# At most 127, torch's largest index; torch allows no leading zeros.
_NAME = re.compile(r"auto|cpu|cuda(:(0|[1-9][0-9]?|1[01][0-9]|12[0-7]))?")


def check_device_name(name: str) -> str:
    """Returns ``name`` if it names a device. Doesn't import torch or look for the device.

    Raises:
        ConfigError: it doesn't name a device.

    Example:
        >>> check_device_name("cuda:0")
        'cuda:0'
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"device: expected {DEVICES}, got {name!r}")
    return name


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is ``cuda`` if torch finds a GPU, else ``cpu``.

    Raises:
        ConfigError: it doesn't name a device, or this machine has no such GPU.

    Example:
        >>> choose_device("cpu")
        device(type='cpu')
    """
    import torch

    check_device_name(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        seen = {0: "no CUDA device", 1: "one CUDA device, cuda:0,"}.get(
            count, f"{count} CUDA devices, cuda:0 to cuda:{count - 1},"
        )
        raise ConfigError(f"device: {name} was asked for, but torch sees {seen} here")
    return device
