"""Selects a convolution's backend by measurement, once for each problem.

The first call of a problem times the backends that can compute it, and keeps the fastest: in
memory, in the user's file for this device and its software
(:mod:`fastgan.ops.backends.choices`), and in the current run's folder, if there is one. Committed
tables need no measurement on their devices. ``FASTGAN_AUTOTUNE`` sets the mode:

    0           measures and reads nothing, uses :mod:`fastgan.ops.backends.fixed_table`
    1           (default) measures unknown problems for a fraction of a second each
    exhaustive  measures for seconds per problem; ignores shorter measurements

``torch.use_deterministic_algorithms(True)`` implies 0. Nothing is measured within a CUDA-graph
capture, torch.compile, a torch.func transform or a trace: there unknown problems take the fixed
table for this call.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.errors import ConfigError
from fastgan.explaining.fallback import warn_once
from fastgan.ops.backends.backend import Backend
from fastgan.ops.backends.choices import Choice, Choices, ChoicesFile, cache_path
from fastgan.ops.backends.devices import device_name, fingerprint
from fastgan.ops.backends.fixed_table import fixed_choice, takes
from fastgan.ops.backends.measurement import Times, measure, race
from fastgan.ops.backends.problem import (
    UNFUSED,
    Fusion,
    Pass,
    Problem,
    float32_precision,
)
from fastgan.ops.backends.registry import ATEN, BACKENDS
from fastgan.ops.eligibility import PLAIN
from fastgan.ops.memory_format import empty_map, is_channels_last
from fastgan.ops.stages import Stage

MODES = ("0", "1", "exhaustive")
#: A selector's total seconds of measurement; programs with ever new shapes go on without.
MOST_SECONDS = 60.0
#: Margin by which another backend must beat the fixed table's, and recording a forward must beat
#: running it, against noise.
MARGIN = 0.03
#: Number of remembered calls; bounded, as shapes may never repeat.
_MOST_KNOWN = 16384
#: Committed tables in the user's files' format, with devices' names as keys.
TABLES = Path(__file__).parent / "tables"

_threads = torch.get_num_threads
_deterministic = torch._C._get_deterministic_algorithms


def select_backend(
    which: Pass, stage: Stage, input: Tensor, weight: Tensor, fusion: Fusion = UNFUSED
) -> Backend:
    """The backend for one pass of a convolution: the fastest measured, or the fixed table's.

    Takes about a microsecond once the problem is known.

    Args:
        which: "forward", "input_gradient" or "weight_gradient".
        stage: geometry; its norm and activation are ignored.
        input: a tensor with the input's shape, layout, dtype and device; its values aren't read.
        weight: the layer's.
        fusion: what a fusing backend is asked to do on load and on store.

    Example:
        >>> select_backend("forward", Stage("linear"), torch.ones(2, 3), torch.ones(4, 3))
        <backend aten>
    """
    call = (
        which,
        stage,
        fusion,
        input.shape,
        input.stride(),
        weight.shape,
        weight.stride(),
        input.dtype,
        weight.dtype,
        input.device,
        _threads(),
        _deterministic(),
        float32_precision(input.dtype, input.device) if input.is_cuda else "",
    )
    known = _selector.known.get(call)
    return _selector.select(call, input, weight) if known is None else known


class Way(NamedTuple):
    """How a fused module runs a convolution on a CPU.

    Attributes:
        chained: whether it runs in a chain, with a backend other than torch's in some pass.
        converts: whether its contiguous maps are laid out channels-last.
        saves: the milliseconds saved over torch; infinite where nothing was measured.
        usual: torch's milliseconds; 0 where nothing was measured.
        copies: of ``saves`` the milliseconds lost to converting the input map and its gradient.
    """

    chained: bool
    converts: bool
    saves: float
    usual: float = 0.0
    copies: float = 0.0


BY_TORCH = Way(False, False, 0.0)


def _fixed_way(chained: bool, *, converts: bool) -> Way:
    return Way(chained, converts and chained, math.inf if chained else 0.0)


def _fastest_way(times: Mapping[tuple[bool, bool], float]) -> Way:
    """The fastest way; torch's unless another is faster by more than the margin.

    Args:
        times: (chained, converts) -> milliseconds.
    """
    usual, fastest = times[False, False], min(times, key=times.__getitem__)
    if not times[fastest] * (1 + MARGIN) < usual:
        fastest = False, False
    return Way(*fastest, usual - times[fastest], usual)


def select_layout(
    stage: Stage,
    input: Tensor,
    weight: Tensor,
    passes: tuple[Pass, ...],
    costs: Callable[[Tensor], float] = lambda input: 0.0,
) -> tuple[Way, Way]:
    """Selects whether a fused module runs a convolution, and whether its maps become channels-last.

    Compares torch's passes, the fastest backends', and either with channels-last copies of
    contiguous maps, including the costs of copying and recording. Without measurement the fixed
    table decides.

    Args:
        stage: geometry.
        input: a tensor with the input's shape, layout, dtype and device; its values aren't read.
        weight: the layer's, or one of its shape and layout.
        passes: the passes that will run.
        costs: called for the host's milliseconds of running it, if something is measured.

    Returns:
        The fastest way, and the fastest without channels-last copies.

    Example:
        >>> select_layout(Stage("linear"), torch.ones(2, 3), torch.ones(4, 3), ("forward",))[0]
        Way(chained=False, converts=False, saves=0.0, usual=0.0, copies=0.0)
    """
    call = (
        stage,
        passes,
        input.shape,
        input.stride(),
        weight.shape,
        weight.stride(),
        input.dtype,
        input.device,
        _threads(),
        _deterministic(),
    )
    known = _selector.layouts.get(call)
    return _selector.compare_layouts(call, input, weight, costs) if known is None else known


class Selector:
    """Known choices, and the measurement of new ones.

    Args:
        mode: one of :data:`MODES`; None for ``FASTGAN_AUTOTUNE``.
        run: a file whose choices take precedence, and to which new ones are added.
        parent: a selector with which measurements are shared.

    Attributes:
        known: the backend of each earlier call.
        layouts: the result of each earlier call of :func:`select_layout`.
        norms: the milliseconds saved by running a norm in one pass, for each earlier call.
        chosen: the choices made, by device and problem.
        measures: whether it may measure now.
    """

    def __init__(
        self,
        mode: str | None = None,
        run: ChoicesFile | None = None,
        parent: Selector | None = None,
    ) -> None:
        self.mode = _mode_of_environment() if mode is None else mode
        self.known: dict[tuple[Any, ...], Backend] = {}
        self.layouts: dict[tuple[Any, ...], tuple[Way, Way]] = {}
        self.norms: dict[tuple[Any, ...], float] = {}
        self.chosen: Choices = {}
        self.measures = True
        self._run = run
        self._run_choices: Choices = {} if run is None else run.read()
        self._cached: Choices = {}
        self._measured: Choices = {} if parent is None else parent._measured
        self._unconfirmed: set[str] = set() if parent is None else parent._unconfirmed
        self._seconds_spent: float = 0.0 if parent is None else parent._seconds_spent
        self._lock = threading.RLock()

    def select(self, call: tuple[Any, ...], input: Tensor, weight: Tensor) -> Backend:
        """Handles a new call of :func:`select_backend`."""
        which, stage, fusion = call[:3]
        backend, is_lasting = BACKENDS[-1], True
        if input.dtype == weight.dtype and input.numel() > 0 and weight.numel() > 0:
            problem = Problem.of(which, stage, input, weight, fusion)
            backends = supporting(problem)
            if not any(each.fuses for each in backends):
                problem = problem._replace(fusion=UNFUSED)
            if len(backends) > 1:
                with self._lock:
                    choice, is_lasting = self._choice(problem, backends, input)
                backend = next(each for each in backends if each.name == choice.backend)
        if is_lasting:
            if len(self.known) >= _MOST_KNOWN:
                self.known.clear()
            self.known[call] = backend
        return backend

    def compare_layouts(
        self,
        call: tuple[Any, ...],
        input: Tensor,
        weight: Tensor,
        costs: Callable[[Tensor], float],
    ) -> tuple[Way, Way]:
        """Handles a new call of :func:`select_layout`."""
        stage, passes = call[:2]
        channels_last = is_channels_last(input)
        is_open = not (stage.kind == "linear" or channels_last or is_channels_last(weight))
        #: (chained, converts) of :class:`Way` -> milliseconds.
        times: dict[tuple[bool, bool], float] = {}
        fixed: dict[bool, bool] = {}
        is_lasting = True
        for converts in (False, True) if is_open else (False,):
            like, best, by_torch = input, 0.0, 0.0
            if stage.kind != "linear":
                like = empty_map(input, input.shape, channels_last or converts, "meta")
            for which in passes:
                problem = Problem.of(which, stage, like, weight, device=input.device)
                with self._lock:
                    choice, lasts = self._choice(problem, supporting(problem), input)
                is_lasting = is_lasting and lasts
                best += choice.milliseconds.get(choice.backend, math.nan)
                by_torch += choice.milliseconds.get(ATEN.name, math.nan)
                fixed[converts] = fixed.get(converts, False) or takes(problem, choice.backend)
            times[False, converts], times[True, converts] = by_torch, best
        if any(map(math.isnan, times.values())):
            unconverted = _fixed_way(fixed[False], converts=False)
            converted = is_open and fixed[True]
            answer = _fixed_way(True, converts=True) if converted else unconverted, unconverted
        else:
            copies = 0.0
            if is_open:
                copied, lasts = self._milliseconds_to_convert(input)
                is_lasting = is_lasting and lasts
                copies = copied * (1 + ("input_gradient" in passes))  # the input, and its gradient
                for chained in (False, True):
                    times[chained, True] += copies
            for way in times:
                times[way] += costs(input) if any(way) else 0.0
            fastest = _fastest_way(times)
            if fastest.converts:
                fastest = fastest._replace(copies=copies)
            answer = fastest, _fastest_way({w: times[w] for w in times if not w[1]})
        if is_lasting:
            self.layouts[call] = answer
        return answer

    def _milliseconds_to_convert(self, input: Tensor) -> tuple[float, bool]:
        """Time of a channels-last copy of a contiguous map, and whether to remember it.

        0 if nothing is measured.
        """
        shape, dtype, device = input.shape, input.dtype, input.device
        sizes = "x".join(map(str, shape))
        key = f"channels-last copy of {sizes} {str(dtype).removeprefix('torch.')}"
        key += f", threads {_threads()}" if device.type == "cpu" else ""

        def time() -> Times:
            with torch.utils._python_dispatch._disable_current_modes():
                map = torch.ones(shape, dtype=dtype, device=device)
                copy = {"copy": lambda: map.contiguous(memory_format=torch.channels_last)}
                return race(key, copy, device)

        times, is_lasting = self.milliseconds(key, input, ("copy",), time)
        return times.get("copy", 0.0), is_lasting

    def milliseconds(
        self,
        key: str,
        input: Tensor,
        names: Sequence[str],
        measured: Callable[[], Times],
    ) -> tuple[Mapping[str, float], bool]:
        """Each name's time, and whether to remember it; empty if not measured.

        Args:
            key: the problem in words, without the device.
            input: a tensor on the device.
            names: the names of the alternatives.
            measured: measures them.
        """
        with self._lock:
            choice, is_lasting = self._choice_of(key, input, names, Choice(names[0]), measured)
        return choice.milliseconds, is_lasting

    def choose(
        self,
        key: str,
        input: Tensor,
        names: Sequence[str],
        fixed: str,
        measured: Callable[[], Times],
    ) -> tuple[Choice, bool]:
        """The fastest name, and whether to remember it.

        Args:
            key: the problem in words, without the device.
            input: a tensor on the device.
            names: the names of the alternatives.
            fixed: the fixed table's.
            measured: measures them.
        """
        with self._lock:
            choice, is_lasting = self._choice_of(key, input, names, Choice(fixed), measured)
        return choice, is_lasting

    def is_confirmed(self) -> bool:
        """Whether all times measured so far were confirmed: :class:`.measurement.Times`."""
        return not self._unconfirmed

    def of_device(self, device: torch.device) -> dict[str, Choice]:
        """A device's known measured choices, by the problem's key."""
        name = fingerprint(device)
        known = {
            **self._of_cache(device),
            **self._measured.get(name, {}),
            **self.chosen.get(name, {}),
        }
        return {key: choice for key, choice in known.items() if choice.milliseconds}

    def _choice(
        self, problem: Problem, backends: Sequence[Backend], input: Tensor
    ) -> tuple[Choice, bool]:
        """The choice, and whether to remember it."""
        names = [backend.name for backend in backends]
        fixed = Choice(fixed_choice(problem, backends).name)
        exhaustive = self.mode == "exhaustive"
        return self._choice_of(
            problem.key,
            input,
            names,
            fixed,
            lambda: measure(problem, backends, exhaustive=exhaustive),
        )

    def _choice_of(
        self,
        key: str,
        input: Tensor,
        names: Sequence[str],
        fixed: Choice,
        measured: Callable[[], Times],
    ) -> tuple[Choice, bool]:
        device = fingerprint(input.device)
        if self.mode == "0" or _deterministic():
            self._keep(device, key, fixed)
            return fixed, True
        for known, is_own in (
            (self.chosen.get(device, {}), True),
            (self._run_choices.get(device, {}), True),
            (self._measured.get(device, {}), False),
            (self._of_cache(input.device), False),
            (_committed().get(device_name(input.device), {}), False),
        ):
            choice = known.get(key)
            # The file may come from another version, or be invalid.
            if (
                choice is not None
                and choice.backend in names
                and (is_own or choice.exhaustive or self.mode != "exhaustive")
            ):
                self._keep(device, key, choice)
                return choice, True
        if not (self.measures and _may_measure(input)):
            return fixed, False
        choice, is_confirmed = self._measure(measured, fixed)
        self._keep(device, key, choice)
        if choice.milliseconds:
            self._measured.setdefault(device, {})[key] = choice
            if is_confirmed:
                ChoicesFile(cache_path(device)).merge({device: {key: choice}})
            else:
                self._unconfirmed.add(key)
        return choice, True

    def _measure(self, measured: Callable[[], Times], fixed: Choice) -> tuple[Choice, bool]:
        """The choice, and whether its times were confirmed."""
        exhaustive = self.mode == "exhaustive"
        if self._seconds_spent > MOST_SECONDS and not exhaustive:
            warn_once(
                f"backends were measured for {MOST_SECONDS:.0f} s in this process: shapes not seen "
                "yet take the fixed table's"
            )
            return fixed, False
        began = time.perf_counter()
        milliseconds = measured()
        self._seconds_spent += time.perf_counter() - began
        if not milliseconds:
            return fixed, False
        fastest = min(milliseconds, key=milliseconds.__getitem__)
        usual = milliseconds.get(fixed.backend)
        if usual is not None and usual <= milliseconds[fastest] * (1 + MARGIN):
            fastest = fixed.backend
        return Choice(fastest, milliseconds, exhaustive), milliseconds.is_confirmed

    def _keep(self, device: str, key: str, choice: Choice) -> None:
        known = self.chosen.setdefault(device, {})
        if known.get(key) == choice:
            return
        known[key] = choice
        if self._run is not None and self._run_choices.get(device, {}).get(key) != choice:
            self._run.merge({device: {key: choice}})

    def _of_cache(self, device: torch.device) -> dict[str, Choice]:
        if self.mode == "0":
            return {}
        name = fingerprint(device)
        if name not in self._cached:
            self._cached[name] = ChoicesFile(cache_path(name)).read().get(name, {})
        return self._cached[name]


def supporting(problem: Problem) -> list[Backend]:
    """The backends that can compute a problem, in the registry's order."""
    return [backend for backend in BACKENDS if backend.unsupported_reason(problem) is None]


