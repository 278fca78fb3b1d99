"""What test_batch_norm.py and record_batch_norm.py measure: batch norm and ReLU, ours and eager's.

Forward and backward of the batch norms of DCGAN-64's generator, with the batch's statistics. The
contenders of a case take turns within one run, and each is the first as often as any other, so that
a change in the machine's mood hits all alike. Times are of whole calls, Python included.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from fastgan.functional import bn_act

#: channels and image size; Radford et al. 2015, arXiv 1511.06434, figure 1.
LAYERS = ((512, 4), (256, 8), (128, 16), (64, 32))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FORMATS = {"channels-last": torch.channels_last, "contiguous": torch.contiguous_format}
#: Of each value, by the passes there are at least: forward reads it for the statistics, reads it
#: again and writes one; backward reads two for the sums, reads them again and writes one.
PASSES = {"forward": 3, "backward": 5}


@dataclass(frozen=True)
class Case:
    channels: int
    size: int
    dtype: str = "float32"
    memory_format: str = "channels-last"
    batch: int = 64
    rounds: int = 40

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, self.channels, self.size, self.size)


CASES = [
    Case(channels, size, dtype, memory_format)
    for dtype, memory_format in (
        ("float32", "channels-last"),
        ("bfloat16", "channels-last"),
        ("float32", "contiguous"),
    )
    for channels, size in LAYERS
]


@dataclass(frozen=True)
class Contender:
    """Forward gives what backward takes."""

    forward: Callable[[], object]
    backward: Callable[[object], None]


def contenders(case: Case, device: str) -> dict[str, Contender]:
    """Name and calls of each; fastgan's first."""
    generator = torch.Generator().manual_seed(0)

    def image() -> torch.Tensor:
        values = torch.randn(case.shape, generator=generator).to(device, DTYPES[case.dtype])
        return values.contiguous(memory_format=FORMATS[case.memory_format])

    input, grad = image().requires_grad_(), image()
    weight, bias = (torch.randn(case.channels, device=device).requires_grad_() for _ in range(2))
    running = torch.zeros(case.channels, device=device), torch.ones(case.channels, device=device)

    def eager(inplace: bool) -> Callable[[], object]:
        return lambda: F.relu(F.batch_norm(input, *running, weight, bias, True), inplace=inplace)

    def ours() -> object:
        return bn_act(
            input,
            bn_weight=weight,
            bn_bias=bias,
            running_mean=running[0],
            running_var=running[1],
            training=True,
        )

    def backward(output: object) -> None:
        torch.autograd.grad(output, (input, weight, bias), grad)

    calls = {"fastgan": ours, "eager": eager(False), "eager, in place": eager(True)}
    return {name: Contender(call, backward) for name, call in calls.items()}


def measure(case: Case, device: str) -> dict[str, object]:
    """One row of the results; see record_batch_norm.py for its fields."""
    names = list(found := contenders(case, device))
    source, target = (
        torch.zeros(case.shape, dtype=DTYPES[case.dtype], device=device) for _ in range(2)
    )

    def seconds_of(call: Callable[[], object]) -> tuple[float, object]:
        start = time.perf_counter()
        result = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, result

    forward: dict[str, list[float]] = {name: [] for name in names}
    backward: dict[str, list[float]] = {name: [] for name in names}
    copies: list[float] = []
    for turn in range(case.rounds + 3):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            there, output = seconds_of(found[name].forward)
            back, _ = seconds_of(lambda n=name, o=output: found[n].backward(o))
            del output
            if turn >= 3:
                forward[name].append(there)
                backward[name].append(back)
        copies.append(seconds_of(lambda: target.copy_(source))[0])
    both = {
        name: [a + b for a, b in zip(forward[name], backward[name], strict=True)] for name in names
    }
    median = {name: statistics.median(times) for name, times in both.items()}
    quickest = {name: min(times) for name, times in both.items()}
    peers = [name for name in names if name != "fastgan"]
    best = min(peers, key=median.__getitem__)
    size = source.numel() * source.element_size()
    bytes_moved = sum(PASSES.values()) * size
    copy = 2 * size / statistics.median(copies)
    return {
        "shape": list(case.shape),
        "dtype": case.dtype,
        "memory_format": case.memory_format,
        "rounds": case.rounds,
        "median_us": {name: round(value * 1e6, 1) for name, value in median.items()},
        "min_us": {name: round(value * 1e6, 1) for name, value in quickest.items()},
        "forward_median_us": {
            name: round(statistics.median(forward[name]) * 1e6, 1) for name in names
        },
        "best_peer": best,
        "times_faster": round(median[best] / median["fastgan"], 2),
        "times_faster_by_minima": round(
            min(quickest[name] for name in peers) / quickest["fastgan"], 2
        ),
        "gigabytes_per_second": round(bytes_moved / median["fastgan"] / 1e9, 1),
        "copy_gigabytes_per_second": round(copy / 1e9, 1),
        "percent_of_copy": round(100 * bytes_moved / median["fastgan"] / copy),
        "percent_of_copy_by_minima": round(
            100 * bytes_moved / quickest["fastgan"] / (2 * size / min(copies))
        ),
    }
