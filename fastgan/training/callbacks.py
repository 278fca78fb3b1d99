"""The base class of callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.training.result import TrainingResult
    from fastgan.training.trainer import Trainer


class Callback:
    """A run's events; override those that you need.

    Log your own metrics by :meth:`Trainer.log`: they become columns of metrics.csv and curves in
    TensorBoard. An error in a callback ends the run, after saving a checkpoint.

    Example:
        >>> import tempfile
        >>> from fastgan.training import TrainConfig, Trainer
        >>> class WeightNorm(Callback):
        ...     def on_step(self, trainer):
        ...         weights = trainer.updater.generator.parameters()
        ...         trainer.log("weight_norm", sum(float(w.norm()) for w in weights))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(out=folder, steps=2, batch_size=4, ngf=4, ndf=4)
        ...     "weight_norm" in Trainer(config, callbacks=[WeightNorm()]).run().metrics
        True
    """

    def on_loading(self, trainer: Trainer, done: int, total: int) -> None:
        """Called while image files are read and checked, with the counts so far and in total."""

    def on_start(self, trainer: Trainer) -> None:
        """Called before training, at ``trainer.step``; nothing of the run is written yet."""

    def on_plan(self, trainer: Trainer) -> None:
        """Called after ``trainer.config.steps`` was reduced to fit ``trainer.config.minutes``."""

    def on_step(self, trainer: Trainer) -> None:
        """Called after a generator update. Reading a loss here would wait for the device.

        ``trainer.row`` has the step's numbers if they are recorded, else None.
        """

    def on_step_end(self, trainer: Trainer) -> None:
        """Called at the end of a step, after its row, if any, is written."""

    def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Called after a row of metrics.csv was written."""

    def on_samples(self, trainer: Trainer, images: Tensor) -> None:
        """Called with a grid's samples: float32 (N, channels, size, size) in [-1, 1], on the
        CPU."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """Called after a checkpoint was written to ``path``."""

    def on_warning(self, trainer: Trainer, text: str) -> None:
        """Called when a training problem is detected."""

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """Called when the run has finished or was stopped."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Called before the run ends with this error, after saving what is possible."""
