"""What test_optimizers.py and record_optimizers.py measure: a step and a clip, ours and torch's.

The contenders of a case take turns within one run, so that a change in the machine's mood hits all
alike. They step the same weights with the same gradients, each with a state of its own: so a
contender finds weights and gradients as a training loop's backward pass leaves them, recently
used, and its state as the last step left it. In a "cold" case each has weights and gradients of its
own too, which the others have pushed out of the nearer caches. Times are of whole calls, Python
included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import fastgan
import fastgan.optim

#: A critic for 64x64 images, ndf = 64: 2,765,568 weights (Radford et al. 2015, figure 1 mirrored).
DCGAN_64_CRITIC = (
    *((64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)),
    *((128,), (128,), (256,), (256,), (512,), (512,)),
)
SHAPES = {
    "DCGAN-64 critic": DCGAN_64_CRITIC,
    "64 million weights in 200 tensors": ((320, 1000),) * 200,
}
CLIP = 0.01
#: What is read and written of each float32 weight, at least.
BYTES = {"RMSprop and clip": 20, "Adam and clip": 28, "clip alone": 8}


@dataclass(frozen=True)
class Case:
    work: str
    shapes: str
    cold: bool
    rounds: int


CASES = [
    *(Case(work, "DCGAN-64 critic", cold, 60) for work in BYTES for cold in (False, True)),
    *(Case(work, "64 million weights in 200 tensors", True, 12) for work in BYTES),
]


def _weights(case: Case, device: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = []
    for shape in SHAPES[case.shapes]:
        weight = torch.randn(shape, generator=generator).mul_(CLIP).to(device).requires_grad_()
        weight.grad = torch.randn(shape, generator=generator).to(device)
        weights.append(weight)
    return weights


def _clamp_each(weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for weight in weights:
            weight.clamp_(-CLIP, CLIP)


def _clamp_foreach(weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        torch._foreach_clamp_min_(weights, -CLIP)
        torch._foreach_clamp_max_(weights, CLIP)


def contenders(case: Case, device: str) -> dict[str, Callable[[], object]]:
    """Name and call of each; fastgan's first."""
    weights = _weights(case, device)
    calls: dict[str, Callable[[], object]]
    clamps = {"clamp_": _clamp_each, "_foreach_clamp_": _clamp_foreach}
    if case.work == "clip alone":
        calls = {"fastgan": lambda: fastgan.clip_weights_(weights, CLIP)}
        for clamp_name, clamp in clamps.items():
            own = _weights(case, device) if case.cold else weights
            calls[clamp_name] = lambda clamp=clamp, own=own: clamp(own)
        return calls
    name = case.work.split()[0]
    ours = getattr(fastgan.optim, name)(weights, lr=5e-5, clip=CLIP)
    calls = {"fastgan": ours.step}
    implementations = {"single-tensor": {"foreach": False}, "foreach": {"foreach": True}}
    if name == "Adam":
        implementations["fused"] = {"fused": True}
    for implementation, settings in implementations.items():
        own = _weights(case, device) if case.cold else weights
        theirs = getattr(torch.optim, name)(own, lr=5e-5, **settings)
        for clamp_name, clamp in clamps.items():

            def call(theirs=theirs, clamp=clamp, own=own):
                theirs.step()
                clamp(own)

            calls[f"{implementation} and {clamp_name}"] = call
    return calls


def measure(case: Case, device: str) -> dict[str, object]:
    """One row of the results; see record_optimizers.py for its fields."""
    calls = contenders(case, device)
    count = sum(torch.Size(shape).numel() for shape in SHAPES[case.shapes])
    source, target = (torch.zeros(count, device=device) for _ in range(2))
    calls["copy"] = lambda: target.copy_(source)

    def timed(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    names = list(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(3):
            timed(calls[name])
    for round_number in range(case.rounds):
        # Whoever comes first finds the caches as the last one left them: they take turns in that.
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(calls[name]))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    quickest = {name: min(times) for name, times in seconds.items()}
    copy, copy_quickest = medians.pop("copy"), quickest.pop("copy")
    ours, ours_quickest = medians["fastgan"], quickest["fastgan"]
    peers = {name: median for name, median in medians.items() if name != "fastgan"}
    best = min(peers, key=peers.__getitem__)
    best_quickest = min(value for name, value in quickest.items() if name != "fastgan")
    copy_bytes = 8 * count
    return {
        "work": case.work,
        "shapes": case.shapes,
        "cold": case.cold,
        "weights": count,
        "rounds": case.rounds,
        "median_us": {name: round(value * 1e6, 1) for name, value in medians.items()},
        "min_us": {name: round(value * 1e6, 1) for name, value in quickest.items()},
        "best_peer": best,
        "times_faster": round(peers[best] / ours, 2),
        "times_faster_by_minima": round(best_quickest / ours_quickest, 2),
        "gigabytes_per_second": round(BYTES[case.work] * count / ours / 1e9, 1),
        "copy_gigabytes_per_second": round(copy_bytes / copy / 1e9, 1),
        "percent_of_copy": round(100 * BYTES[case.work] / ours / (copy_bytes / count / copy)),
        "percent_of_copy_by_minima": round(
            100 * BYTES[case.work] / ours_quickest / (copy_bytes / count / copy_quickest)
        ),
    }
