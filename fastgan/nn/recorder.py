"""Records what a forward pass does while it runs, and runs stretches of it fused.

Within a fused module's forward, convolutions, linear layers, batch norms and activations *wait*:
they return a tensor of the right shape, dtype and device that has no values yet. Whatever else
touches such a tensor has its value computed first, in place: the same Python object becomes a plain
tensor. A value that waits is fused through if nobody holds its tensor by then, and produced
otherwise. So nothing is predicted from the modules: hooks, branches, loops, shared layers,
parametrised weights and functional calls run as they are written.

    y = relu(bn(conv(x)))        nobody holds conv(x) or bn(...): one node
    h = bn(y); keep.append(h)    h is held: it is produced, and what follows starts from it

A ``TorchFunctionMode`` sees every torch function of the forward pass, whatever it is given. What
doesn't go through torch functions is kept right in other ways: an ``autograd.Function`` is not
watched inside and gets plain tensors; a module with scripted or compiled
children runs as ever; and other C++ code that is given a tensor without values raises.

Running statistics are written once, in the order of the calls, before anything reads them. A write
in place, to memory that something which waits will read, has it computed first.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastgan import kernels, recording
from fastgan.activations import ACTIVATIONS, BY_FUNCTION, activation_call
from fastgan.fallback import warn_once
from fastgan.ops import op_path
from fastgan.ops.backends import ATEN, Pass, describe_layer
from fastgan.ops.bn_act import bn_act
from fastgan.ops.chain import (
    Chain,
    chosen,
    rearranged,
    run_chain,
)
from fastgan.ops.eligibility import PLAIN, autocast_dtype, why_not_chained, why_not_this_stage
from fastgan.ops.stages import (
    IDENTITY,
    Stage,
    StageTensors,
    folded,
    folding_pays,
    padding_named,
    pair,
)
from fastgan.report import Row

__all__ = ["Recorder", "is_fused", "run_recorded", "watched"]

#: On a CPU torch's functions run what they are as fast at. Without it all that can is fused, which
#: is for tests.
LEAVE_TO_TORCH = True
#: A convolution of fewer multiplications, or a norm of fewer values, doesn't wait on a CPU: what
#: fusing saves there is less than what recording costs. (On one thread a norm and activation in one
#: pass take 1.07 times as long as torch's two at 16,384 values and 0.9 at 65,536 and above; of a
#: convolution with these, forward and backward, that is a tenth, and recording costs 0.1 ms.)
FEWEST_PRODUCTS = 16_000_000
FEWEST_VALUES = 400_000

_local = threading.local()


def run_recorded(
    module: nn.Module,
    forward: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """``forward(*args, **kwargs)``, recorded and run fused.

    By itself where something else takes forwards apart (compiling, tracing, exporting, transforms
    of ``torch.func``, the penalty's tape, an outer recorder), and where a call on arguments of
    these shapes, in these modes, found nothing to fuse before.

    Args:
        module: that ``forward`` is of.
        forward: its forward.
        args: of ``forward``.
        kwargs: of ``forward``.
    """
    if (
        recording.is_recording()
        or getattr(_local, "recorder", None) is not None
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
        or torch.fx._symbolic_trace.is_fx_symbolic_tracing()
    ):
        return forward(*args, **kwargs)
    call = (
        module.training,
        torch.is_grad_enabled(),
        *((each.shape, each.dtype) for each in args if isinstance(each, Tensor)),
    )
    rows, layer = getattr(_local, "watched", (None, _no_layer))
    plain = _plain.get(module)
    if plain is None:
        plain = _plain[module] = {}
        if any(map(_is_opaque, module.modules())):
            warn_once(
                "a fused module with scripted or compiled children runs as ever", stacklevel=5
            )
            plain[None] = 1
    if None in plain:
        return forward(*args, **kwargs)
    if rows is None and plain.get(call, 0) > 0:
        plain[call] -= 1
        return forward(*args, **kwargs)
    recorder = Recorder(rows, layer)
    output = recorder.run(forward, args, kwargs)
    if not recorder.fused:
        plain[call] = _LOOK_AGAIN
    return output


def _is_opaque(module: nn.Module) -> bool:
    """Whether a child runs code that torch's modes don't see."""
    return (
        isinstance(module, torch.jit.ScriptModule)
        or module._compiled_call_impl is not None
        or hasattr(module, "_orig_mod")
    )


@contextmanager
def watched(rows: list[Row], layer: Callable[[], str]) -> Iterator[None]:
    """Within it what fused modules of this thread run is noted.

    Args:
        rows: where to.
        layer: gives the name of the module that runs.
    """
    _local.watched = (rows, layer)
    try:
        yield
    finally:
        del _local.watched


def is_fused() -> bool:
    """Whether this is within the forward of a module that runs recorded."""
    return getattr(_local, "recorder", None) is not None


def _no_layer() -> str:
    return ""


#: Of each module the calls that found nothing to fuse, and for how many more that is believed.
_plain: weakref.WeakKeyDictionary[nn.Module, dict[Any, int]] = weakref.WeakKeyDictionary()
_LOOK_AGAIN = 1000


class _Waiting(Tensor):
    """A tensor without values. Its class is that of plain tensors once it has them."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func} was called, within a fused module, on a value that is not computed yet, by "
            "code that torch's modes don't see (a scripted function, C++, torch.func): touch the "
            "value before, as by tensor.requires_grad"
        )


