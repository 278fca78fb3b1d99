"""Measures the time spent training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """The time since training began, and images per second without pauses.

    Args:
        seconds_before: earlier calls' time for the same run.

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
        """Seconds of this and all earlier calls."""
        return self._before + self.seconds

    def count(self, images: int) -> None:
        """Adds images to this lap's count."""
        self._images += images

    def lap(self) -> float:
        """Returns images per second since the last lap, and starts a new one."""
        now = time.perf_counter()
        rate = self._images / (now - self._lap - self._paused)
        self._lap, self._paused, self._images = now, 0.0, 0
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the block's time from the lap."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began


class Planner:
    """Plans the number of steps in a run's time, by the speed of the first steps.

    The speed is measured over the first 5% of the time, without the first step, which may compile.
    A tenth of the time is reserved for pictures and checkpoints.

    Args:
        budget: seconds for the whole run.
        spent: earlier calls' seconds; beyond 5% their plan is kept.

    Attributes:
        done: whether the plan is made.

    Example:
        >>> planner = Planner(100.0, spent=0.0)
        >>> planner.steps(1, 5.0), planner.steps(2, 8.0), planner.steps(3, 11.0)
        (None, None, 29)
        >>> planner.done
        True
    """

    def __init__(self, budget: float, spent: float) -> None:
        self._budget = budget
        self._first: tuple[int, float] | None = None
        self.done = spent > 0.05 * budget

    def steps(self, step: int, seconds: float) -> int | None:
        """The run's steps, or None while its speed is unknown; at least one more than ``step``.

        Args:
            step: steps done.
            seconds: the run's time so far.
        """
        if self._first is None:
            self._first = step, seconds
            return None
        first, began = self._first
        if seconds - began < 0.05 * self._budget:
            return None
        self.done = True
        left = max(0.0, 0.9 * self._budget - seconds)
        return step + max(1, int(left * (step - first) / (seconds - began)))
