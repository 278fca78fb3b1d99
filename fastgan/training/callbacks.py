"""How a run is listened to: one class, whose methods a listener overrides as it needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastgan.training.trainer import Trainer, TrainingResult

__all__ = ["Callback"]


class Callback:
    """What a :class:`Trainer` tells whoever listens; override what you need.

    Metrics of one's own go through :meth:`Trainer.log`: they become columns of metrics.csv and
    curves in TensorBoard. An error raised in a callback ends the run, as it would anywhere; what
    was trained so far is saved first.

    Example:
        >>> import tempfile
        >>> from fastgan.training import TrainConfig, Trainer
        >>> class WeightNorm(Callback):
        ...     def on_step(self, trainer):
        ...         weights = trainer.players.generator.parameters()
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

    def on_step(self, trainer: Trainer) -> None:
        """A generator update is done. Reading a loss here would wait for the device."""

    def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """A row of metrics.csv was written."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """A checkpoint was written, whole, to ``path``."""

    def on_warning(self, trainer: Trainer, text: str) -> None:
        """Trouble set in; ``text`` names it."""

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """The run has ended well or was stopped."""
