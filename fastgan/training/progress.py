"""Progress display: a live bar in a terminal, otherwise a line now and then."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from fastgan.errors import printable
from fastgan.training.callbacks import Callback

if TYPE_CHECKING:
    from fastgan.training.result import TrainingResult
    from fastgan.training.trainer import Trainer

# Without a terminal: seconds between lines.
QUIET_INTERVAL = 15.0


class TrainingDisplay(Callback):
    """Shows losses, the Wasserstein estimate, images per second and the time left, on stderr.

    A live bar in a terminal; otherwise, such as in a notebook, a line now and then.

    Args:
        console: another console.

    Example:
        >>> import io, tempfile
        >>> from fastgan.training import TrainConfig, Trainer, TrainingDisplay
        >>> console = Console(file=io.StringIO())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = TrainConfig(out=folder, steps=1, batch_size=4, ngf=4, ndf=4)
        ...     _ = Trainer(config, callbacks=[TrainingDisplay(console)]).run()
        >>> print(console.file.getvalue().split(":")[0])
        dcgan on digits
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last_line = -math.inf
        self._started = 0.0
        self._first_step = 0

    def say(self, text: str) -> None:
        """Prints a line of information."""
        self._console.print(printable(text), soft_wrap=True, markup=False)

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the bar; may be repeated."""
        if self._progress is not None:
            self._progress.stop()

    def on_loading(self, trainer: Trainer, done: int, total: int) -> None:
        """Shows the number of files read from a large folder."""
        if not self._console.is_terminal:
            return
        self._console.print(f"reading images: {done}/{total}", end="\r")
        if done == total:
            self._console.print(" " * 40, end="\r")

    def on_start(self, trainer: Trainer) -> None:
        """Names the run, starts the bar."""
        self._started = time.monotonic()
        self._first_step = trainer.step
        config, data = trainer.config, trainer.data
        size = f"{config.image_size}x{config.image_size}"
        count = trainer.source.num_classes
        classes = f" of {count} classes" if count else ""
        self.say(
            f"{config.model}{' (conditional)' if config.conditional else ''} on {data.name}:"
            f" {len(trainer.source)} images{classes} at {size}x{data.channels}, batch"
            f" {config.batch_size}, {config.precision if config.precision != 'auto' else 'fp32'}"
            f" on {trainer.device.type}"
        )
        if self._console.is_terminal:
            # If the line is too short, the bar is dropped first and the clock last.
            bar = [BarColumn(bar_width=None)] if self._console.width >= 110 else []
            self._progress = Progress(
                TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
                *bar,
                TextColumn(
                    "{task.fields[numbers]}",
                    table_column=Column(no_wrap=True, overflow="ellipsis", ratio=None),
                ),
                TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True, min_width=5)),
                TextColumn("left", table_column=Column(no_wrap=True, min_width=4)),
                console=self._console,
                expand=bool(bar),
            )
            self._task = self._progress.add_task(
                "training", total=config.steps, completed=trainer.step, numbers=""
            )
            self._progress.start()

    def on_plan(self, trainer: Trainer) -> None:
        """Shows the planned number of steps."""
        steps, minutes = trainer.config.steps, trainer.config.minutes
        enough = "minute is" if minutes == 1 else "minutes are"
        self.say(f"{minutes:g} {enough} enough for {steps} steps at this speed")
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=steps)

    def on_step(self, trainer: Trainer) -> None:
        """Moves the bar; without a terminal, prints a line before the first numbers are due."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=trainer.step)
        elif trainer.row is None and self._is_quiet_for_long():
            self._line(trainer, [])

    def on_metrics(self, trainer: Trainer, row: Mapping[str, float]) -> None:
        """Shows the newest numbers."""
        if self._progress is not None and self._task is not None:
            numbers = _numbers(row)
            if self._console.width < 80:
                numbers = numbers[:2]
            self._progress.update(self._task, numbers="  ".join(numbers))
            return
        first = self._last_line < self._started
        if first or self._is_quiet_for_long() or trainer.step == trainer.config.steps:
            self._line(trainer, _numbers(row))

    def _is_quiet_for_long(self) -> bool:
        return time.monotonic() - max(self._last_line, self._started) >= QUIET_INTERVAL

    def _line(self, trainer: Trainer, numbers: list[str]) -> None:
        now, config = time.monotonic(), trainer.config
        done = trainer.step - self._first_step
        left = (config.steps - trainer.step) * (now - self._started) / max(done, 1)
        if config.max_minutes is not None:
            left = min(left, max(0.0, config.max_minutes * 60 - (now - self._started)))
        step = f"step {trainer.step}/{config.steps}"
        self.say("  ".join([step, *numbers, f"{_clock(left)} left"]))
        self._last_line = now

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """Closes the bar."""
        self.stop()

    def on_exception(self, trainer: Trainer, error: BaseException) -> None:
        """Closes the bar."""
        self.stop()

    def on_warning(self, trainer: Trainer, text: str) -> None:
        """Shows a warning above the bar."""
        self.warn(text)

    def warn(self, text: str) -> None:
        """Prints a warning."""
        self._console.print(
            f"warning: {printable(text)}", style="yellow", soft_wrap=True, markup=False
        )


def _numbers(row: Mapping[str, float]) -> list[str]:
    """The newest numbers, the most important first."""
    parts = [f"D {row['loss_d']:.3f}", f"G {row['loss_g']:.3f}"]
    if "wasserstein" in row:
        parts.append(f"W {row['wasserstein']:.3f}")
    else:
        parts.append(f"D(x) {row['d_real']:.2f} D(G(z)) {row['d_fake']:.2f}")
    parts.append(f"{row['images_per_second']:.0f} img/s")
    return parts


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
