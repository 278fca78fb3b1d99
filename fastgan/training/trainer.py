"""The training loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastgan._util.devices import choose_device
from fastgan.data import as_source
from fastgan.data.loading import GIVEN
from fastgan.data.streaming import StreamInterrupted
from fastgan.errors import ConfigError, DataError, FastganError
from fastgan.explaining.fallback import warn_once
from fastgan.ops.backends import recorded_choices
from fastgan.training.callbacks import Callback
from fastgan.training.checkpoint import (
    checkpoint_path,
    describe,
    list_checkpoints,
    save_checkpoint,
)
from fastgan.training.clock import Clock, Planner
from fastgan.training.config import TrainConfig
from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.evaluations import Evaluator
from fastgan.training.feed import Batch, BatchFeed, open_feed, open_source
from fastgan.training.graphs import CapturedIteration, CudaCapture, why_not_captured
from fastgan.training.interrupt import stop_on_signals
from fastgan.training.iteration import Iteration, Shape
from fastgan.training.loggers import LOGGERS
from fastgan.training.model_kinds import named
from fastgan.training.outputs import CheckpointWriter, HealthWatch, MetricsWriter
from fastgan.training.own import OptimizerLike, OwnParts
from fastgan.training.page import PageWriter
from fastgan.training.processes import Processes
from fastgan.training.profiling import StepProfiler
from fastgan.training.recorder import COLUMNS, read_metrics
from fastgan.training.result import TrainingDivergedError, TrainingResult
from fastgan.training.run_folder import RunFolder
from fastgan.training.state import TrainState
from fastgan.training.updates import GANUpdater

#: Settings that may differ between a run's processes.
_OWN = ("device", "workers", "out", "data", "data_a", "data_b")


class Trainer:
    """Trains one GAN.

    Writes to the run's folder, ``config.out``: ``config.toml``, ``metrics.csv``, ``tensorboard/``,
    ``samples-STEP.png``, ``checkpoint-STEP.pt``, ``index.html`` and, at the end, ``samples.png``
    and ``losses.png``. ``backends.json`` (for the n-th further process ``backends-n.json``) has the
    selected convolution backends, which a resumed run uses again. Nothing is written before the
    configuration and the data have been checked.

    Args:
        config: settings; unset ones take the paper's defaults.
        source: data to use instead of loading ``config.data``: an image source, a tensor, an array,
            a dataset, a ``DataLoader`` or a stream of batches, see :func:`fastgan.data.as_source`;
            for ``cyclegan`` and ``pix2pix`` a :class:`fastgan.data.PairSource`. The run's settings
            record the argument of :func:`fastgan.data.load_data`, or ``source:NAME``, which must be
            given again to resume or evaluate.
        generator: your own network, trained in place: takes noise (N, nz, 1, 1), and with
            ``config.conditional`` labels (N,) int64, and returns images (N, channels, size, size)
            in [-1, 1]. ``config.model`` determines the training. Checkpoints have its weights and
            its class's name: give it again to resume, and to :func:`fastgan.load_generator`.
        discriminator: likewise; takes images, and labels, and returns logits (scores for ``wgan``
            and ``wgan-gp``) with a row for each image. :func:`fastgan.fuse` makes either fast.
        optimizers: the generator's and the discriminator's: optimisers of your networks'
            parameters, or functions from a list of parameters to one. Their first groups' learning
            rates are recorded as ``lr_g`` and ``lr_d``, and ``lr_decay`` scales all.
        resume: continue the run in ``config.out`` from its newest checkpoint, or from its
            beginning if it ended before the first one. Settings that affect the trajectory come
            from that run; see ``explicit``.
        explicit: with ``resume``, the names of explicitly set fields: contradicting the checkpoint
            is an error, except for fields that don't affect the trajectory.
        callbacks: called after the trainer's own (:mod:`fastgan.training.outputs`), in every
            process; only the first process writes files.
        processes: the processes that train together, from
            :func:`fastgan.training.joined_processes`; by default this process alone.

    Attributes:
        config: resolved settings.
        source: the images.
        data: their shape.
        state: networks, optimisers, counters.
        row: the current step's numbers, if they are recorded.

    Raises:
        ConfigError: invalid settings, or settings that contradict the resumed run.
        DataError: data that can't be read.
        CheckpointError: a damaged checkpoint to resume from.
        OutputError: the folder can't be written, already contains a run, or, with ``resume``,
            contains none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(model="wgan", out=folder, steps=2, batch_size=8, ngf=8, ndf=8)
        ...     Trainer(config).run().step
        2
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        source: Any = None,
        generator: nn.Module | None = None,
        discriminator: nn.Module | None = None,
        optimizers: tuple[OptimizerLike, OptimizerLike] | None = None,
        resume: bool = False,
        explicit: frozenset[str] = frozenset(),
        callbacks: Sequence[Callback] = (),
        processes: Processes | None = None,
    ) -> None:
        self.out = config.folder()
        self.callbacks = list(callbacks)
        self._own = OwnParts(generator, discriminator, optimizers)
        self.processes = Processes() if processes is None else processes
        self.row: dict[str, float] | None = None
        self._stop_reason: str | None = None
        self._mid_step = False
        self._unremoved: set[Path] = set()  # old checkpoints, each warned about

        self._folder = RunFolder(self.out, resume=resume)
        saved = self._folder.saved
        self.resumed_from = None if saved is None else saved.path
        for failure in self._folder.failures:
            self.warn(f"{failure}; going on from {self.resumed_from}")
        if source is not None:
            saved_size = None if saved is None else saved.config.image_size
            source = as_source(
                source, image_size=config.image_size or saved_size, channels=config.channels
            )
            # The actual data: evaluate and --resume must not use other data.
            recorded = source.spec or f"{GIVEN}:{source.name}"
            size = source.image_size if config.image_size is None else config.image_size
            config = dataclasses.replace(config, data=recorded, image_size=size)
            explicit |= {"data"}
        self.config = config = self._folder.settings(config, explicit)
        if source is not None and source.image_size != config.image_size:
            raise ConfigError(
                f"image_size: {config.image_size}, and the source's images have {source.image_size}"
            )
        self.device = self.processes.device or choose_device(config.device)
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # CUDA graphs and streams use the current device
        _check_share(config, self.processes)
        self.source, self.data = open_source(
            config, source, lambda done, total: self._tell("on_loading", done, total)
        )
        if saved is not None:
            saved.check_data(self.data)
            self._own.require(saved.own, saved.path)
        self._own.check(config, self.data, self.device)
        self.state = TrainState(
            config,
            self.data,
            self.device,
            self.processes,
            rates_on_device=self._captures,
            saved=saved,
            own=self._own,
        )
        self.config = self.state.config
        self._saved_step = self.step
        self._metrics = MetricsWriter()
        self.callbacks = [*self._outputs(), *callbacks]
        self._folder.prepare()

    @property
    def step(self) -> int:
        """Generator updates done."""
        return self.state.step

    @property
    def updater(self) -> GANUpdater:
        """Both networks with their optimisers."""
        return self.state.updater

    @property
    def ema(self) -> ExponentialMovingAverage | None:
        """The generator's moving average, if there is one."""
        return self.state.ema

    def run(self) -> TrainingResult:
        """Trains until all steps are done, a limit is reached or a stop is requested.

        Raises:
            TrainingDivergedError: a loss or weight isn't finite.
        """
        self._stop_reason = None
        self._agree_on_the_run()
        if self.step >= self.config.steps and self.resumed_from is not None:
            # The run is complete; all files stay unchanged.
            rows = read_metrics(self.out / "metrics.csv")
            return self._result(self.resumed_from, 0.0, rows[-1] if rows else {})
        rank = self.processes.rank
        choices = self.out / f"backends{f'-{rank}' if rank else ''}.json"
        with self._sole_writer(), recorded_choices(choices), stop_on_signals(self.request_stop):
            try:
                return self._train()
            except BaseException as error:
                # A second Ctrl-C must not wait for saving; a SystemExit, such as from a callback,
                # may.
                if not isinstance(error, KeyboardInterrupt):
                    self._rescue(error)
                self._tell("on_exception", error)
                raise

    def _train(self) -> TrainingResult:
        config, state = self.config, self.state
        self.processes.broadcast_(state.weights())
        clock = Clock(self._folder.seconds())
        planner = None
        if config.minutes is not None:
            planner = Planner(config.minutes * 60, clock.total_seconds)
        last_row: dict[str, float] = {}
        with self._open_feed() as feed, self._profiler() as profiler:
            with clock.paused():
                # What refuses to start, as a logger may, leaves no run behind.
                self._tell("on_start")
                if self.processes.is_main:
                    self._folder.begin(config)
                    self._metrics.open(self.out, self.step)
            iteration = self._iteration()
            rates = self._set_learning_rates()
            while state.step < self.config.steps and (batches := self._next_batches(feed)):
                self._mid_step = True
                iteration.run(batches, self._shape())
                state.batches += len(batches)
                state.step += 1
                self._mid_step = False
                if planner is not None and not planner.done:
                    self._fit(planner.steps(state.step, clock.total_seconds))
                rates = self._set_learning_rates()
                if state.step < self.config.steps:
                    feed.stage(config.critic_updates(state.step))
                clock.count(len(batches) * self._batch_size)
                self.row = self._numbers(clock, rates) if self._is_logged(state.step) else None
                with clock.paused():
                    self._tell("on_step")
                    if self.row is not None:
                        last_row = self.row = {**self.row, **self.state.logged.take()}
                        self._tell("on_metrics", self.row)
                    self._tell("on_step_end")
                profiler.step()
                if config.max_minutes is not None and clock.seconds > config.max_minutes * 60:
                    self.request_stop("max_minutes")
        if state.step == self.config.steps:
            # A stop requested during the last step: the run is complete.
            self._stop_reason = None
        result = self._result(self.save(), clock.seconds, last_row)
        self._tell("on_end", result)
        return result

    def log(self, name: str, value: float | Tensor) -> None:
        """Adds your own metric to the next row of metrics.csv and to TensorBoard.

        A row has the mean of all values since the last row. Tensors are only read then, so logging
        one doesn't wait for the device.

        Args:
            name: the column; any text without control characters, except the trainer's own names.
            value: a number, or a tensor of one element.

        Raises:
            ConfigError: the name is empty or taken, or the tensor has several elements.
        """
        if name in COLUMNS or not name or not name.isprintable():
            raise ConfigError(f"name: expected a new column's name, got {name!r}")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ConfigError(f"value: expected one element, got shape {tuple(value.shape)}")
            value = value.detach().reshape(())
        self.state.logged.add(
            {name: torch.as_tensor(value, dtype=torch.float64, device=self.device)}
        )

    def warn(self, text: str) -> None:
        """Reports a problem to all callbacks."""
        self._tell("on_warning", text)

    def request_stop(self, reason: str) -> None:
        """Ends the run after the current step, with a checkpoint. Safe in a signal handler."""
        self._stop_reason = reason

    def save(self) -> Path:
        """Writes a checkpoint and removes the oldest ones beyond the limit."""
        path = checkpoint_path(self.out, self.step)
        content = self.state.state_dict()
        if self.processes.is_main:
            self._write(path, content)
            self._tell("on_checkpoint", path)
        self._saved_step = self.step
        return path

    def check_weights(self) -> None:
        """Ends the run if a weight isn't finite.

        Raises:
            TrainingDivergedError: one is not.
        """
        weight = self.state.non_finite_weight()
        if weight is not None:
            self.diverged(weight)

    def diverged(self, what: str) -> None:
        """Ends the run.

        Raises:
            TrainingDivergedError: always.
        """
        good = list_checkpoints(self.out)
        kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was made yet"
        raise TrainingDivergedError(
            f"diverged by step {self.step}: {what}; {kept}. Try a lower learning rate"
        )

    # Parts of the loop --------------------------------------------------------------------------

    def _next_batches(self, feed: BatchFeed) -> list[Batch]:
        """A batch for each critic update of the next step; none if the run must stop."""
        batches: list[Batch] = []
        error: FastganError | None = None
        if self._stop_reason is None:
            with record_function("data"):
                try:
                    batches = feed.take(self.config.critic_updates(self.step))
                except StreamInterrupted:
                    batches = []  # a stop was requested while waiting
                except DataError as caught:
                    error = caught
        self._agree(error)
        return batches if self._stop_reason is None else []

    def _shape(self) -> Shape:
        """The shape of the next step."""
        config = self.config
        assert config.penalty_every is not None
        first = self.state.batches
        return Shape(
            penalized=tuple(
                update % config.penalty_every == 0
                for update in range(first, first + config.critic_updates(self.step))
            ),
            # Measuring costs a graph little, and one graph can then run all steps.
            measured=self._captures or self._is_logged(self.step + 1),
            penalized_g=config.penalizes_generator(self.step),
        )

    def _fit(self, steps: int | None) -> None:
        """Reduces the run to the first process's number of steps, if that is smaller."""
        steps = self.processes.gather(steps)[0]
        if steps is not None and steps < self.config.steps:
            self.config = dataclasses.replace(self.config, steps=steps)
            if self.processes.is_main:
                self._folder.begin(self.config)
            self._tell("on_plan")

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _numbers(self, clock: Clock, rates: tuple[float, float]) -> dict[str, float]:
        """A row of metrics.csv. Waits for the device."""
        means = self.processes.mean(self.state.totals.take())
        return {
            "step": self.step,
            "images": self.state.batches * self._batch_size,
            "seconds": clock.total_seconds,
            "images_per_second": clock.lap(),
            "lr_g": rates[0],
            "lr_d": rates[1],
            **means,
        }

    def _set_learning_rates(self) -> tuple[float, float]:
        config = self.config
        assert config.lr_g is not None
        assert config.lr_d is not None
        factor = 1.0
        if config.lr_decay != "none":
            factor = max(0.0, 1 - self.step / config.steps)
        if config.lr_decay == "half":
            factor = min(1.0, 2 * factor)
        rates = config.lr_g * factor, config.lr_d * factor
        self.updater.set_learning_rates(*rates)
        return rates

    @property
    def _batch_size(self) -> int:
        assert self.config.batch_size is not None
        return self.config.batch_size

    @property
    def _captures(self) -> bool:
        if not self.config.graphs or self.device.type != "cuda" or self._own.given:
            return False  # a failed capture of the caller's code would be noticed too late
        reason = why_not_captured(self.device)
        if reason is not None:
            warn_once(f"steps run one by one, not as CUDA graphs: {reason}")
        return reason is None

    def _iteration(self) -> Iteration | CapturedIteration:
        iteration = Iteration(self.updater, self.state.ema, self.state.totals)
        if not self._captures:
            return iteration
        return CapturedIteration(iteration, CudaCapture(self.device, [self.updater.random]))

    def _open_feed(self) -> Any:
        return open_feed(
            self.source,
            self.config,
            self.device,
            self.processes,
            self.state.batches,
            stopping=lambda: self._stop_reason is not None,
        )

    def _profiler(self) -> Any:
        if not (self.config.profile and self.processes.is_main):
            return nullcontext(_NoProfiler())
        return StepProfiler(self.out / "profile", self.device, self.config.steps - self.step)

    # Files, callbacks and other processes -------------------------------------------------------

    def _outputs(self) -> list[Callback]:
        """The trainer's own callbacks. Only the first process writes files."""
        health = HealthWatch(self.config, self.source.channels * self.source.image_size**2)
        outputs: list[Callback] = [health, CheckpointWriter()]
        evaluator = Evaluator(None)
        if self.processes.is_main:
            metrics = self._metrics
            samples = named(self.config.kind.pictures)(self.config, self.source, metrics, health)
            outputs = [health, samples, metrics, CheckpointWriter(), PageWriter()]
            if self.config.logger != "none":
                outputs.append(LOGGERS[self.config.logger]())
            evaluator = Evaluator(samples)
        return [*outputs, evaluator] if self.config.evaluate_every else outputs

    def _tell(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)

    def _result(self, checkpoint: Path, seconds: float, row: dict[str, float]) -> TrainingResult:
        return TrainingResult(
            out=self.out,
            checkpoint=checkpoint,
            samples=self.out / "samples.png",
            step=self.step,
            seconds=seconds,
            stopped_by=self._stop_reason,
            metrics=row,
        )

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        self.check_weights()
        save_checkpoint(path, {**describe(self.config, self.data), **content})
        for old in list_checkpoints(self.out)[: -self.config.keep_checkpoints]:
            try:
                old.unlink(missing_ok=True)
            except PermissionError as error:  # as on Windows while somebody reads it
                if old not in self._unremoved:
                    self._unremoved.add(old)
                    self.warn(f"{old} wasn't removed, the next save tries again: {error}")

    def _rescue(self, error: BaseException) -> None:
        """Saves a checkpoint after an error between two steps."""
        alone = self.processes.world_size == 1
        if (
            self._mid_step
            or self.step in (0, self._saved_step)
            or isinstance(error, TrainingDivergedError)
            or not (alone or self.processes.agreed_to_fail)
        ):
            return
        path = checkpoint_path(self.out, self.step)
        # If saving fails, such as on a full disk, the original error is the one to report; the
        # previous checkpoint still exists.
        with suppress(Exception):
            content = self.state.state_dict()
            if self.processes.is_main:
                self._write(path, content)
                self.warn(f"cut short after step {self.step}; saved {path}")

    @contextmanager
    def _sole_writer(self) -> Iterator[None]:
        """Locks the run's folder in the process that writes there."""
        failure: FastganError | None = None
        with ExitStack() as stack:
            if self.processes.is_main:
                try:
                    stack.enter_context(self._folder.locked())
                except FastganError as error:
                    failure = error
            # Every process has read the folder before one writes there.
            self._agree(failure)
            yield

    def _agree(self, error: FastganError | None = None) -> None:
        self._stop_reason = self.processes.agree(self._stop_reason, error)

    def _agree_on_the_run(self) -> None:
        """Raises if processes have different settings or data."""
        if self.processes.world_size == 1:
            return
        settings = self.config.to_dict().items()
        self.processes.require_same(
            {
                **{name: value for name, value in settings if name not in _OWN},
                "data": self.source.digest(),
                "step": self.step,
                "batches": self.state.batches,
            },
            unsaid={"data"},
        )


class _NoProfiler:
    def step(self) -> None:
        """Does nothing."""


def _check_share(config: TrainConfig, processes: Processes) -> None:
    assert config.batch_size is not None
    parts = processes.world_size * config.accumulate
    size, rest = divmod(config.batch_size, parts)
    if rest:
        raise ConfigError(
            f"batch_size: expected a multiple of {parts}, {processes.world_size} processes times"
            f" {config.accumulate} parts, got {config.batch_size}"
        )
    if size == 1 and config.uses_batch_norm and not config.sync_batch_norm:
        raise ConfigError(
            f"batch_size: batch norm needs at least 2 images in each process's part, got"
            f" {config.batch_size} for {parts}"
        )
