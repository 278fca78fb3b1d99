"""The training loop: from a configuration to a folder of checkpoints, pictures and numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from fastgan.data import ImageSource, load_data
from fastgan.data.streaming import StreamInterrupted
from fastgan.devices import choose_device
from fastgan.errors import CheckpointError, ConfigError, DataError, FastganError, OutputError
from fastgan.evaluation.diversity import SampleDiversity
from fastgan.files import atomic_write
from fastgan.images import make_grid, save_grid
from fastgan.noise import sample_noise
from fastgan.ops.backends import recorded_choices
from fastgan.random_streams import seeded_generator
from fastgan.reading import parsing, read_text
from fastgan.sampling import generate_images
from fastgan.training.callbacks import Callback
from fastgan.training.checkpoint import (
    checkpoint_path,
    describe,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    read_description,
    remove_leftovers,
    restore_module,
    save_checkpoint,
)
from fastgan.training.config import RESUMABLE_CHANGES, TrainConfig
from fastgan.training.config_files import read_settings
from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.feed import BatchFeed, open_feed
from fastgan.training.graphs import CapturedIteration, CudaCapture
from fastgan.training.health import HealthMonitor
from fastgan.training.interrupt import stop_on_signals
from fastgan.training.iteration import Iteration, MetricTotals, Shape
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.processes import Processes
from fastgan.training.profiling import StepProfiler
from fastgan.training.recorder import COLUMNS, MetricsRecorder, plot_losses, read_metrics
from fastgan.training.run_lock import run_lock
from fastgan.training.sync_batch_norm import synchronize_batch_norm
from fastgan.training.updates import Players, build_optimizer

__all__ = ["Trainer", "TrainingDivergedError", "TrainingResult"]

# Streams of the run's seed. Data order has the small numbers, one an epoch; the global generator,
# which draws weights and dropout, is seeded with the seed itself.
NOISE_STREAM = 1 << 62
PICTURE_STREAM = NOISE_STREAM + 1
# The global generators of processes after the first, which keeps the seed itself; one a process.
PROCESS_STREAM = NOISE_STREAM + 2

# Generator updates after which samples that are all alike are a collapse, not a beginning: WGAN's
# small learning rate needs about half of these on digits.
WARM_UP_STEPS = 2000

# What processes of one run may be told each for itself: where they compute, and the data's place.
_OWN = ("device", "workers", "out", "data")

# Every setting, in a form that --config takes; and what older releases wrote.
DESCRIPTION = "config.toml"
_DESCRIPTIONS = (DESCRIPTION, "config.json")

# Samples in one measurement of diversity: enough that a class of a tenth shows up 25 times.
DIVERSITY_SAMPLES = 256


class TrainingDivergedError(FastganError, ArithmeticError):
    """A loss or a weight became NaN or infinite; the message names the last good checkpoint."""

    exit_code = 1


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended.

    Attributes:
        out: the run's folder.
        checkpoint: the newest checkpoint.
        samples: the final sample grid.
        step: generator updates done.
        seconds: time spent training in this call.
        stopped_by: ``None`` at the end of all steps, else the name of the signal or the limit.
        metrics: the last row of metrics.csv.
    """

    out: Path
    checkpoint: Path
    samples: Path
    step: int
    seconds: float
    stopped_by: str | None
    metrics: Mapping[str, float]


