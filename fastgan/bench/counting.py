"""Counts a call's kernels and convolution passes, and splits its time, with torch's profiler.

A forward convolution, its input gradient and its weight gradient are one convolution pass each,
whether one operator call computes the gradients or two. Passes by torch's matrix products can't be
distinguished from other products, and aren't counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fastgan.activations import ACTIVATIONS

# Otherwise the profiler's library reports every start and stop on stderr.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

_REGION = "fastgan.bench call"
PYTHON = "Python and waiting"
OTHER = "other operators"
#: Parts of an iteration and their operators (or kernels). Other operators count to their caller's
#: part.
PARTS: Mapping[str, re.Pattern[str]] = {
    "optimiser and clip": re.compile(
        r"Optimizer\.|_step_|_fused_(adam|sgd)|_foreach_|clip_|clip_tensors|multi_tensor"
    ),
    "normalisation and activation": re.compile(
        r"(batch|group|layer|instance)_?norm|norm_act|act_gradient|threshold|softplus|logsigmoid|"
        + "|".join(row.name for row in ACTIVATIONS.values() if row.op is not None),
        re.IGNORECASE,
    ),
    "convolutions": re.compile(
        r"conv|cudnn|gemm|aten::(mm|addmm|bmm|linear)$|implicit_gemm"
        r"|weight_gradient|winograd_|matrix_|patch_scatter|few_channels_|_few\b",
        re.IGNORECASE,
    ),
}
_FORWARD = re.compile(
    r"^(aten::convolution|mkldnn::_convolution(_transpose)?_pointwise"
    r"|fastgan::((winograd|matrix|few_channels)_\w+|patch_scatter))$"
)
_BACKWARD = "aten::convolution_backward"
#: Names without a namespace, except torch's own gradients ("MulBackward0"), are Python code: a
#: ``torch.autograd.Function``, a ``record_function``.
_OPERATOR = re.compile(r"::|Backward\d+$")
#: Triton's kernels aren't called from a torch operator for each convolution.
_TRITON_CONVOLUTION = re.compile(r"^(implicit_gemm|weight_gradient)_kernel")


@dataclass(frozen=True)
class Counts:
    """The counts of one call.

    Attributes:
        launches: kernels, copies and fills on the device; on a CPU the operator calls without inner
            ones.
        convolutions: convolution passes.
        shares: part of the iteration -> share of the call's time, summing to 1.
    """

    launches: int
    convolutions: int
    shares: Mapping[str, float]


def count(call: Callable[[], object], device: torch.device) -> Counts:
    """Profiles a call: one warm-up, then the faster of two profiled calls.

    Args:
        call: the function.
        device: where it runs.

    Example:
        >>> layer, x = torch.nn.Conv2d(1, 2, 3), torch.ones(1, 1, 8, 8, requires_grad=True)
        >>> count(lambda: layer(x).sum().backward(), torch.device("cpu")).convolutions
        3
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    call()
    runs = [_profiled(call, device, activities) for _ in range(2)]
    # The longer one was disturbed more.
    events = min(runs, key=_duration)
    operators = [event for event in events if event.device_type.name == "CPU"]
    kernels = [
        event
        for event in events
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]
    convolutions = _convolutions(operators)
    convolutions += sum(bool(_TRITON_CONVOLUTION.match(event.name)) for event in kernels)
    if device.type == "cuda":
        launches = len(kernels)
    else:
        launches = sum(
            event.name.partition("::")[1] != "" and not event.cpu_children for event in operators
        )
    return Counts(launches, convolutions, _shares(operators, device))


def _profiled(
    call: Callable[[], object], device: torch.device, activities: list[ProfilerActivity]
) -> list[Any]:
    with (
        profile(activities=activities, record_shapes=True) as profiler,
        record_function(_REGION),
    ):
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return list(profiler.events() or ())


def _duration(events: list[Any]) -> float:
    return float(sum(event.cpu_time_total for event in events if event.name == _REGION))


def _convolutions(operators: list[Any]) -> int:
    passes = 0
    for event in operators:
        if event.name == _BACKWARD:
            inputs = list(event.concrete_inputs)
            # The output mask: (input, weight, bias). The bias's gradient is a sum, not a
            # convolution pass.
            passes += sum(map(bool, inputs[-1][:2])) if inputs and inputs[-1] else 2
        elif _FORWARD.match(event.name) and not _inside_another(event):
            passes += 1
    return passes


def _inside_another(event: Any) -> bool:
    parent = event.cpu_parent
    while parent is not None:
        if _FORWARD.match(parent.name) or parent.name == _BACKWARD:
            return True
        parent = parent.cpu_parent
    return False


def _shares(operators: list[Any], device: torch.device) -> dict[str, float]:
    """Device time by launching operator; on a CPU the operators' self time."""
    microseconds = dict.fromkeys((*PARTS, OTHER, PYTHON), 0.0)
    total = 0.0
    for event in operators:
        if event.name == _REGION:
            total = event.cpu_time_total
            if device.type == "cpu":
                microseconds[PYTHON] += event.self_cpu_time_total
            continue
        if device.type == "cpu":
            spent = event.self_cpu_time_total
            names = [event.name]
        else:
            spent = sum(kernel.duration for kernel in event.kernels)
            names = [kernel.name for kernel in event.kernels] + [event.name]
        if spent:
            part = _part(event, names)
            if part == OTHER and device.type == "cpu" and not _OPERATOR.search(event.name):
                part = PYTHON
            microseconds[part] += spent
    if device.type == "cuda":
        microseconds[PYTHON] = max(0.0, total - sum(microseconds.values()))
    total = sum(microseconds.values())
    return {part: spent / total if total else 0.0 for part, spent in microseconds.items()}


def _part(event: Any, names: list[str]) -> str:
    while True:
        for part, pattern in PARTS.items():
            if any(pattern.search(name) for name in names):
                return part
        event = event.cpu_parent
        if event is None or event.name == _REGION:
            return OTHER
        names = [event.name]
