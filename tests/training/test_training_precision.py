"""``--precision auto``: fp32 unless a record shows bf16 no worse and bf16 is fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastgan.training import TrainConfig, precision
from fastgan.training.precision import BF16_TRAINS_AS_WELL, automatic_precision, bf16_is_fast

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@pytest.mark.parametrize("kind", BF16_TRAINS_AS_WELL)
def test_bf16_is_the_default_only_where_a_committed_record_shows_it_no_worse(kind: str) -> None:
    path = RESULTS / f"precision-{kind}.json"
    shown = path.exists() and json.loads(path.read_text())["no_worse"]
    assert BF16_TRAINS_AS_WELL[kind] == shown


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_auto_wants_both_speed_and_proof(
    fast: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BF16_TRAINS_AS_WELL, "cpu", shown)
    monkeypatch.setattr(precision, "bf16_is_fast", lambda kind: fast)
    expected = "bf16" if fast and shown else "fp32"
    assert automatic_precision("cpu") == expected
    assert TrainConfig(out="x", device="cpu").resolved().precision == expected
    assert TrainConfig(out="x", device="cpu", precision="fp16").resolved().precision == "fp16"


@pytest.mark.parametrize(
    ("flags", "capability", "fast"),
    [
        ({"avx512f", "avx512_bf16"}, "AVX512", False),  # half float32's rate
        ({"avx512f", "avx512_bf16", "amx_bf16", "amx_tile"}, "AVX512", True),
        ({"avx512f"}, "AVX512", False),
        ({"avx512f", "amx_bf16", "amx_tile"}, "AVX2", False),  # told to leave it alone
        (set(), "DEFAULT", False),
    ],
)
def test_a_processor_is_fast_by_its_own_words(
    flags: set[str], capability: str, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert bf16_is_fast("cpu") == fast
