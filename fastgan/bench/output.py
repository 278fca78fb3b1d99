"""Writes a result's files, each atomically."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fastgan._util.files import atomic_write
from fastgan.bench.goals import GOALS, judge
from fastgan.bench.page import render_page
from fastgan.bench.plots import save_plots, why_no_plots
from fastgan.bench.schema import Change, Result
from fastgan.errors import OutputError


def check_folder(folder: Path) -> None:
    """Raises before the measurement if the folder can't be made or written.

    Raises:
        OutputError: the message names the folder and what is wrong.

    Example:
        >>> check_folder(Path("/proc/results"))
        Traceback (most recent call last):
        fastgan.errors.OutputError: /proc/results: can't be made: /proc can't be written
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for the results")
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    # Root has permission everywhere, but some file systems refuse files.
    writable = os.access(there, os.W_OK | os.X_OK) and not str(there).startswith(("/proc", "/sys"))
    if not there.is_dir() or not writable:
        verb = "be written" if there == folder.absolute() else "be made"
        raise OutputError(f"{folder}: can't {verb}: {there} can't be written")


def write_result(
    result: Result, folder: Path, changes: Sequence[Change] | None = None
) -> list[Path]:
    """Writes ``results.json``, ``results.csv``, the pictures and ``index.html``.

    Args:
        result: what was measured.
        folder: made if necessary.
        changes: changes from an earlier result, for the page.

    Returns:
        The files.

    Raises:
        OutputError: one can't be written. An earlier run's files may remain.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be made: {error.strerror}") from error
    written = []

    def write(name: str, text: str) -> None:
        with atomic_write(folder / name) as file:
            file.write(text.encode())
        written.append(folder / name)

    write("results.json", result.to_json())
    write("results.csv", result.to_csv())
    plots = {} if why_no_plots() else save_plots(result, folder)
    for path in plots.values():
        written += [path.with_suffix(".png"), path]
    device = result.machine.get("device")
    verdicts = judge([result], [goal for goal in GOALS if goal.device == device])
    write("index.html", render_page(result, plots, verdicts, changes))
    return written
