"""The result of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fastgan.errors import FastganError


class TrainingDivergedError(FastganError, ArithmeticError):
    """A loss or a weight became NaN or infinite; the message names the last good checkpoint."""

    exit_code = 1


@dataclass(frozen=True)
class TrainingResult:
    """The result of :meth:`fastgan.training.Trainer.run`.

    Attributes:
        out: the run's folder.
        checkpoint: the newest checkpoint.
        samples: the final sample grid.
        step: generator updates done.
        seconds: time spent training in this call.
        stopped_by: None after all steps, else the name of the signal or the limit.
        metrics: the last row of metrics.csv.
    """

    out: Path
    checkpoint: Path
    samples: Path
    step: int
    seconds: float
    stopped_by: str | None
    metrics: Mapping[str, float]
