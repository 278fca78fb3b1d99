"""One training step: the critic's updates, the generator's update, the moving average.

An iteration is a function of batches only; its state (weights, optimiser states, the moving
average, sums of the metrics, random states) is in tensors with fixed addresses. So it can be
called, or captured in a CUDA graph and replayed: :mod:`fastgan.training.graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import record_function

from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.feed import Batch
from fastgan.training.updates import GANUpdater

# A profile's phases besides the loop itself.
PHASES = ("data", "critic update", "generator update", "both updates", "moving average")


@dataclass(frozen=True)
class Shape:
    """The properties of a step other than its data; a graph has steps of one shape.

    Attributes:
        penalized: for each critic update, whether its loss has the gradient penalty.
        measured: whether to compute the norm of the generator's gradient.
        penalized_g: whether the generator's update has its lazy penalty.
    """

    penalized: tuple[bool, ...]
    measured: bool
    penalized_g: bool = False


class MetricTotals:
    """Sums of metrics since the last row, on the device, read only when a row is due.

    Args:
        device: the metrics' device.
        dtype: of the sums.

    Attributes:
        counts: each sum's number of values.

    Example:
        >>> totals = MetricTotals()
        >>> totals.add({"loss": torch.tensor(1.0)})
        >>> totals.add({"loss": torch.tensor(2.0)})
        >>> totals.take(), totals.take()
        ({'loss': 1.5}, {})
    """

    def __init__(
        self, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.counts: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}
        self._device = device
        self._dtype = dtype

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Adds each metric to its sum, in place."""
        for name, value in metrics.items():
            if name not in self._sums:
                self._sums[name] = torch.zeros_like(value)
            self.counts[name] = self.counts.get(name, 0) + 1
        if metrics:  # in one launch
            torch._foreach_add_([self._sums[name] for name in metrics], list(metrics.values()))

    def state_dict(self) -> dict[str, list[float]]:
        """Each sum and its number of values. Waits for the device."""
        return {name: [float(self._sums[name]), n] for name, n in self.counts.items()}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restores a :meth:`state_dict`.

        Raises:
            ValueError: it isn't such a state.
        """
        for name, (total, count) in state.items():
            if (
                not (
                    type(name) is str and type(total) is float and type(count) is int and count > 0
                )
                or not name.isprintable()
            ):
                raise ValueError("totals of metrics that can't be")
            self._sums[name] = torch.tensor(total, dtype=self._dtype, device=self._device)
            self.counts[name] = count

    def take(self) -> dict[str, float]:
        """Returns the means and resets the sums. Waits for the device."""
        means = {name: float(self._sums[name]) / n for name, n in self.counts.items() if n}
        for total in self._sums.values():
            total.zero_()
        self.counts.clear()
        return means


class Iteration:
    """All updates of one step.

    Args:
        updater: both networks with their optimisers.
        average: the generator's moving average, or ``None``.
        totals: the sums of the metrics.
    """

    def __init__(
        self, updater: GANUpdater, average: ExponentialMovingAverage | None, totals: MetricTotals
    ) -> None:
        self.updater = updater
        self.average = average
        self.totals = totals

    def run(self, batches: Sequence[Batch], shape: Shape) -> None:
        """Runs one step, with a batch for each of the critic's updates."""
        updater, measured = self.updater, shape.measured
        together = updater.config.one_stage
        metrics: dict[str, Tensor] = {}
        for index, ((real, labels), penalize) in enumerate(
            zip(batches, shape.penalized, strict=True)
        ):
            self.totals.add(metrics)
            if together and index == len(batches) - 1:
                with record_function("both updates"):
                    metrics = updater.update_both(
                        real, labels, penalize=penalize, measure_gradient=measured
                    )
            else:
                with record_function("critic update"):
                    metrics = updater.update_discriminator(real, labels, penalize=penalize)
        if not together:
            with record_function("generator update"):
                real, labels = batches[-1]
                metrics |= updater.update_generator(
                    real=real,
                    labels=labels,
                    measure_gradient=measured,
                    penalize=shape.penalized_g,
                )
        self.totals.add(metrics)
        if self.average is not None:
            with record_function("moving average"):
                self.average.update(updater.generator)
