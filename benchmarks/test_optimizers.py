"""fastgan.optim and clip_weights_ against torch.optim's implementations and clamp_.

The table's time is fastgan's; the peers' medians, the ratio to the best of them and the percent of
the measured copy bandwidth are in ``extra_info``. The cases: optimizer_cases.py.
"""

from __future__ import annotations

import pytest
import torch
from optimizer_cases import CASES, contenders, measure

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.work}-{c.shapes}" + "-cold" * c.cold)
def test_step_and_clip(benchmark, case, device):
    benchmark.extra_info.update(measure(case, device))
    benchmark.extra_info["device"] = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    ours = contenders(case, device)["fastgan"]

    def once():
        ours()
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(once, rounds=case.rounds, warmup_rounds=3)
