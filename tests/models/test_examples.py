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
