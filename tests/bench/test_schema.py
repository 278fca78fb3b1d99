"""Results: what is written can be read again, and a regression beyond the spread is found."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastgan.bench.schema import METRICS, Result, Row, compare, merged, read_result
from fastgan.errors import DataError

ROW = Row(
    "ops", "clip", "fastgan", "critic", "float32", 0, "launched", "times_faster", 2.0, (1.9, 2.1),
    "eager",
)  # fmt: skip
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=8)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
ROWS = st.builds(
    Row,
    suite=st.sampled_from(["ops", "models", "training"]),
    op=NAMES,
    provider=NAMES,
    shape=NAMES,
    dtype=st.sampled_from(["float32", "bfloat16"]),
    batch=st.integers(0, 512),
    mode=st.sampled_from(["launched", "graph"]),
    metric=st.sampled_from(sorted(METRICS)),
    value=NUMBERS,
    spread=st.none() | st.tuples(NUMBERS, NUMBERS),
    detail=NAMES,
)


def result(*rows: Row, **changes: object) -> Result:
    base = Result(
        time="2026-01-01T00:00:00Z",
        commit=None,
        machine={"device": "cpu", "processor": "one", "threads": 2},
        versions={"torch": "2.11"},
        settings={"quick": True},
        floors={},
        rows=rows,
        notes=("left out",),
    )
    return dataclasses.replace(base, **changes)


@given(rows=st.lists(ROWS, max_size=5))
def test_json_reads_back_as_it_was_written(rows: list[Row], tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("result") / "result.json"
    written = result(*rows)
    path.write_text(written.to_json(), encoding="utf-8")
    assert read_result(path) == written


@given(rows=st.lists(ROWS, max_size=5))
def test_csv_has_a_line_a_row_with_machine_and_versions(rows: list[Row]) -> None:
    lines = list(csv.DictReader(io.StringIO(result(*rows).to_csv())))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (line["op"], line["provider"], line["detail"]) == (row.op, row.provider, row.detail)
        assert float(line["value"]) == row.value
        assert line["unit"] == METRICS[row.metric].unit
        assert (line["processor"], line["versions"]) == ("one", "torch=2.11")
        assert line["spread_low"] == ("" if row.spread is None else str(row.spread[0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no 'schema'"),
        ('{"schema": 99}', "has schema 99; expected 1"),
        ('{"schema": 1}', "KeyError"),
        (result(ROW).to_json().replace("times_faster", "speed"), "no metric 'speed'"),
        (result(ROW).to_json().replace('"value": 2.0', '"value": "fast"'), "could not convert"),
        (result(ROW).to_json().replace('"value": 2.0', '"value": NaN'), "is nan"),
        (result(ROW).to_json().replace('"batch"', '"size"'), "TypeError"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, text: str, message: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_result(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("spread", "value", "found"),
    [
        ((1.5, 1.7), 1.6, ["worse"]),
        ((1.5, 1.95), 1.6, []),  # the spreads overlap
        ((2.2, 2.4), 2.3, ["better"]),
        ((1.0, 3.0), 2.0, []),
    ],
)
def test_ratio_is_a_regression_where_its_spread_is_below_the_old_one(spread, value, found) -> None:
    new = result(dataclasses.replace(ROW, value=value, spread=spread))
    assert [str(change).split(":")[0] for change in compare(result(ROW), new)] == found


def test_seconds_are_compared_on_the_same_machine_alone() -> None:
    old = dataclasses.replace(ROW, metric="seconds", value=1.0, spread=(0.9, 1.1), detail="")
    new = dataclasses.replace(old, value=2.0, spread=(1.9, 2.1))
    (change,) = compare(result(old), result(new))
    assert change.worse
    other = result(new, machine={"device": "cpu", "processor": "two", "threads": 2})
    assert compare(result(old), other) == []


def test_one_more_launch_is_a_regression_and_a_percent_of_memory_is_not() -> None:
    launches = dataclasses.replace(ROW, metric="launches", value=7.0, spread=None, detail="")
    peak = dataclasses.replace(launches, metric="peak_bytes", value=1e6)
    new = (dataclasses.replace(launches, value=8.0), dataclasses.replace(peak, value=1.01e6))
    assert [change.new.metric for change in compare(result(launches, peak), result(*new))] == [
        "launches"
    ]
    more = dataclasses.replace(peak, value=1.2e6)
    assert [change.worse for change in compare(result(peak), result(more))] == [True]


def test_peers_and_descriptions_are_not_judged() -> None:
    eager = dataclasses.replace(ROW, provider="eager", metric="seconds", detail="")
    share = dataclasses.replace(ROW, metric="share", detail="convolutions", spread=None)
    worse = [dataclasses.replace(row, value=9.0, spread=None) for row in (eager, share)]
    assert compare(result(eager, share), result(*worse)) == []


def test_largest_regression_comes_first() -> None:
    rows = [dataclasses.replace(ROW, op=op) for op in "abc"]
    values = {"a": 1.5, "b": 1.0, "c": 3.0}
    new = [dataclasses.replace(row, value=values[row.op], spread=None) for row in rows]
    changes = compare(result(*rows), result(*new))
    assert [(change.new.op, change.worse) for change in changes] == [
        ("b", True),
        ("a", True),
        ("c", False),
    ]


def test_the_newest_number_counts() -> None:
    late = result(dataclasses.replace(ROW, value=3.0), time="2026-02-01T00:00:00Z")
    found = merged([late, result(ROW)])
    assert [row.value for row, _ in found.values()] == [3.0]


def test_every_row_of_a_file_is_a_line_of_its_own() -> None:
    text = result(ROW, dataclasses.replace(ROW, op="other")).to_json()
    assert sum('"metric"' in line for line in text.splitlines()) == 2
    assert json.loads(text)["rows"][0]["spread"] == [1.9, 2.1]
