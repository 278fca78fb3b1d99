"""Measures cases: peak memory first, then times in turns, with counts."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from fastgan.bench.cases import Case, Setting, is_ours
from fastgan.bench.counting import count
from fastgan.bench.floors import Floors, measure_floors
from fastgan.bench.machine import cache_bytes, context
from fastgan.bench.memory import MemoryMeter, can_measure_memory, saved_bytes
from fastgan.bench.schema import Result, Row
from fastgan.bench.timing import Budget, Call, Timing, measure_in_turns, median_and_quartiles
from fastgan.ops.backends import Selector, using

#: Input sets of a case take at most this much memory together.
_MOST_INPUT_BYTES = 1 << 30
_MOST_COPIES = 64
#: Smaller peaks are within the measurement's error.
_LEAST_PEAK = 1 << 20
#: A captured graph's other inputs are copies in its private pool: a few are enough.
_MOST_GRAPHS = 4
#: Number of calls for counting launches.
_PROFILED = 3


@dataclass(frozen=True)
class Plan:
    """Settings of a measurement.

    Attributes:
        device: where.
        budget: rounds and seconds per case.
        compile_mode: of the torch.compile peers; None leaves them out.
        memory: whether to measure peaks.
        seconds: approximate total time: after a fifth no further peak is measured, after four
            fifths no further case begins, and none is timed if its fewest rounds would exceed the
            rest; None for no limit.
        urgency: ranks cases; lower ones are measured first.
        settings: recorded in the result.
    """

    device: torch.device
    budget: Budget = field(default_factory=Budget)
    compile_mode: str | None = "default"
    memory: bool = True
    seconds: float | None = None
    urgency: Callable[[Case], int] = lambda _: 0
    settings: Mapping[str, Any] = field(default_factory=dict)


class Listener:
    """Receives progress from :func:`run_cases`; override what you need."""

    def on_stage(self, name: str, done: int, total: int) -> None:
        """Called when ``done`` of ``total`` steps are done and the named one begins."""

    def on_rows(self, case: Case, rows: Sequence[Row]) -> None:
        """Called after a case was timed."""

    def on_note(self, text: str) -> None:
        """Called when something was left out."""


def copies_beyond_cache(case: Case, device: torch.device) -> int:
    """The number of input sets that together exceed the last-level cache, within limits.

    Example:
        >>> case = Case("ops", "clip", "s", "float32", 0, None, 0, lambda _: {})
        >>> copies_beyond_cache(case, torch.device("cpu"))
        1
    """
    if case.input_bytes == 0:
        return 1
    wanted = cache_bytes(device) // case.input_bytes + 2
    return max(1, min(wanted, _MOST_INPUT_BYTES // case.input_bytes, _MOST_COPIES))


def run_cases(cases: Sequence[Case], plan: Plan, listener: Listener | None = None) -> Result:
    """Measures every case, the most urgent first, and reports them in the given order.

    A provider that can't run (such as torch.compile without a compiler) is left out of its case
    with a note; so is a case if fastgan can't run.

    Args:
        cases: what to measure.
        plan: how.
        listener: receives progress.

    Returns:
        The result. Percents of floor use the better of the rates measured before and after.

    Example:
        >>> from fastgan.bench.suites import suite_cases
        >>> cpu = torch.device("cpu")
        >>> case = suite_cases("ops", cpu, quick=True)[6]
        >>> result = run_cases([case], Plan(cpu, Budget(0.1), None, memory=False))
        >>> result.find(provider="fastgan", metric="seconds")[0].op
        'clip alone'
    """
    listener = listener or Listener()
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        listener.on_note(text)

    device = plan.device
    if device.type == "cuda":
        # Every user of convolutions on a GPU should set this; it applies to the peers, too.
        torch.backends.cudnn.benchmark = True
    clock, facts = time.monotonic(), context(device)

    def late(share: float) -> bool:
        return plan.seconds is not None and time.monotonic() - clock > share * plan.seconds

    dtypes = tuple(sorted({case.dtype for case in cases} | {"float32"}))
    why_not = can_measure_memory(device) if plan.memory else None
    memory = plan.memory and why_not is None
    if why_not is not None:
        note(f"peak memory is not measured: {why_not}")
    total = len(cases) * (2 if memory else 1) + 2
    in_turn = sorted(cases, key=plan.urgency)
    rows: list[Row] = []
    if memory:
        # First, because memory that compiling and timing leave in the allocator would change or
        # hide peaks.
        without_peak = []
        with MemoryMeter(device) as meter:
            for number, case in enumerate(in_turn):
                if late(0.2):
                    without_peak.append(case)
                    continue
                listener.on_stage(f"memory: {case.name}", number, total)
                with using(Selector()):  # backends are measured as in a program of its own
                    rows += _memory_rows(case, plan, meter, note)
                _forget()
        if without_peak:
            note(f"peak memory is left out, a fifth of the time was up: {_names(without_peak)}")
    before = len(cases) if memory else 0
    listener.on_stage("floors", before, total)
    floors = measure_floors(device, dtypes=dtypes)
    floor_of: dict[tuple[str, str, str, str, int, str], Case] = {}
    too_late = []
    for number, case in enumerate(in_turn, before + 1):
        if late(0.8):
            too_late.append(case)
            continue
        listener.on_stage(case.name, number, total)
        deadline = math.inf if plan.seconds is None else clock + 0.95 * plan.seconds
        with using(Selector()):
            measured = _measure_case(case, plan, deadline, note)
        if measured is None:
            too_late.append(case)
            measured = []
        rows += measured
        floor_of.update({row.case: case for row in measured})
        listener.on_rows(case, [*measured, *_floor_rows(measured, floor_of, floors)])
        _forget()
    if too_late:
        note(f"left out, the time was up: {_names(too_late)}")
    listener.on_stage("floors", total - 1, total)
    floors = floors.best(measure_floors(device, dtypes=dtypes))
    rows += _floor_rows(rows, floor_of, floors)
    place = {_subject(case): number for number, case in enumerate(cases)}
    rows.sort(key=lambda row: place[_subject(row)])
    listener.on_stage("done", total, total)
    return Result(
        **facts,
        settings=plan.settings,
        floors={
            "bytes_per_second": floors.bytes_per_second,
            "flops_per_second": dict(floors.flops_per_second),
        },
        rows=tuple(rows),
        notes=tuple(notes),
    )


def _subject(of: Case | Row) -> tuple[str, str, str, str, int]:
    """A case's fields for its rows."""
    return (of.suite, of.op, of.shape, of.dtype, of.batch)


