"""The table that :func:`fastgan.explain` returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """How a layer, function or op runs.

    Attributes:
        layer: a layer's name as in ``named_modules``, or a function's or an op's.
        op: a layer's class, or a function's or an op's name.
        path: "triton", "cuda", "cpu", "aten" or "autograd".
        reason: how, or why not on a faster path; may be empty.
    """

    layer: str
    op: str
    path: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The result of :func:`fastgan.explain`; ``str`` gives a table.

    Attributes:
        rows: the findings.

    Example:
        >>> print(Report((Row("main.0", "Conv2d", "aten", "groups = 2"),)))
        layer   op      path  reason
        main.0  Conv2d  aten  groups = 2
    """

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        table = [("layer", "op", "path", "reason")]
        table += [(row.layer, row.op, row.path, row.reason) for row in self.rows]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        return "\n".join(
            "  ".join(
                [
                    *(cell.ljust(width) for cell, width in zip(line[:3], widths, strict=True)),
                    line[3],
                ]
            ).rstrip()
            for line in table
        )
