"""The fused gradient penalty and critic loss against double backward, on a DCGAN-64 critic.

The table's time is fastgan's; the others' medians and the ratios are in ``extra_info``.
"""

from __future__ import annotations

import pytest
from penalty_cases import DTYPES, OPS, contenders, measure

ROUNDS = 12


@pytest.mark.parametrize("batch", [16, 32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_penalty_of_a_dcgan_64_critic(benchmark, op, dtype, batch):
    benchmark.extra_info.update(measure(op, dtype, batch, ROUNDS))
    fused = contenders(op, dtype, batch, compiled=False)["fused, channels-last"]
    benchmark.pedantic(fused, rounds=ROUNDS, warmup_rounds=1)
