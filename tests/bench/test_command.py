"""``fastgan bench``: what it writes, what it refuses, and that a regression ends in exit code 1."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fastgan.bench import runner
from fastgan.bench.cases import Case, Setting
from fastgan.bench.floors import Floors
from fastgan.bench.goals import GOALS, Goal, judge, urgency
from fastgan.bench.page import render_page
from fastgan.bench.plots import ABOVE_THE_ROOF, PLOTS
from fastgan.bench.runner import Plan, run_cases
from fastgan.bench.schema import METRICS, Result, Row, read_result
from fastgan.bench.suites import suite_cases
from fastgan.bench.suites.convolutions import PASSES, contenders
from fastgan.bench.suites.layers import critic_layers, generator_layers
from fastgan.bench.summary import lines
from fastgan.bench.timing import Budget, Call
from fastgan.bench.work import Step, Work
from fastgan.cli import main
from fastgan.ops.backends.vector_units import has_vectors

CPU = torch.device("cpu")
MATRIX = torch.randn(128, 128)


def squares(n: int) -> None:
    for _ in range(n):
        torch.mm(MATRIX, MATRIX)


def broken(_: int) -> None:
    raise RuntimeError("no compiler\nhere")


def prepare(setting: Setting) -> dict[str, Call]:
    calls = {"fastgan": lambda _: squares(2), "eager": lambda _: squares(6)}
    return {**calls, "torch.compile": broken} if setting.compile_mode else calls


CASE = Case(
    "ops", "squares", "128x128", "float32", 2, lambda: Work((Step(4 * 128**3, 3 * 4 * 128**2),)), 0,
    prepare, images=2, breakdown=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A suite of one small case, and floors that are measured in no time."""
    monkeypatch.setattr("fastgan.bench.floors._MOST_COPY", 64 << 20)
    measure = runner.measure_floors
    monkeypatch.setattr(runner, "measure_floors", lambda device, dtypes: measure(device, matrix=64))
    monkeypatch.setattr("fastgan.cli.bench.suite_cases", lambda *_, **__: [CASE])
    # Peaks are measured in a test of their own: malloc stays slower afterwards.
    monkeypatch.setattr(runner, "can_measure_memory", lambda _: "not here")


def bench(*arguments: str) -> int:
    return main(["bench", "--quick", *arguments])


