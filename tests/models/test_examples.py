"""The example scripts run and train."""

from __future__ import annotations

import json
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


NOTEBOOKS = sorted(path.stem for path in (EXAMPLES / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run_from_top_to_bottom(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a minute of training there are two steps, and next to none of the judge's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastgan.evaluation.classifier.STEPS", (5, 5))
    cells = json.loads((EXAMPLES / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    scope: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]  # they would age
            code = re.sub(r"steps=\d+", "steps=2", "".join(cell["source"]))
            code = code.replace("minutes=1,", "")
            exec(compile(code, name, "exec"), scope)


def test_there_are_four_notebooks() -> None:
    assert NOTEBOOKS == [
        "check_numerics",
        "first_gan",
        "measure_a_kernel",
        "wgan_gp_on_your_images",
    ]


def test_other_trainers_run_fastgans_parts() -> None:
    trainer = runpy.run_path(str(EXAMPLES / "lightning_module.py"))["main"]()
    assert 0 < trainer.callback_metrics["penalty"] < 100
    assert trainer.global_step == 6 + 2
    penalty = runpy.run_path(str(EXAMPLES / "accelerate_loop.py"))["main"]()
    assert 0 < penalty < 100