def current_selector() -> Selector:
    """The selector used by :func:`select_backend`."""
    return _selector


@contextmanager
def using(selector: Selector) -> Iterator[Selector]:
    """A context in which the whole process uses another selector.

    Example:
        >>> with using(Selector("0")) as selector:
        ...     select_backend("forward", Stage("conv2d"), torch.ones(1, 3, 8, 8),
        ...                    torch.ones(4, 3, 3, 3)), selector.mode
        (<backend aten>, '0')
    """
    global _selector
    before, _selector = _selector, selector
    try:
        yield selector
    finally:
        _selector = before


@contextmanager
def recorded_choices(path: Path) -> Iterator[None]:
    """A context in which choices come from a run's file, to which new ones are added.

    Args:
        path: the run's file; it needn't exist.
    """
    with using(Selector(_selector.mode, ChoicesFile(path), _selector)):
        yield


@contextmanager
def measuring_nothing() -> Iterator[None]:
    """A context in which unknown problems take the fixed table and stay unknown."""
    selector, before = _selector, _selector.measures
    selector.measures = False
    try:
        yield
    finally:
        selector.measures = before


def _may_measure(input: Tensor) -> bool:
    """Whether a measurement is allowed now, and would represent later calls."""
    return (
        type(input) in PLAIN
        and input.device.type in ("cpu", "cuda")
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
        and not (input.device.type == "cuda" and torch.cuda.is_current_stream_capturing())
    )


def _mode_of_environment() -> str:
    mode = os.environ.get("FASTGAN_AUTOTUNE") or "1"
    if mode not in MODES:
        raise ConfigError(f"FASTGAN_AUTOTUNE: expected {', '.join(MODES)}, got {mode!r}")
    return mode


@cache
def _committed() -> Choices:
    together: Choices = {}
    for path in sorted(TABLES.glob("*.json")):
        for device, choices in ChoicesFile(path).read().items():
            together.setdefault(device, {}).update(choices)
    return together


_selector = Selector()
