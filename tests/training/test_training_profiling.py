"""``--profile``: a valid trace, and a summary with shares that add up."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fastgan.training import TrainConfig, Trainer
from fastgan.training.profiling import TRACED, WAIT, WARM_UP

SMALL = {"nz": 4, "ngf": 4, "ndf": 4, "batch_size": 4, "n_critic": 2}


@pytest.mark.parametrize("steps", [2, 3, WAIT + WARM_UP + TRACED + 2])
def test_a_profile_leaves_a_trace_and_a_page(steps: int, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(TrainConfig(out=str(out), model="wgan", steps=steps, profile=True, **SMALL)).run()
    traced = TRACED if steps > TRACED else steps - 1
    events = json.loads((out / "profile" / "trace.json").read_text())["traceEvents"]
    updates = [each for each in events if each.get("name") == "critic update"]
    # Two a step; each as an annotation once.
    assert len([each for each in updates if each.get("ph") == "X"]) >= 2 * traced
    page = (out / "profile" / "summary.txt").read_text()
    assert page.startswith(f"{traced} steps in ")
    shares = re.findall(r"^(.{32}) +(\d+) +[\d.]+ +([\d.]+)%$", page, flags=re.M)
    phases = {name.strip(): (int(calls), float(share)) for name, calls, share in shares}
    assert phases["critic update"][0] == 2 * traced
    assert phases["generator update"][0] == traced
    listed = ("data", "critic update", "generator update", "moving average", "everything else")
    assert sum(phases[name][1] for name in listed) == pytest.approx(100, abs=1)
    assert "aten::" in page
    assert len(page.splitlines()) < 60
    # The run is as it would have been.
    assert (out / "samples.png").exists()
