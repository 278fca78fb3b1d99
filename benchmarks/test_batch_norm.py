"""bn_act's forward and backward pass against eager's batch norm and ReLU.

The table's time is fastgan's; the peers' medians, the ratio to the best of them and the percent of
the measured copy bandwidth are in ``extra_info``. The cases: batch_norm_cases.py.
"""

from __future__ import annotations

import pytest
import torch
from batch_norm_cases import CASES, contenders, measure

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.shape}-{c.dtype}-{c.memory_format}")
def test_batch_norm_and_relu(benchmark, case, device):
    benchmark.extra_info.update(measure(case, device))
    benchmark.extra_info["device"] = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
    ours = contenders(case, device)["fastgan"]

    def once():
        ours.backward(ours.forward())
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(once, rounds=case.rounds, warmup_rounds=3)
