"""Pictures of a result as PNG and SVG: speed-ups, the roofline, the time by parts.

They need matplotlib; see :func:`why_no_plots`.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastgan._util.files import atomic_write
from fastgan.bench.counting import OTHER, PARTS, PYTHON
from fastgan.bench.goals import GOALS
from fastgan.bench.schema import Result, Row
from fastgan.bench.summary import Line, labels, lines, seconds_text, without_passes

_OURS, _EAGER, _COMPILED, _INK, _FAINT = "#0b6e4f", "#5c677d", "#d9772b", "#1f2933", "#d5dbe1"
_DTYPE_COLOURS = {"float32": "#0b6e4f", "bfloat16": "#6a4c93", "float16": "#b23a48"}
#: From the part that should take all the time to the one that should take none.
_PART_ORDER = (*reversed(tuple(PARTS)), OTHER, PYTHON)
_PART_COLOURS = ("#2a6f97", "#6fa8c9", "#d08c3f", "#8a9a5b", "#9aa5b1")
_COMPILE = "torch.compile"


def why_no_plots() -> str | None:
    """None if pictures can be drawn, otherwise the reason and what to install.

    Example:
        >>> why_no_plots() is None or "pip install matplotlib" in why_no_plots()
        True
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no plots: matplotlib isn't installed (pip install matplotlib)"
    return None


def save_plots(result: Result, folder: Path) -> dict[str, Path]:
    """Draws all pictures for which the result has numbers.

    Args:
        result: what to draw.
        folder: for ``NAME.png`` and ``NAME.svg``.

    Returns:
        Name and SVG of each, in the order of :data:`PLOTS`.

    Raises:
        OutputError: a file can't be written.
    """
    import matplotlib

    saved = {}
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": _FAINT,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "text.color": _INK,
        "svg.hashsalt": "fastgan",
    }
    with matplotlib.rc_context(style):
        for name, draw in PLOTS.items():
            figure = draw(result)
            if figure is None:
                continue
            for suffix, options in (
                ("png", {"dpi": 160}),
                ("svg", {"metadata": {"Date": None}}),
            ):
                path = folder / f"{name}.{suffix}"
                with atomic_write(path) as file:
                    figure.savefig(file, format=suffix, bbox_inches="tight", **options)
                saved[name] = path
    return saved


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _where(result: Result) -> str:
    threads = result.machine.get("threads")
    plural = "" if threads == 1 else "s"
    cpu = f", {threads} thread{plural}" if result.machine.get("device") == "cpu" else ""
    return f"{result.device_name}{cpu}, torch {result.versions.get('torch', '?')}"


def _title(axes: Any, title: str, result: Result) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11, pad=18)
    # A distance in points, as a share depends on the figure's height.
    axes.annotate(
        _where(result), (0, 1), xycoords="axes fraction", xytext=(0, 4),
        textcoords="offset points", fontsize=8, color=_EAGER, ha="left", va="bottom",
    )  # fmt: skip


# --- Speed-up by layer and batch ------------------------------------------------------------------


def _speedups(result: Result) -> Any:
    shown = [line for line in lines(result) if line.row.provider == "fastgan" and line.ratio]
    if not shown:
        return None
    figure = _figure(9, 1.4 + 0.3 * len(shown))
    axes = figure.subplots()
    goals = {
        (goal.op, goal.shape, goal.dtype, goal.batch, goal.mode): goal.bound
        for goal in GOALS
        if goal.metric == "times_faster" and goal.device == result.machine.get("device")
    }
    largest = 1.0
    drawn = set()
    for position, line in enumerate(shown):
        row = line.row
        ratios = [
            ratio
            for ratio in result.find(provider="fastgan", metric="times_faster")
            if ratio.case == row.case
        ]
        if position % 2:
            axes.axhspan(position - 0.5, position + 0.5, color="#f5f7f9", zorder=0)
        hardest = [
            min(group, key=lambda ratio: ratio.value)
            for group in (
                [ratio for ratio in ratios if ratio.detail != _COMPILE],
                [ratio for ratio in ratios if ratio.detail == _COMPILE],
            )
            if group
        ]
        for ratio in hardest:
            compiled = ratio.detail == _COMPILE
            drawn.add("torch.compile" if compiled else "best of eager PyTorch")
            low, high = ratio.spread or (ratio.value, ratio.value)
            largest = max(largest, high)
            y = position + (0.16 if compiled else -0.16) * (len(hardest) > 1)
            colour = _COMPILED if compiled else _OURS
            axes.plot([low, high], [y, y], color=colour, linewidth=2, alpha=0.45, zorder=2)
            axes.plot(ratio.value, y, "D" if compiled else "o", color=colour, ms=5, zorder=3)
        bound = goals.get((row.op, row.shape, row.dtype, row.batch, row.mode))
        if bound is not None:
            drawn.add("goal")
            largest = max(largest, bound)
            axes.plot(
                [bound, bound], [position - 0.35, position + 0.35], color=_INK, lw=1.2, zorder=4
            )
    axes.axvline(1, color=_INK, linewidth=0.8, zorder=1)
    axes.axvspan(0, 1, color="#b23a48", alpha=0.06, zorder=0, linewidth=0)
    axes.set_yticks(range(len(shown)), labels(shown))
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlim(0, 1.08 * largest)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)
    axes.set_xlabel("times faster (to the left of 1, we lose)")
    _title(axes, "How many times as long the peers take", result)
    entries: list[tuple[str, dict[str, Any]]] = [
        ("best of eager PyTorch", {"marker": "o", "color": _OURS, "ls": ""}),
        ("torch.compile", {"marker": "D", "color": _COMPILED, "ls": ""}),
        ("quartiles", {"color": _EAGER, "lw": 2, "alpha": 0.45}),
        ("goal", {"marker": "|", "color": _INK, "ls": "", "ms": 9}),
    ]
    _legend(figure, [entry for entry in entries if entry[0] in {*drawn, "quartiles"}])
    return figure


