"""A result's summary: one line per case, fastgan against the fastest peer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastgan.bench.cases import is_ours
from fastgan.bench.schema import Result, Row


@dataclass(frozen=True)
class Line:
    """A case.

    Attributes:
        row: fastgan's time.
        peer: the fastest peer's, or None.
        ratio: against that peer, or None.
        floor: fastgan's percent of floor, or None.
        peak: peak memory against eager, or None.
    """

    row: Row
    peer: Row | None
    ratio: Row | None
    floor: Row | None
    peak: Row | None

    @property
    def label(self) -> str:
        """The case's short name, with the provider if fastgan has several."""
        row = self.row
        parts = [row.op, row.shape]
        parts += [row.dtype] if row.dtype != "float32" else []
        parts += [f"batch {row.batch}"] if row.batch else []
        parts += ["graph"] if row.mode == "graph" else []
        which = "" if row.provider == "fastgan" else f" ({row.provider})"
        return ", ".join(parts) + which


def without_passes(label: str) -> str:
    """Removes the usual passes from a name.

    Example:
        >>> without_passes("bn_act, forward and backward, 64x8x8")
        'bn_act, 64x8x8'
    """
    return label.replace(", forward and backward", "")


def labels(shown: Sequence[Line]) -> list[str]:
    """The lines' labels, shortened if still distinct."""
    short = [without_passes(line.label) for line in shown]
    return [
        label if short.count(label) == 1 else line.label
        for label, line in zip(short, shown, strict=True)
    ]


def lines(result: Result | Iterable[Row]) -> list[Line]:
    """One line per case and fastgan provider, in the measured order."""
    rows = result.rows if isinstance(result, Result) else tuple(result)
    by_case: dict[object, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    summary = []
    for of_case in by_case.values():
        times = [row for row in of_case if row.metric == "seconds" and row.provider != "floor"]
        peers = [row for row in times if not is_ours(row.provider)]
        best = min(peers, key=lambda row: row.value, default=None)
        for time in (row for row in times if is_ours(row.provider)):
            same_provider = [row for row in of_case if row.provider == time.provider]
            ratios = [row for row in same_provider if row.metric == "times_faster"]
            summary.append(
                Line(
                    row=time,
                    peer=best,
                    ratio=min(ratios, key=lambda row: row.value, default=None),
                    floor=_first(same_provider, "percent_of_floor"),
                    peak=_first(same_provider, "peak_ratio", "eager"),
                )
            )
    return summary


def _first(rows: list[Row], metric: str, detail: str | None = None) -> Row | None:
    for row in rows:
        if row.metric == metric and detail in (None, row.detail):
            return row
    return None


def seconds_text(seconds: float) -> str:
    """Three digits and a unit.

    Example:
        >>> seconds_text(0.0123), seconds_text(2.5), seconds_text(0.0000041)
        ('12.3 ms', '2.50 s', '4.10 µs')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-6)} µs"


def _three(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
