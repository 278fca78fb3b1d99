"""The format of ``fastgan bench``'s results, from which the README's tables are made.

A JSON file holds one object:

    schema      1
    time        when it was measured, UTC
    commit of the running code, with "-dirty" if files differed; null without a git checkout
    machine     device, processor, cores, threads, memory_bytes; with a GPU also gpu,
                compute_capability, gpu_memory_bytes
    versions    of python, torch, fastgan, triton, cuda; the CPU loops' instruction set
    settings    how it was measured
    floors      measured bytes_per_second, and flops_per_second by dtype
    notes       what was left out, and why
    rows        see :class:`Row`; a number each

A CSV file has only the rows, with ``device``, ``processor`` (or GPU), ``threads``, ``versions``,
``commit`` and ``time`` in every line, so that files can be concatenated.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastgan._util.reading import parsing, read_text
from fastgan.errors import DataError

SCHEMA = 1


@dataclass(frozen=True)
class Metric:
    """The meaning of a number.

    Attributes:
        unit: of the number.
        better: "higher", "lower" or "neither".
        meaning: in words.
    """

    unit: str
    better: str
    meaning: str


METRICS: Mapping[str, Metric] = {
    "seconds": Metric("s", "lower", "one call, Python included, until the device is done; median"),
    "host_seconds": Metric("s", "lower", "one call until it returns to Python; GPU only"),
    "times_faster": Metric("x", "higher", "the peer named in detail takes so many times as long"),
    "host_times_faster": Metric("x", "higher", "the same of host_seconds; GPU only"),
    "percent_of_floor": Metric(
        "%", "higher", "the least time this machine allows for flops and bytes, over seconds"
    ),
    "peak_bytes": Metric("B", "lower", "memory at the worst moment of a call, beyond that before"),
    "peak_ratio": Metric("x", "lower", "peak_bytes over those of the peer named in detail"),
    "saved_bytes": Metric("B", "lower", "what forward passes save for backward, weights aside"),
    "saved_ratio": Metric("x", "lower", "saved_bytes over those of the peer named in detail"),
    "images_per_second": Metric("1/s", "higher", "real images trained on"),
    "launches": Metric("1", "lower", "kernels a call launches; on a CPU innermost operator calls"),
    "convolutions": Metric(
        "1", "lower", "convolution passes of a call, products of matrices included"
    ),
    "share": Metric("1", "neither", "of a call's time, spent in the part named in detail"),
    "flops": Metric("1", "neither", "operations by the formulas (provider: floor)"),
    "bytes": Metric("B", "neither", "bytes the call can't do without moving (provider: floor)"),
    "disturbance": Metric("%", "neither", "of all cores' time, what other processes used"),
}


@dataclass(frozen=True)
class Row:
    """One number.

    Attributes:
        suite: "ops", "models", "training" or "style".
        op: the operation.
        provider: the implementation: "fastgan", "eager", "torch.compile", ...; "floor" for the
            machine's bound, "machine" for the machine itself.
        shape: the input.
        dtype: the arithmetic's.
        batch: images per call; 0 without a batch.
        mode: "launched", or "graph" for the replay of a captured CUDA graph.
        metric: a name of :data:`METRICS`.
        value: the number, finite.
        spread: its first and third quartile over the rounds, or None.
        detail: a ratio's peer, a share's part, or the bound of a percent of floor.
    """

    suite: str
    op: str
    provider: str
    shape: str
    dtype: str
    batch: int
    mode: str
    metric: str
    value: float
    spread: tuple[float, float] | None = None
    detail: str = ""

    @property
    def case(self) -> tuple[str, str, str, str, int, str]:
        """The case, without the provider."""
        return (self.suite, self.op, self.shape, self.dtype, self.batch, self.mode)

    @property
    def key(self) -> tuple[str | int, ...]:
        """Everything but the number."""
        detail = "" if self.metric == "percent_of_floor" else self.detail
        return (*self.case, self.provider, self.metric, detail)


@dataclass(frozen=True)
class Result:
    """All numbers of one run.

    Attributes:
        time: see the module, like the others.
        commit: see the module.
        machine: see the module.
        versions: see the module.
        settings: see the module.
        floors: see the module.
        rows: see the module.
        notes: see the module.
    """

    time: str
    commit: str | None
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]
    settings: Mapping[str, Any]
    floors: Mapping[str, Any]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    @property
    def device_name(self) -> str:
        """The GPU, else the processor."""
        return str(self.machine.get("gpu", self.machine.get("processor", "unknown")))

    def to_json(self) -> str:
        """The file's text."""
        head = {"schema": SCHEMA}
        for column in dataclasses.fields(self):
            if column.name != "rows":
                head[column.name] = getattr(self, column.name)
        text = json.dumps(head, indent=2, allow_nan=False)
        # One row per line, for readable files and diffs.
        rows = ",\n".join(
            "    " + json.dumps(_without_defaults(row), allow_nan=False) for row in self.rows
        )
        return f'{text[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n'

    def to_csv(self) -> str:
        """The rows, one per line, after a line of names."""
        names = [field.name for field in dataclasses.fields(Row) if field.name != "spread"]
        common = {
            "device": self.machine.get("device", ""),
            "processor": self.device_name,
            "threads": self.machine.get("threads", ""),
            "versions": " ".join(f"{name}={value}" for name, value in self.versions.items()),
            "commit": self.commit or "",
            "time": self.time,
        }
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*names, "spread_low", "spread_high", "unit", *common])
        for row in self.rows:
            low, high = row.spread or ("", "")
            writer.writerow(
                [
                    *(getattr(row, name) for name in names),
                    low,
                    high,
                    METRICS[row.metric].unit,
                    *common.values(),
                ]
            )
        return stream.getvalue()

    def find(self, **wanted: object) -> list[Row]:
        """The rows with these values.

        Example:
            >>> row = Row("ops", "bn_act", "eager", "s", "float32", 1, "launched", "seconds", 1.0)
            >>> Result("", None, {}, {}, {}, {}, (row,)).find(op="bn_act", batch=1) == [row]
            True
        """
        return [
            row
            for row in self.rows
            if all(getattr(row, name) == value for name, value in wanted.items())
        ]