class Trainer:
    """Trains one GAN.

    The run's folder, ``config.out``, receives ``config.toml``, ``metrics.csv``, ``tensorboard/``,
    ``samples-STEP.png``, ``checkpoint-STEP.pt`` and, at the end, ``samples.png`` and
    ``losses.png``. ``backends.json`` (of the n-th further process ``backends-n.json``) receives the
    convolution backends that were chosen, with which the run is resumed. Nothing is written before
    the configuration and the data have been found good.

    Args:
        config: settings; unset ones take the paper's defaults.
        source: data to use instead of loading ``config.data``.
        resume: continue the run in ``config.out`` from its newest checkpoint, or from its
            beginning if it ended before the first one. Settings that shape
            the trajectory are taken from there; see ``explicit``.
        explicit: with ``resume``, the names of fields that were set on purpose: one that
            contradicts the checkpoint is an error, except those that only say where, how long and
            how often.
        callbacks: listeners; in each of several processes, only the first of which writes files.
        processes: who train together, of :func:`fastgan.training.joined_processes`; by default
            this process alone.

    Raises:
        ConfigError: for settings that can't be, or that contradict the run to resume.
        DataError: for data that can't be read.
        CheckpointError: for a damaged checkpoint to resume from.
        OutputError: for a folder that can't be written, already holds a run, or, with ``resume``,
            holds none.

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
        source: ImageSource | None = None,
        resume: bool = False,
        explicit: frozenset[str] = frozenset(),
        callbacks: Sequence[Callback] = (),
        processes: Processes | None = None,
    ) -> None:
        self.out = config.folder()
        self.callbacks = list(callbacks)
        self.step = 0
        self._batches = 0
        self._stop_reason: str | None = None
        self._logged: dict[str, list[float | Tensor]] = {}
        self._mid_step = False
        self._saved_step: int | None = None
        self._ran = False
        self._damaged: list[Path] = []
        self.processes = Processes() if processes is None else processes

        existing, description = self._found = _found(self.out)
        if not resume and (existing or description is not None):
            raise OutputError(
                f"{self.out}: already holds a run; add --resume to continue it, or choose another"
                " folder"
            )
        if resume and not existing and description is None:
            raise OutputError(
                f"{self.out}: holds no run to resume; leave out --resume to begin one there"
            )
        self.resumed_from = existing[-1] if resume and existing else None
        saved: dict[str, Any] | None = None
        saved_data: DataShape | None = None
        if self.resumed_from is not None:
            self.resumed_from, read, failures = newest_checkpoint(existing, _read_checkpoint)
            saved, saved_config, saved_data = read
            self._damaged = existing[existing.index(self.resumed_from) + 1 :]
            for failure in failures:
                self._tell("on_warning", f"{failure}; going on from {self.resumed_from}")
            config = _continued(saved_config, config, explicit, self.resumed_from)
        elif resume and description is not None:
            # Ended before its first checkpoint: the same run, from its beginning.
            config = _continued(_read_config(description), config, explicit, description)
        config = dataclasses.replace(config, data=_absolute(config.data)).resolved()
        self.config = config
        self.device = self.processes.device or choose_device(config.device)
        if self.device.index is not None:
            torch.cuda.set_device(self.device)  # where CUDA graphs and streams of a run belong

        assert config.image_size is not None
        assert config.batch_size is not None
        _check_share(config, self.processes)
        if source is None:
            source = load_data(
                config.data,
                image_size=config.image_size,
                channels=config.channels,
                progress=lambda done, total: self._tell("on_loading", done, total),
            )
        if len(source) < 2:
            raise DataError(f"{config.data}: expected at least 2 images to train on, got 1")
        self.source = source
        self.data = DataShape(
            name=source.name,
            channels=source.channels,
            image_size=source.image_size,
            num_classes=source.num_classes,
            class_names=None if source.class_names is None else tuple(source.class_names),
            length=len(source),
        )
        if config.conditional and source.num_classes is None:
            raise ConfigError(
                f"data: {config.model} is conditioned on labels, and {config.data} has none"
            )
        if saved_data is not None:
            for name in ("channels", "length", "class_names"):
                ours, theirs = getattr(self.data, name), getattr(saved_data, name)
                if ours != theirs:
                    raise CheckpointError(
                        f"{self.resumed_from}: trained on data with {name} {theirs}, but"
                        f" {config.data} has {ours}"
                    )

        self._build(saved)
        self._monitor = HealthMonitor(
            model=config.model,
            pixels=source.channels * source.image_size**2,
            warm_up=WARM_UP_STEPS,
        )
        self._diversity = self._reference_diversity()
        _prepare_folder(self.out)

    def run(self) -> TrainingResult:
        """Trains until all steps are done, a limit is reached or the process is asked to stop.

        Raises:
            TrainingDivergedError: when a loss or weight stops being finite.
        """
        self._stop_reason = None
        self._agree_on_the_run()
        if self.step >= self.config.steps and self.resumed_from is not None:
            return self._finished_before()
        rank = self.processes.rank
        choices = self.out / f"backends{f'-{rank}' if rank else ''}.json"
        with self._sole_writer(), recorded_choices(choices), stop_on_signals(self.request_stop):
            return self._run()

    def _run(self) -> TrainingResult:
        config = self.config
        self.processes.broadcast_(self._weights())
        recorder: MetricsRecorder | None = None
        if self.processes.leads:
            remove_leftovers(self.out)
            self._save_description()
            recorder = MetricsRecorder(self.out, self.step)
        clock = _Clock(seconds_before=_last_seconds(self.out))
        row: dict[str, float] = {}
        try:
            with (
                open_feed(
                    self.source,
                    config,
                    self.device,
                    self.processes,
                    self._batches,
                    stopping=lambda: self._stop_reason is not None,
                ) as feed,
                self._profiler() as profiler,
            ):
                self._tell("on_start")
                iteration = self._iteration()
                self._set_learning_rates()
                while self.step < config.steps:
                    batches = self._next_batches(feed)
                    if not batches:
                        break
                    shape = self._shape()
                    self._mid_step = True
                    iteration.run(batches, shape)
                    self._batches += len(batches)
                    self.step += 1
                    self._mid_step = False
                    self._set_learning_rates()
                    if self.step < config.steps:
                        feed.stage(config.critic_updates(self.step))
                    clock.count(len(batches) * self._batch_size)
                    row = self._after_step(clock, recorder) or row
                    profiler.step()
                    limit = config.max_minutes
                    if limit is not None and clock.seconds > limit * 60:
                        self.request_stop("max_minutes")
                if self.step == config.steps:
                    # Asked to stop during the very last step: the run is complete all the same.
                    self._stop_reason = None
                checkpoint = self.save()
        except BaseException as error:
            # A second Ctrl-C is in a hurry; a SystemExit, of a callback for one, isn't.
            if not isinstance(error, KeyboardInterrupt):
                self._rescue(error)
            if recorder is not None:
                with suppress(OutputError):  # the first error is the one to tell
                    recorder.close()
            raise
        samples = self.out / "samples.png"
        if recorder is not None:
            recorder.close()
            save_grid(self._fixed_samples(), samples, columns=self._columns)
            plot_losses(
                read_metrics(recorder.path),
                self.out / "losses.png",
                title=f"{config.model} on {self.data.name}, {self.step} steps",
                opponent="critic" if config.is_wasserstein else "discriminator",
            )
        result = TrainingResult(
            out=self.out,
            checkpoint=checkpoint,
            samples=samples,
            step=self.step,
            seconds=clock.seconds,
            stopped_by=self._stop_reason,
            metrics=row,
        )
        self._tell("on_end", result)
        return result

    @contextmanager
    def _sole_writer(self) -> Iterator[None]:
        """Holds the run's folder, as it was found, for the process that writes there."""
        failure: FastganError | None = None
        with ExitStack() as stack:
            if self.processes.leads:
                try:
                    stack.enter_context(run_lock(self.out))
                    if not self._ran and self._found != _found(self.out):
                        raise OutputError(
                            f"{self.out}: another process has written there meanwhile; look at it,"
                            " and start again"
                        )
                    for path in self._damaged:
                        # Out of the way of the checkpoints to come, but not lost.
                        path.replace(path.with_name(path.name + ".damaged"))
                    self._damaged = []
                except OSError as error:
                    failure = error if isinstance(error, FastganError) else OutputError(str(error))
            # Every process has looked at the folder before one writes there.
            self._agree(failure)
            self._ran = True
            yield

    def _agree_on_the_run(self) -> None:
        """Refuses to go on with processes that were told something else."""
        if self.processes.world_size == 1:
            return
        own = {
            **{name: value for name, value in self.config.to_dict().items() if name not in _OWN},
            "data": self.source.digest(),
            "step": self.step,
            "batches": self._batches,
        }
        everyone = self.processes.gather(own)
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    self.processes.agreed_to_fail = True
                    found = "" if name == "data" else f": {theirs[name]!r}, not {value!r}"
                    raise ConfigError(f"{name}: process {rank} has other than process 0{found}")

    def _finished_before(self) -> TrainingResult:
        """The result of a run that has nothing left to do; its files stay as they are."""
        assert self.resumed_from is not None
        rows = read_metrics(self.out / "metrics.csv")
        return TrainingResult(
            out=self.out,
            checkpoint=self.resumed_from,
            samples=self.out / "samples.png",
            step=self.step,
            seconds=0.0,
            stopped_by=None,
            metrics=rows[-1] if rows else {},
        )

    def log(self, name: str, value: float | Tensor) -> None:
        """Adds a metric of the caller's own to the next row of metrics.csv and to TensorBoard.

        A row holds the mean of what was logged since the last one. Tensors are only read then, so
        that logging one doesn't wait for the device.

        Args:
            name: of the column; any text without control characters but the trainer's own names.
            value: a number, or a tensor of one element.

        Raises:
            ConfigError: a name that is empty or taken, or a tensor of several elements.
        """
        if name in COLUMNS or not name or not name.isprintable():
            raise ConfigError(f"name: expected a new column's name, got {name!r}")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ConfigError(f"value: expected one element, got shape {tuple(value.shape)}")
            value = value.detach().clone()
        self._logged.setdefault(name, []).append(value)

    def _take_logged(self) -> dict[str, float]:
        logged, self._logged = self._logged, {}
        return {name: sum(map(float, values)) / len(values) for name, values in logged.items()}

    def request_stop(self, reason: str) -> None:
        """Ends the run after the step under way, with a checkpoint. Safe in a signal handler."""
        self._stop_reason = reason

    def save(self) -> Path:
        """Writes a checkpoint of this moment and removes the oldest ones beyond the limit."""
        path = checkpoint_path(self.out, self.step)
        state = self._shared_state()
        if self.processes.leads:
            self._write_checkpoint(path, *state)
            self._tell("on_checkpoint", path)
        self._saved_step = self.step
        return path

    def _shared_state(self) -> tuple[dict[str, Any], dict[str, list[float]]]:
        """What of a checkpoint takes all processes: random states, and sums of the metrics."""
        random = self._random_state()
        totals = self._totals.state_dict()
        means = self.processes.mean({name: each[0] for name, each in totals.items()})
        return random, {name: [means[name], count] for name, (_, count) in totals.items()}

    def _write_checkpoint(
        self, path: Path, random: dict[str, Any], totals: dict[str, list[float]]
    ) -> None:
        self._check_finite_weights()
        save_checkpoint(
            path,
            {
                **describe(self.config, self.data),
                **self.players.state_dict(),
                "step": self.step,
                "batches": self._batches,
                "ema_generator": None if self.ema is None else self.ema.module.state_dict(),
                "random": random,
                "totals": totals,
            },
        )
        for old in list_checkpoints(self.out)[: -self.config.keep_checkpoints]:
            old.unlink(missing_ok=True)

    def _rescue(self, error: BaseException) -> None:
        """Saves what was trained before an error that came between two steps."""
        alone = self.processes.world_size == 1
        if (
            self._mid_step
            or self.step in (0, self._saved_step)
            or isinstance(error, TrainingDivergedError)
            or not (alone or self.processes.agreed_to_fail)
        ):
            return
        path = checkpoint_path(self.out, self.step)
        # Whatever goes wrong now, a full disk for one, the error that brought us here is the one
        # to tell; the checkpoint before this one is still there.
        with suppress(Exception):
            state = self._shared_state()
            if self.processes.leads:
                self._write_checkpoint(path, *state)
                self._tell("on_warning", f"cut short after step {self.step}; saved {path}")

    # Construction -------------------------------------------------------------------------------

    def _build(self, saved: dict[str, Any] | None) -> None:
        config = self.config
        assert config.lr_g is not None
        assert config.lr_d is not None
        # Weight initialisation and dropout draw from torch's global generators; a seed makes them
        # repeatable, and their states are saved with every checkpoint.
        torch.manual_seed(config.seed)
        if saved is None:
            generator = build_generator(config, self.data)
            discriminator = build_discriminator(config, self.data)
            average = None
        else:
            assert self.resumed_from is not None
            path = self.resumed_from
            generator = restore_module(
                path,
                "generator",
                lambda: build_generator(config, self.data),
                saved.get("generator"),
            )
            discriminator = restore_module(
                path,
                "discriminator",
                lambda: build_discriminator(config, self.data),
                saved.get("discriminator"),
            )
            average = None
            if config.ema_decay > 0:
                average = restore_module(
                    path,
                    "ema_generator",
                    lambda: build_generator(config, self.data),
                    saved.get("ema_generator"),
                )
        # Convolutions are at their best with channels innermost, on CPUs and GPUs alike.
        layout = torch.channels_last
        generator = generator.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        discriminator = discriminator.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self.players = Players(
            config=config,
            generator=generator,
            discriminator=discriminator,
            optimizer_g=build_optimizer(config, generator, config.lr_g),
            optimizer_d=build_optimizer(config, discriminator, config.lr_d),
            num_classes=self.data.num_classes if config.conditional else None,
            device=self.device,
            random=seeded_generator(config.seed, NOISE_STREAM, self.device),
            processes=self.processes,
            rates_on_device=self._captures,
        )
        self._totals = MetricTotals(self.device)
        self._reseed(self.processes.rank, 0)
        if saved is not None:
            self._restore(saved)
        self.ema = None
        if config.ema_decay > 0:
            self.ema = ExponentialMovingAverage(generator, config.ema_decay, self.step)
            if average is not None:
                self.ema.module.load_state_dict(average.state_dict())
        if config.sync_batch_norm and self.processes.world_size > 1:
            # After the average was made: its copy only draws, and needs nobody else to do so.
            for network in (generator, discriminator):
                synchronize_batch_norm(network, self.processes)

    def _reseed(self, rank: int, step: int) -> None:
        """Gives each process but the first a stream of its own for dropout."""
        if rank > 0:
            seed = seeded_generator(self.config.seed, PROCESS_STREAM + rank).initial_seed()
            torch.manual_seed((seed + step) % 2**63)

    def _restore(self, saved: dict[str, Any]) -> None:
        players = self.players
        with parsing(f"{self.resumed_from}: can't be resumed from", CheckpointError):
            self._totals.load_state_dict(saved.get("totals", {}))
            self.step, self._batches = int(saved["step"]), int(saved["batches"])
            if not (0 <= self.step < 2**53 and 0 <= self._batches < 2**53):
                raise ValueError(f"step {self.step} after {self._batches} batches")
            players.load_optimizers(saved, self.step)
            states = saved["random"]
            self._restore_global_generators(states)
            if states["device"] == self.device.type:
                players.random.set_state(states["players"])
            else:
                # A stream of the CPU's generator has no continuation on a GPU: a new one is begun,
                # which depends on the seed and the step alone.
                seed = (self.config.seed + self.step) % 2**63
                players.random = seeded_generator(seed, NOISE_STREAM, self.device)

    def _restore_global_generators(self, states: Mapping[str, Any]) -> None:
        everyone = [states, *states.get("others", ())]
        rank = self.processes.rank
        if rank >= len(everyone):
            self._reseed(rank, self.step)  # more processes than there were
            return
        torch.set_rng_state(everyone[rank]["torch"])
        if self.device.type == "cuda" and "cuda" in everyone[rank]:
            torch.cuda.set_rng_state(everyone[rank]["cuda"], self.device)

    def _random_state(self) -> dict[str, Any]:
        own: dict[str, Any] = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.device)
        first, *others = self.processes.gather(own)
        states = {
            **first,
            "players": self.players.random.get_state(),
            "device": self.device.type,
        }
        return {**states, "others": others} if others else states

    # The loop's parts ---------------------------------------------------------------------------

    @property
    def _captures(self) -> bool:
        return self.config.graphs and self.device.type == "cuda"

    def _iteration(self) -> Iteration | CapturedIteration:
        iteration = Iteration(self.players, self.ema, self._totals)
        if not self._captures:
            return iteration
        return CapturedIteration(iteration, CudaCapture(self.device, [self.players.random]))

    def _profiler(self) -> Any:
        if not (self.config.profile and self.processes.leads):
            return nullcontext(_NoProfiler())
        remaining = self.config.steps - self.step
        return StepProfiler(self.out / "profile", self.device, remaining)

    def _weights(self) -> list[Tensor]:
        networks = [self.players.generator, self.players.discriminator]
        if self.ema is not None:
            networks.append(self.ema.module)
        return [tensor for network in networks for tensor in network.state_dict().values()]

    def _agree(self, error: FastganError | None = None) -> None:
        self._stop_reason = self.processes.agree(self._stop_reason, error)

    def _next_batches(self, feed: BatchFeed) -> list[tuple[Tensor, Tensor | None]]:
        """A batch for each critic update to come; none if the run is to stop."""
        batches: list[tuple[Tensor, Tensor | None]] = []
        error: FastganError | None = None
        if self._stop_reason is None:
            with record_function("data"):
                try:
                    batches = feed.take(self.config.critic_updates(self.step))
                except StreamInterrupted:
                    batches = []  # asked to stop while it waited
                except DataError as caught:
                    error = caught
        self._agree(error)
        return batches if self._stop_reason is None else []

    def _shape(self) -> Shape:
        """What the step to come is like."""
        config = self.config
        first = self._batches
        return Shape(
            penalized=tuple(
                update % config.penalty_every == 0
                for update in range(first, first + config.critic_updates(self.step))
            ),
            # Every graph measures: that costs it little, and one graph serves all steps.
            measured=self._captures or self._is_logged(self.step + 1),
        )

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.config.steps

    def _after_step(
        self, clock: _Clock, recorder: MetricsRecorder | None
    ) -> dict[str, float] | None:
        """Numbers, pictures, callbacks and the checkpoint of the step just done."""
        config = self.config
        last = self.step == config.steps
        row: dict[str, float] | None = None
        if self._is_logged(self.step):
            means = self.processes.mean(self._totals.take())
            row = {
                "step": self.step,
                "images": self._batches * self._batch_size,
                "seconds": clock.seconds_in_all,
                "images_per_second": clock.lap(),
                "lr_g": self._rates[0],
                "lr_d": self._rates[1],
                **means,
            }
            self._check_finite(row)
            for text in self._monitor.observe_metrics(self.step, row):
                self._tell("on_warning", text)
        with clock.paused():
            if recorder is not None and (last or self.step % config.sample_every == 0):
                diversity = self._draw_samples(recorder, final=last)
                if row is not None:
                    row["diversity"] = diversity
            self._tell("on_step")
            if row is not None:
                row.update(self._take_logged())
                if recorder is not None:
                    recorder.record(row)
                self._tell("on_metrics", row)
            if self.step % config.checkpoint_every == 0 and not last:
                self.save()
        return row

    @property
    def _batch_size(self) -> int:
        assert self.config.batch_size is not None
        return self.config.batch_size

    def _set_learning_rates(self) -> None:
        config = self.config
        assert config.lr_g is not None
        assert config.lr_d is not None
        factor = 1.0
        if config.lr_decay == "linear":
            factor = max(0.0, 1 - self.step / config.steps)
        self._rates = (config.lr_g * factor, config.lr_d * factor)
        self.players.set_learning_rates(*self._rates)

    def _check_finite(self, row: Mapping[str, float]) -> None:
        for name in ("loss_d", "loss_g"):
            if row[name] - row[name] != 0:  # NaN and infinity alone differ from themselves
                self._diverged(f"{name} became {row[name]}")

    def _check_finite_weights(self) -> None:
        networks = {
            "generator": self.players.generator,
            "discriminator": self.players.discriminator,
        }
        if self.ema is not None:
            networks["generator's average"] = self.ema.module
        for name, network in networks.items():
            for key, value in network.state_dict().items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    self._diverged(f"the {name}'s {key} holds NaN or infinity")

    def _diverged(self, what: str) -> None:
        good = list_checkpoints(self.out)
        kept = f"the last good checkpoint is {good[-1]}" if good else "no checkpoint was made yet"
        raise TrainingDivergedError(
            f"diverged by step {self.step}: {what}; {kept}. Try a lower learning rate"
        )

    def _draw_samples(self, recorder: MetricsRecorder, *, final: bool) -> float:
        self._check_finite_weights()
        images = self._fixed_samples()
        path = self.out / f"samples-{self.step:07d}.png"
        save_grid(images, path, columns=self._columns)
        recorder.record_image("samples", make_grid(images, columns=self._columns), self.step)
        report = self._diversity.measure(self._sample(DIVERSITY_SAMPLES))
        for text in self._monitor.observe_samples(self.step, report, final=final):
            self._tell("on_warning", text)
        return report.ratio

    @property
    def _columns(self) -> int | None:
        """Columns of a grid: a class each, if the generator is conditioned."""
        return self.players.num_classes

    def _fixed_samples(self) -> Tensor:
        columns = self._columns
        n = self.config.n_samples
        return self._sample(n if columns is None else max(1, round(n / columns)) * columns)

    def _sample(self, n: int) -> Tensor:
        """Images from the same noise at every call, classes in turn."""
        config = self.config
        generator = self.ema.module if self.ema is not None else self.players.generator
        assert config.noise is not None
        # Drawn on the CPU: the same pictures whatever the device.
        z = sample_noise(
            n,
            config.nz,
            config.noise,
            generator=seeded_generator(config.seed, PICTURE_STREAM),
        )
        classes = self.players.num_classes
        labels = None if classes is None else torch.arange(n) % classes
        return generate_images(generator, z, labels)

    def _reference_diversity(self) -> SampleDiversity:
        count = min(len(self.source), 2000)
        order = torch.randperm(
            len(self.source), generator=seeded_generator(self.config.seed, PICTURE_STREAM)
        )
        images, labels = self.source.get(order[:count].tolist())
        return SampleDiversity(images, labels, num_classes=self.source.num_classes)

    def _save_description(self) -> None:
        with atomic_write(self.out / DESCRIPTION) as file:
            file.write(self.config.to_toml().encode())

    def _tell(self, event: str, *arguments: object) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self, *arguments)


