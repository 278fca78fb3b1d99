"""Selects whether norms and activations run in one pass or by torch's functions.

Each case is measured once, forward and backward, and stored with the convolutions' choices
(:mod:`fastgan.ops.backends`); the host's cost of recording is added. The fixed table uses the
number of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops.backends.fixed_table import FEWEST_VALUES
from fastgan.ops.backends.measurement import Times, race
from fastgan.ops.backends.selection import current_selector
from fastgan.ops.batch_norm import arithmetic_dtype
from fastgan.ops.bn_act import bn_act
from fastgan.ops.memory_format import empty_map, is_channels_last
from fastgan.ops.sample_norm import sample_norm_act

_NAMES = ("one_pass", "aten")
#: Represents all activations: their passes over memory differ little.
_SLOPE = 0.2


def one_pass_savings(
    over: str,
    input: Tensor,
    groups: int = 1,
    *,
    own: bool = False,
    costs: Callable[[Tensor], float] = lambda input: 0.0,
) -> float:
    """Milliseconds that one pass saves on a CPU; 0 if torch's functions are as fast.

    Infinite if the fixed table selects it.

    Args:
        over: the statistics: "batch", "running", "sample" or "group"; "bias" for a float32 bias of
            a 16-bit map, instead of a norm.
        input: (N, C, H, W) or (N, C); its values are not read.
        groups: of a group norm.
        own: whether each sample has its own scale and shift.
        costs: called for the host's milliseconds of recording, if it is measured.

    Example:
        >>> from fastgan.ops.backends import Selector, using
        >>> with using(Selector("0")):  # nothing is measured
        ...     one_pass_savings("sample", torch.empty(4, 8, 16, 16))
        0.0
    """
    selector = current_selector()
    gradients, channels_last = torch.is_grad_enabled(), is_channels_last(input)
    threads, dtype = torch.get_num_threads(), input.dtype
    fixed_only = torch.are_deterministic_algorithms_enabled()
    call = (over, groups, own, input.shape, channels_last, dtype, gradients, threads, fixed_only)
    choice = selector.norms.get(call)
    if choice is not None:
        return choice
    parts = ["norm over", f"{groups} groups" if over == "group" else over]
    parts += ["own scale and shift"] if own else []
    parts += ["x".join(map(str, input.shape)), "nhwc" if channels_last else "nchw"]
    parts += [str(dtype).removeprefix("torch."), "with gradients" if gradients else "forward"]
    return _chosen(
        call,
        f"{' '.join(parts)}, threads {threads}",
        input,
        input.numel() >= FEWEST_VALUES,
        lambda: contenders(over, input, groups, own),
        costs,
    )


def in_place_savings(
    values: int, input: Tensor, costs: Callable[[Tensor], float] = lambda input: 0.0
) -> float:
    """Milliseconds that an in-place activation of a convolution's result saves, less recording.

    As :func:`one_pass_savings`; measured for powers of two.

    Args:
        values: the result's number of values.
        input: a CPU tensor of its dtype; its values aren't read.
        costs: as of :func:`one_pass_savings`.

    Example:
        >>> from fastgan.ops.backends import Selector, using
        >>> with using(Selector("0")):  # nothing is measured
        ...     in_place_savings(1 << 10, torch.empty(1)), in_place_savings(1 << 20, torch.empty(1))
        (0.0, inf)
    """
    size, dtype, threads = (
        1 << max(values.bit_length() - 1, 0),
        input.dtype,
        torch.get_num_threads(),
    )
    call = (size, dtype, threads, torch.are_deterministic_algorithms_enabled())
    choice = current_selector().norms.get(call)
    if choice is not None:
        return choice

    def calls() -> dict[str, Callable[[], object]]:
        map = torch.ones(size, dtype=dtype)
        return {
            "one_pass": lambda: F.leaky_relu_(map.clone(), _SLOPE),
            "aten": lambda: F.leaky_relu(map.clone(), _SLOPE),
        }

    key = f"activation of {size} {str(dtype).removeprefix('torch.')}, threads {threads}"
    return _chosen(call, key, input, size >= FEWEST_VALUES, calls, costs)


def _chosen(
    call: tuple[Any, ...],
    key: str,
    input: Tensor,
    fixed: bool,
    calls: Callable[[], dict[str, Callable[[], object]]],
    costs: Callable[[Tensor], float],
) -> float:
    """What "one_pass" saves of two calls, less the cost of recording."""
    selector, gradients = current_selector(), torch.is_grad_enabled()

    def time() -> Times:
        with (
            torch.inference_mode(False),
            torch.autocast("cpu", enabled=False),
            torch.set_grad_enabled(gradients),
            torch.utils._python_dispatch._disable_current_modes(),
        ):
            times = race(key, calls(), input.device)
        if "one_pass" in times:
            times["one_pass"] += costs(input)
        return times

    choice, is_lasting = selector.choose(key, input, _NAMES, _NAMES[not fixed], time)
    saves, times = 0.0, choice.milliseconds
    if choice.backend == "one_pass":
        saves = max(times["aten"] - times["one_pass"], 0.0) if len(times) > 1 else math.inf
    if is_lasting:
        selector.norms[call] = saves
    return saves


def contenders(over: str, like: Tensor, groups: int, own: bool) -> dict[str, Callable[[], object]]:
    """The timed calls: a norm with a leaky ReLU, and its gradients if they are recorded.

    Args:
        over: as for :func:`one_pass_savings`, like the others.
        like: of the input's shape, layout and dtype.
        groups: of a group norm.
        own: whether each sample has its own scale and shift.
    """
    shape, dtype, channels = like.shape, like.dtype, like.shape[1]
    gradients = torch.is_grad_enabled()
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype) - 0.5
    input = drawn
    if len(shape) == 4:
        input = empty_map(drawn, shape, is_channels_last(like)).copy_(drawn)
    input.requires_grad_(gradients)
    grad = torch.ones_like(input)
    # Under autocast, float32 parameters with 16-bit data.
    wide = arithmetic_dtype(dtype)
    weight, bias = (torch.ones(channels, dtype=wide, requires_grad=gradients) for _ in "wb")
    mean, variance = torch.zeros(channels, dtype=wide), torch.ones(channels, dtype=wide)
    affine: dict[str, Any] = {"weight": weight, "bias": bias}
    scales = torch.ones(2, *shape[:2], 1, 1, dtype=dtype, requires_grad=gradients)
    gain, shift = scales.unbind() if own else (None, None)

    def one_pass() -> Tensor:
        activated: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": _SLOPE}
        if over == "bias":
            constants: dict[str, Any] = {"running_mean": mean, "running_var": variance, "eps": 0.0}
            given = {**constants, **activated}
            return bn_act(input, bn_weight=None, bn_bias=bias, training=False, **given)
        if over in ("batch", "running") and not own:
            settings: dict[str, Any] = {"running_mean": mean, "running_var": variance, **activated}
            training = over == "batch"
            return bn_act(input, bn_weight=weight, bn_bias=bias, training=training, **settings)
        return sample_norm_act(
            input,
            over=over,
            groups=groups,
            running_mean=mean,
            running_var=variance,
            gain=gain,
            shift=shift,
            **affine,
            **activated,
        )

    def by_torch() -> Tensor:
        if over == "bias":
            return F.leaky_relu_(input + bias[:, None, None], _SLOPE).to(dtype)
        if over == "group":
            output = F.group_norm(input, groups, weight, bias)
        elif over == "sample":
            output = F.instance_norm(input, weight=weight, bias=bias)
        else:
            output = F.batch_norm(input, mean, variance, weight, bias, over == "batch")
        if gain is not None and shift is not None:
            output = output * gain + shift
        return F.leaky_relu_(output, _SLOPE)

    def with_gradients(run: Callable[[], Tensor]) -> Callable[[], object]:
        leaves = [input, bias, *([] if over == "bias" else [weight]), *([scales] if own else [])]
        if not gradients:
            return run
        return lambda: torch.autograd.grad(run(), leaves, grad)

    return {"one_pass": with_gradients(one_pass), "aten": with_gradients(by_torch)}
