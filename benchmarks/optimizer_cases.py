"""What record_optimizers.py measures: the cases of fastgan.bench.suites.optimizers, with a copy.

The copy of as many weights takes part in the turns, so that each case's percent refers to what
copying took in the same rounds and of the same size: weights that a cache holds are copied within
it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastgan.bench.suites.optimizers import OPS, SHAPES, contenders, work_of
from fastgan.bench.timing import Budget, measure_in_turns, median_and_quartiles


@dataclass(frozen=True)
class Case:
    work: str
    shapes: str
    cold: bool
    rounds: int


CASES = [
    *(Case(work, "DCGAN-64 critic", cold, 60) for work in OPS for cold in (False, True)),
    *(Case(work, "64 million weights in 200 tensors", True, 12) for work in OPS),
]


def measure(case: Case, device: str) -> dict[str, object]:
    """One row of the results; see record_optimizers.py for its fields."""
    where = torch.device(device)
    calls = contenders(case.work, case.shapes, cold=case.cold, device=where)
    count = sum(torch.Size(shape).numel() for shape in SHAPES[case.shapes])
    source, target = (torch.zeros(count, device=where) for _ in range(2))
    calls["copy"] = lambda: target.copy_(source)
    timing = measure_in_turns(
        {name: lambda _, call=call: call() for name, call in calls.items()},
        device=where,
        budget=Budget(float("inf"), fewest=case.rounds, most=case.rounds, warm_up=3),
    )
    medians = {name: median_and_quartiles(list(s))[0] for name, s in timing.seconds.items()}
    quickest = {name: min(s) for name, s in timing.seconds.items()}
    copy, copy_quickest = medians.pop("copy"), quickest.pop("copy")
    peers = [name for name in medians if name != "fastgan"]
    best = min(peers, key=medians.__getitem__)
    best_quickest = min(quickest[name] for name in peers)
    middle, quartiles = timing.times_faster("fastgan", best)
    moved, copied = work_of(case.work, case.shapes).bytes, 8 * count
    rate, copy_rate = moved / medians["fastgan"], copied / copy
    return {
        "work": case.work,
        "shapes": case.shapes,
        "cold": case.cold,
        "weights": count,
        "rounds": case.rounds,
        "median_us": {name: round(value * 1e6, 1) for name, value in medians.items()},
        "min_us": {name: round(value * 1e6, 1) for name, value in quickest.items()},
        "best_peer": best,
        "times_faster": round(medians[best] / medians["fastgan"], 2),
        "times_faster_by_minima": round(best_quickest / quickest["fastgan"], 2),
        "times_faster_by_turn": {
            "median": round(middle, 2),
            "quartiles": [round(value, 2) for value in quartiles],
        },
        "gigabytes_per_second": round(rate / 1e9, 1),
        "copy_gigabytes_per_second": round(copy_rate / 1e9, 1),
        "percent_of_copy": round(100 * rate / copy_rate),
        "percent_of_copy_by_minima": round(
            100 * (moved / quickest["fastgan"]) / (copied / copy_quickest)
        ),
        "disturbance_percent": round(timing.disturbance, 1),
    }
