"""Records a forward pass while it runs, and runs parts of it fused.

Within a fused module's forward, convolutions, linear layers, batch norms and activations *wait*:
they return a tensor of the right shape, dtype and device without values. Any other use of such a
tensor computes its value first, in place: the same Python object becomes a plain tensor. Nothing is
predicted from the modules: hooks, branches, loops, shared layers, parametrised weights and
functional calls run unchanged.

    y = relu(bn(conv(x)))        nobody holds conv(x) or bn(...): one node
    h = bn(y); keep.append(h)    h is referenced: it is computed, and later ops start from it

A ``TorchFunctionMode`` sees every torch function of the forward pass, for any arguments:

==============  ================================================================
:mod:`.calls`   which calls wait, and why others don't
:mod:`.pending` waiting calls, and when they run
:mod:`.stretch` how they run
:mod:`.touches` what other functions read and write
:mod:`.unseen`  calls that bypass torch functions
==============  ================================================================
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo import guards
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from fastgan._util import recording
from fastgan.explaining.fallback import warn_once
from fastgan.explaining.report import Row
from fastgan.nn import unseen
from fastgan.nn.calls import RECORDED
from fastgan.nn.pending import Pending
from fastgan.nn.recording_cost import watching_milliseconds
from fastgan.nn.stretch import Log
from fastgan.nn.touches import METADATA
from fastgan.ops.backends import measuring_nothing
from fastgan.ops.backends.measurement import Times
from fastgan.ops.backends.selection import MARGIN, current_selector
from fastgan.ops.memory_format import is_channels_last

__all__ = ["Recorder", "is_fused", "run_recorded", "watched"]


class _OfThread(threading.local):
    #: The list of rows, and a function that names the running module.
    watched: tuple[list[Row] | None, Callable[[], str]] = None, lambda: ""
    #: "forward" within a fused module's, "explain" within :func:`watched`.
    within = ""


_local = _OfThread()


def run_recorded(
    module: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """``forward(*args, **kwargs)``, recorded and run fused.

    Runs plain if something else traces it (compiling, tracing, exporting, transforms of
    ``torch.func``, the penalty's tape, an outer recorder), if a part of it is compiled, or if that
    was measured to be faster: :class:`_Pace`.

    Args:
        module: the module of ``forward``.
        forward: its forward.
        args: of ``forward``.
        kwargs: of ``forward``.
    """
    if _is_dynamo_compiling():
        return forward(*args, **kwargs)
    pace = _paces.get(id(module))
    if pace is not None and len(args) == 1 and not kwargs:
        local = _local.__dict__  # whose items take a third of its attributes' time
        if not local.get("within"):
            for usual in pace.usual[_is_grad_enabled()]:
                if usual.accepts(args[0]) and usual.training is module.training:
                    began, local["within"] = _clock(), "forward"
                    try:
                        output = forward(args[0])
                    finally:
                        local["within"] = ""
                    if _clock() - began > usual.limit:
                        pace.was_plain(usual.call, math.inf)
                    return output
    if (
        _local.within == "forward"
        or torch.compiler.is_compiling()
        or recording.is_recording()
        or unseen.current() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    ):
        return forward(*args, **kwargs)
    return _run(module, forward, args, kwargs)


def _run(
    module: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    pace = _paces.get(id(module))
    if pace is None:
        if any(map(is_lazy, module.parameters())):
            return forward(*args, **kwargs)  # which makes them
        pace = _Pace(module)
    call = (
        module.training,
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"),
        *(
            (each.shape, each.dtype, each.layout is torch.strided and each.is_contiguous())
            for each in args
            if isinstance(each, Tensor)
        ),
    )
    began = _clock()
    if _local.watched[0] is None and pace.runs_plain(call):
        with _within_forward():
            output = forward(*args, **kwargs)
        seconds = _clock() - began
        if len(args) == 1 and not kwargs:
            pace.add_usual(call, args[0])
        pace.was_plain(call, seconds)
    elif any(map(_is_compiled, _walked(module))):
        warn_once("a fused module with compiled children runs unfused", stacklevel=6)
        output = forward(*args, **kwargs)
    else:
        log = Log(*_local.watched)
        output = Recorder(log).run(forward, args, kwargs)
        pace.was_recorded(call, log, _clock() - began)
    return output


@contextmanager
def _within_forward() -> Iterator[None]:
    before, _local.within = _local.within, "forward"
    try:
        yield
    finally:
        _local.within = before


# Looked up once: a tiny network takes microseconds.
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_is_grad_enabled = torch.is_grad_enabled
_clock = time.perf_counter


class _Usual:
    """A call of one tensor that runs plain, and takes less than ``limit`` seconds.

    ``accepts`` is torch.compile's check of a tensor, the fastest there is: of type, shape, strides,
    dtype, device and ``requires_grad``, and of all that the dispatcher would do, so that it is
    false within autocast, modes, traces and transforms if it was true outside.
    """

    __slots__ = ("accepts", "call", "limit", "training")

    def __init__(self, call: Any, input: Tensor, limit: float) -> None:
        self.call, self.training, self.limit = call, call[0], limit
        tensor_guards: Any = guards.TensorGuards  # its stub is another class's
        self.accepts: Callable[[Any], bool] = tensor_guards(
            input,
            dynamic_dims_sizes=[list(input.shape)],
            dynamic_dims_strides=[list(input.stride())],
        ).check


class _Pace:
    """Decides whether a module's calls are recorded if there is little to fuse.

    Recording a tiny network costs more than running it. The time of the second recorded call that
    fused nothing is a limit: calls of the same shapes run plain as long as they take less. After a
    longer call, which may have done something else, the next is recorded again; if it fuses nothing
    either, the machine was busy, and the limit doubles.

    If fusing saves less than the overhead of recording and a few per cent of the convolutions'
    time, which is what measuring them is uncertain by, calls run plain as well. That changes
    roundings, so it is stored with the backends' choices, and timing calls doesn't change it. Each
    dtype, autocast's included, and layout has a choice of its own, as convolutions do.
    """

    def __init__(self, module: nn.Module) -> None:
        parameters = list(module.parameters())
        sizes = sum(each.numel() for each in parameters)
        self._name = f"forward of {type(module).__qualname__}, {sizes} parameters"
        self._name += ", channels-last" * any(map(is_channels_last, parameters))
        #: Call -> whether it was chosen to run plain; None if a choice is still open.
        self._chosen: dict[Any, bool | None] = {}
        #: Call -> the limit in seconds; None after the first call, which includes measuring and
        #: allocating.
        self._limits: dict[Any, float | None] = {}
        self._exceeded: dict[Any, float] = {}
        #: The latest plain calls without gradients, and with them.
        self.usual: tuple[list[_Usual], list[_Usual]] = [], []
        number = id(module)
        self._module = weakref.ref(module, lambda _: _paces.pop(number, None))
        _paces[number] = self

    def runs_plain(self, call: Any) -> bool:
        if call not in self._chosen:
            with measuring_nothing():
                self._choose(call, Times())
        return self._chosen[call] is True or self._limits.get(call) is not None

    def _choose(self, call: Any, milliseconds: Times) -> None:
        training, gradients, autocast, *inputs = call
        of_inputs = ", ".join(
            f"{'x'.join(map(str, shape))} {dtype}" + ", not contiguous" * (not is_contiguous)
            for shape, dtype, is_contiguous in inputs
        )
        key = f"{self._name}, {of_inputs}, threads {torch.get_num_threads()}"
        key += ", training" * training + ", with gradients" * gradients
        key += f", autocast {autocast}" if autocast else ""
        choice, is_lasting = current_selector().choose(
            key, torch.empty(0), ("recorded", "plain"), "recorded", lambda: milliseconds
        )
        self._chosen[call] = choice.backend == "plain" if is_lasting else None

    def add_usual(self, call: Any, input: Any) -> None:
        """Remembers a plain call of one tensor."""
        limit = math.inf if self._chosen[call] else self._limits[call]
        if type(input) is Tensor and limit is not None:
            usual = self.usual[call[1]]
            usual[:] = [_Usual(call, input, limit), *usual[: _MOST_USUAL - 1]]

    def was_plain(self, call: Any, seconds: float) -> None:
        limit = self._limits.get(call)
        if limit is not None and seconds > limit:
            self._limits[call], self._exceeded[call] = None, limit
            for usual in self.usual:
                usual[:] = [each for each in usual if each.call != call]

    def was_recorded(self, call: Any, log: Log, seconds: float) -> None:
        if log.saves > 0:
            self._limits.pop(call, None)
            if self._chosen.get(call, True) is None and log.saves < math.inf:
                costs = log.calls * watching_milliseconds() + MARGIN * log.usual
                times = Times({"recorded": costs, "plain": log.saves})
                times.is_confirmed = current_selector().is_confirmed()
                self._choose(call, times)
        else:
            limit = max(seconds, 2 * self._exceeded.get(call, 0.0))
            self._limits[call] = limit if call in self._limits else None


#: By the modules' ids, while they live.
_paces: dict[int, _Pace] = {}
#: Number of plain calls that are remembered for a module, with gradients and without.
_MOST_USUAL = 4


def _walked(module: nn.Module) -> Iterator[nn.Module]:
    """A module and its submodules (shared ones repeated), in half the time of ``modules()``."""
    modules: list[nn.Module | None] = [module]
    for each in modules:
        if each is not None:
            yield each
            modules += each._modules.values()


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or "_orig_mod" in module._modules


@contextmanager
def watched(rows: list[Row], layer: Callable[[], str]) -> Iterator[None]:
    """A context that records what this thread's fused modules run.

    Args:
        rows: receives the rows.
        layer: returns the running module's name.
    """
    before = _local.watched, _local.within
    _local.watched, _local.within = (rows, layer), "explain"
    try:
        yield
    finally:
        _local.watched, _local.within = before


def is_fused() -> bool:
    """Whether a recorded module's forward is running."""
    return unseen.current() is not None


class Recorder(TorchFunctionMode):
    """Records one forward pass; :func:`run_recorded` enters it.

    Args:
        log: receives what runs.
        takes: whether convolutions run as chains even if torch's are faster; None: by selection.
    """

    def __init__(self, log: Log, *, takes: bool | None = None) -> None:
        super().__init__()
        self._pending = Pending(log, takes=takes)

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """``forward(*args, **kwargs)``, with all remaining results computed."""
        unseen.see()
        before = unseen.current()
        unseen.set_current(self._pending)
        try:
            with self, _within_forward():
                output = forward(*args, **kwargs)
            self._pending.flush()
        except BaseException:
            with suppress(Exception):  # for debuggers that inspect its frames
                self._pending.flush()
            raise
        finally:
            unseen.set_current(before)
        return output

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs, pending = kwargs or {}, self._pending
        if not pending.watches:
            return func(*args, **kwargs)
        pending.log.calls += 1
        entry = RECORDED.get(func)
        if entry is not None:
            waits, name = entry
            output = waits(pending, func, name, args, kwargs)
            if not isinstance(output, str):
                return output
            if output:
                pending.log.refused(name, output)
        elif func in METADATA:
            return func(*args, **kwargs)
        if pending.counts(func, args, kwargs):
            return args[0]
        return pending.call(func, args, kwargs) if pending else func(*args, **kwargs)
