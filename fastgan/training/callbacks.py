"""The base class of callbacks, which watch a run and take part in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.training.result import TrainingResult
    from fastgan.training.trainer import Trainer

__all__ = ["Callback"]


class Callback:
    """The events of a run; override those that you need.

    Metrics of one's own go through :meth:`Trainer.log`: they become columns of metrics.csv and
    curves in TensorBoard. An error raised in a callback ends the run, as it would anywhere; what
    was trained so far is saved first.

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
        """So many of so many image files have been read and checked."""

    def on_start(self, trainer: Trainer) -> None:
        """Training is about to begin, at ``trainer.step``."""

    def on_plan(self, trainer: Trainer) -> None:
        """``trainer.config.steps`` was lowered to what fits into ``trainer.config.minutes``."""

    def on_step(self, trainer: Trainer) -> None:
        """A generator update is done. Reading a loss here would wait for the device.

        ``trainer.row`` holds the step's numbers if they are recorded, else None.
        """

    def on_step_end(self, trainer: Trainer) -> None:
        """A step is done, and its row, if it has one, is written."""

    def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """A row of metrics.csv was written."""

    def on_samples(self, trainer: Trainer, images: Tensor) -> None:
        """A grid of samples was drawn: float32 (N, channels, size, size) in [-1, 1], on the CPU."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """A checkpoint was written, whole, to ``path``."""

    def on_warning(self, trainer: Trainer, text: str) -> None:
        """Trouble set in; ``text`` names it."""

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """The run has ended well or was stopped."""

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """The run is about to end with this error; what could be saved is saved."""
