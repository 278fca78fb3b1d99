"""A result's tables as text: for the terminal, the page, the README and the docs."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fastgan.bench.goals import Verdict
from fastgan.bench.schema import METRICS, Row
from fastgan.bench.summary import Line, labels, seconds_text, without_passes


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Attributes:
        head: the columns' names.
        body: the rows.
        marked: the number of the column for ``marks``.
        marks: "good", "bad" or "" for each row.
    """

    head: Sequence[str]
    body: Sequence[Sequence[str]]
    marked: int
    marks: Sequence[str]

    def markdown(self) -> str:
        """For a page of the docs."""
        return markdown_table(self.head, self.body)

    def html(self) -> str:
        """For the page of a result."""

        def row(tag: str, cells: Sequence[str], mark: str = "") -> str:
            kinds = [f' class="{mark}"' if n == self.marked else "" for n in range(len(cells))]
            texts = (
                f"<{tag}{kind}>{html.escape(cell)}</{tag}>"
                for kind, cell in zip(kinds, cells, strict=True)
            )
            return f"<tr>{''.join(texts)}</tr>"

        rows = map(row, ["td"] * len(self.body), self.body, self.marks)
        table = row("th", self.head) + "".join(rows)
        return f'<div class="scroll"><table>{table}</table></div>'


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
    """A goal's case, metric, bound, number and peer, as words."""
    goal, row = verdict.goal, verdict.row
    what = f"{without_passes(goal.op)}, {goal.shape}"
    what += f", {goal.dtype}" if goal.dtype != "float32" else ""
    what += f", batch {goal.batch}" if goal.batch else ""
    what += ", in a CUDA graph" if goal.mode == "graph" else ""
    unit = METRICS[goal.metric].unit
    sign = "at least" if goal.at_least else "at most"
    bound = f"{sign} {_number(goal.bound, unit)}"
    value, against = "not measured", goal.peers
    if row is not None:
        value = _with_spread(row, unit)
        against = row.detail if goal.metric != "percent_of_floor" else ""
    return what, goal.metric.replace("_", " "), bound, value, against


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit == "x" else f"{value:.0f}{'%' if unit == '%' else ''}"


def _with_spread(row: Row, unit: str) -> str:
    quartiles = " to ".join(_number(value, unit) for value in row.spread or ())
    return _number(row.value, unit) + (f" ({quartiles})" if quartiles else "")


def goal_table(verdicts: Sequence[Verdict]) -> Table:
    """Every goal and its verdict."""
    words = [verdict.words for verdict in verdicts]
    return Table(
        ["what", "number", "goal", "measured", "against", ""],
        [(*goal_cells(verdict), word) for verdict, word in zip(verdicts, words, strict=True)],
        marked=5,
        marks=["good" if w == "pass" else "bad" * w.startswith("falls") for w in words],
    )


def case_table(lines: Sequence[Line]) -> Table:
    """Every case: ours, the fastest peer, the ratio with its quartiles, the floor, the peak."""
    body, marks = [], []
    for line, label in zip(lines, labels(lines), strict=True):
        ratio = mark = ""
        if line.ratio is not None:
            low, high = line.ratio.spread or (line.ratio.value, line.ratio.value)
            ratio = _with_spread(line.ratio, "x")
            mark = "good" if low > 1 else "bad" if high < 1 else ""
        peer, floor = line.peer, line.floor
        body.append(
            (
                label,
                seconds_text(line.row.value),
                f"{seconds_text(peer.value)}, {peer.provider}" if peer else "",
                ratio,
                f"{floor.value:.0f}%, {floor.detail}" if floor else "",
                f"{line.peak.value:.2f}" if line.peak else "",
            )
        )
        marks.append(mark)
    head = ["case", "fastgan", "fastest peer", "times faster", "of floor", "peak, of eager's"]
    return Table(head, body, marked=3, marks=marks)
