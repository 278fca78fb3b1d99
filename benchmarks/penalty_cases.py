"""What the gradient penalty's benchmarks measure: a DCGAN-64 critic, loss and gradients.

The contenders take turns within one run, and each is the first as often as any other, so that a
change in the machine's mood hits all alike. Peers are double backward in eager mode, with the
layers in torch's default memory format and channels-last, and, if asked for, under torch.compile.
"""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections.abc import Callable

import torch

import fastgan
from fastgan.models import WGANCritic

OPS = ("gradient_penalty", "wgan_gp_critic_loss")
DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


def contenders(
    op: str, dtype: str, batch: int, compiled: bool, norm: str = "none"
) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    critic = WGANCritic(nc=3, ndf=64, image_size=64, norm=norm)
    real, fake = torch.randn(2, batch, 3, 64, 64).unbind(0)
    eps = torch.rand(batch, 1, 1, 1)

    def loss(model: torch.nn.Module, path: str, images: list[torch.Tensor]) -> torch.Tensor:
        with torch.autocast("cpu", dtype=DTYPES[dtype], enabled=DTYPES[dtype] is not None):
            function = getattr(fastgan, op)
            result = function(model, *images, eps=eps, path=path)
        return result.loss if op == "wgan_gp_critic_loss" else result

    def contender(path: str, channels_last: bool, compile: bool = False) -> Callable[[], None]:
        layout = torch.channels_last if channels_last else torch.contiguous_format
        model = copy.deepcopy(critic).to(memory_format=layout)
        images = [batch.to(memory_format=layout) for batch in (real, fake)]
        run = torch.compile(loss) if compile else loss

        def step() -> None:
            model.zero_grad()
            run(model, path, images).backward()

        return step

    found = {
        "fused": contender("fused", False),
        "fused, channels-last": contender("fused", True),
        "eager": contender("autograd", False),
        "eager, channels-last": contender("autograd", True),
    }
    if compiled:
        torch._dynamo.config.trace_autograd_ops = True
        found["compile, channels-last"] = contender("autograd", True, compile=True)
    return found


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that torch's allocator has held during a step, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(held, default=0)


def measure(
    op: str, dtype: str, batch: int, rounds: int, compiled: bool = False, norm: str = "none"
) -> dict:
    """Milliseconds of each contender, and how many times the best peer takes fastgan's best."""
    running = contenders(op, dtype, batch, compiled, norm)
    names = list(running)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        running[name]()
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            running[name]()
            seconds[name].append(time.perf_counter() - start)

    def ratio(of: Callable[[list[float]], float]) -> float:
        times = {name: of(values) for name, values in seconds.items()}
        peers = [t for name, t in times.items() if not name.startswith("fused")]
        return round(min(peers) / times["fused, channels-last"], 2)

    # Turn by turn, what the machine does to one it does to its neighbours too.
    peers = [name for name in names if not name.startswith("fused")]
    best_peer = min(peers, key=lambda name: statistics.median(seconds[name]))
    turns = [
        p / o for p, o in zip(seconds[best_peer], seconds["fused, channels-last"], strict=True)
    ]
    quartiles = statistics.quantiles(turns, n=4)
    peaks = {name: peak_bytes(running[name]) for name in (best_peer, "fused, channels-last")}
    return {
        "peak_mib": {name: round(peak / 2**20, 1) for name, peak in peaks.items()},
        "median_ms": {n: round(statistics.median(s) * 1e3, 1) for n, s in seconds.items()},
        "min_ms": {n: round(min(s) * 1e3, 1) for n, s in seconds.items()},
        "best_peer": best_peer,
        "times_faster": ratio(statistics.median),
        "times_faster_by_minima": ratio(min),
        "times_faster_by_turn": {
            "median": round(quartiles[1], 2),
            "quartiles": [round(quartiles[0], 2), round(quartiles[2], 2)],
        },
    }
