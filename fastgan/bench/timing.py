"""Timing in turns: every contender runs once per round, so that disturbances affect all.

Two contenders are compared by the ratio within a round, its median and quartiles over rounds: a
machine that slows down for a minute slows both. The order rotates, as each contender finds the
caches of the one before; inputs rotate, too, so that together they exceed the last-level cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fastgan.bench.machine import DisturbanceMeter
from fastgan.errors import ConfigError

#: Runs a contender once on the numbered input set.
Call = Callable[[int], object]


@dataclass(frozen=True)
class Budget:
    """The length of a measurement.

    Attributes:
        seconds: approximate time of all rounds.
        fewest: least number of rounds, for any duration; quartiles need 4.
        most: greatest number of rounds.
        warm_up: untimed calls of each contender before.
    """

    seconds: float = 20.0
    fewest: int = 5
    most: int = 100
    warm_up: int = 2

    def __post_init__(self) -> None:
        if not 4 <= self.fewest <= self.most:
            raise ConfigError(
                f"fewest, most: expected 4 <= fewest <= most, got {self.fewest} and {self.most}"
            )


@dataclass(frozen=True)
class Timing:
    """The measured times.

    Attributes:
        seconds: each contender's time per round, until the device is done.
        host_seconds: the same until the call returned; equal on a CPU.
        disturbance: other processes' percent of all cores' time.
    """

    seconds: Mapping[str, tuple[float, ...]]
    host_seconds: Mapping[str, tuple[float, ...]]
    disturbance: float

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return len(next(iter(self.seconds.values())))

    def times_faster(
        self, name: str, peer: str, *, host: bool = False
    ) -> tuple[float, tuple[float, float]]:
        """The ratio of ``peer``'s time to ``name``'s in each round: median and quartiles.

        Args:
            name: of a contender.
            peer: of another.
            host: compare the time until the calls returned.

        Example:
            >>> timing = Timing({"a": (1.0, 2.0, 1.0, 1.0), "b": (2.0, 4.0, 2.2, 2.0)}, {}, 0.0)
            >>> timing.times_faster("a", "b")[0]
            2.0
        """
        times = self.host_seconds if host else self.seconds
        return median_and_quartiles([p / o for o, p in zip(times[name], times[peer], strict=True)])


def median_and_quartiles(values: list[float]) -> tuple[float, tuple[float, float]]:
    """Median, and first and third quartile; needs two values or more.

    Example:
        >>> median_and_quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
        (3.0, (2.0, 4.0))
    """
    first, middle, third = statistics.quantiles(values, n=4, method="inclusive")
    return middle, (first, third)


def measure_in_turns(
    calls: Mapping[str, Call],
    *,
    device: torch.device,
    copies: int = 1,
    budget: Budget | None = None,
) -> Timing:
    """Times contenders, one call each per round, until the budget is spent.

    On a CUDA device a call's time is between two events in the current stream, after synchronising:
    it includes launching, as for users.

    Args:
        calls: each contender's function of the input set's number.
        device: where they run.
        copies: the number of input sets; round n runs on set ``n % copies``.
        budget: the length; the default takes about 20 seconds.

    Returns:
        Every single time.

    Raises:
        ConfigError: no contender, or no input set.

    Example:
        >>> timing = measure_in_turns({"a": lambda n: sum(range(9)), "b": lambda n: None},
        ...                           device=torch.device("cpu"), budget=Budget(most=5))
        >>> sorted(timing.seconds), timing.rounds
        (['a', 'b'], 5)
    """
    if not calls:
        raise ConfigError("calls: expected a contender at least, got none")
    if copies < 1:
        raise ConfigError(f"copies: expected at least 1, got {copies}")
    budget = budget or Budget()
    clock = _DeviceClock(device) if device.type == "cuda" else _HostClock()
    names = list(calls)
    for number in range(budget.warm_up):
        for name in names:
            clock.time(calls[name], number % copies)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    host: dict[str, list[float]] = {name: [] for name in names}
    started = time.perf_counter()
    with DisturbanceMeter() as meter:
        for number in range(budget.most):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                whole, until_return = clock.time(calls[name], number % copies)
                seconds[name].append(whole)
                host[name].append(until_return)
            done = number + 1
            elapsed = time.perf_counter() - started
            # Stops where the next round would be beyond the budget, not after it.
            if done >= budget.fewest and elapsed * (done + 1) / done > budget.seconds:
                break
    return Timing(
        {name: tuple(values) for name, values in seconds.items()},
        {name: tuple(values) for name, values in host.items()},
        meter.percent,
    )


class _HostClock:
    """For CPUs, whose work is done when the call returns."""

    def time(self, call: Call, number: int) -> tuple[float, float]:
        start = time.perf_counter()
        call(number)
        seconds = time.perf_counter() - start
        return seconds, seconds


class _DeviceClock:
    """For CUDA devices: events for the total, the host's clock until the call returns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def time(self, call: Call, number: int) -> tuple[float, float]:
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self._device)
        before.record()
        start = time.perf_counter()
        call(number)
        host = time.perf_counter() - start
        after.record()
        torch.cuda.synchronize(self._device)
        return before.elapsed_time(after) / 1e3, host