def _without_defaults(row: Row) -> dict[str, Any]:
    return {
        field.name: getattr(row, field.name)
        for field in dataclasses.fields(row)
        if getattr(row, field.name) != field.default
    }


def read_result(path: Path | str) -> Result:
    """The result in a JSON file of this schema.

    Raises:
        DataError: it can't be read or is invalid; the message names the file and the problem.

    Example:
        >>> read_result("/no/such/file.json")
        Traceback (most recent call last):
        fastgan.errors.DataError: /no/such/file.json: can't be read: No such file or directory
    """
    text = read_text(path, DataError)
    with parsing(f"{path}: is not JSON", DataError):
        content = json.loads(text)
    if not isinstance(content, dict) or "schema" not in content:
        raise DataError(f"{path}: is not a result of fastgan bench: it has no 'schema'")
    if content["schema"] != SCHEMA:
        raise DataError(f"{path}: has schema {content['schema']!r}; expected {SCHEMA}")
    with parsing(f"{path}: is not a result of fastgan bench", DataError):
        return Result(
            time=str(content["time"]),
            commit=content["commit"],
            machine=dict(content["machine"]),
            versions=dict(content["versions"]),
            settings=dict(content["settings"]),
            floors=dict(content["floors"]),
            rows=tuple(_row(values) for values in content["rows"]),
            notes=tuple(map(str, content["notes"])),
        )


