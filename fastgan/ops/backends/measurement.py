"""Times backends on a problem, in turns, on tensors of its own.

Each backend warms up once and takes a few turns; the clearly slower ones drop out, the others go on
for a bounded time. The shortest time counts, as least disturbed by other processes. Backends that
don't fuse are timed with separate passes for what fused kernels do on load and store.

On a busy machine the shortest time may be a disturbed one. So a second turn must confirm it; until
then turns go on, for a bounded time. Times that remain unconfirmed are used, but not stored for
other processes (:attr:`Times.is_confirmed`).
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.utils._python_dispatch import _disable_current_modes

from fastgan.activations import ACTIVATIONS
from fastgan.explaining.fallback import warn_once
from fastgan.kernels.fusion import (
    ActivationGradient,
    BatchNormGradient,
    BiasActivation,
    GradPrologue,
    NormActivation,
    NormActivationGradient,
    Statistics,
)
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.problem import Problem
from fastgan.ops.backends.triton import Triton
from fastgan.ops.eligibility import uncast

#: Seconds of turns for one problem, and the least and greatest number of turns.
_SECONDS, _TURNS = 0.15, (2, 10)
_EXHAUSTIVE_SECONDS, _EXHAUSTIVE_TURNS = 2.0, (10, 100)
#: How much slower than the fastest a backend may be in its first turns to go on.
_CLEARLY_SLOWER = 1.5
#: How much slower it may be in the first one to take a second, however long.
_SURELY_SLOWER = 4.0
#: The first turns: longer ones are repeated less, and disturbed less.
_FIRST_TURNS, _FIRST_SECONDS = 3, 0.02
#: How near a second turn must come to the shortest, and how much longer turns go on without one.
_CONFIRMS, _PATIENCE = 1.1, 2
#: Seconds for which a turn repeats its call between two readings of the clock.
_SHORTEST_TURN = 1e-4

#: Represents all activations: next to a convolution their passes differ little.
_ACTIVATION, _SLOPE = "leaky_relu", 0.2

_ops = torch.ops.fastgan


class Times(dict[str, float]):
    """Milliseconds by name.

    Attributes:
        is_confirmed: whether each shortest time was nearly reached a second time, or all turns of
            an exhaustive measurement were taken.
    """

    is_confirmed = True


def measure(problem: Problem, backends: Sequence[Backend], *, exhaustive: bool = False) -> Times:
    """Each backend's time in milliseconds.

    Leaves out failing backends, with one warning.

    Args:
        problem: with its input's shape.
        backends: those that can compute it.
        exhaustive: give all of them all turns, and more.

    Example:
        >>> from fastgan.ops.backends import BACKENDS
        >>> from fastgan.ops.stages import Stage
        >>> tensors = torch.ones(1, 3, 8, 8), torch.ones(4, 3, 3, 3)
        >>> sorted(measure(Problem.of("forward", Stage("conv2d"), *tensors), BACKENDS[-1:]))
        ['aten']
    """
    with (
        torch.no_grad(),
        _disable_current_modes(),
        torch._C.DisableTorchFunctionSubclass(),
        # Calls kernels directly: no gradients are needed, and autocast would cast.
        torch._C._AutoDispatchBelowADInplaceOrView(),
        uncast(),
        record_function("fastgan::measure_backends"),
        torch.cuda.device(problem.device if problem.device.type == "cuda" else -1),
    ):
        return _measured(problem, backends, exhaustive)


def _measured(problem: Problem, backends: Sequence[Backend], exhaustive: bool) -> Times:
    try:
        trial = _Trial(problem)
    except RuntimeError as error:
        _say(problem.key, "its tensors", error)
        return Times()
    calls = {backend.name: trial.call(backend) for backend in backends}
    return race(problem.key, calls, problem.device, exhaustive=exhaustive)


def race(
    key: str,
    contenders: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    exhaustive: bool = False,
) -> Times:
    """Times calls in turns, in milliseconds; leaves out failing ones.

    Args:
        key: the problem's key, for warnings.
        contenders: what to time, by name.
        device: where they run.
        exhaustive: give all of them all turns, and more.

    Example:
        >>> list(race("nothing", {"idle": lambda: None}, torch.device("cpu")))
        ['idle']
    """
    #: The two shortest times of each.
    seconds: dict[str, tuple[float, float]] = {}
    clock = _on_the_device if device.type == "cuda" else _on_the_host
    for name, call in contenders.items():
        try:
            call()
            seconds[name] = clock(call, 1), math.inf
        except Exception as error:  # a kernel that doesn't compile, or out of memory
            _say(key, name, error)

    def turn(racing: Sequence[str]) -> None:
        for name in racing:
            repeats = max(1, round(_SHORTEST_TURN / max(seconds[name][0], 1e-7)))
            first, second, _ = sorted((*seconds[name], clock(contenders[name], repeats)))
            seconds[name] = first, second

    def is_confirmed() -> bool:
        return all(seconds[name][1] <= _CONFIRMS * seconds[name][0] for name in racing)

    racing = list(seconds)
    for number in range(_FIRST_TURNS - 1 if len(racing) > 1 else 0):
        within = _SURELY_SLOWER * min(seconds.values())[0] if number == 0 else 0.0
        turn([name for name in racing if seconds[name][0] < max(_FIRST_SECONDS, within)])
    if racing and not exhaustive:
        slowest = _CLEARLY_SLOWER * min(seconds.values())[0]
        racing = [name for name in racing if seconds[name][0] <= slowest]
    limit = _EXHAUSTIVE_SECONDS if exhaustive else _SECONDS
    least, most = _EXHAUSTIVE_TURNS if exhaustive else _TURNS
    if len(racing) < 2:
        least, most = 0, 0
    began = time.perf_counter()
    for number in itertools.count():
        spent = time.perf_counter() - began
        is_enough = number >= most or (number >= least and spent > limit)
        if is_enough and (is_confirmed() or spent > _PATIENCE * limit):
            break
        turn(racing if number % 2 == 0 else racing[::-1])
    times = Times({name: 1e3 * shortest for name, (shortest, _) in seconds.items()})
    times.is_confirmed = exhaustive or is_confirmed()
    return times


def _on_the_host(call: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def _on_the_device(call: Callable[[], object], repeats: int) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(repeats):
        call()
    ended.record()
    ended.synchronize()
    milliseconds: float = began.elapsed_time(ended)
    return milliseconds / 1e3 / repeats


def _say(key: str, what: str, error: Exception) -> None:
    lines = str(error).strip().splitlines()
    warn_once(
        f"backends for {key}: {what} left out, {type(error).__name__}: "
        f"{lines[0][:200] if lines else ''}"
    )


class _Trial:
    """A problem's tensors, and the timed call of each backend."""

    def __init__(self, problem: Problem) -> None:
        assert problem.input_shape is not None
        self.problem, self.stage = problem, problem.stage
        self._random = torch.Generator(problem.device).manual_seed(0)
        self.input = self._drawn(problem.input_shape, problem.input_channels_last)
        self.weight = self._drawn(problem.weight_shape, problem.weight_channels_last)
        if problem.which != "forward":
            self.grad = self._drawn(problem.output_shape, problem.gives_channels_last)
        fusion = problem.fusion
        if fusion.input == "norm" or fusion.store == "norm":
            self.before = self._norm(problem.input_shape[1])
        if fusion.grad:
            self.output = torch.ones_like(self.grad)
            self.after = self._norm(problem.output_shape[1])

    def call(self, backend: Backend) -> Callable[[], object]:
        """The call to time."""
        pass_of: dict[str, Callable[[Any], object]] = {
            "forward": self._fused_forward if backend.fuses else self._forward,
            "input_gradient": self._fused_input_gradient if backend.fuses else self._input_gradient,
            "weight_gradient": self._fused_weight_gradient
            if backend.fuses
            else self._weight_gradient,
        }
        run = pass_of[self.problem.which]
        return lambda: run(backend)

    # Convolution and separate passes, as fastgan.ops.chain runs them.

    def _forward(self, backend: Backend) -> None:
        stage, store, input = self.stage, self.problem.fusion.store, self._loaded_input()
        if store == "activation":
            stage = replace(stage, activation=_ACTIVATION, negative_slope=_SLOPE)
            backend.activated_forward(stage, input, self.weight, None)
            return
        output = backend.forward(stage, input, self.weight, None)
        if store == "statistics":
            _ops.batch_norm_statistics(output, None, None, None, 0.1, 1e-5)

    def _input_gradient(self, backend: Backend) -> None:
        around = self.stage, self._loaded_grad(), self.input, self.weight
        if self.problem.fusion.store == "activation":
            mask = ActivationGradient(self.input, _ACTIVATION, _SLOPE)
            backend.masked_input_gradient(*around, mask)
            return
        grad = backend.input_gradient(*around)
        if self.problem.fusion.store == "norm":
            norm = self.before
            code, invstd = ACTIVATIONS[_ACTIVATION].code, norm.scale
            sums = _ops.norm_act_gradient_sums(
                grad, self.input, norm.mean, invstd, norm.scale, None, code, _SLOPE
            )
            count = grad.numel() // grad.shape[1]
            slope, offset, *_ = _ops.norm_act_gradient_finalize(*sums, norm.scale, invstd, count)
            _ops.norm_act_gradient_(
                grad, self.input, norm.mean, norm.scale, None, slope, offset, code, _SLOPE
            )

    def _weight_gradient(self, backend: Backend) -> None:
        grad, input = self._loaded_grad(), self._loaded_input()
        backend.weight_gradient(self.stage, grad, input, self.weight, False)

    def _loaded_input(self) -> Tensor:
        if self.problem.fusion.input != "norm":
            return self.input
        norm, code = self.before, ACTIVATIONS[_ACTIVATION].code
        loaded: Tensor = _ops.norm_act(self.input, norm.mean, norm.scale, None, code, _SLOPE)
        return loaded

    def _loaded_grad(self) -> Tensor:
        kind = self.problem.fusion.grad
        if kind == "norm":
            norm, zeros = self.after, torch.zeros_like(self.after.mean)
            rest = (norm.mean, norm.scale, None, zeros, zeros, ACTIVATIONS["none"].code, 0.0)
            _ops.norm_act_gradient_(self.grad, self.output, *rest)
        elif kind == "activation":
            _ops.act_gradient_(self.grad, self.output, ACTIVATIONS[_ACTIVATION].code, _SLOPE)
        return self.grad

    # The same, in one kernel.

    def _fused_forward(self, backend: Triton) -> None:
        fusion = self.problem.fusion
        epilogue: Any = BiasActivation()
        if fusion.store == "statistics":
            epilogue = Statistics()
        elif fusion.store == "activation":
            epilogue = BiasActivation(None, _ACTIVATION, _SLOPE)
        input, prologue = self._input_and_prologue(backend)
        _, partials = backend.fused_forward(self.stage, input, self.weight, prologue, epilogue)
        if partials is not None:
            _ops.batch_norm_finalize(
                *(partials.count, partials.mean, partials.m2, None, None, None, 0.1, 1e-5),
                *(None, None, []),
            )

    def _fused_input_gradient(self, backend: Triton) -> None:
        epilogue: Any = None
        if self.problem.fusion.store == "norm":
            epilogue = NormActivationGradient(self.input, self.before, self.before.scale)
        elif self.problem.fusion.store == "activation":
            epilogue = ActivationGradient(self.input, _ACTIVATION, _SLOPE)
        grad, prologue = self._grad_and_prologue(backend)
        grad, sums = backend.fused_input_gradient(
            self.stage, grad, self.input, self.weight, prologue, epilogue
        )
        if sums is not None:
            scale, count = self.before.scale, grad.numel() // grad.shape[1]
            _ops.norm_act_gradient_finalize(sums.grad, sums.grad_xhat, scale, scale, count)

    def _fused_weight_gradient(self, backend: Triton) -> None:
        grad, grad_prologue = self._grad_and_prologue(backend)
        input, input_prologue = self._input_and_prologue(backend)
        backend.fused_weight_gradient(
            self.stage, grad, input, self.weight, input_prologue, grad_prologue, False
        )

    def _input_and_prologue(self, backend: Triton) -> tuple[Tensor, NormActivation | None]:
        if not backend.loads:
            return self._loaded_input(), None
        return self.input, self.before if self.problem.fusion.input == "norm" else None

    def _grad_and_prologue(self, backend: Triton) -> tuple[Tensor, GradPrologue | None]:
        if not backend.loads:
            return self._loaded_grad(), None
        kind = self.problem.fusion.grad
        if kind == "activation":
            return self.grad, ActivationGradient(self.output, _ACTIVATION, _SLOPE)
        if kind == "norm":
            mean, scale = self.after.mean, self.after.scale
            zeros = torch.zeros_like(mean)
            return self.grad, BatchNormGradient(self.output, mean, scale, zeros, zeros)
        return self.grad, None

    def _norm(self, channels: int) -> NormActivation:
        dtype = torch.float64 if self.problem.dtype == torch.float64 else torch.float32
        ones = torch.ones(channels, dtype=dtype, device=self.problem.device)
        return NormActivation(torch.zeros_like(ones), ones, None, _ACTIVATION, _SLOPE)

    def _drawn(self, shape: tuple[int, ...], channels_last: bool) -> Tensor:
        # A generator of its own, so that measuring doesn't affect the user's random numbers.
        problem = self.problem
        drawn = torch.rand(
            shape, generator=self._random, dtype=problem.dtype, device=problem.device
        ).sub_(0.5)
        return drawn.contiguous(memory_format=torch.channels_last) if channels_last else drawn