PLAIN.add(_Waiting)


_State = tuple[bool, bool, torch.dtype | None, Any]


class _Op:
    """A function that was called and has not run."""

    __slots__ = (
        "call",
        "consumers",
        "done",
        "kind",
        "layer",
        "name",
        "ours",
        "ref",
        "settings",
        "shape",
        "source",
        "stage",
        "state",
        "tensors",
        "value",
    )

    def __init__(
        self,
        kind: str,
        name: str,
        source: _Op | Tensor,
        call: Callable[[Tensor], Tensor],
        state: _State,
        tensors: tuple[Tensor | None, ...],
        stage: Stage | None = None,
        settings: tuple[Any, ...] = (),
    ) -> None:
        #: "convolution", "norm" or "activation"; and the function's own name.
        self.kind, self.name = kind, name
        #: What it takes: a tensor, or what was not computed when it was called.
        self.source = source
        #: The function itself, as it was called, of its input alone.
        self.call = call
        #: What of torch's state its result depends on.
        self.state = state
        #: A convolution's weight and bias; a norm's weight, bias and running statistics.
        self.tensors = tensors
        #: A convolution's geometry.
        self.stage = stage
        #: Of a norm: batch_statistics, momentum, eps. Of an activation: name, negative_slope.
        self.settings = settings
        self.consumers = 0
        #: Whether it ran, by itself or as a part of something.
        self.done = False
        self.value: Tensor | None = None
        self.ref: Callable[[], Tensor | None] = _nobody
        self.layer = ""
        #: Whether another convolution than torch's is faster here.
        self.ours = False
        self.shape = torch.Size()
        if isinstance(source, _Op):
            source.consumers += 1

    def input(self) -> Tensor:
        """What it takes, computed."""
        found = self.source.value if isinstance(self.source, _Op) else self.source
        assert found is not None
        return found

    def writes(self) -> bool:
        """Whether it has to run even where nobody wants its value."""
        return self.kind == "norm" and self.settings[0] and self.tensors[2] is not None

    def reads(self) -> Iterator[Tensor]:
        """The tensors that it will read or write when it runs."""
        yield from (tensor for tensor in self.tensors if tensor is not None)
        if isinstance(self.source, Tensor):
            yield self.source
        elif self.source.value is not None:
            yield self.source.value


def _nobody() -> None:
    return None


def _state(device: torch.device) -> _State:
    autocast = device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(device.type) if autocast else None,
        torch.cuda.current_stream(device) if device.type == "cuda" else None,
    )