def test_every_file_is_written_and_the_page_needs_no_other(tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "results"
    assert bench("--out", str(out)) == 0
    names = {path.name for path in out.iterdir()}
    assert {"results.json", "results.csv", "index.html", "speedups.png", "speedups.svg"} <= names
    assert not [name for name in names if name.startswith(".")]
    result = read_result(out / "results.json")
    (ratio,) = result.find(provider="fastgan", metric="times_faster")
    assert ratio.detail == "eager"
    assert 1.5 < ratio.value < 6
    low, high = ratio.spread
    assert low <= ratio.value <= high
    assert {row.metric for row in result.rows} <= set(METRICS)
    assert {"percent_of_floor", "launches", "share", "images_per_second"} <= {
        row.metric for row in result.rows
    }
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "squares, 128x128, batch 2" in page
    assert page.count("data:image/svg+xml;base64,") == 3
    assert not re.search(r"""(src|href)=["']?(https?:|//)""", page)
    shown = capsys.readouterr()
    assert "squares" in shown.out
    assert "torch.compile is left out: RuntimeError: no compiler" in shown.err
    assert "peak memory is not measured: not here" in shown.err


def test_regression_beyond_the_spread_ends_in_exit_code_1(tmp_path: Path, capsys) -> None:
    assert bench("--out", str(tmp_path / "a"), "--no-compile") == 0
    good = read_result(tmp_path / "a" / "results.json")
    # Two and three times as fast as it was: no measurement of the same code explains that.
    rows = [
        dataclasses.replace(row, value=3 * row.value, spread=(2.9 * row.value, 3.1 * row.value))
        if row.metric == "times_faster"
        else row
        for row in good.rows
    ]
    old = tmp_path / "old.json"
    old.write_text(dataclasses.replace(good, rows=tuple(rows)).to_json(), encoding="utf-8")
    assert bench("--out", str(tmp_path / "b"), "--no-compile", "--compare", str(old)) == 1
    assert "worse: squares, 128x128, float32, 2, fastgan: times_faster" in capsys.readouterr().out
    assert "worse: squares" in (tmp_path / "b" / "index.html").read_text(encoding="utf-8")


def roofline_of(floor: float) -> str:
    """The roofline's text, of a case that needs 1e9 operations in a second, under that roof."""
    case = ("ops", "squares", "128x128", "float32", 2, "launched")
    rows = [
        Row(*case[:2], provider, *case[2:], metric, value)
        for provider, metric, value in (
            ("fastgan", "seconds", 1.0),
            ("eager", "seconds", 2.0),
            ("floor", "flops", 1e9),
            ("floor", "bytes", 1e7),
        )
    ]
    floors = {"bytes_per_second": 1e9, "flops_per_second": {"float32": floor}}
    figure = PLOTS["roofline"](Result("", None, {"device": "cpu"}, {}, {}, floors, tuple(rows)))
    assert figure is not None
    return "\n".join(text.get_text() for text in figure.axes[0].texts)


def test_points_above_the_roof_are_explained_where_there_are_any() -> None:
    assert ABOVE_THE_ROOF in roofline_of(0.9e9)
    assert ABOVE_THE_ROOF not in roofline_of(1.1e9)


def test_page_lists_what_is_left_out_once_a_reason() -> None:
    notes = ("left out, the time was up: clip; squares & cubes", "eager is left out: <no; room>")
    page = render_page(dataclasses.replace(result_with(), notes=notes), {}, [])
    assert "the time was up:<ul" in page
    assert "<li>clip</li><li>squares &amp; cubes</li>" in page
    assert "<no" not in page


def test_two_providers_of_ours_are_told_apart() -> None:
    rows = [
        Row("ops", "clip", provider, "critic", "float32", 0, "launched", "seconds", 1.0)
        for provider in ("fastgan", "fastgan, two stages")
    ]
    labels = [line.label for line in lines(rows)]
    assert labels == ["clip, critic", "clip, critic (fastgan, two stages)"]


def test_terminal_explains_more_than_the_floor(tmp_path: Path, capsys, monkeypatch) -> None:
    words = "convolutions that save products"
    for least, expected in ((1e-12, False), (1e3, True)):
        monkeypatch.setattr(Floors, "seconds", lambda *_, least=least: least)
        assert bench("--out", str(tmp_path), "--no-compile") == 0
        assert (words in capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{}/file"], "is a file, expected a folder"),
        (["--out", "{}/file/results"], "can't be made"),
        (["--out", "{}/new", "--compare", "{}/none.json"], "none.json: can't be read"),
        (["--out", "{}/new", "--compare", "{}/file"], "file: is not JSON"),
        (["--out", "{}/new", "--only", "cubes"], "no case of suite all has 'cubes' in it"),
        (["--out", "{}/new", "--only", "cubes", "balls"], "has 'cubes' or 'balls' in it"),
        (["--out", "{}/new", "--suite", "kernels"], "invalid choice: 'kernels'"),
        (["--out", "{}/new", "--threads", "0"], "expected at least 1, got 0"),
        (["--out", "{}/new", "--max-minutes", "0"], "expected a number above 0, got 0.0"),
        ([], "--out"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_file(
    tmp_path: Path, capsys, arguments: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("{", encoding="utf-8")
    try:
        code = bench(*(argument.format(tmp_path) for argument in arguments))
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_matplotlib_the_rest_is_written_and_it_says_what_to_install(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("fastgan.bench.plots.importlib.util.find_spec", lambda _: None)
    assert bench("--out", str(tmp_path)) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {
        "results.json",
        "results.csv",
        "index.html",
    }


def test_case_whose_own_provider_fails_is_left_out_with_a_note() -> None:
    case = dataclasses.replace(CASE, prepare=lambda _: {"fastgan": broken, "eager": squares})
    result = run_cases([case], Plan(CPU, Budget(0.01), None))
    assert result.rows == ()
    assert any("fastgan is left out: RuntimeError: no compiler" in note for note in result.notes)


def test_case_that_cant_be_prepared_is_left_out_and_the_next_one_measured() -> None:
    def too_large(_: Setting) -> dict[str, Call]:
        raise MemoryError("no room")

    case = dataclasses.replace(CASE, shape="larger", prepare=too_large)
    result = run_cases([case, CASE], Plan(CPU, Budget(0.01), None))
    assert any("larger" in note and "MemoryError: no room" in note for note in result.notes)
    assert {row.shape for row in result.rows} == {"128x128"}


def test_cases_that_dont_fit_the_time_are_left_out_with_a_note() -> None:
    result = run_cases([CASE], Plan(CPU, Budget(0.01), None, seconds=1e-9))
    assert result.rows == ()
    assert "left out, the time was up: squares, 128x128, float32, batch 2" in result.notes


def test_case_whose_rounds_would_take_beyond_the_time_is_left_out() -> None:
    def slow(_: int) -> None:
        time.sleep(0.5)

    case = dataclasses.replace(CASE, prepare=lambda _: {"fastgan": slow, "eager": slow})
    start = time.monotonic()
    result = run_cases([case], Plan(CPU, Budget(0.01), None, seconds=8))
    assert result.rows == ()
    assert "left out, the time was up: squares, 128x128, float32, batch 2" in result.notes
    # Five rounds, two to warm up and three to count would be ten seconds.
    assert time.monotonic() - start < 8


def test_urgent_cases_are_measured_first_and_all_are_reported_as_given() -> None:
    other = dataclasses.replace(CASE, op="cubes")
    told = []

    class Order(runner.Listener):
        def on_rows(self, case: Case, rows: Sequence[Row]) -> None:
            told.append(case.op)

    plan = Plan(CPU, Budget(0.01), None, urgency=lambda case: int(case.op != "cubes"))
    result = run_cases([CASE, other], plan, Order())
    assert told == ["cubes", "squares"]
    assert list(dict.fromkeys(row.op for row in result.rows)) == ["squares", "cubes"]


def assert_headlines_come_first(cases: Sequence[Case]) -> None:
    """Of a quick run on a CPU: the headlines, other cases with a goal, lone convolutions."""
    ranks = [{case.op for case in cases if urgency(case, "cpu") == rank} for rank in range(3)]
    assert ranks[0] == {
        *("critic loss", "gradient penalty", "RMSprop and clip"),
        *("DCGAN iteration", "WGAN-GP iteration", "generator, forward and backward"),
    }
    assert len([case for case in cases if urgency(case, "cpu") == 0]) == len(ranks[0])
    assert not any(op.startswith("conv") for op in ranks[0] | ranks[1])
    assert any(op.startswith("conv") for op in ranks[2])


# --- Suites and goals -----------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cases_have_names_of_their_own_work_to_do_and_all_that_goals_are_about(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of the time, for networks that are counted and never run.
    spectral_norm = torch.nn.utils.parametrizations._SpectralNorm
    monkeypatch.setattr(spectral_norm, "_power_method", lambda *arguments: None)
    every, quick = (suite_cases("all", torch.device(device), quick=q) for q in (False, True))
    for cases in (every, quick):
        assert len({case.name for case in cases}) == len(cases)
        assert {case.suite for case in cases} == {"ops", "models", "training", "style"}
    if device == "cpu":
        assert_headlines_come_first(quick)
    else:
        assert {case.name for case in quick} <= {case.name for case in every}
    # A network's cases count alike for each dtype, batch and device, and that takes seconds.
    networks = ("models", "training")
    one_of_each = {
        (case.op, case.shape) if case.suite in networks else case.name: case
        for case in (*every, *quick)
        if device == "cpu" or case.suite not in networks
    }
    assert all(case.work.bytes > 0 for case in one_of_each.values())
    about = {(case.op, case.shape, case.dtype, case.batch) for case in every}
    for goal in GOALS:
        if goal.device == device:
            assert (goal.op, goal.shape, goal.dtype, goal.batch) in about, goal


def result_with(*rows: Row, device: str = "cpu") -> Result:
    return Result("2026", None, {"device": device}, {}, {}, {}, rows)


GOAL = Goal("cpu", "clip", "critic", "float32", 0, "times_faster", 2.0)


def ratio(value: float, peer: str, spread: tuple[float, float] | None = None) -> Row:
    return Row(
        "ops", "clip", "fastgan", "critic", "float32", 0, "launched", "times_faster", value, spread,
        peer,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "not measured"),
        ([ratio(2.5, "eager")], "pass"),
        ([ratio(2.5, "eager"), ratio(1.5, "torch.compile")], "falls short by 25%"),
        ([ratio(1.9, "eager", (1.8, 2.1))], "within the spread"),
        ([ratio(1.9, "eager", (1.8, 1.95))], "falls short by 5%"),
        ([ratio(2.6, "eager", (2.5, 217.0))], "too noisy"),
    ],
)
def test_goal_is_judged_against_the_hardest_peer(rows: list[Row], words: str) -> None:
    (verdict,) = judge([result_with(*rows)], [GOAL])
    assert verdict.words == words


def test_goal_about_named_peers_or_another_device_ignores_the_others() -> None:
    rows = [ratio(2.5, "fused and clamp_"), ratio(1.5, "foreach and clamp_")]
    named = dataclasses.replace(GOAL, peers="fused")
    assert judge([result_with(*rows)], [named])[0].words == "pass"
    assert judge([result_with(*rows, device="cuda")], [named])[0].words == "not measured"


def test_goal_of_a_number_that_is_better_lower() -> None:
    goal = dataclasses.replace(GOAL, metric="peak_ratio", bound=0.7)
    rows = [
        dataclasses.replace(ratio(value, str(value)), metric="peak_ratio") for value in (0.5, 0.9)
    ]
    (verdict,) = judge([result_with(*rows)], [goal])
    assert verdict.words == "falls short by 29%"
    assert judge([result_with(rows[0])], [goal])[0].words == "pass"


CONVOLUTIONS = """
import torch
from fastgan.bench.cases import Setting
from fastgan.bench.suites.convolutions import PASSES, contenders
from fastgan.bench.suites.layers import Layer
layers = [
    Layer(True, 6, 3, 4, 8, 2, 1, False, "tanh"),
    Layer(False, 3, 8, 8, 4, 2, 1, True, "relu"),
]
for layer in layers:
    for each in PASSES:
        calls = contenders(layer, each, "float32", 2, Setting(torch.device("cpu"), 2))
        assert list(calls) == ["fastgan", "fastgan, triton", "eager"]
        for ours in (calls["fastgan"], calls["fastgan, triton"]):
            torch.testing.assert_close(ours(1), calls["eager"](1), rtol=1e-4, atol=1e-5)
"""


@pytest.mark.parametrize("each", PASSES)
def test_both_sides_of_a_lone_convolution_on_a_cpu(each: str) -> None:
    for layer in (*generator_layers(ngf=16), *critic_layers(ndf=16)):
        calls = contenders(layer, each, "float32", 16, Setting(torch.device("cpu"), 2))
        torch.testing.assert_close(calls["fastgan"](1), calls["eager"](1), rtol=1e-3, atol=1e-3)


def test_lone_convolutions_on_a_cpu_are_those_of_our_own_kernels() -> None:
    cpu = torch.device("cpu")
    if not has_vectors():
        pytest.skip("without AVX2 or AVX-512 oneDNN does all of them")
    found = {(case.op, case.shape) for case in suite_cases("ops", cpu, quick=True)}
    assert ("convolution, weight gradient", "512x4x4 to 256x8x8") in found
    every = {(case.op, case.shape) for case in suite_cases("ops", cpu)}
    assert ("convolution, forward", "64x32x32 to 3x64x64") in every
    assert ("convolution, weight gradient", "64x32x32 to 3x64x64") not in every


def test_both_sides_of_a_lone_convolution_compute_the_same() -> None:
    pytest.importorskip("triton", reason="Triton is a dependency on Linux only")
    # The interpreter is chosen when Triton is imported, so in a process of its own.
    done = subprocess.run(
        [sys.executable, "-c", CONVOLUTIONS],
        env={**os.environ, "TRITON_INTERPRET": "1", "FASTGAN_AUTOTUNE": "0"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