def _row(values: Mapping[str, Any]) -> Row:
    spread = values.get("spread")
    if spread is not None:
        low, high = spread
        spread = (float(low), float(high))
    row = Row(**{**values, "spread": spread, "value": float(values["value"])})
    if row.metric not in METRICS:
        raise ValueError(f"there is no metric {row.metric!r}")
    for column in dataclasses.fields(Row):
        if column.name not in ("value", "spread"):
            wanted = int if column.name == "batch" else str
            if type(getattr(row, column.name)) is not wanted:
                raise ValueError(f"{column.name}: expected {wanted.__name__}")
    if not all(map(math.isfinite, row.spread or ())):
        raise ValueError(f"the spread of {row.metric} is {row.spread}")
    if not math.isfinite(row.value):
        raise ValueError(f"the value of {row.metric} is {row.value}")
    return row


@dataclass(frozen=True)
class Change:
    """A number that differs from an earlier run's by more than both spreads.

    Attributes:
        old: the earlier number.
        new: the new number.
        worse: whether it is a regression.
    """

    old: Row
    new: Row
    worse: bool

    def __str__(self) -> str:
        row = self.new
        where = f"{row.op}, {row.shape}, {row.dtype}" + (f", {row.batch}" if row.batch else "")
        against = f" (against {row.detail})" if row.detail else ""
        return (
            f"{'worse' if self.worse else 'better'}: {where}, {row.provider}: {row.metric}"
            f" {self.old.value:.4g} -> {row.value:.4g} {METRICS[row.metric].unit}{against}"
        )


#: The relative change that counts for numbers without a spread.
_TOLERANCE = {"peak_bytes": 0.03, "peak_ratio": 0.03, "saved_bytes": 0.01, "saved_ratio": 0.01}
#: Only comparable on the same machine.
_ABSOLUTE = frozenset({"seconds", "host_seconds", "images_per_second", "percent_of_floor"})


def compare(old: Result, new: Result) -> list[Change]:
    """Lists fastgan's numbers with disjoint quartile ranges.

    Ratios and counts are compared across machines; seconds, images per second and percent of floor
    only for the same processor or GPU and number of threads. Peers' own numbers aren't compared.

    Args:
        old: an earlier result.
        new: the result to judge.

    Returns:
        Regressions first, the largest first.

    Example:
        >>> row = Row("ops", "clip", "fastgan", "s", "float32", 0, "launched", "times_faster", 2.0,
        ...           (1.9, 2.1), "eager")
        >>> slow = dataclasses.replace(row, value=1.5, spread=(1.4, 1.6))
        >>> old, new = (Result("", None, {}, {}, {}, {}, (each,)) for each in (row, slow))
        >>> print(*compare(old, new))
        worse: clip, s, float32, fastgan: times_faster 2 -> 1.5 x (against eager)
    """
    same_machine = old.device_name == new.device_name and old.machine.get(
        "threads"
    ) == new.machine.get("threads")
    before = {row.key: row for row in old.rows}
    changes = []
    for row in new.rows:
        earlier = before.get(row.key)
        better = METRICS[row.metric].better
        if earlier is None or better == "neither" or not row.provider.startswith("fastgan"):
            continue
        if row.metric in _ABSOLUTE and not same_machine:
            continue
        (low_then, high_then), (low_now, high_now) = map(_interval, (earlier, row))
        if low_now > high_then or high_now < low_then:
            rose = row.value > earlier.value
            changes.append(Change(earlier, row, rose == (better == "lower")))
    return sorted(changes, key=_size)


def _interval(row: Row) -> tuple[float, float]:
    if row.spread is not None:
        return row.spread
    tolerance = _TOLERANCE.get(row.metric, 0.0) * abs(row.value)
    return row.value - tolerance, row.value + tolerance


def _size(change: Change) -> tuple[bool, float]:
    old, new = (max(abs(row.value), 1e-30) for row in (change.old, change.new))
    return not change.worse, -abs(math.log(new / old))


def merged(results: Iterable[Result]) -> dict[tuple[str | int, ...], tuple[Row, Result]]:
    """The newest value of each number, with its result."""
    newest: dict[tuple[str | int, ...], tuple[Row, Result]] = {}
    for result in sorted(results, key=lambda result: result.time):
        for row in result.rows:
            newest[row.key] = (row, result)
    return newest
