"""Callbacks that send a run's metrics and grids of samples to W&B, trackio or MLflow."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar

from fastgan._util.extras import require
from fastgan._util.reading import one_line
from fastgan.errors import OutputError
from fastgan.training.callbacks import Callback
from fastgan.training.outputs import grid_path
from fastgan.training.recorder import tagged

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.training.result import TrainingResult
    from fastgan.training.trainer import Trainer


class _Logger(Callback, ABC):
    """Base class of the loggers; only the first process logs.

    Args:
        options: arguments of the service's function that begins a run.

    Attributes:
        run: the service's run; None before training begins, and in all but the first process.
    """

    package: ClassVar[str]

    def __init__(self, **options: Any) -> None:
        require(self.package, self.package)
        self._options = options
        self._is_mine = True
        self.run: Any = None

    def on_start(self, trainer: Trainer) -> None:
        """Begins a run, with the settings.

        Raises:
            OutputError: the service refuses, without a login for one.
        """
        if not trainer.processes.is_main:
            return
        with self._refusing("begin a run"):
            self._begin(trainer.out.resolve().name, trainer.config.to_dict())

    def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Sends the row, under TensorBoard's names.

        Raises:
            OutputError: the service doesn't take it.
        """
        if self.run is not None:
            with self._refusing("send metrics"):
                self._log(tagged(row), trainer.step)

    def on_samples(self, trainer: Trainer, images: Tensor) -> None:
        """Sends the grid.

        Raises:
            OutputError: the service doesn't take it.
        """
        if self.run is not None:
            with self._refusing("send a grid"):
                self._log_image(str(grid_path(trainer.out, trainer.step)), trainer.step)

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """Ends the run, if it began here.

        Raises:
            OutputError: the service can't.
        """
        with self._refusing("end the run"):
            self._close(failed=False)

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Ends the run as a failed one, if it began here."""
        with suppress(Exception):  # the original error is the one to report
            self._close(failed=True)

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the service may raise anything
            raise OutputError(f"{self.package}: can't {what}: {one_line(error)}") from error

    def _close(self, *, failed: bool) -> None:
        run, self.run = self.run, None
        if run is not None and self._is_mine:
            self._finish(run, failed=failed)

    @abstractmethod
    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        """Sets ``self.run``, and ``self._is_mine``: whether it began here."""

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(metrics, step=step)

    @abstractmethod
    def _log_image(self, path: str, step: int) -> None:
        """Sends the picture in a file."""

    @abstractmethod
    def _finish(self, run: Any, *, failed: bool) -> None:
        """Ends a run that began here."""


class WandbLogger(_Logger):
    """Weights & Biases, ``pip install 'fastgan[wandb]'``.

    A run that is active already is taken, and left open.

    Args:
        options: of ``wandb.init``. By default ``project`` is ``WANDB_PROJECT`` or "fastgan",
            ``name`` that of the run's folder, ``config`` the run's settings. To continue a run
            after ``resume=True``: ``id=..., resume="must"``.

    Raises:
        ConfigError: wandb isn't installed.

    Example::

        logger = WandbLogger(project="digits", mode="offline")
        Trainer(TrainConfig(out="runs/digits"), callbacks=[logger]).run()
    """

    package = "wandb"

    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        import wandb

        self._is_mine = wandb.run is None
        project = os.environ.get("WANDB_PROJECT", "fastgan")
        options = {"project": project, "name": name, "config": settings, **self._options}
        self.run = wandb.init(**options) if self._is_mine else wandb.run

    def _log_image(self, path: str, step: int) -> None:
        import wandb

        self.run.log({"samples": wandb.Image(path)}, step=step)

    def _finish(self, run: Any, *, failed: bool) -> None:
        run.finish(exit_code=int(failed))


class TrackioLogger(_Logger):
    """trackio, ``pip install 'fastgan[trackio]'``: local runs, shown by ``trackio show``.

    Args:
        options: of ``trackio.init``. By default ``project`` is "fastgan", ``name`` that of the
            run's folder, ``config`` the run's settings.

    Raises:
        ConfigError: trackio isn't installed.

    Example::

        logger = TrackioLogger(project="digits")
        Trainer(TrainConfig(out="runs/digits"), callbacks=[logger]).run()
    """

    package = "trackio"

    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        import trackio

        options = {"project": "fastgan", "name": name, "config": settings, **self._options}
        self.run = trackio.init(**options)

    def _log_image(self, path: str, step: int) -> None:
        import trackio

        self.run.log({"samples": trackio.Image(path)}, step=step)

    def _finish(self, run: Any, *, failed: bool) -> None:
        run.finish()


class MLflowLogger(_Logger):
    """MLflow, ``pip install 'fastgan[mlflow]'``.

    Uses an active run, and leaves it open. MLflow determines the storage and the experiment:
    ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME``, or ``mlflow.set_tracking_uri`` and
    ``mlflow.set_experiment``.

    Args:
        options: of ``mlflow.start_run``. By default ``run_name`` is that of the run's folder. To
            continue a run after ``resume=True``: ``run_id=...``.

    Raises:
        ConfigError: mlflow isn't installed.

    Example::

        logger = MLflowLogger(tags={"data": "digits"})
        Trainer(TrainConfig(out="runs/digits"), callbacks=[logger]).run()
    """

    package = "mlflow"

    def _begin(self, name: str, settings: dict[str, Any]) -> None:
        import mlflow

        active = mlflow.active_run()
        self._is_mine = active is None
        self.run = active or mlflow.start_run(**{"run_name": name, **self._options})
        # A continued run has parameters already, which can't be changed.
        if self._is_mine and "run_id" not in self._options:
            mlflow.log_params(settings)

    def _log(self, metrics: Mapping[str, float], step: int) -> None:
        import mlflow

        # MLflow refuses other characters.
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in metrics.items()}
        mlflow.log_metrics(named, step=step, run_id=self.run.info.run_id)

    def _log_image(self, path: str, step: int) -> None:
        import mlflow

        mlflow.log_artifact(path, "samples", run_id=self.run.info.run_id)

    def _finish(self, run: Any, *, failed: bool) -> None:
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")


#: By the names of ``fastgan train --logger``.
LOGGERS = {each.package: each for each in (WandbLogger, TrackioLogger, MLflowLogger)}
