"""The example scripts run, and train what they say they train."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["drop_in_dcgan.py", "drop_in_wgan_gp.py"])
def test_example_prints_finite_losses(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    for line in lines:
        numbers = [float(n) for n in re.findall(r": (-?[\d.]+|nan|inf)", line)]
        assert len(numbers) == 2
        assert all(math.isfinite(n) for n in numbers)


PROGRAMS = {
    "own_dataset": lambda result: result.step == 2,
    "generator_in_own_loop": math.isfinite,
    "penalty_under_amp": lambda penalty: 0 < penalty < 100,
    "fuse_own_model": lambda report: all(row.path in ("cpu", "aten") for row in report.rows),
    "callback_and_logger": lambda result: 0 <= result.metrics["decided_pixels"] <= 1,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_short_programs_do_what_they_show(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) <= 30
    main = runpy.run_path(str(path))["main"]
    steps = {"own_dataset": (2,), "callback_and_logger": (10,)}
    assert PROGRAMS[name](main(*steps.get(name, ())))
    if name == "callback_and_logger":
        assert "decided_pixels" in capsys.readouterr().out