def _names(cases: Sequence[Case]) -> str:
    return "; ".join(case.name for case in cases)


def _forget() -> None:
    """Frees a case's memory and compiled code before the next one."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _prepare(
    case: Case, setting: Setting, note: Callable[[str], None]
) -> tuple[dict[str, Call], int]:
    """The working providers and the number of input sets; none if ours doesn't work."""
    try:
        calls = case.prepare(setting)
    except Exception as error:  # memory or a compiler may raise anything
        note(f"{case.name} is left out: {_first_line(error)}")
        return {}, setting.copies
    working: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            call(0)
        except Exception as error:  # as above
            note(f"{case.name}: {name} is left out: {_first_line(error)}")
            continue
        working[name] = call
    if not any(map(is_ours, working)):
        return {}, setting.copies
    return working, setting.copies


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _measure_case(
    case: Case, plan: Plan, deadline: float, note: Callable[[str], None]
) -> list[Row] | None:
    """The case's rows; None if it would exceed the deadline of ``time.monotonic``."""
    device = plan.device
    mode = plan.compile_mode if case.compiled else None
    setting = Setting(device, copies_beyond_cache(case, device), mode)
    calls, copies = _prepare(case, setting, note)
    if not calls:
        return []
    if deadline < math.inf:
        rounds = plan.budget.warm_up + plan.budget.fewest + _PROFILED
        if time.monotonic() + rounds * _seconds_of_a_round(calls, device) > deadline:
            return None
    timing = measure_in_turns(calls, device=device, copies=copies, budget=plan.budget)
    rows = _timing_rows(case, "launched", timing, device)
    for name, call in calls.items():
        if is_ours(name) or name == "eager":
            rows += _count_rows(case, name, call, device)
    if case.capturable and device.type == "cuda":
        few = min(copies, _MOST_GRAPHS)
        graphs = _captured(case, calls, few, note)
        if any(map(is_ours, graphs)):
            timing = measure_in_turns(graphs, device=device, copies=few, budget=plan.budget)
            rows += _timing_rows(case, "graph", timing, device)
    return rows


