"""clip_weights_ against torch.clamp_ and torch._foreach_clamp_*, over a DCGAN-64 critic's weights.

The contenders take turns within one run, so that a change in the machine's mood hits all alike;
the table's time is fastgan's, and the others' medians and ratios are in ``extra_info``.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch

import fastgan

ROUNDS = 30
#: A critic for 64x64 images, ndf = 64: 2,765,568 weights (Radford et al. 2015, figure 1 mirrored).
SHAPES = [
    *[(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (512, 256, 4, 4), (1, 512, 4, 4)],
    *[(128,), (128,), (256,), (256,), (512,), (512,)],
]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def clamp_each(weights):
    with torch.no_grad():
        for weight in weights:
            weight.clamp_(-0.01, 0.01)


def clamp_foreach(weights):
    with torch.no_grad():
        torch._foreach_clamp_min_(weights, -0.01)
        torch._foreach_clamp_max_(weights, 0.01)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_clip_weights_of_a_dcgan_64_critic(benchmark, device, dtype):
    weights = [torch.randn(shape, device=device).to(dtype) for shape in SHAPES]
    contenders = {
        "fastgan": lambda: fastgan.clip_weights_(weights, 0.01),
        "clamp_": lambda: clamp_each(weights),
        "foreach": lambda: clamp_foreach(weights),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}

    def wait():
        if device == "cuda":
            torch.cuda.synchronize()

    names = list(contenders)
    for round_number in range(ROUNDS):
        # Whoever comes first finds the caches as the last one left them: they take turns in that.
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            wait()
            start = time.perf_counter()
            contenders[name]()
            wait()
            seconds[name].append(time.perf_counter() - start)

    def fastgan_once():
        contenders["fastgan"]()
        wait()

    benchmark.pedantic(fastgan_once, rounds=ROUNDS, warmup_rounds=3)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        benchmark.extra_info[f"{name}_median_us"] = round(median * 1e6, 1)
        benchmark.extra_info[f"times_faster_than_{name}"] = round(median / medians["fastgan"], 2)
    benchmark.extra_info["device"] = (
        torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads"
    )
