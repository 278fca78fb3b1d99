"""Measures the time spent training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Clock"]


class Clock:
    """The time since training began, and images per second without pauses.

    Args:
        seconds_before: time that earlier calls spent on the same run.

    Example:
        >>> clock = Clock(seconds_before=10.0)
        >>> clock.count(64)
        >>> clock.lap() > 0, clock.total_seconds >= 10
        (True, True)
    """

    def __init__(self, seconds_before: float = 0.0) -> None:
        self._before = seconds_before
        self._started = self._lap = time.perf_counter()
        self._paused = 0.0
        self._images = 0

    @property
    def seconds(self) -> float:
        """Seconds since this clock was started."""
        return time.perf_counter() - self._started

    @property
    def total_seconds(self) -> float:
        """Seconds of this call and of those that it continues."""
        return self._before + self.seconds

    def count(self, images: int) -> None:
        """Adds images to those trained on since the last lap."""
        self._images += images

    def lap(self) -> float:
        """Returns images per second since the last lap, and starts a new one."""
        now = time.perf_counter()
        rate = self._images / (now - self._lap - self._paused)
        self._lap, self._paused, self._images = now, 0.0, 0
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time spent in the block out of the lap."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began
