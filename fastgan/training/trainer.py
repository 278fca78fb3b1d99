"""The training loop: from a configuration to a folder of checkpoints, pictures and numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastgan.data import ImageSource, load_data, open_stream
from fastgan.errors import CheckpointError, ConfigError, DataError, FastganError, OutputError
from fastgan.evaluation.diversity import SampleDiversity
from fastgan.files import atomic_write
from fastgan.images import make_grid, save_grid
from fastgan.noise import sample_noise
from fastgan.random_streams import seeded_generator
from fastgan.sampling import generate_images
from fastgan.training.callbacks import Callback
from fastgan.training.checkpoint import (
    check_optimizer,
    checkpoint_path,
    describe,
    list_checkpoints,
    load_checkpoint,
    read_description,
    restore_module,
    save_checkpoint,
)
from fastgan.training.config import RESUMABLE_CHANGES, TrainConfig
from fastgan.training.config_files import read_settings
from fastgan.training.ema import ExponentialMovingAverage
from fastgan.training.health import HealthMonitor
from fastgan.training.interrupt import stop_on_signals
from fastgan.training.networks import DataShape, build_discriminator, build_generator
from fastgan.training.recorder import COLUMNS, MetricsRecorder, plot_losses, read_metrics
from fastgan.training.updates import Players, build_optimizer

__all__ = ["Trainer", "TrainingDivergedError", "TrainingResult"]

# Streams of the run's seed. Data order has the small numbers, one an epoch; the global generator,
# which draws weights and dropout, is seeded with the seed itself.
NOISE_STREAM = 1 << 62
PICTURE_STREAM = NOISE_STREAM + 1

# Generator updates after which samples that are all alike are a collapse, not a beginning: WGAN's
# small learning rate needs about half of these on digits.
WARM_UP_STEPS = 2000

# Every setting, in a form that --config takes; and what older releases wrote.
DESCRIPTION = "config.toml"
_DESCRIPTIONS = (DESCRIPTION, "config.json")

# Samples in one measurement of diversity: enough that a class of a tenth shows up 25 times.
DIVERSITY_SAMPLES = 256


class TrainingDivergedError(FastganError, ArithmeticError):
    """A loss or a weight became NaN or infinite; the message names the last good checkpoint."""


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
    ``losses.png``. Nothing is written before the configuration and the data have been found good.

    Args:
        config: settings; unset ones take the paper's defaults.
        source: data to use instead of loading ``config.data``.
        resume: continue the run in ``config.out`` from its newest checkpoint. Settings that shape
            the trajectory are taken from there; see ``explicit``.
        explicit: with ``resume``, the names of fields that were set on purpose: one that
            contradicts the checkpoint is an error, except those that only say where, how long and
            how often.
        callbacks: listeners.

    Raises:
        ConfigError: for settings that can't be, or that contradict the run to resume.
        DataError: for data that can't be read.
        CheckpointError: for a damaged checkpoint to resume from.
        OutputError: for a folder that can't be written or already holds a run.

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
    ) -> None:
        if not config.out:
            raise ConfigError("out: expected a folder for the run's results, got none")
        self.out = Path(config.out)
        self.callbacks = list(callbacks)
        self.step = 0
        self._batches = 0
        self._stop_reason: str | None = None
        self._logged: dict[str, list[float | Tensor]] = {}

        existing = list_checkpoints(self.out) if self.out.is_dir() else []
        description = _description(self.out)
        if not resume and (existing or description is not None):
            raise OutputError(
                f"{self.out}: already holds a run; add --resume to continue it, or choose another"
                " folder"
            )
        self.resumed_from = existing[-1] if resume and existing else None
        saved: dict[str, Any] | None = None
        saved_data: DataShape | None = None
        if self.resumed_from is not None:
            saved = load_checkpoint(self.resumed_from)
            saved_config, saved_data = read_description(self.resumed_from, saved)
            config = _continued(saved_config, config, explicit, self.resumed_from)
        elif resume and description is not None:
            # Ended before its first checkpoint: the same run, from its beginning.
            config = _continued(_read_config(description), config, explicit, description)
        config = dataclasses.replace(config, data=_absolute(config.data)).resolved()
        self.config = config
        self.device = _choose_device(config.device)

        assert config.image_size is not None
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
        self._monitor = HealthMonitor(wasserstein=config.is_wasserstein, warm_up=WARM_UP_STEPS)
        self._diversity = self._reference_diversity()
        _prepare_folder(self.out)

    def run(self) -> TrainingResult:
        """Trains until all steps are done, a limit is reached or the process is asked to stop.

        Raises:
            TrainingDivergedError: when a loss or weight stops being finite.
        """
        config = self.config
        self._stop_reason = None
        if self.step >= config.steps and self.resumed_from is not None:
            return self._finished_before()
        self._save_description()
        recorder = MetricsRecorder(self.out, self.step)
        rows = read_metrics(recorder.path)
        seconds_before = rows[-1]["seconds"] if rows else 0.0
        totals: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        started = time.perf_counter()
        paused = 0.0
        last_log = started
        images_since_log = 0
        row: dict[str, float] = {}
        assert config.batch_size is not None
        assert self.source is not None

        def add(metrics: Mapping[str, Tensor]) -> None:
            for name, value in metrics.items():
                totals[name] = totals[name] + value if name in totals else value
                counts[name] = counts.get(name, 0) + 1

        try:
            with (
                stop_on_signals(self.request_stop),
                open_stream(
                    self.source,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    device=self.device,
                    start_step=self._batches,
                    workers=config.workers,
                ) as stream,
            ):
                self._tell("on_start")
                while self.step < config.steps and self._stop_reason is None:
                    self._set_learning_rates()
                    for _ in range(config.critic_updates(self.step)):
                        real, labels = next(stream)
                        add(self.players.update_discriminator(real, labels))
                        self._batches += 1
                        images_since_log += len(real)
                    self.step += 1
                    last = self.step == config.steps
                    log = last or self.step % config.log_every == 0
                    add(self.players.update_generator(measure_gradient=log))
                    if self.ema is not None:
                        self.ema.update(self.players.generator, self.step)
                    if log:
                        row = {name: float(totals[name]) / counts[name] for name in totals}
                        totals.clear()
                        counts.clear()
                        now = time.perf_counter()
                        row = {
                            "step": self.step,
                            "images": self._batches * config.batch_size,
                            "seconds": seconds_before + now - started,
                            "images_per_second": images_since_log / (now - last_log - paused),
                            "lr_g": self.players.optimizer_g.param_groups[0]["lr"],
                            "lr_d": self.players.optimizer_d.param_groups[0]["lr"],
                            **row,
                        }
                        last_log, paused, images_since_log = now, 0.0, 0
                        self._check_finite(row)
                        for text in self._monitor.observe_metrics(self.step, row):
                            self._tell("on_warning", text)
                    pause = time.perf_counter()
                    if last or self.step % config.sample_every == 0:
                        row_diversity = self._draw_samples(recorder, final=last)
                        if log:
                            row["diversity"] = row_diversity
                    self._tell("on_step")
                    if log:
                        row.update(self._take_logged())
                        recorder.record(row)
                        self._tell("on_metrics", row)
                    if self.step % config.checkpoint_every == 0 and not last:
                        self.save()
                    paused += time.perf_counter() - pause
                    limit = config.max_minutes
                    if limit is not None and time.perf_counter() - started > limit * 60:
                        self.request_stop("max_minutes")
                if self.step == config.steps:
                    # Asked to stop during the very last step: the run is complete all the same.
                    self._stop_reason = None
                checkpoint = self.save()
        finally:
            recorder.close()
        seconds = time.perf_counter() - started
        samples = self.out / "samples.png"
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
            seconds=seconds,
            stopped_by=self._stop_reason,
            metrics=row,
        )
        self._tell("on_end", result)
        return result

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
        self._check_finite_weights()
        save_checkpoint(
            path,
            {
                **describe(self.config, self.data),
                **self.players.state_dict(),
                "step": self.step,
                "batches": self._batches,
                "ema_generator": None if self.ema is None else self.ema.module.state_dict(),
                "random": self._random_state(),
            },
        )
        for old in list_checkpoints(self.out)[: -self.config.keep_checkpoints]:
            old.unlink(missing_ok=True)
        self._tell("on_checkpoint", path)
        return path

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
        generator = generator.to(self.device)
        discriminator = discriminator.to(self.device)
        self.players = Players(
            config=config,
            generator=generator,
            discriminator=discriminator,
            optimizer_g=build_optimizer(config, generator, config.lr_g),
            optimizer_d=build_optimizer(config, discriminator, config.lr_d),
            num_classes=self.data.num_classes if config.conditional else None,
            device=self.device,
            random=seeded_generator(config.seed, NOISE_STREAM, self.device),
        )
        self.ema = (
            ExponentialMovingAverage(generator, config.ema_decay) if config.ema_decay > 0 else None
        )
        if saved is not None:
            self._restore(saved)
            if self.ema is not None and average is not None:
                self.ema.module.load_state_dict(average.state_dict())

    def _restore(self, saved: dict[str, Any]) -> None:
        players = self.players
        try:
            players.optimizer_g.load_state_dict(saved["optimizer_g"])
            players.optimizer_d.load_state_dict(saved["optimizer_d"])
            players.scaler_g.load_state_dict(saved["scaler_g"])
            players.scaler_d.load_state_dict(saved["scaler_d"])
            self.step, self._batches = int(saved["step"]), int(saved["batches"])
            if self.step < 0 or self._batches < 0:
                raise ValueError(f"step {self.step} after {self._batches} batches")
            states = saved["random"]
            torch.set_rng_state(states["torch"])
            if self.device.type == "cuda" and "cuda" in states:
                torch.cuda.set_rng_state(states["cuda"], self.device)
            if states["device"] == self.device.type:
                players.random.set_state(states["players"])
            else:
                # A stream of the CPU's generator has no continuation on a GPU: a new one is begun,
                # which depends on the seed and the step alone.
                seed = (self.config.seed + self.step) % 2**63
                players.random = seeded_generator(seed, NOISE_STREAM, self.device)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(f"{self.resumed_from}: can't be resumed from: {first}") from error
        assert self.resumed_from is not None
        check_optimizer(self.resumed_from, "optimizer_g", players.optimizer_g, self.step)
        check_optimizer(self.resumed_from, "optimizer_d", players.optimizer_d, self.step)

    def _random_state(self) -> dict[str, Any]:
        states = {
            "torch": torch.get_rng_state(),
            "players": self.players.random.get_state(),
            "device": self.device.type,
        }
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    # The loop's parts ---------------------------------------------------------------------------

    def _set_learning_rates(self) -> None:
        config = self.config
        assert config.lr_g is not None
        assert config.lr_d is not None
        factor = 1.0
        if config.lr_decay == "linear":
            factor = max(0.0, 1 - self.step / config.steps)
        players = self.players
        for optimizer, lr in (
            (players.optimizer_g, config.lr_g),
            (players.optimizer_d, config.lr_d),
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor

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


def _choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: cuda was asked for, but torch sees no CUDA device here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


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


def _description(folder: Path) -> Path | None:
    """The file that says with which settings the run in ``folder`` was begun, if there is one."""
    return next((folder / name for name in _DESCRIPTIONS if (folder / name).exists()), None)


def _read_config(path: Path) -> TrainConfig:
    try:
        settings = json.loads(path.read_text()) if path.suffix == ".json" else read_settings(path)
        return TrainConfig.from_dict(settings).resolved()
    except (OSError, UnicodeError, json.JSONDecodeError, FastganError) as error:
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
