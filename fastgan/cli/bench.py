"""``fastgan bench``: the tables and pictures of ``docs/performance.md``, on this machine."""

from __future__ import annotations

import argparse
import os
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from fastgan._util.devices import choose_device
from fastgan.bench import tables
from fastgan.bench.cases import Case
from fastgan.bench.goals import GOALS, judge, urgency
from fastgan.bench.output import check_folder, write_result
from fastgan.bench.plots import why_no_plots
from fastgan.bench.runner import Listener, Plan, run_cases
from fastgan.bench.schema import Change, Result, Row, compare, read_result
from fastgan.bench.suites import suite_cases
from fastgan.bench.summary import lines, seconds_text
from fastgan.bench.timing import Budget
from fastgan.errors import ConfigError

#: Seconds per case, without preparing and compiling.
_SECONDS = 20.0
_QUICK_SECONDS = {"cpu": 3.0, "cuda": 0.5}
#: So that it ends within ten minutes, with the last case and the pictures, on any machine.
_QUICK_MINUTES = 9.0

#: With less time, torch.compile and memory peaks would leave none for the headline cases.
_MINUTES_FOR_ALL = 5.0

_ABOVE_THE_FLOOR = (
    "more than 100% of floor: data still in a cache, or convolutions that save products"
)


def run(options: argparse.Namespace) -> int:
    """Measures, shows and writes; returns 0, or 1 if there is a regression."""
    console = Console(highlight=False, width=None if os.isatty(1) else 120)
    folder = Path(options.out)
    check_folder(folder)
    earlier = read_result(options.compare) if options.compare else None
    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    cases = suite_cases(options.suite, device, quick=options.quick)
    if options.only:
        cases = [case for case in cases if any(text in case.name for text in options.only)]
        if not cases:
            texts = " or ".join(map(repr, options.only))
            raise ConfigError(f"only: no case of suite {options.suite} has {texts} in it")
    plan = _plan(options, device)
    with _Display(console) as display:
        no_plots = why_no_plots()
        if no_plots is not None:
            display.on_note(no_plots)
        if not plan.memory:
            display.on_note(
                "torch.compile and peak memory are left out: they take more than --max-minutes"
                f" {options.max_minutes:g}"
            )
        result = run_cases(cases, plan, display)
    changes = None if earlier is None else compare(earlier, result)
    written = write_result(result, folder, changes)
    _show(console, result, changes)
    console.print(f"\nwrote {len(written)} files; look at {folder / 'index.html'}", soft_wrap=True)
    return int(any(change.worse for change in changes or ()))


def _plan(options: argparse.Namespace, device: torch.device) -> Plan:
    seconds = _SECONDS
    if options.quick:
        seconds = _QUICK_SECONDS[device.type]
    minutes = options.max_minutes
    if minutes is None and options.quick:
        minutes = _QUICK_MINUTES
    short = minutes is not None and minutes < _MINUTES_FOR_ALL
    mode = None
    if not options.no_compile and not short:
        # We capture graphs ourselves, for all providers alike. Autotuning takes minutes per case.
        tuned = device.type == "cuda" and not options.quick
        mode = "max-autotune-no-cudagraphs" if tuned else "default"
    return Plan(
        device=device,
        budget=Budget(seconds),
        compile_mode=mode,
        memory=not short,
        seconds=None if minutes is None else 60 * minutes,
        urgency=lambda case: urgency(case, device.type),
        settings={
            "suite": options.suite,
            "quick": options.quick,
            "only": options.only,
            "seconds_per_case": seconds,
            "compile_mode": mode,
        },
    )


class _Display(Listener):
    """A live bar in a terminal, otherwise a line per case; both on stderr."""

    def __init__(self, console: Console) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> _Display:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=20),
                TimeElapsedColumn(),
                TextColumn(
                    "{task.fields[name]}", table_column=Column(no_wrap=True, overflow="ellipsis")
                ),
                console=self._console,
            )
            self._task = self._progress.add_task("bench", total=None, name="")
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def on_stage(self, name: str, done: int, total: int) -> None:
        """Moves the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, name=name)
        elif name.startswith("memory") or name in ("floors", "done"):
            seconds = time.monotonic() - self._started
            self._print(f"{done}/{total}  {seconds:4.0f} s  {name}")

    def on_rows(self, case: Case, rows: Sequence[Row]) -> None:
        """Prints a line with the new result."""
        for line in lines(rows):
            ratio = "" if line.ratio is None else f"  {line.ratio.value:.2f}x {line.ratio.detail}"
            self._print(f"{seconds_text(line.row.value):>8}{ratio}  {line.label}")

    def on_note(self, text: str) -> None:
        """Prints a shortened warning; the result has the whole text."""
        text = textwrap.shorten(text, 400, placeholder=" ... (the rest is in the result)")
        self._console.print(f"warning: {text}", style="yellow", soft_wrap=True, markup=False)

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False)


def _show(console: Console, result: Result, changes: list[Change] | None) -> None:
    for suite in dict.fromkeys(row.suite for row in result.rows):
        of_suite = [line for line in lines(result) if line.row.suite == suite]
        above = any(line.floor is not None and line.floor.value > 100 for line in of_suite)
        console.print()
        console.print(
            _shown(suite, tables.case_table(of_suite), _ABOVE_THE_FLOOR if above else None)
        )
    device = result.machine["device"]
    verdicts = [
        verdict
        for verdict in judge([result], [goal for goal in GOALS if goal.device == device])
        if verdict.row is not None
    ]
    if verdicts:
        console.print()
        console.print(_shown("goals", tables.goal_table(verdicts)))
    if changes is not None:
        console.print("\ncompared with the earlier result:" if changes else "")
        for change in changes:
            style = "red" if change.worse else "green"
            console.print(f"  {change}", style=style, markup=False, soft_wrap=True)
        if not changes:
            console.print("compared with the earlier result: nothing changed beyond the spread")


def _shown(title: str, table: tables.Table, caption: str | None = None) -> Table:
    shown = Table(
        title=title, title_justify="left", box=None, pad_edge=False, caption=caption,
        caption_justify="left",
    )  # fmt: skip
    for name in table.head:
        shown.add_column(name, overflow="fold", max_width=None if name == table.head[0] else 23)
    for cells, mark in zip(table.body, table.marks, strict=True):
        texts = [Text(cell) for cell in cells]
        texts[table.marked].stylize({"good": "green", "bad": "red"}.get(mark, "yellow"))
        shown.add_row(*texts)
    return shown