def _seconds_of_a_round(calls: Mapping[str, Call], device: torch.device) -> float:
    start = time.monotonic()
    for call in calls.values():
        call(0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.monotonic() - start


def _captured(
    case: Case, calls: Mapping[str, Call], copies: int, note: Callable[[str], None]
) -> dict[str, Call]:
    captured: dict[str, Call] = {}
    for name, call in calls.items():
        try:
            captured[name] = _capture(call, copies)
        except Exception as error:  # as in _prepare
            note(f"{case.name}: {name} is not captured in a graph: {_first_line(error)}")
            torch.cuda.synchronize()
    return captured


def _capture(call: Call, copies: int) -> Call:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(0)
    torch.cuda.current_stream().wait_stream(stream)
    graphs: list[torch.cuda.CUDAGraph] = []
    for number in range(copies):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=graphs[0].pool() if graphs else None):
            call(number)
        graphs.append(graph)
    return lambda number: graphs[number].replay()


def _timing_rows(case: Case, mode: str, timing: Timing, device: torch.device) -> list[Row]:
    row = partial(case.row, mode=mode)
    rows = [row("machine", "disturbance", timing.disturbance)]
    for name, seconds in timing.seconds.items():
        middle, spread = median_and_quartiles(list(seconds))
        rows.append(row(name, "seconds", middle, spread))
        if case.images:
            rate, rates = case.images / middle, (case.images / spread[1], case.images / spread[0])
            rows.append(row(name, "images_per_second", rate, rates))
        if device.type == "cuda":
            host = median_and_quartiles(list(timing.host_seconds[name]))
            rows.append(row(name, "host_seconds", *host))
    for name in filter(is_ours, timing.seconds):
        for peer in timing.seconds:
            if not is_ours(peer):
                rows.append(row(name, "times_faster", *timing.times_faster(name, peer), peer))
                if device.type == "cuda":
                    ratio = timing.times_faster(name, peer, host=True)
                    rows.append(row(name, "host_times_faster", *ratio, peer))
    return rows


def _count_rows(case: Case, provider: str, call: Call, device: torch.device) -> list[Row]:
    counts = count(lambda: call(0), device)
    rows = [case.row(provider, "launches", counts.launches)]
    if counts.convolutions:
        rows.append(case.row(provider, "convolutions", counts.convolutions))
    if case.breakdown:
        rows += [
            case.row(provider, "share", share, detail=part) for part, share in counts.shares.items()
        ]
    return rows


def _floor_rows(
    rows: Sequence[Row],
    cases: Mapping[tuple[str, str, str, str, int, str], Case],
    floors: Floors,
) -> list[Row]:
    """The floor of every case among ``rows``, and each provider's percent of it."""
    rows_of_floor = []
    seen = set()
    for row in rows:
        if row.metric != "seconds" or row.provider == "floor":
            continue
        case = cases[row.case]
        least, mode = floors.seconds(case.work, case.dtype), row.mode
        if row.case not in seen:
            seen.add(row.case)
            limits = {"seconds": least, "flops": case.work.flops, "bytes": case.work.bytes}
            rows_of_floor += [
                case.row("floor", name, value, mode=mode) for name, value in limits.items()
            ]
        low, high = row.spread or (row.value, row.value)
        rows_of_floor.append(
            case.row(
                *(row.provider, "percent_of_floor", 100 * least / row.value),
                *((100 * least / high, 100 * least / low), floors.bound(case.work, case.dtype)),
                mode,
            )
        )
    return rows_of_floor


def _memory_rows(
    case: Case, plan: Plan, meter: MemoryMeter, note: Callable[[str], None]
) -> list[Row]:
    calls, _ = _prepare(case, Setting(plan.device), note)
    # Other activity in the process can only increase it.
    peaks = {
        name: min(meter.peak(partial(call, 0)) for _ in range(3)) for name, call in calls.items()
    }
    by_metric = {"peak": peaks}
    if case.suite == "models":
        by_metric["saved"] = {name: saved_bytes(partial(call, 0)) for name, call in calls.items()}
    rows = []
    for what, values in by_metric.items():
        if max(values.values(), default=0) < _LEAST_PEAK:
            continue
        rows += [case.row(name, f"{what}_bytes", value) for name, value in values.items()]
        rows += [
            case.row(name, f"{what}_ratio", value / values[peer], detail=peer)
            for name, value in values.items()
            for peer in values
            if is_ours(name) and not is_ours(peer) and values[peer] >= _LEAST_PEAK
        ]
    return rows
