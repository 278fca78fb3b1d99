"""Descriptions of the backends for ``fastgan.explain`` and ``fastgan doctor``."""

from __future__ import annotations

import timeit

import torch
from torch import Tensor

from fastgan.ops.backends.choices import cache_path
from fastgan.ops.backends.devices import fingerprint
from fastgan.ops.backends.problem import PASSES, Problem
from fastgan.ops.backends.registry import BACKENDS
from fastgan.ops.backends.selection import (
    Selector,
    current_selector,
    select_backend,
    supporting,
    using,
)
from fastgan.ops.stages import Stage


def describe_layer(
    stage: Stage, weight: Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[str, str]:
    """A layer's path, "triton", "cuda", "cpu" or "aten", and a description of its backends.

    The path is that of the registry's first backend that computes one of the passes.

    Args:
        stage: geometry.
        weight: a tensor with the weight's shape and layout; its values aren't read.
        dtype: of the layer's input.
        device: where the layer runs.

    Example:
        >>> describe_layer(Stage("linear"), torch.ones(4, 3), torch.float32, torch.device("cpu"))
        ('aten', 'aten')
    """
    problems = [
        Problem.of(which, stage, None, weight, dtype=dtype, device=device) for which in PASSES
    ]
    selector = current_selector()
    measured = {
        key: choice
        for key, choice in selector.of_device(device).items()
        if key.startswith(f"{problems[0].layer}: ")
    }
    able = {backend.name for problem in problems for backend in supporting(problem)}
    if measured:
        able = {choice.backend for choice in measured.values()}
        said = "; ".join(
            f"{key.partition(': ')[2].partition(',')[0].replace('_', ' ')}: {choice}"
            for key, choice in list(measured.items())[-len(PASSES) :]
        )
        return _path(able), f"measured: {said}"
    # Copying to another layout is mentioned only if it was the fastest.
    names = [b.name for b in BACKENDS if b.name in able and not b.name.startswith("aten_")]
    if len(names) == 1:
        return _path(able), names[0]
    how = "by a fixed table" if selector.mode == "0" else "by measurement at its first call"
    return _path(able), f"{', '.join(names[:-1])} or {names[-1]}, {how}"


def backend_facts() -> dict[str, str]:
    """Mode, time of a look-up, and file and number of choices for each device here."""
    selector = current_selector()
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    facts = {
        "FASTGAN_AUTOTUNE": selector.mode,
        "a look-up takes": f"{look_up_microseconds():.2g} us of the host's time",
    }
    for device in devices:
        choices = selector.of_device(device)
        wins: dict[str, int] = {}
        for choice in choices.values():
            wins[choice.backend] = wins.get(choice.backend, 0) + 1
        counted = ", ".join(f"{name} {count}" for name, count in sorted(wins.items()))
        facts[f"measured on {device}"] = f"{len(choices)} problems" + (
            f"; fastest: {counted}" if counted else ""
        )
        facts[f"kept for {device} in"] = str(cache_path(fingerprint(device)))
    return facts


def look_up_microseconds(times: int = 2000) -> float:
    """Host time of looking up a known problem: the shortest of five rounds' means.

    Args:
        times: look-ups per round.

    Example:
        >>> 0 < look_up_microseconds(10) < 1000
        True
    """
    stage, input, weight = Stage("conv2d"), torch.empty(1, 3, 8, 8), torch.empty(4, 3, 3, 3)
    with using(Selector("0")):
        rounds = timeit.repeat(
            lambda: select_backend("forward", stage, input, weight), number=times, repeat=5
        )
    return 1e6 * min(rounds) / times


def _path(names: set[str]) -> str:
    return next(backend.path for backend in BACKENDS if backend.name in names)