def _legend(figure: Any, entries: list[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D

    figure.legend(
        [Line2D([], [], **options) for _, options in entries],
        [name for name, _ in entries],
        loc="outside lower center",
        ncols=min(len(entries), 5),
        frameon=False,
        fontsize=8,
    )


# --- Roofline -------------------------------------------------------------------------------------


def _roofline(result: Result) -> Any:
    points = []
    for line in lines(result):
        work = {
            metric: row.value
            for metric in ("flops", "bytes")
            for row in result.find(provider="floor", metric=metric)
            if row.case == line.row.case
        }
        if line.row.provider == "fastgan" and work.get("flops"):
            points.append((line, work["flops"], work["bytes"]))
    if not points or not result.floors:
        return None
    figure = _figure(9, 5.4)
    axes = figure.subplots()
    bandwidth = float(result.floors["bytes_per_second"])
    rates: Mapping[str, float] = result.floors["flops_per_second"]
    intensities = [flops / moved for _, flops, moved in points]
    roofs = {dtype: rates[dtype] for dtype in sorted({line.row.dtype for line, _, _ in points})}
    ridges = [rate / bandwidth for rate in roofs.values()]
    left = min(min(intensities) / 2, min(ridges) / 3)
    right = max(max(intensities) * 4, max(ridges) * 3)
    speeds = [
        flops / row.value for line, flops, _ in points for row in (line.row, line.peer) if row
    ]
    top = 2.5 * max(*speeds, *roofs.values())
    bottom = min(min(speeds) / 1.6, top / 30)
    for dtype, rate in roofs.items():
        colour, ridge = _DTYPE_COLOURS.get(dtype, _INK), rate / bandwidth
        axes.plot(
            [left, ridge, right], [bandwidth * left, rate, rate], color=colour, lw=1.4, zorder=1
        )
    positions = _side_by_side(intensities)
    ops = list(dict.fromkeys(without_passes(line.row.op) for line, _, _ in points))
    markers = dict(zip(ops, "osD^vPX*ph<>" * len(ops), strict=False))
    for (line, flops, _), at in zip(points, positions, strict=True):
        colour = _DTYPE_COLOURS.get(line.row.dtype, _INK)
        marker = markers[without_passes(line.row.op)]
        fastgan = flops / line.row.value
        if line.peer is not None:
            peer = flops / line.peer.value
            axes.plot([at, at], [fastgan, peer], color=colour, lw=0.8, alpha=0.5, zorder=2)
            axes.plot(at, peer, marker, mfc="white", mec=colour, ms=6)
        axes.plot(at, fastgan, marker, color=colour, ms=6)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    _label_plainly(axes.xaxis, math.log10(right / left), 1.0)
    _label_plainly(axes.yaxis, math.log10(top / bottom), 1e9)
    axes.set_xlabel("operations per byte that must be moved (FLOP/B)")
    axes.set_ylabel("operations of the formulas per second (GFLOP/s)")
    axes.grid(color=_FAINT, linewidth=0.5, which="major")
    axes.set_axisbelow(True)
    if any(_exceeds_the_roof(line, flops, rates) for line, flops, _ in points):
        # Low intensity allows no high rate: this corner is always empty.
        axes.text(
            0.012, 0.975, ABOVE_THE_ROOF, transform=axes.transAxes, fontsize=8, color=_EAGER,
            ha="left", va="top", linespacing=1.4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 3},
        )  # fmt: skip
    _title(axes, "Roofline: filled is fastgan, hollow the fastest peer", result)
    entries: list[tuple[str, dict[str, Any]]] = [
        (f"{dtype}: {rate / 1e9:,.0f} GFLOP/s", {"color": _DTYPE_COLOURS.get(dtype, _INK)})
        for dtype, rate in roofs.items()
    ]
    entries += [(op, {"marker": mark, "color": _INK, "ls": ""}) for op, mark in markers.items()]
    _legend(figure, entries)
    return figure


#: Notes about unusual points in the roofline.
ABOVE_THE_ROOF = (
    "Points above the roof: operations are those of a convolution's formula,\n"
    "for all alike; convolutions that save products do fewer of them."
)
#: Decades between two markers, and over which markers of equal intensity may spread.
_APART, _SPREAD = 0.04, 0.3


def _exceeds_the_roof(line: Line, flops: float, rates: Mapping[str, float]) -> bool:
    best = min(row.value for row in (line.row, line.peer) if row is not None)
    return flops / best > rates[line.row.dtype]


def _side_by_side(intensities: list[float]) -> list[float]:
    """Intensities, moved slightly so that markers don't hide each other."""
    logarithms = [math.log10(value) for value in intensities]
    groups: list[list[int]] = []
    for index in sorted(range(len(logarithms)), key=lambda index: logarithms[index]):
        if groups and logarithms[index] - logarithms[groups[-1][-1]] < _APART:
            groups[-1].append(index)
        else:
            groups.append([index])
    for group in groups:
        middle = sum(logarithms[index] for index in group) / len(group)
        step = min(_APART, _SPREAD / len(group))
        for place, index in enumerate(group):
            logarithms[index] = middle + step * (place - (len(group) - 1) / 2)
    return [10**value for value in logarithms]


def _label_plainly(axis: Any, decades: float, unit: float) -> None:
    """Labels a logarithmic scale with plain numbers of ``unit``."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.12g}"))
    axis.set_minor_formatter(NullFormatter())


# --- Where the time goes --------------------------------------------------------------------------


def _breakdown(result: Result) -> Any:
    groups: dict[tuple[object, ...], dict[str, dict[str, Row]]] = {}
    for row in result.rows:
        if row.metric == "share":
            groups.setdefault(row.case, {}).setdefault(row.provider, {})[row.detail] = row
    wanted = [
        (case, providers)
        for case, providers in groups.items()
        if case[0] == "training" or not any(key[0] == "training" for key in groups)
    ]
    if not wanted:
        return None
    bars: list[tuple[str, float, str, dict[str, Row]]] = []
    positions: list[float] = []
    for number, (_, providers) in enumerate(wanted):
        any_row = next(iter(next(iter(providers.values())).values()))
        times = {
            row.provider: row.value
            for row in result.find(metric="seconds")
            if row.case == any_row.case
        }
        whole = times.get("eager", times.get("fastgan", 1.0))
        for provider, shares in providers.items():
            dtype = "" if any_row.dtype == "float32" else f", {any_row.dtype}"
            layer_norm = ", layer norm" if "layer norm" in any_row.shape else ""
            label = f"{any_row.op}{layer_norm}{dtype}, batch {any_row.batch}: {provider}"
            # Related bars are adjacent.
            positions.append(len(bars) + 0.45 * number)
            bars.append((label, times[provider] / whole, seconds_text(times[provider]), shares))
    colours = dict(zip(_PART_ORDER, _PART_COLOURS, strict=True))
    figure = _figure(9, 1.5 + 0.36 * (positions[-1] + 1))
    axes = figure.subplots()
    for position, (_, length, text, shares) in zip(positions, bars, strict=True):
        start = 0.0
        for part in _PART_ORDER:
            if part not in shares:
                continue
            share = 100 * shares[part].value
            width = length * share
            axes.barh(position, width, left=start, height=0.8, color=colours[part])
            if width > 6:
                axes.text(
                    start + width / 2, position, f"{share:.0f}%",
                    ha="center", va="center", fontsize=7.5, color="white",
                )  # fmt: skip
            start += width
        axes.text(start + 1, position, text, va="center", fontsize=8)
    axes.set_yticks(positions, [without_passes(bar[0]) for bar in bars])
    axes.set_ylim(positions[-1] + 0.55, -0.55)
    axes.set_xlim(0, 112 * max(length for _, length, _, _ in bars))
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("percent of eager's time")
    iterations = all(case[0] == "training" for case, _ in wanted)
    _title(axes, f"Where the time {'of an iteration ' if iterations else ''}goes", result)
    _legend(figure, [(part, {"color": colour, "lw": 7}) for part, colour in colours.items()])
    return figure


#: File name -> function that draws it, or returns None if the result lacks the numbers.
PLOTS: Mapping[str, Callable[[Result], Any]] = {
    "speedups": _speedups,
    "roofline": _roofline,
    "breakdown": _breakdown,
}
