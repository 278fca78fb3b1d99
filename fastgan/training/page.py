"""``index.html`` of a run: samples over time, curves, warnings and settings on one static page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fastgan._util.files import atomic_write
from fastgan._util.reading import printable, read_text
from fastgan.errors import OutputError
from fastgan.training.callbacks import Callback
from fastgan.training.recorder import COLUMNS, read_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from fastgan.training.result import TrainingResult
    from fastgan.training.trainer import Trainer

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff; }
h1 { overflow-wrap: anywhere; }
figure { margin: 0 0 1.5rem; } img { max-width: 100%; height: auto; }
svg { width: 100%; height: 11rem; } table { border-collapse: collapse; }
td { padding: 0 1rem 0 0; vertical-align: top; overflow-wrap: anywhere; }
.strip { display: flex; gap: 1rem; overflow-x: auto; }
.strip img { height: 20rem; max-width: none; }
polyline { fill: none; stroke-width: 1.5; vector-effect: non-scaling-stroke; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818; } }
"""
_COLOURS = ("#2a6f97", "#d08c3f", "#6a994e")
_WIDTH, _HEIGHT = 600, 120
#: Points of a curve, more than a screen shows.
_MOST_POINTS = 1000


class PageWriter(Callback):
    """Keeps ``warnings.txt``, and writes the page with each grid of samples and at the end."""

    def on_warning(self, trainer: Trainer, text: str) -> None:
        """Adds a line."""
        if trainer.out.is_dir():
            _append(trainer.out / "warnings.txt", f"step {trainer.step}: {printable(text)}\n")

    def on_samples(self, trainer: Trainer, images: Tensor) -> None:
        """Writes the page for the run so far."""
        self._write(trainer)

    def on_end(self, trainer: Trainer, result: TrainingResult) -> None:
        """Writes the page."""
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        title = f"{trainer.config.model} on {trainer.data.name}"
        page = render_run(trainer.out, title, trainer.config.to_dict())
        with atomic_write(trainer.out / "index.html") as file:
            file.write(page.encode())


def render_run(folder: Path, title: str, settings: Mapping[str, object]) -> str:
    """A run folder's page, which only needs the folder's pictures.

    Args:
        folder: with ``metrics.csv``, ``samples-STEP.png`` and, if there were any, ``warnings.txt``.
        title: of the page.
        settings: the run's.

    Raises:
        OutputError: a file in the folder can't be read.
    """
    title = escape(printable(title))
    rows = read_metrics(folder / "metrics.csv")
    grids = [grid for grid in sorted(folder.glob("samples-*.png")) if _step(grid).isdecimal()]
    path = folder / "warnings.txt"
    warnings = read_text(path, OutputError).splitlines() if path.exists() else []
    groups: dict[str, list[str]] = {}
    for name, group in COLUMNS.items():
        if group not in ("", "progress"):
            groups.setdefault(group, []).append(name)
    last = rows[-1] if rows else {}
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{last.get('step', 0):.0f} of {settings.get('steps')} steps, "
        f"{last.get('seconds', 0) / 60:.1f} minutes.</p>",
        "<h2>Warnings</h2>" if warnings else "<p>No warnings.</p>",
        *(f"<p>{escape(printable(line))}</p>" for line in warnings),
        "<h2>Samples</h2><div class=strip>",
        *(
            f'<figure><img src="{escape(grid.name)}" alt="samples" loading=lazy>'
            f"<figcaption>step {int(_step(grid))}</figcaption></figure>"
            for grid in reversed(grids)
        ),
        "</div><h2>Curves</h2>",
        *(_curves(group, rows, names) for group, names in groups.items()),
        "<h2>Settings</h2><table>",
        *(
            f"<tr><td>{escape(name)}<td>{escape(printable(str(value)))}"
            for name, value in settings.items()
            if value is not None
        ),
        "</table>",
    ]
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
    view = '<meta name=viewport content="width=device-width"><style>'
    return "\n".join([head + view + _STYLE + "</style>", *parts, "</html>"]) + "\n"


def _step(grid: Path) -> str:
    return grid.stem.removeprefix("samples-")


def _curves(group: str, rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> str:
    """A figure with the columns of a group that have finite values."""
    curves = {}
    for name in names:
        points = [
            (row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))
        ]
        if points:
            curves[name] = points[:: math.ceil(len(points) / _MOST_POINTS)]
    if not curves:
        return ""
    every = [point for points in curves.values() for point in points]
    low, high = min(y for _, y in every), max(y for _, y in every)
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    lines, labels = [], []
    for colour, (name, points) in zip(_COLOURS, curves.items(), strict=False):
        places = " ".join(
            f"{_WIDTH * (x - first) / ((last - first) or 1):.1f},"
            f"{_HEIGHT * (high - y) / ((high - low) or 1):.1f}"
            for x, y in points
        )
        lines.append(f'<polyline points="{places}" stroke="{colour}"/>')
        labels.append(f'<span style="color: {colour}">{escape(name)} {points[-1][1]:.4g}</span>')
    return (
        f"<figure><figcaption>{escape(group)}, {low:.4g} to {high:.4g}: {', '.join(labels)}"
        f'</figcaption><svg viewBox="-2 -2 {_WIDTH + 4} {_HEIGHT + 4}" preserveAspectRatio="none">'
        f"{''.join(lines)}</svg></figure>"
    )


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror or error}") from error