@contextmanager
def _under(state: _State, device: torch.device) -> Iterator[None]:
    """Torch's state as it was when a function was called, and no hooks on what it saves."""
    hooks: list[tuple[Any, Any]] = []
    while _top_hooks(True) is not None:
        hooks.append(_top_hooks(True))
        torch._C._autograd._pop_saved_tensors_default_hooks()
    try:
        with ExitStack() as stack:
            if _state(device) != state:
                grad, inference, autocast, stream = state
                stack.enter_context(torch.inference_mode(inference))
                stack.enter_context(torch.set_grad_enabled(grad))
                stack.enter_context(
                    torch.autocast(device.type, autocast, enabled=autocast is not None)
                )
                if stream is not None:
                    stack.enter_context(torch.cuda.stream(stream))
            yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


_REFUSED = "by torch's own function, for its message"
_HOOKED = "saved tensors have hooks"
_SMALL = "too small to gain by it"
_TORCHS = "by torch's own function, the fastest here"
#: Reasons for which nobody chose what runs.
NOT_CHOSEN = frozenset((_REFUSED, _HOOKED))
_top_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks
_make = torch._C.TensorBase._make_wrapper_subclass


class Recorder(TorchFunctionMode):
    """Records one forward pass; :func:`run_recorded` enters it.

    Attributes:
        fused: whether anything ran otherwise than by torch's own functions.
        rows: what ran, for :func:`fastgan.explain`; None where nobody asks.
        layer: gives the name of the module that runs, for ``rows``.
    """

    def __init__(self, rows: list[Row] | None, layer: Callable[[], str]) -> None:
        super().__init__()
        self.fused = False
        self.rows = rows
        self.layer = layer
        #: How many calls of ``autograd.Function`` and ``_compute`` this is in: none is watched.
        self.within = 0
        self._ops: list[_Op] = []
        self._waiting: dict[int, _Op] = {}

    def run(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """``forward(*args, **kwargs)``, with all computed that it leaves behind."""
        _see_functions()
        _local.recorder = self
        try:
            with self:
                output = forward(*args, **kwargs)
            self.flush()
        except BaseException:
            with suppress(Exception):  # for who looks into its frames
                self.flush()
            raise
        finally:
            _local.recorder = None
        return output

    # --- What torch calls ---------------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.within:
            return func(*args, **kwargs)
        entry = _RECORDED.get(func)
        if entry is not None:
            output = entry[0](self, func, entry[1], args, kwargs)
            if not isinstance(output, str):
                return output
            if self.rows is not None:
                self.rows.append(Row(self.layer(), entry[1], "aten", output))
        elif not self._ops or (func in _METADATA and not _is_saved(func, sys._getframe(1))):
            return func(*args, **kwargs)
        if self._ops:
            self._prepare(func, args, kwargs)
        return func(*args, **kwargs)

    def _prepare(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Computes what a function will touch, before it runs."""
        written = _written(func, args, kwargs)
        if written is _ANYTHING:
            return self.flush()
        touched = list(_tensors((args, kwargs)))
        for tensor in written:
            if self._find(tensor) is not None or any(
                _same_memory(tensor, read) for op in self._ops if not op.done for read in op.reads()
            ):
                return self.flush()
        for tensor in touched:
            op = self._find(tensor)
            if op is not None:
                self._compute(op)
            elif any(
                tensor is each
                for op in self._ops
                if not op.done and op.writes()
                for each in op.tensors[2:]
            ):
                return self.flush()
        return None

    # --- What waits -----------------------------------------------------------------------------

    def _find(self, tensor: Any) -> _Op | None:
        """What a tensor waits for; None where it has its values."""
        op = self._waiting.get(id(tensor))
        if op is None or op.ref() is not tensor:
            return None
        return op

    def _wait(self, op: _Op, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        op.layer, op.shape = self.layer(), shape
        tensor: Tensor = _make(_Waiting, shape, dtype=dtype, device=device)
        op.ref = weakref.ref(tensor)
        self._waiting[id(tensor)] = op
        self._ops.append(op)
        return tensor

    def convolution(
        self, func: Any, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | str:
        """Records a convolution or linear layer; or says why torch's function runs it now."""
        try:
            input, weight, bias, *settings = _ARGUMENTS[kind](*args, **kwargs)
        except TypeError:
            return _REFUSED
        if not (isinstance(input, Tensor) and isinstance(weight, Tensor)):
            return _REFUSED
        dimensions = 2 if kind == "linear" else 4
        if kind == "linear" and input.dim() != dimensions:
            return f"its input has {input.dim()} dimensions, not 2"
        if _top_hooks(True) is not None:
            return _HOOKED
        matched = _matched(
            kind,
            input.shape,
            weight.shape,
            None if bias is None else bias.shape,
            *(tuple(each) if isinstance(each, list) else each for each in settings),
        )
        if not isinstance(matched, str) and _leaves(input) and matched[2] < FEWEST_PRODUCTS:
            return _SMALL
        dtype = autocast_dtype(input)
        reason = why_not_chained(input, dimensions, dtype, (weight, bias), ())
        if reason is not None or isinstance(matched, str):
            reason = reason or str(matched)
            warn_once(f"fused modules run layers one by one: {reason}", stacklevel=6)
            return reason
        stage, shape, _ = matched
        ours = not _leaves(input) or _is_ours(stage, input, weight, dtype)
        if not ours and shape.numel() < FEWEST_VALUES:
            return _TORCHS
        self._produce((weight, bias))
        source = self._find(input)
        # Not the arguments themselves, which hold the input's tensor.
        rest, named = args[1:], {name: kwargs[name] for name in kwargs if name != "input"}
        op = _Op(
            "convolution",
            kind,
            input if source is None else source,
            lambda input: func(input, *rest, **named),
            _state(input.device),
            (weight, bias),
            stage,
        )
        op.ours = ours
        return self._wait(op, shape, input.dtype if dtype is None else dtype, input.device)

    def norm(
        self, func: Any, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | str:
        """Records a batch norm; or says why torch's function runs it now."""
        try:
            input, mean, variance, weight, bias, training, momentum, eps = _ARGUMENTS[kind](
                *args, **kwargs
            )
        except TypeError:
            return _REFUSED
        if not isinstance(input, Tensor):
            return _REFUSED
        if _top_hooks(True) is not None:
            return _HOOKED
        source = self._find(input)
        if source is not None and source.kind != "convolution":
            self._compute(source)
            source = None
        channels = input.shape[1] if input.dim() > 1 else 0
        of_norm = (weight, bias, mean, variance)
        if source is None and input.dim() != 4:
            return "no convolution or linear layer before it waits"
        if source is None and _leaves(input) and input.numel() < FEWEST_VALUES:
            return _SMALL
        if (
            (training and input.numel() == channels)
            or (mean is None) != (variance is None)
            or (mean is None and not training)
            or any(each is not None and each.shape != (channels,) for each in of_norm)
        ):
            return _REFUSED
        reason = why_not_chained(input, input.dim(), None, (), of_norm)
        if reason is not None:
            return reason
        self._produce(of_norm)
        if mean is not None and any(
            not op.done and op.writes() and op.tensors[2] is mean for op in self._ops
        ):
            self.flush()  # one after the other, as they were called
            source = self._find(input)
        op = _Op(
            "norm",
            kind,
            input if source is None else source,
            lambda input: F.batch_norm(
                input, mean, variance, weight, bias, training, momentum, eps
            ),
            _state(input.device),
            of_norm,
            settings=(training, momentum, eps),
        )
        return self._wait(op, input.shape, input.dtype, input.device)

    def activation(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor | str:
        """Records an activation of what waits; or says why torch's function runs it now."""
        source = self._find(args[0] if args else kwargs.get("input"))
        if source is None or source.kind == "activation":
            return "nothing before it waits"
        if _top_hooks(True) is not None:
            return _HOOKED
        called = activation_call(func, args, kwargs)
        if called is None:
            return _REFUSED
        activation, input, negative_slope, inplace = called
        inplace = inplace or func in _IN_PLACE
        tensor: Tensor = input
        op = _Op(
            "activation",
            name,
            source,
            lambda input: activation.forward(input, negative_slope),
            _state(input.device),
            (),
            settings=(activation.name, negative_slope),
        )
        if inplace:
            op.layer, op.shape = self.layer(), input.shape
            op.ref, source.ref = source.ref, _nobody
            self._waiting[id(input)] = op
            self._ops.append(op)
            return tensor
        return self._wait(op, input.shape, input.dtype, input.device)

    # --- What runs ------------------------------------------------------------------------------

    def _produce(self, tensors: Iterable[Tensor | None]) -> None:
        """Computes those of the tensors that wait."""
        for tensor in tensors:
            op = self._find(tensor)
            if op is not None:
                self._compute(op)

    def flush(self) -> None:
        """Computes all that somebody holds, and writes the running statistics."""
        for op in self._ops:
            if not op.done and op.ref() is not None:
                self._compute(op)
        for op in self._ops:
            if not op.done and op.writes():
                self._compute(op)

    def _compute(self, op: _Op) -> None:
        """Runs an op, with those before it that nobody else wants the values of."""
        ops, source = [op], op.source
        while isinstance(source, _Op) and source.value is None:
            if source.consumers > 1 or source.ref() is not None or source.state != op.state:
                self._compute(source)
                break
            ops.append(source)
            source = source.source
        ops.reverse()
        input = ops[0].input()
        self.within += 1
        try:
            if _state(input.device) == op.state and _top_hooks(True) is None:
                value = self._run(ops, input)
            else:
                with _under(op.state, input.device):
                    value = self._run(ops, input)
        finally:
            self.within -= 1
        tensor = op.ref()
        if tensor is not None:
            self._waiting.pop(id(tensor), None)
            tensor.__class__ = Tensor
            try:
                torch._C._swap_tensor_impl(tensor, value)
            except RuntimeError:  # a profiler that records shapes holds the value
                torch._C._swap_tensor_impl(tensor, value.view_as(value))
            value = tensor
        op.value = value
        for each in ops:
            each.done = True
            each.source = each.tensors = each.call = None  # type: ignore[assignment]
        self._ops = [each for each in self._ops if not each.done]
        if not self._ops:
            self._waiting.clear()

    def _run(self, ops: list[_Op], input: Tensor) -> Tensor:
        units: list[list[_Op]] = []
        for op in ops:
            if op.kind == "convolution" or not units:
                units.append([])
            units[-1].append(op)
        if ops[0].kind == "activation" or (
            ops[0].kind == "norm"
            and (len(units) == 1 or ops[0].state[2] not in (None, input.dtype))
        ):
            # Alone, or autocast takes the convolution to another dtype, but not the norm before it.
            input = self._run_unit(units.pop(0), input)
        elif not _leaves(input) and len(ops) == 1:
            return self._run_unit(units.pop(), input)
        if not _leaves(input):
            return self._run_chain(units, input) if units else input
        chained: list[list[_Op]] = []
        shape = input.shape
        for unit in units:
            if unit[0].ours or _folds(unit, shape):
                chained.append(unit)
            else:
                input = self._run_unit(unit, self._run_chain(chained, input))
                chained = []
            shape = unit[0].shape
        return self._run_chain(chained, input)

    def _run_unit(self, unit: list[_Op], input: Tensor) -> Tensor:
        """A convolution, a norm and an activation, or some of them, without a chain."""
        value = input
        for number, op in enumerate(unit):
            following = unit[number + 1] if number + 1 < len(unit) else None
            if op.kind == "norm" and following is not None and not _is_small(value):
                self.fused = True
                path = op_path("bn_act", value.device.type).path
                self.say(op, path, "with the activation after it, in one pass")
                self.say(following, path, f"together with {op.layer!r}")
                weight, bias, mean, variance = op.tensors
                training, momentum, eps = op.settings
                return bn_act(
                    value,
                    bn_weight=weight,
                    bn_bias=bias,
                    running_mean=mean,
                    running_var=variance,
                    training=training,
                    momentum=momentum,
                    eps=eps,
                    activation=following.settings[0],
                    negative_slope=following.settings[1],
                )
            if op.kind == "activation" and number > 0:
                self.say(op, "aten", f"in place, on the result of {unit[number - 1].layer!r}")
                name, negative_slope = op.settings
                value = ACTIVATIONS[name].overwrite(value, negative_slope)
            else:
                self.say(op, "aten", _TORCHS)
                value = op.call(value)
        return value

    def _run_chain(self, units: list[list[_Op]], input: Tensor) -> Tensor:
        """As stages: each a convolution, or what came in, with what follows it."""
        if not units:
            return input
        self.fused = True
        dtype = units[0][0].state[2]
        batch, places = len(input), (1, 1) if input.dim() == 2 else (input.shape[2], input.shape[3])
        stages, tensors = [], []
        for unit in units:
            stage, of_stage = IDENTITY, StageTensors()
            for op in unit:
                if op.stage is not None:
                    stage, of_stage = op.stage, StageTensors(*op.tensors)  # type: ignore[arg-type]
                elif op.kind == "norm":
                    stage = _with_norm(stage, *op.settings)
                    of_stage = StageTensors(of_stage.weight, of_stage.bias, *op.tensors)
                else:
                    stage = _with_activation(stage, *op.settings)
            if stage.kind != "identity":
                weight = of_stage.weight
                uses_running = stage.norm and not stage.batch_statistics
                if uses_running and folding_pays(stage, of_stage, batch, places):
                    stage, of_stage = folded(stage, of_stage)
                places = stage.output_places(places, weight)
            stages.append(stage)
            tensors.append(of_stage)
        if self.rows is not None:
            self._say_chain(units, stages, input)
        return run_chain(Chain(tuple(stages), dtype), input, tensors)

    # --- What explain asks for ------------------------------------------------------------------

    def say(self, op: _Op, path: str, reason: str) -> None:
        """Notes what ran an op, and why."""
        if self.rows is not None:
            self.rows.append(Row(op.layer, op.name, path, reason))

    def _say_chain(self, units: list[list[_Op]], stages: list[Stage], input: Tensor) -> None:
        device = input.device
        described = []
        for unit, stage in zip(units, stages, strict=True):
            weight = unit[0].tensors[0]
            found = ("aten", "")
            if stage.kind != "identity" and weight is not None:
                found = describe_layer(stage, rearranged(stage, weight), input.dtype, device)
            described.append(found)
        for number, (unit, stage) in enumerate(zip(units, stages, strict=True)):
            path, how = described[number]
            beside = unit[0].layer
            for op in unit:
                by = path
                if op.kind == "convolution":
                    reason = how
                elif op.kind == "norm" and not stage.norm:
                    reason = f"folded into {beside!r}"
                elif op.kind == "norm":
                    if number + 1 == len(units):
                        where = "normalised and activated as the last step"
                    else:
                        load = "on the load of" if described[number + 1][0] == "triton" else "for"
                        next_layer = units[number + 1][0].layer
                        where = (
                            f"normalised and activated {load} {next_layer!r} alone, and not kept"
                        )
                    of = "batch" if stage.batch_statistics else "running ones"
                    reason = f"statistics of the {of}; {where}"
                    if path != "triton":
                        by = op_path("norm_act", device.type).path
                    beside = op.layer
                elif stage.norm or path == "triton":
                    reason = f"together with {beside!r}"
                elif ACTIVATIONS[stage.activation].keeps_input(stage.negative_slope):
                    by, reason = op_path("norm_act", device.type).path, "left to the next layer"
                else:
                    by, reason = "aten", f"in place, on the result of {beside!r}"
                self.say(op, by, reason)


def _leaves(input: Tensor) -> bool:
    """Whether torch's functions run what they are as fast at."""
    return LEAVE_TO_TORCH and input.device.type == "cpu" and not kernels.interpreted()


def _is_small(map: Tensor) -> bool:
    return _leaves(map) and map.numel() < FEWEST_VALUES


def _is_ours(stage: Stage, input: Tensor, weight: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether on a CPU another convolution than torch's is chosen, in some pass that will run."""
    if dtype is not None:
        input, weight = (torch.empty(t.shape, dtype=dtype) for t in (input, weight))
    passes: list[Pass] = ["forward"]
    if torch.is_grad_enabled():
        passes.append("weight_gradient")
        if type(input) is _Waiting or input.requires_grad:
            passes.append("input_gradient")
    return any(chosen(stage, input, weight, each) is not ATEN for each in passes)


def _folds(unit: list[_Op], input: torch.Size) -> bool:
    """Whether a norm that uses its running statistics becomes a part of the convolution."""
    convolution, norm = unit[0], unit[1] if len(unit) > 1 else unit[0]
    if convolution.stage is None or norm.kind != "norm" or norm.settings[0]:
        return False
    tensors = StageTensors(convolution.tensors[0], None, *norm.tensors)  # type: ignore[arg-type]
    places = (1, 1) if len(input) == 2 else (input[2], input[3])
    return folding_pays(convolution.stage, tensors, input[0], places)


# --- Arguments ------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def _with_norm(stage: Stage, batch_statistics: bool, momentum: float, eps: float) -> Stage:
    return replace(stage, norm=True, batch_statistics=batch_statistics, momentum=momentum, eps=eps)


@lru_cache(maxsize=4096)
def _with_activation(stage: Stage, name: str, negative_slope: float) -> Stage:
    return replace(stage, activation=name, negative_slope=negative_slope)


@lru_cache(maxsize=4096)
def _matched(
    kind: str,
    input: torch.Size,
    weight: torch.Size,
    bias: torch.Size | None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    output_padding: Any = 0,
    groups: int = 1,
) -> tuple[Stage, torch.Size, int] | str:
    """A convolution's geometry, the shape of what it makes, and how many products that takes.

    Or in words why there is none: where shapes or settings are such that torch has to say what is
    wrong with them.
    """
    if len(weight) != len(input):
        return f"a weight has {len(weight)} dimensions"
    if isinstance(padding, str):
        named = padding_named(padding, weight[2:], pair(dilation), pair(stride))
        if named is None:
            return "its padding is not the same on either side"
        padding = named
    stage = Stage(kind, pair(stride), pair(padding), pair(dilation), pair(output_padding), groups)
    reason = why_not_this_stage(stage)
    if reason is not None:
        return reason
    takes, makes = stage.channels(weight)
    if takes != input[1] or groups < 1 or makes % groups or bias not in (None, (makes,)):
        return "channels don't match"
    places: tuple[int, ...] = ()
    if kind != "linear":
        places = stage.output_places((input[2], input[3]), torch.empty(weight, device="meta"))
        if min(places) < 1:
            return "its output is empty"
    shape = torch.Size((input[0], makes, *places))
    # Each value of the larger side meets each tap of each channel of the other.
    size = input if kind == "conv_transpose2d" else shape
    return stage, shape, size.numel() * weight.numel() // size[1]


def _conv_transpose2d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: Any = 1,
    dilation: Any = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, output_padding, groups


def _batch_norm(
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: Any = False,
    momentum: Any = 0.1,
    eps: Any = 1e-5,
) -> tuple[Any, ...]:
    return input, running_mean, running_var, weight, bias, training, momentum, eps


#: The arguments of each function, as they are taken here.
_ARGUMENTS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "conv2d": lambda input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1: (
        (input, weight, bias, stride, padding, dilation, 0, groups)
    ),
    "conv_transpose2d": _conv_transpose2d,
    "linear": lambda input, weight, bias=None: (input, weight, bias),
    "batch_norm": _batch_norm,
}

#: Each function that is recorded: by what method, and its name among ``_ARGUMENTS``.
_RECORDED: dict[Any, tuple[Any, str]] = {
    F.conv2d: (Recorder.convolution, "conv2d"),
    torch.conv2d: (Recorder.convolution, "conv2d"),
    F.conv_transpose2d: (Recorder.convolution, "conv_transpose2d"),
    torch.conv_transpose2d: (Recorder.convolution, "conv_transpose2d"),
    F.linear: (Recorder.convolution, "linear"),
    F.batch_norm: (Recorder.norm, "batch_norm"),
    **{function: (Recorder.activation, rows[0].name) for function, rows in BY_FUNCTION.items()},
}

_IN_PLACE = frozenset(func for func in _RECORDED if func.__name__.endswith("_"))

_words = str.split

#: What a tensor that waits answers by itself.
_METADATA = frozenset(
    getattr(Tensor, name).__get__
    for name in _words("shape ndim dtype device layout is_cuda is_cpu is_meta is_sparse")
) | frozenset(
    getattr(home, name)
    for home, names in (
        (Tensor, "size dim ndimension numel nelement __len__ element_size get_device"),
        (Tensor, "is_floating_point is_complex"),
        (torch, "numel is_floating_point is_complex"),
    )
    for name in _words(names)
)


def _is_saved(func: Any, caller: FrameType) -> bool:
    """Whether a tensor is about to be kept by C++ for a recomputation, and so must have values.

    ``torch.utils.checkpoint`` asks each of its arguments for the device before it saves them.
    """
    return bool(func == _DEVICE) and caller.f_globals.get("__name__") == "torch.utils.checkpoint"


_DEVICE: Any = Tensor.device.__get__

# --- What a function touches ----------------------------------------------------------------------

#: In the place of a list of tensors: there is no telling.
_ANYTHING: Any = object()

_WRITE_IN_PLACE = frozenset(
    f"__{name}__"
    for name in _words(
        "iadd isub imul itruediv ifloordiv imod ipow iand ior ixor ilshift irshift setitem set"
    )
)
#: Functions that change torch's state, or hand out memory that is written past torch.
_REACH_FURTHER = frozenset(
    _words(
        "_set_grad_enabled backward grad numpy __array__ data_ptr untyped_storage storage "
        "_typed_storage __dlpack__ share_memory_ __cuda_array_interface__"
    )
)


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from _tensors(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from _tensors(each)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tensors that a function writes to, or ``_ANYTHING``."""
    written: list[Tensor] = list(_tensors(kwargs.get("out"))) if kwargs else []
    how = _writes(func)
    if how is _ANYTHING:
        return how
    if (
        how is True
        or kwargs.get("inplace")
        or (how is not False and args[how : how + 1] == (True,))
    ):
        target = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(target, Tensor):
            return _ANYTHING
        if target.is_floating_point() or target.is_complex() or target._is_view():
            written.append(target)
    return written


@lru_cache(maxsize=4096)
def _writes(func: Any) -> Any:
    """Whether a function writes to its first argument, or the place of an argument that says so."""
    name = getattr(func, "__name__", "")
    if name in _REACH_FURTHER or _schema_writes(func):
        return _ANYTHING
    if name in _WRITE_IN_PLACE or (name.endswith("_") and not name.endswith("__")):
        return True
    if getattr(func, "__module__", None) == "torch.nn.functional":
        names = list(inspect.signature(func).parameters)
        return names.index("inplace") if "inplace" in names else False
    return False


def _schema_writes(func: Any) -> bool:
    """Whether an op of ``torch.ops`` says that it writes to an argument."""
    if isinstance(func, torch._ops.OpOverload):
        return bool(func._schema.is_mutable)
    if isinstance(func, torch._ops.OpOverloadPacket):
        return any(getattr(func, each)._schema.is_mutable for each in func.overloads())
    return False


def _same_memory(one: Tensor, other: Tensor) -> bool:
    if type(one) is _Waiting or type(other) is _Waiting:
        return one is other
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


# --- What torch's modes don't see -----------------------------------------------------------------

_apply = torch.autograd.Function.__dict__["apply"].__func__


@functools.wraps(_apply)
def _apply_to_values(cls: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = getattr(_local, "recorder", None)
    if recorder is None or recorder.within:
        return _apply(cls, *args, **kwargs)
    recorder.flush()
    recorder.within += 1
    try:
        return _apply(cls, *args, **kwargs)
    finally:
        recorder.within -= 1


def _see_functions() -> None:
    """Has ``autograd.Function.apply`` compute what waits: no mode of torch sees it called.

    From the first recording on, for the whole process; outside of one it calls torch's own.
    """
    setattr(torch.autograd.Function, "apply", classmethod(_apply_to_values))  # noqa: B010
