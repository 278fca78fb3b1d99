"""Every case of `fastgan bench --quick` under pytest-benchmark, an implementation each.

The table's times are measured one implementation after the other, so changes of the machine's load
affect them. What to trust is in ``extra_info``: the ratios within rounds of a measurement in which
all of a case's implementations took turns.

    pytest benchmarks/test_suites.py --benchmark-only --benchmark-group-by=group [-k bn_act]
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from fastgan.bench.cases import Case, Setting, is_ours
from fastgan.bench.runner import copies_beyond_cache
from fastgan.bench.suites import suite_cases
from fastgan.bench.timing import Budget, Call, Timing, measure_in_turns

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
CASES = [
    pytest.param(device, case, id=f"{device}-{case.name}")
    for device in DEVICES
    for case in suite_cases("all", torch.device(device), quick=True)
]
ROUNDS = 10


class Measured:
    """A case's implementations, and what they took in turns."""

    def __init__(self, case: Case, device: torch.device, compiled: bool) -> None:
        mode = "default" if compiled else None
        self.copies = copies_beyond_cache(case, device)
        self.calls: dict[str, Call] = case.prepare(Setting(device, self.copies, mode))
        self.timing: Timing = measure_in_turns(
            self.calls, device=device, copies=self.copies, budget=Budget(5.0)
        )

    def provider(self, implementation: str) -> str | None:
        """The optimisers have several peers in eager mode, and no compiled one."""
        if implementation in self.calls:
            return implementation
        if implementation == "torch.compile":
            return None
        peers = [name for name in self.calls if not is_ours(name) and name != "torch.compile"]
        return min(peers, key=lambda name: sorted(self.timing.seconds[name])[ROUNDS // 4])


# One at a time: the next case takes the memory of the last one.
@lru_cache(maxsize=1)
def measured(case: Case, device: str, compiled: bool) -> Measured:
    return Measured(case, torch.device(device), compiled and case.compiled)


@pytest.mark.parametrize("implementation", ["fastgan", "eager", "torch.compile"])
@pytest.mark.parametrize(("device", "case"), CASES)
def test_case(benchmark, request, device: str, case: Case, implementation: str) -> None:
    compiled = not request.config.getoption("--no-compile", default=False)
    result = measured(case, device, compiled)
    provider = result.provider(implementation)
    if provider is None:
        pytest.skip(f"{case.name} has no compiled peer")
    benchmark.group = f"{device}, {case.name}"
    benchmark.extra_info["provider"] = provider
    benchmark.extra_info["threads"] = torch.get_num_threads()
    for peer in result.calls:
        if is_ours(provider) and peer != provider:
            ratio, (low, high) = result.timing.times_faster(provider, peer)
            benchmark.extra_info[f"times_faster_than_{peer}"] = round(ratio, 3)
            benchmark.extra_info[f"times_faster_than_{peer}_quartiles"] = (
                round(low, 3),
                round(high, 3),
            )
    numbers = iter(range(10**9))

    def once() -> None:
        result.calls[provider](next(numbers) % result.copies)
        if device == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(once, rounds=ROUNDS, warmup_rounds=1)
