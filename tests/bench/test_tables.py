"""The README's and the docs' tables match the committed results."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import make_tables  # noqa: E402

from fastgan.bench.schema import Result, Row  # noqa: E402
from fastgan.training.config import MODELS  # noqa: E402


def test_every_table_is_as_the_committed_results_have_it() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "make_tables.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_finds_a_figure_that_was_edited(tmp_path: Path, monkeypatch, capsys) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    page = tmp_path / "README.md"
    edited = re.sub(r"(?m)^(\| WGAN iteration \| .*? \| )\d(?=\.)", r"\g<1>9", text)
    assert edited != text
    page.write_text(edited, encoding="utf-8")
    monkeypatch.setattr(make_tables, "ROOT", tmp_path)
    monkeypatch.setattr(make_tables, "PAGES", (page,))
    monkeypatch.setattr(sys, "argv", ["make_tables.py", "--check"])
    assert make_tables.main() == 1
    assert "README.md; run `make tables`" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["make_tables.py"])
    assert make_tables.main() == 0
    assert page.read_text(encoding="utf-8") == text


def result(*rows: Row, device: str = "cpu") -> Result:
    machine = {"device": device, "processor": "a processor", "gpu": "a GPU", "threads": 2}
    return Result("2026-01-02", None, machine, {"torch": "2.11"}, {}, {}, rows)


def critic_loss(value: float, peer: str, batch: int, metric: str = "times_faster") -> Row:
    return Row(
        *("ops", "critic loss", "fastgan", "DCGAN-64 critic", "float32", batch, "launched"),
        *(metric, value, None, peer),
    )


def test_summary_shows_losses_and_what_nobody_measured() -> None:
    rows = [critic_loss(1.2, "eager", 16), critic_loss(1.6, "eager", 32)]
    text = make_tables.make_table("summary", [(Path("bench-cpu.json"), result(*rows))])
    (line,) = (each for each in text.splitlines() if each.startswith("| critic loss | float32 | t"))
    assert "| 1.20 to 1.60 |" in line
    assert "1 of 2 pass, the worst falls short by 17%; 1 not measured" in line
    assert "GPU: not measured; [goals](docs/measurements.md#gpu)" in text
    assert "[`bench-cpu`](benchmarks/results/bench-cpu.json)" in text


def test_summary_keeps_a_gpus_numbers_to_the_goals_they_answer() -> None:
    generator = Row(
        *("models", "generator, forward and backward", "fastgan", "DCGAN-64", "bfloat16", 64),
        *("graph", "times_faster", 1.7, None, "torch.compile"),
    )
    results = [(Path("bench-cuda.json"), result(generator, device="cuda"))]
    lines = make_tables.make_table("summary", results).splitlines()
    measured = [line for line in lines if "1.70" in line]
    assert measured == [
        "| generator | bfloat16 | times faster, in a CUDA graph | at least 1.50 | 1.70 |"
        " pass; 2 not measured |"
    ]


def test_penalty_has_a_column_a_batch() -> None:
    rows = [critic_loss(1.6, "eager", 32), critic_loss(1.5, "torch.compile", 32)]
    text = make_tables.make_table("penalty", [(Path("bench-cpu.json"), result(*rows))], "../")
    assert "|  | in | N = 16 | N = 32 | N = 64 |" in text
    assert "| critic loss | float32 | not measured | 1.50 | not measured |" in text
    assert "| critic loss, layer norm | float32 | not measured |" in text


def test_case_table_keeps_rows_where_a_peer_is_faster() -> None:
    seconds = [
        Row("ops", "clip", name, "critic", "float32", 0, "launched", "seconds", value)
        for name, value in (("fastgan", 2e-3), ("eager", 1e-3))
    ]
    ratio = Row(
        *("ops", "clip", "fastgan", "critic", "float32", 0, "launched"),
        *("times_faster", 0.5, (0.4, 0.6), "eager"),
    )
    text = make_tables.make_table(
        "cases-cpu-ops", [(Path("bench-cpu.json"), result(*seconds, ratio))], "../"
    )
    assert "| clip, critic | 2.00 ms | 1.00 ms, eager | 0.50 (0.40 to 0.60) |" in text
    assert "(../benchmarks/results/bench-cpu.json)" in text
    assert make_tables.make_table("cases-cuda-ops", []) == "`cuda`, suite ops: not measured."


def test_a_table_of_cases_says_which_peer_was_left_out_of_them_and_why() -> None:
    case = ("training", "SNGAN iteration", "fastgan", "32x32", "float32", 32, "launched")
    notes = tuple(
        f"{name} iteration, 32x32, float32, batch 32: torch.compile is left out: Unsupported: why"
        for name in ("SNGAN", "R3GAN")
    )
    measured = dataclasses.replace(result(Row(*case, "seconds", 0.1)), notes=notes)
    text = make_tables.make_table("iteration-sngan", [(Path("bench-cpu.json"), measured)])
    assert text.endswith(f"\n\n- {notes[0]}")


def test_every_implementation_of_torchs_is_a_peer() -> None:
    rows = [row for _, result in make_tables.load_results() for row in result.rows]
    peers = {
        row.detail for row in rows if (row.op, row.metric) == ("Adam and clip", "times_faster")
    }
    implementations = ("single-tensor", "foreach", "fused")
    clamps = ("clamp_", "_foreach_clamp_")
    assert peers == {f"{each} and {clamp}" for each in implementations for clamp in clamps}


def test_goals_are_judged_by_the_ratio_within_turns() -> None:
    iteration = Row(
        *("training", "WGAN-GP iteration", "fastgan", "64x64, 5 critic updates", "float32", 32),
        *("launched", "times_faster", 1.5, (1.4, 1.6), "eager"),
    )
    text = make_tables.make_table("goals-cpu", [(Path("bench-cpu.json"), result(iteration))])
    (line,) = (line for line in text.splitlines() if line.startswith("| WGAN-GP iteration"))
    assert "| at least 1.40 | 1.50 (1.40 to 1.60) | eager | pass |" in line


def test_models_are_all_there_with_the_newest_ratio_against_the_fastest_peer() -> None:
    def measured(time: str, *ratios: float, device: str = "cpu", dtype: str = "float32") -> Result:
        case = ("training", "SNGAN iteration", "fastgan", "32x32", dtype, 32, "launched")
        rows = [Row(*case, "seconds", 0.1)]
        rows += [
            Row(*case, "times_faster", each, None, peer)
            for each, peer in zip(ratios, ("eager", "torch.compile"), strict=False)
        ]
        return Result(
            time, None, result(device=device).machine, {"torch": "2.11"}, {}, {}, tuple(rows)
        )

    results = [
        (Path("bench-new.json"), measured("2026-02-02", 1.5, 1.25)),
        (Path("bench-old.json"), measured("2026-01-02", 3.0)),
        (Path("bench-cuda.json"), measured("2026-03-02", 4.0, device="cuda")),
        (Path("bench-half.json"), measured("2026-03-02", 5.0, dtype="bfloat16")),
    ]
    text = make_tables.make_table("models", results)
    shown = {cell for line in text.splitlines() for cell in re.findall(r"`--model (\S+)`", line)}
    assert shown == set(MODELS)
    (line,) = (each for each in text.splitlines() if "`--model sngan`" in each)
    assert line.endswith("| 1.25 |")
    assert "bench-new.json" in text
    assert not re.search("bench-(old|cuda|half)", text)
    assert text.count("not measured") == len(MODELS) - 1
    (line,) = (each for each in text.splitlines() if "`--model acgan`" in each)
    assert "| images, labels |" in line
    assert "two sets of images" in text


def test_unknown_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="no table 'speed'"):
        make_tables.make_table("speed", [])
