"""A self-contained HTML page of a result, with pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from fastgan.bench.goals import Verdict
from fastgan.bench.schema import METRICS, Change, Result
from fastgan.bench.summary import lines
from fastgan.bench.tables import case_table, goal_table

_CAPTIONS = {
    "speedups": "The median of the ratio within a round, and its quartiles. To the left of the"
    " line at 1 the peer is faster.",
    "roofline": "Operations are those of the formulas, counted from shapes, for all alike; the"
    " roofs are the copy bandwidth and matmul rate measured in the same run. A convolution that"
    " saves products, as fastgan's on CPUs do (9 in place of 16), can be above the roof: it does"
    " fewer operations than are counted. So can data still in a cache. Cases of nearly the same"
    " operations per byte are drawn side by side.",
    "breakdown": "Shares from torch's profiler, lengths from the undisturbed measurement.",
}
_STYLE = """
:root { --ink: #1f2933; --faint: #e4e9ee; --quiet: #5c677d; --good: #0b6e4f; --bad: #b23a48; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 80rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p.lead { color: var(--quiet); margin: 0 0 1.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.5rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--quiet); font-size: .87rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; width: 100%; }
th, td { padding: .34rem .7rem; text-align: left; border-bottom: 1px solid var(--faint);
  white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); border-bottom-width: 2px; }
td { font-variant-numeric: tabular-nums; }
/* The first column takes what the others leave, in as many lines as it needs. */
td:first-child { white-space: normal; min-width: 15rem; width: 40%; }
td.good { color: var(--good); font-weight: 600; } td.bad { color: var(--bad); font-weight: 600; }
ul.changes { padding-left: 1.2rem; } .worse { color: var(--bad); } .better { color: var(--good); }
ul.names { columns: 30rem; font-size: .88rem; color: var(--quiet); margin-bottom: .75rem; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .85rem; }
"""


def render_page(
    result: Result,
    plots: Mapping[str, Path],
    verdicts: Sequence[Verdict],
    changes: Sequence[Change] | None = None,
) -> str:
    """The page's text.

    Args:
        result: what was measured.
        plots: name and SVG of each picture.
        verdicts: the goals for this device; unmeasured ones are left out.
        changes: changes from an earlier result, or None without one.

    Example:
        >>> empty = Result("2026-01-01T00:00:00Z", None, {}, {}, {}, {}, ())
        >>> render_page(empty, {}, [])[:15]
        '<!doctype html>'
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>fastgan bench: {_text(result.device_name)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        "<h1>fastgan bench</h1>",
        f'<p class="lead">{_text(result.device_name)}, {_text(result.time)}</p>',
        _facts(result),
    ]
    if changes is not None:
        parts += ["<h2>Compared with the earlier result</h2>", _changes(changes)]
    if plots:
        parts.append("<h2>Pictures</h2>")
        parts += [_picture(name, path) for name, path in plots.items()]
    suites = dict.fromkeys(row.suite for row in result.rows)
    parts.append("<h2>Every case</h2>")
    for suite in suites:
        table = case_table([line for line in lines(result) if line.row.suite == suite])
        parts += [f"<h3>{_text(suite)}</h3>", table.html()]
    reached = [verdict for verdict in verdicts if verdict.row is not None]
    if reached:
        meanings = "; ".join(
            f"{name.replace('_', ' ')}: {METRICS[name].meaning}"
            for name in dict.fromkeys(verdict.goal.metric for verdict in reached)
        )
        parts += ["<h2>Goals</h2>", goal_table(reached).html()]
        parts.append(f"<p><small>{_text(meanings)}.</small></p>")
    if result.notes:
        items = "".join(f"<li>{_note(note)}</li>" for note in result.notes)
        parts += ["<h2>Left out</h2>", f"<ul>{items}</ul>"]
    parts.append(
        "<footer>Contenders take turns within one process; a ratio is the median over the rounds"
        " of the ratio within a round, with its quartiles beside it. Percent of floor: the least"
        " time that the measured copy bandwidth and matmul rate allow, over the time taken; data"
        " still in a cache and convolutions that save products can exceed 100%. docs/performance.md"
        " says more.</footer></body></html>"
    )
    return "\n".join(parts) + "\n"


def _note(note: str) -> str:
    """A reason, with a list of its cases if there are several."""
    reason, _, names = note.partition(": ")
    if "; " not in names:
        return _text(note)
    items = "".join(f"<li>{_text(name)}</li>" for name in names.split("; "))
    return f'{_text(reason)}:<ul class="names">{items}</ul>'


def _text(value: object) -> str:
    return html.escape(str(value))


def _facts(result: Result) -> str:
    facts = {**result.machine, **result.versions, "commit": result.commit or "no git checkout"}
    for name in facts.keys() & {"memory_bytes", "gpu_memory_bytes"}:
        facts[name] = f"{float(facts[name]) / (1 << 30):.1f} GiB"
    if result.floors:
        facts["copy bandwidth"] = f"{result.floors['bytes_per_second'] / 1e9:.1f} GB/s"
        for dtype, rate in result.floors["flops_per_second"].items():
            facts[f"matmul, {dtype}"] = f"{rate / 1e9:,.0f} GFLOP/s"
    items = "".join(
        f"<dt>{_text(name.replace('_bytes', '').replace('_', ' '))}</dt><dd>{_text(value)}</dd>"
        for name, value in facts.items()
    )
    return f"<dl>{items}</dl>"


def _changes(changes: Sequence[Change]) -> str:
    if not changes:
        return "<p>Nothing changed beyond the spread.</p>"
    items = "".join(
        f'<li class="{"worse" if change.worse else "better"}">{_text(change)}</li>'
        for change in changes
    )
    return f'<ul class="changes">{items}</ul>'


def _picture(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    caption = _text(_CAPTIONS.get(name, name))
    return (
        f'<figure><img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