class _Clock:
    """The time spent training: in all, and since the last row without what isn't training."""

    def __init__(self, seconds_before: float) -> None:
        self._before = seconds_before
        self._started = self._lap = time.perf_counter()
        self._paused = 0.0
        self._images = 0

    @property
    def seconds(self) -> float:
        """Since the start of this call."""
        return time.perf_counter() - self._started

    @property
    def seconds_in_all(self) -> float:
        """Of this call and those that it continues."""
        return self._before + self.seconds

    def count(self, images: int) -> None:
        """So many more images were trained on."""
        self._images += images

    def lap(self) -> float:
        """Images per second since the last lap."""
        now = time.perf_counter()
        rate = self._images / (now - self._lap - self._paused)
        self._lap, self._paused, self._images = now, 0.0, 0
        return rate

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in this block is not training."""
        began = time.perf_counter()
        yield
        self._paused += time.perf_counter() - began


class _NoProfiler:
    def step(self) -> None:
        """Nothing is traced."""


def _last_seconds(folder: Path) -> float:
    rows = read_metrics(folder / "metrics.csv")
    seconds = rows[-1].get("seconds", 0.0) if rows else 0.0
    return seconds if math.isfinite(seconds) else 0.0


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


def _continued(
    saved: TrainConfig, asked: TrainConfig, explicit: frozenset[str], path: Path
) -> TrainConfig:
    """The saved settings, with those changed that a continuing run may change."""
    changes = {name: getattr(asked, name) for name in explicit}
    # A limit on the time of one call is no property of the run.
    changes = {"max_minutes": None, **changes, "out": asked.out}
    continued = dataclasses.replace(saved, **changes).resolved()
    for name in sorted(explicit - RESUMABLE_CHANGES):
        ours, theirs = getattr(continued, name), getattr(saved, name)
        if ours != theirs:
            raise ConfigError(f"{name}: {path} was made with {theirs}, can't go on with {ours}")
    return continued


def _found(folder: Path) -> tuple[list[Path], Path | None]:
    """A folder's checkpoints, and the file that says with which settings they were made."""
    with parsing(f"{folder}: can't be looked at", OutputError):
        return list_checkpoints(folder) if folder.is_dir() else [], _description(folder)


def _read_checkpoint(path: Path) -> tuple[dict[str, Any], TrainConfig, DataShape]:
    content = load_checkpoint(path)
    return content, *read_description(path, content)


def _description(folder: Path) -> Path | None:
    """The file that says with which settings the run in ``folder`` was begun, if there is one."""
    return next((folder / name for name in _DESCRIPTIONS if (folder / name).exists()), None)


def _read_config(path: Path) -> TrainConfig:
    try:
        if path.suffix == ".json":
            with parsing("is not JSON", ConfigError):
                settings = json.loads(read_text(path, ConfigError))
        else:
            settings = read_settings(path)
        if isinstance(settings, dict) and "model" not in settings:
            raise ConfigError("names no model, as every run's does")
        return TrainConfig.from_dict(settings).resolved()
    except FastganError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise ConfigError(f"{path}: can't be resumed from: {reason}") from error


def _absolute(data: str) -> str:
    """The data's name with an absolute path, so that a run can be resumed from another folder."""
    kind, colon, place = data.partition(":")
    return f"{kind}:{Path(place).absolute()}" if colon and place else data


def _prepare_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: can't be written")
