"""Results as Markdown: what the README and the docs show of the committed ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastgan.bench.goals import Verdict
from fastgan.bench.schema import METRICS, Result
from fastgan.bench.summary import lines, seconds_text, without_passes

__all__ = ["case_table", "goal_cells", "goal_table", "markdown_table"]


def markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; a bar inside a cell is escaped.

    Example:
        >>> print(markdown_table(["a", "b"], [["1", "x|y"]]))
        | a | b |
        |---|---|
        | 1 | x\\|y |
    """
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *body)]
    rule = "|" + "---|" * len(head)
    text = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([text[0], rule, *text[1:]])


def goal_cells(verdict: Verdict) -> tuple[str, str, str, str, str]:
    """What, which number, the bound, the number and the peer, as words."""
    goal, row = verdict.goal, verdict.row
    what = f"{without_passes(goal.op)}, {goal.shape}"
    what += f", {goal.dtype}" if goal.dtype != "float32" else ""
    what += f", batch {goal.batch}" if goal.batch else ""
    what += ", in a CUDA graph" if goal.mode == "graph" else ""
    unit = METRICS[goal.metric].unit
    sign = "at least" if goal.at_least else "at most"
    bound = f"{sign} {_number(goal.bound, unit)}"
    value = "not measured"
    against = goal.peers or ""
    if row is not None:
        value = _number(row.value, unit)
        if row.spread is not None:
            value += f" ({_number(row.spread[0], unit)} to {_number(row.spread[1], unit)})"
        against = row.detail if goal.metric != "percent_of_floor" else ""
    return what, goal.metric.replace("_", " "), bound, value, against


def _number(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.0f}%"
    return f"{value:.2f}" if unit == "x" else f"{value:.0f}"


def goal_table(verdicts: Sequence[Verdict]) -> str:
    """Every goal, those nobody measured too."""
    body = [(*goal_cells(verdict), verdict.words) for verdict in verdicts]
    return markdown_table(["what", "number", "goal", "measured", "against", ""], body)


def case_table(result: Result, suite: str) -> str:
    """Every case of a suite: ours, the fastest peer, the ratio with its quartiles, the floor."""
    body = []
    for line in lines(result):
        if line.row.suite != suite:
            continue
        ratio = ""
        if line.ratio is not None:
            low, high = line.ratio.spread or (line.ratio.value, line.ratio.value)
            ratio = f"{line.ratio.value:.2f} ({low:.2f} to {high:.2f})"
        floor = f"{line.floor.value:.0f}%, {line.floor.detail}" if line.floor else ""
        body.append(
            (
                line.label,
                seconds_text(line.row.value),
                f"{seconds_text(line.peer.value)}, {line.peer.provider}" if line.peer else "",
                ratio,
                floor,
                f"{line.peak.value:.2f}" if line.peak else "",
            )
        )
    head = ["case", "fastgan", "fastest peer", "times faster", "of floor", "peak, of eager's"]
    return markdown_table(head, body)
