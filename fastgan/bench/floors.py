"""Measures the machine's limits: its copy bandwidth and its matmul rate.

A step takes at least the time to move its bytes and to compute its operations:

    floor = sum over steps of max(bytes / copy bandwidth, flops / matmul rate)

Both rates are torch's own here, with its threads, so 100% means as fast as ``Tensor.copy_`` and
``torch.mm``. Cached data and in-place work can exceed it (a copy also reads the memory that it
overwrites), and so can convolutions with fewer products: operations are counted by the formula for
all providers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fastgan.bench.machine import cache_bytes
from fastgan.bench.work import Work
from fastgan.errors import ConfigError

_LEAST_COPY, _MOST_COPY = 64 << 20, 1 << 30
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Floors:
    """Measured rates.

    Attributes:
        bytes_per_second: read plus written by a copy larger than the cache.
        flops_per_second: of a square matrix product, by dtype.
    """

    bytes_per_second: float
    flops_per_second: Mapping[str, float]

    def seconds(self, work: Work, dtype: str) -> float:
        """The least time for ``work``.

        Raises:
            ConfigError: a dtype whose rate wasn't measured.

        Example:
            >>> from fastgan.bench.work import Step
            >>> floors = Floors(10.0, {"float32": 100.0})
            >>> floors.seconds(Work((Step(200.0, 10.0), Step(0.0, 30.0))), "float32")
            5.0
        """
        if dtype not in self.flops_per_second:
            raise ConfigError(
                f"dtype: expected one of {', '.join(self.flops_per_second)}, got {dtype!r}"
            )
        rate = self.flops_per_second[dtype]
        return sum(
            max(step.bytes / self.bytes_per_second, step.flops / rate) for step in work.steps
        )

    def bound(self, work: Work, dtype: str) -> str:
        """The larger part of the floor: "bandwidth" or "arithmetic"."""
        rate = self.flops_per_second[dtype]
        arithmetic = sum(
            step.flops / rate
            for step in work.steps
            if step.flops / rate > step.bytes / self.bytes_per_second
        )
        return "arithmetic" if arithmetic > self.seconds(work, dtype) / 2 else "bandwidth"

    def best(self, other: Floors) -> Floors:
        """The better of two measurements, rate by rate."""
        return Floors(
            max(self.bytes_per_second, other.bytes_per_second),
            {
                dtype: max(rate, other.flops_per_second.get(dtype, 0.0))
                for dtype, rate in self.flops_per_second.items()
            },
        )


def measure_floors(
    device: torch.device,
    *,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    repeats: int = 7,
    matrix: int | None = None,
) -> Floors:
    """Measures both rates; about two seconds on a CPU.

    Args:
        device: where.
        dtypes: of the matrix products: "float32", "bfloat16", "float16".
        repeats: timed runs, of which the median counts.
        matrix: side of the square matrices; by default 2048 on a CPU, 8192 on a GPU.

    Example:
        >>> floors = measure_floors(torch.device("cpu"), dtypes=("float32",), matrix=128)
        >>> floors.bytes_per_second > 0 and floors.flops_per_second["float32"] > 0
        True
    """
    n_bytes = min(max(2 * cache_bytes(device), _LEAST_COPY), _MOST_COPY) // 2
    copy = _median_seconds(_copy(n_bytes // 4, device), device, repeats)
    moved = 2 * (n_bytes // 4) * 4
    side = matrix or (8192 if device.type == "cuda" else 2048)
    rates = {}
    for dtype in dtypes:
        left, right = (torch.randn(side, side, device=device).to(_DTYPES[dtype]) for _ in range(2))
        product = torch.empty_like(left)
        seconds = _median_seconds(_product(left, right, product), device, repeats)
        rates[dtype] = 2 * side**3 / seconds
    return Floors(moved / copy, rates)


def _copy(elements: int, device: torch.device) -> Callable[[], object]:
    source = torch.ones(elements, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product(
    left: torch.Tensor, right: torch.Tensor, product: torch.Tensor
) -> Callable[[], object]:
    return lambda: torch.mm(left, right, out=product)


def _median_seconds(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    call()
    times = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
