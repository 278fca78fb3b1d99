"""Records a run's numbers: metrics.csv, TensorBoard events, the loss plot."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fastgan._util.files import atomic_write
from fastgan._util.reading import read_text
from fastgan.errors import DataWarning, OutputError

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

#: Columns of metrics.csv, followed by those of Trainer.log, and their groups in TensorBoard and on
#: a page. The model determines which are filled: `wasserstein` and `penalty` for critics, `d_real`
#: and `d_fake` (mean probability of "real") for discriminators; `r1` and `r2` if set; `l1`, `cycle`
#: and `identity` for translation; `ada_r` and `ada_p` with adaptive augmentation.
COLUMNS = {
    "step": "",
    "images": "progress",
    "seconds": "",
    **dict.fromkeys(("loss_d", "loss_g"), "loss"),
    "wasserstein": "scores",
    **dict.fromkeys(("penalty", "r1", "r2"), "penalties"),
    **dict.fromkeys(("l1", "cycle", "identity"), "translation"),
    **dict.fromkeys(("d_real", "d_fake"), "scores"),
    **dict.fromkeys(("ada_r", "ada_p"), "augmentation"),
    **dict.fromkeys(("grad_norm_g", "diversity"), "health"),
    **dict.fromkeys(("lr_g", "lr_d"), "rates"),
    "images_per_second": "progress",
}


class MetricsRecorder:
    """Writes each row of metrics to ``metrics.csv`` and, if installed, TensorBoard.

    Args:
        folder: the run's folder, which exists.
        start_step: rows of later steps, left by an interrupted run, are dropped.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        self.path = folder / "metrics.csv"
        # TensorBoard's thread raises its error at the next call; Python's own traceback of the
        # thread isn't needed.
        self._excepthook = threading.excepthook
        threading.excepthook = self._quiet_about_tensorboard
        self._rewrite([row for row in read_metrics(self.path) if row["step"] <= start_step])
        self._events_folder = folder / "tensorboard"
        self._events: SummaryWriter | None = None
        if importlib.util.find_spec("tensorboard") is not None:
            # Importing it takes a second, which `fastgan sample` should avoid.
            from torch.utils.tensorboard.writer import SummaryWriter

            with _named(self._events_folder):
                self._events = SummaryWriter(str(self._events_folder), purge_step=start_step + 1)

    def record(self, row: Mapping[str, float]) -> None:
        """Appends one row; the model's missing columns stay empty.

        A new name becomes a new column after the others.

        Raises:
            OutputError: it can't be written, such as on a full disk.
        """
        self._check_file()
        if not row.keys() <= set(self._writer.fieldnames):
            with _named(self.path):
                self._file.close()
            self._rewrite(read_metrics(self.path), row)
        with _named(self.path):
            self._writer.writerow(_formatted(row))
            self._file.flush()
        if self._events is None:
            return
        with _named(self._events_folder):
            for name, value in tagged(row).items():
                self._events.add_scalar(name, value, int(row["step"]))

    def record_settings(self, settings: Mapping[str, object], results: Mapping[str, float]) -> None:
        """Adds a run's settings and last numbers to TensorBoard's table of runs."""
        if self._events is None:
            return
        plain = {name: value for name, value in settings.items() if value is not None}
        numbers = {_tag(name): value for name, value in results.items() if name != "step"}
        with _named(self._events_folder):
            self._events.add_hparams(plain, numbers, run_name=".")

    def record_image(self, name: str, grid: object, step: int) -> None:
        """Adds a uint8 picture of shape (height, width, 3 or 1) to the TensorBoard events."""
        if self._events is None:
            return
        with _named(self._events_folder):
            self._events.add_image(name, grid, step, dataformats="HWC")

    def _quiet_about_tensorboard(self, arguments: threading.ExceptHookArgs) -> None:
        if not type(arguments.thread).__module__.startswith("tensorboard."):
            self._excepthook(arguments)

    def _check_file(self) -> None:
        """Rewrites a removed or replaced file from the open one."""
        with _named(self.path):
            mine = os.fstat(self._file.fileno())
            if self.path.exists() and os.path.samestat(os.stat(self.path), mine):
                return
            self._file.seek(0)
            rows = _parse_rows(self._file)
            self._file.close()
        self._rewrite(rows)
        warnings.warn(
            f"{self.path}: was removed or replaced during the run; written anew",
            DataWarning,
            stacklevel=3,
        )

    def _rewrite(self, rows: list[dict[str, float]], *coming: Mapping[str, float]) -> None:
        """Writes the file with these rows, and columns for them and later ones."""
        columns = list(dict.fromkeys(chain(COLUMNS, *rows, *coming)))
        _write_rows(self.path, rows, columns)
        with _named(self.path):
            self._file = self.path.open("a+", encoding="utf-8", newline="")
        self._writer = csv.DictWriter(self._file, columns, lineterminator="\n")

    def close(self) -> None:
        """Flushes and closes both files."""
        threading.excepthook = self._excepthook
        with _named(self.path):
            self._file.close()
        if self._events is None:
            return
        with _named(self._events_folder):
            self._events.close()


def tagged(row: Mapping[str, float]) -> dict[str, float]:
    """A row with TensorBoard's names."""
    return {_tag(name): value for name, value in row.items() if name not in ("step", "seconds")}


def _tag(name: str) -> str:
    """A metric's name in TensorBoard, which groups names by the part before a slash."""
    group = COLUMNS.get(name, "own")
    return f"{group}/{name}" if group and "/" not in name else name


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror or error}") from error


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``; empty if there is none. A torn last line is left out."""
    if not path.exists():
        return []
    return _parse_rows(io.StringIO(read_text(path, OutputError), newline=""))


def _parse_rows(file: TextIO) -> list[dict[str, float]]:
    rows = []
    with suppress(csv.Error):  # an endless field, in another program's file
        for row in csv.DictReader(file):
            try:
                rows.append({str(name): float(value) for name, value in row.items() if value})
            except (TypeError, ValueError):
                break
    counts = [(row.get("step", math.nan), row.get("images", 0.0)) for row in rows]
    return [row for row, n in zip(rows, counts, strict=True) if all(map(math.isfinite, n))]


def plot_losses(
    rows: list[dict[str, float]], path: Path, *, title: str, opponent: str = "discriminator"
) -> None:
    """Plots both losses and the discriminator's scores over the steps.

    Does nothing without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return
    # Not pyplot, which would choose a backend for the whole process.
    from matplotlib.figure import Figure

    curves = {
        "Wasserstein estimate": "wasserstein",
        "gradient penalty": "penalty",
        "R1": "r1",
        "R2": "r2",
        "D(real)": "d_real",
        "D(fake)": "d_fake",
        "p of augmentation": "ada_p",
    }
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    panels = (
        (above, {opponent: "loss_d", "generator": "loss_g"}, "loss"),
        (below, curves, ""),
    )
    for axes, lines, label in panels:
        for name, column in lines.items():
            points = [(row["step"], row[column]) for row in rows if column in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        if axes.lines:
            axes.legend(loc="best", frameon=False)
    above.set_title(title)
    below.set_xlabel("generator updates")
    with atomic_write(path) as file:
        figure.savefig(file, dpi=120, format="png")


def _formatted(row: Mapping[str, float]) -> dict[str, str]:
    return {
        name: str(int(value)) if name in ("step", "images") else f"{value:.6g}"
        for name, value in row.items()
    }


def _write_rows(path: Path, rows: list[dict[str, float]], columns: list[str]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_formatted(row) for row in rows)
    with atomic_write(path) as file:
        file.write(text.getvalue().encode())
