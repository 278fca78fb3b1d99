"""Peak memory of a call, beyond the memory in use before.

On CUDA devices torch's allocator counts it. On CPUs the kernel does, for the whole process
(``VmHWM``, reset by ``/proc/self/clear_refs``), including oneDNN's and our own scratch memory,
which torch's profiler doesn't see. This requires that freed memory leaves the process: glibc keeps
blocks below a threshold that it raises up to 32 MiB, which would hide peaks, so
:class:`MemoryMeter` pins it low. Allocations are slow then, so nothing is timed meanwhile. The
kernel's count may be off by some hundred kilobytes; smaller peaks are meaningless.
"""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fastgan.errors import FastganError

# mallopt's names, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: Larger blocks are mapped separately, and unmapped when freed.
_MAPPED_FROM = 64 << 10
#: glibc's own maximum: M_MMAP_THRESHOLD at most 32 MiB, M_TRIM_THRESHOLD twice that.
_AFTERWARDS = 32 << 20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def can_measure_memory(device: torch.device) -> str | None:
    """None if :class:`MemoryMeter` works, otherwise the reason.

    Example:
        >>> can_measure_memory(torch.device("cuda")) is None
        True
    """
    if device.type == "cuda":
        return None
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        return "the C library has no mallopt"
    try:
        _CLEAR.write_text("5", encoding="ascii")
    except OSError as error:
        return f"{_CLEAR} can't be written: {error.strerror}"
    return None


class MemoryMeter:
    """Measures peaks of calls; use as a context around all of them.

    Raises:
        FastganError: the reason from :func:`can_measure_memory`.

    Example:
        >>> cpu = torch.device("cpu")
        >>> with MemoryMeter(cpu) as meter:
        ...     peak = meter.peak(lambda: torch.ones(1 << 22).sum())
        >>> round(peak / (1 << 20))
        16
    """

    def __init__(self, device: torch.device) -> None:
        reason = can_measure_memory(device)
        if reason is not None:
            raise FastganError(f"peak memory can't be measured: {reason}")
        self._device = device
        self._library = ctypes.CDLL(None)

    def __enter__(self) -> MemoryMeter:
        if self._device.type == "cpu":
            self._library.mallopt(_M_MMAP_THRESHOLD, _MAPPED_FROM)
            self._library.mallopt(_M_TRIM_THRESHOLD, 0)
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cpu":
            self._library.mallopt(_M_MMAP_THRESHOLD, _AFTERWARDS)
            self._library.mallopt(_M_TRIM_THRESHOLD, 2 * _AFTERWARDS)

    def peak(self, call: Callable[[], object]) -> int:
        """The peak bytes of ``call``, beyond those in use before.

        The second of two calls counts: the first one creates lasting state, such as an optimiser's
        state or a compiled kernel.
        """
        call()
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            before = torch.cuda.memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            call()
            torch.cuda.synchronize(self._device)
            return max(0, torch.cuda.max_memory_allocated(self._device) - before)
        self._library.malloc_trim(0)
        _CLEAR.write_text("5", encoding="ascii")
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)


def saved_bytes(call: Callable[[], object]) -> int:
    """Bytes of tensors that a call's forward passes save for their backward passes.

    Shared memory counts once; leaves that require a gradient (weights) don't count.

    Args:
        call: runs a forward pass, and perhaps a backward pass.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> saved_bytes(lambda: x.mul(2).exp().sum().backward())
        4000
    """
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not (tensor.is_leaf and tensor.requires_grad):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes.values())


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        raise FastganError(f"peak memory can't be measured: {_STATUS} has no {name}")
    return int(match[1]) << 10
