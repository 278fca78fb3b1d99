"""The trainer's own callbacks: health checks, pictures, metrics and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastgan._util.random_streams import seeded_generator
from fastgan.data import ImageSource
from fastgan.errors import OutputError
from fastgan.evaluation.diversity import SampleDiversity
from fastgan.sampling.batches import generate_images
from fastgan.sampling.images import class_grid, make_grid, save_grid
from fastgan.sampling.noise import sample_noise
from fastgan.training.callbacks import Callback
from fastgan.training.config import TrainConfig
from fastgan.training.health import HealthMonitor
from fastgan.training.recorder import MetricsRecorder, plot_losses, read_metrics
from fastgan.training.result import TrainingResult
from fastgan.training.state import PICTURE_STREAM, TrainState

if TYPE_CHECKING:
    from fastgan.training.trainer import Trainer

#: Generator updates after which equal samples mean a collapse: WGAN's small learning rate needs
#: about half of these on digits.
WARM_UP_STEPS = 2000
#: Samples in a measurement of diversity: 25 of each of ten classes.
DIVERSITY_SAMPLES = 256


def grid_path(folder: Path, step: int) -> Path:
    """The path of a step's grid of samples."""
    return folder / f"samples-{step:07d}.png"


class HealthWatch(Callback):
    """Ends a run whose losses aren't finite; warns of divergence and vanishing gradients.

    Args:
        config: resolved settings.
        pixels: numbers in an image.
    """

    def __init__(self, config: TrainConfig, pixels: int) -> None:
        assert config.penalty_every is not None
        penalized = 0.0
        if config.penalizes_interpolates:
            penalized = config.gp_weight * config.penalty_every
        self.monitor = HealthMonitor(
            model=config.model, pixels=pixels, warm_up=WARM_UP_STEPS, penalty_weight=penalized
        )

    def on_step(self, trainer: Trainer) -> None:
        """Checks the step's numbers, if any."""
        if trainer.row is None:
            return
        for name in ("loss_d", "loss_g"):
            if trainer.row[name] - trainer.row[name] != 0:  # only NaN and infinity
                trainer.diverged(f"{name} became {trainer.row[name]}")
        for text in self.monitor.observe_metrics(trainer.step, trainer.row):
            trainer.warn(text)


class SampleWriter(Callback):
    """Draws ``samples-STEP.png`` and ``samples.png``, and measures samples' variety.

    Args:
        config: resolved settings.
        source: real images, to compare the variety with.
        metrics: records grids and diversity.
        health: detects collapsed samples.

    """

    def __init__(
        self, config: TrainConfig, source: ImageSource, metrics: MetricsWriter, health: HealthWatch
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._monitor = health.monitor
        generator = seeded_generator(config.seed, PICTURE_STREAM)
        some = torch.randperm(len(source), generator=generator)[:2000]
        real = self._looked_at(*source.get(some.tolist()))
        self._diversity = SampleDiversity(*real, num_classes=source.num_classes)

    def _looked_at(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The images that samples are compared with, and their labels."""
        return images, labels

    def on_step(self, trainer: Trainer) -> None:
        """Draws a grid if one is due."""
        step = trainer.step
        last = step == trainer.config.steps
        if not (last or step % self._config.sample_every == 0):
            return
        trainer.check_weights()
        images, columns = self._save(trainer, grid_path(trainer.out, step))
        self._metrics.add_image("samples", make_grid(images, columns=columns), step)
        report = self._diversity.measure(self.sample(trainer.state, DIVERSITY_SAMPLES))
        for text in self._monitor.observe_samples(step, report, final=last):
            trainer.warn(text)
        if trainer.row is not None:
            trainer.row["diversity"] = report.ratio
        for callback in trainer.callbacks:
            callback.on_samples(trainer, images)

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """Draws the final grid."""
        self._save(trainer, result.samples)

    def _save(self, trainer: Trainer, path: Path) -> tuple[Tensor, int | None]:
        """Saves a grid with the classes' names; returns its images and the number of columns."""
        count, classes = self._config.n_samples, trainer.updater.num_classes
        if classes is None:
            images = self.sample(trainer.state, count)
            save_grid(images, path)
            return images, None
        labels, columns = class_grid(count, classes)
        images = self.sample(trainer.state, len(labels), torch.tensor(labels))
        captions = [trainer.data.class_name(label) for label in labels]
        save_grid(images, path, columns=columns, captions=captions)
        return images, columns

    def sample(self, state: TrainState, n: int, labels: Tensor | None = None) -> Tensor:
        """``n`` images from the same noise at every call; by default with the classes in turn."""
        config, classes = self._config, state.updater.num_classes
        assert config.noise is not None
        # Drawn on the CPU, for the same noise on every device.
        generator = seeded_generator(config.seed, PICTURE_STREAM)
        z = sample_noise(n, config.nz, config.noise, generator=generator)
        if labels is None and classes is not None:
            labels = torch.arange(n) % classes
        return generate_images(state.sampler, z, labels)

    def compared(self, state: TrainState, real: Tensor, n: int) -> dict[str, tuple[Tensor, Tensor]]:
        """``n`` samples and the real images that an evaluation compares them with, by direction."""
        return {"a2b": (self.sample(state, n), real)}


class MetricsWriter(Callback):
    """Writes metrics.csv, TensorBoard's events and, at the end, losses.png."""

    _recorder: MetricsRecorder | None = None

    def open(self, folder: Path, step: int) -> None:
        """Opens the files; drops rows of steps that will be repeated."""
        self._recorder = MetricsRecorder(folder, step)

    def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Writes the row."""
        assert self._recorder is not None
        self._recorder.record(row)

    def add_image(self, name: str, image: object, step: int) -> None:
        """Adds a picture to TensorBoard's events."""
        assert self._recorder is not None
        self._recorder.record_image(name, image, step)

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """Closes the files and plots the losses."""
        config = trainer.config
        assert self._recorder is not None
        self._recorder.record_settings(config.to_dict(), result.metrics)
        path = self._close()
        plot_losses(
            read_metrics(path),
            trainer.out / "losses.png",
            title=f"{config.model} on {trainer.data.name}, {trainer.step} steps",
            opponent="critic" if config.is_wasserstein else "discriminator",
        )

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Closes the files."""
        if self._recorder is not None:
            with suppress(OutputError):  # the first error is the one to report
                self._close()

    def _close(self) -> Path:
        assert self._recorder is not None
        recorder, self._recorder = self._recorder, None
        recorder.close()
        return recorder.path


class CheckpointWriter(Callback):
    """Saves a checkpoint every ``checkpoint_every`` steps; the trainer saves the final one."""

    def on_step_end(self, trainer: Trainer) -> None:
        """Saves if it is time."""
        config = trainer.config
        if trainer.step % config.checkpoint_every == 0 and trainer.step < config.steps:
            trainer.save()
