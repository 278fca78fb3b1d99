"""The pending functions of a forward pass, and when they run.

A pending value is computed as soon as anything else uses its tensor. If nothing references that
tensor by then it is fused away, otherwise it is stored. Running statistics are written once, in the
order of the calls, before anything reads them. Before an in-place write to memory that a pending
function will read, that function is computed.

If convolutions are faster on channels-last maps, contiguous maps are converted within the forward
pass. Functions that don't depend on strides take them unchanged; for all others, and at the end,
they are converted back to eager's strides, in the same tensor.
"""

from __future__ import annotations

import functools
import math
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastgan.nn.stretch import Log, cast_to_convolve, run_stretch
from fastgan.nn.touches import (
    ANYTHING,
    CONVOLUTIONS,
    KEEPS_LAYOUT,
    same_memory,
    tensors_in,
    written_by,
)
from fastgan.nn.waiting import (
    Op,
    Waiting,
    hooks_on_saved,
    nodes_made,
    order_nodes,
    state_of,
    under,
)
from fastgan.ops.chain import counting, is_chain
from fastgan.ops.memory_format import (
    is_channels_last,
    laid_out,
    lay_out_weight_gradient,
    map_strides,
    relaid,
)

__all__ = ["Pending"]


class Pending:
    """The pending functions of one forward pass.

    Args:
        log: receives what runs.
        takes: whether convolutions run as chains even if torch's are faster; None: by selection.

    Attributes:
        log: as given.
        takes: as given.
        watches: false within code that isn't recorded.
        transform: the level of the outermost of ``torch.func``'s transforms that is running.
    """

    def __init__(self, log: Log, *, takes: bool | None = None) -> None:
        self.log, self.takes = log, takes
        self.watches = True
        self.transform: int | None = None
        self._ops: list[Op] = []
        self._counters: list[Tensor] = []
        self._by_tensor: dict[int, Op] = {}
        self._converted: dict[int, weakref.ref[Tensor]] = {}
        #: Leaky ReLUs' results, each with its views.
        self._kept_by_autograd: dict[int, list[weakref.ref[Tensor]]] = {}

    def __bool__(self) -> bool:
        return bool(self._ops or self._counters or self._converted or self._kept_by_autograd)

    def find(self, tensor: Any) -> Op | None:
        """A tensor's pending op; None if it has its values."""
        op = self._by_tensor.get(id(tensor))
        if op is None or op.ref() is not tensor:
            return None
        return op

    def add(
        self,
        op: Op,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device,
        channels_last: bool = False,
    ) -> Tensor:
        """Adds a pending op; returns the tensor that represents its result.

        Args:
            op: a new one.
            shape: its result's.
            dtype: its result's.
            device: its result's.
            channels_last: whether its result is expected to be channels-last.
        """
        tensor = Waiting.like(shape, dtype, device, channels_last)
        op.layer, op.shape = self.log.layer(), shape
        op.ref = weakref.ref(tensor)
        self._by_tensor[id(tensor)] = op
        self._ops.append(op)
        return tensor

    def add_in_place(self, op: Op, tensor: Tensor) -> Tensor:
        """Adds a pending in-place op on a pending tensor; returns the tensor.

        Args:
            op: a new one.
            tensor: represents its source, and from now on its result.
        """
        source = op.source
        assert isinstance(source, Op)
        op.layer, op.shape = self.log.layer(), source.shape
        op.ref, source.ref = source.ref, lambda: None
        self._by_tensor[id(tensor)] = op
        self._ops.append(op)
        return tensor

    def counts(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call is a norm's ``num_batches_tracked.add_(1)``, which then waits.

        All that wait are counted in one launch, before anything else uses one of them.
        """
        if func is not Tensor.add_ or kwargs or len(args) != 2:
            return False
        counter, one = args
        if (
            type(counter) is not Tensor
            or counter.dtype != torch.int64
            or counter.dim() != 0
            or type(one) is not int
            or one != 1
            or counter.is_inference()
        ):
            return False
        if self._is_counted(counter):
            self._count()
        self._counters.append(counter)
        return True

    def _is_counted(self, tensor: Tensor) -> bool:
        if tensor.dtype != torch.int64:
            return False
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return True  # of unknown memory
        return any(same_memory(tensor, each) for each in self._counters)

    def _count(self) -> None:
        counters, self._counters = self._counters, []
        if counters:
            with self.unwatched():
                torch._foreach_add_(counters, 1)

    def will_write(self, tensor: Tensor | None) -> bool:
        """Whether a pending op will write a norm's running statistic."""
        return any(tensor is each for op in self._ops for each in op.writes())

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """A context in which no function is recorded."""
        before, self.watches = self.watches, False
        try:
            yield
        finally:
            self.watches = before

    # --- What runs --------------------------------------------------------------------------------

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs an unrecorded function after computing its pending arguments."""
        written = written_by(func, args, kwargs)
        self._prepare(written, args, kwargs)
        for tensor in () if written is ANYTHING else written:
            self._part_from_autograd(tensor)
        output = self._run(func, args, kwargs)
        if self._kept_by_autograd:
            for tensor in tensors_in(output):
                kept = self._kept_by_autograd.get(id(tensor._base))
                if kept is not None and kept[0]() is tensor._base:
                    kept.append(weakref.ref(tensor))
        return output

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._converted:
            return func(*args, **kwargs)
        maps = [tensor for tensor in tensors_in((args, kwargs)) if tensor.dim() == 4]
        converted = [tensor for tensor in maps if self._is_converted(tensor)]
        others = [each for each in maps if not self._is_converted(each)]
        if not converted or (func in CONVOLUTIONS and any(map(is_channels_last, others))):
            return func(*args, **kwargs)  # eager's is channels-last as well
        if (
            func not in KEEPS_LAYOUT
            or "out" in kwargs
            or hooks_on_saved() is not None
            or (func not in CONVOLUTIONS and any(map(_prevents_conversion, others)))
        ):
            for tensor in converted:
                self._restore_layout(tensor)
            return func(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in CONVOLUTIONS:
            lay_out_weight_gradient(output, args[1] if len(args) > 1 else kwargs["weight"])
        self._keep_converted(output)
        return output

    def _prepare(self, written: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Computes everything that a function will read or write."""
        if written is ANYTHING:
            return self.flush()
        touched = list(tensors_in((args, kwargs)))
        if self._counters and any(self._is_counted(tensor) for tensor in touched):
            self._count()
        for tensor in written:
            if self.find(tensor) is not None or any(
                same_memory(tensor, read) for op in self._ops for read in op.reads()
            ):
                return self.flush()
        for tensor in touched:
            op = self.find(tensor)
            if op is not None:
                self.compute(op)
            elif self.will_write(tensor):
                return self.flush()
        return None

    def _part_from_autograd(self, tensor: Tensor) -> None:
        """Makes a leaky ReLU's result writable in place, as with torch's, which keeps its input
        instead."""
        base = tensor if tensor._base is None else tensor._base
        kept = self._kept_by_autograd.pop(id(base), None)
        if kept is None or kept[0]() is not base:
            return
        views = [view for each in kept[1:] if (view := each()) is not None]
        with self.unwatched(), torch.enable_grad():
            copy = base.clone()
            replayed: Any = [view._view_func(copy) for view in views]  # type: ignore[attr-defined]
        swapped = []
        try:
            for pair in zip((*views, base), (*replayed, copy), strict=True):
                torch._C._swap_tensor_impl(*pair)
                swapped.append(pair)
        except RuntimeError:  # another function keeps one: torch raises in the backward pass
            for pair in swapped:
                torch._C._swap_tensor_impl(*pair)

    def produce(self, tensors: Iterable[Tensor | None]) -> None:
        """Computes the pending ones of these tensors."""
        for tensor in tensors:
            op = self.find(tensor)
            if op is not None:
                self.compute(op)

    def flush(self) -> None:
        """Computes all referenced tensors, in eager's layout, running statistics and counters."""
        for op in self._ops:
            if not op.done and op.ref() is not None:
                self.compute(op, restored=True)
        for op in self._ops:
            if op.writes():
                self.compute(op)
        self._count()  # those that no norm's kernel has
        for each in list(self._converted.values()):
            tensor = each()
            if tensor is None:
                continue
            use_count: Any = Tensor._use_count  # type: ignore[attr-defined]
            held = _references(each) - _fewest_references()
            if held > (use_count(tensor) > 1 and _graph_counts_as_a_holder()):
                self._restore_layout(tensor)
        self._converted.clear()

    def compute(self, op: Op, *, restored: bool = False) -> None:
        """Runs an op, fused with the ops before it that nothing else needs.

        Args:
            op: any.
            restored: whether its result needs eager's layout.
        """
        ops, source = [op], op.source
        while isinstance(source, Op) and source.value is None:
            is_needed = source.consumers > 1 or source.ref() is not None
            stays = self._stays_contiguous(ops[-1])
            if is_needed or source.state != op.state or stays:
                self.compute(source, restored=stays)
                break
            ops.append(source)
            source = source.source
        if len(ops) > 1 and ops[-1].kind == "pad" and op.state.grad and _is_held(source):
            # Eager's convolution saves the padded copy, so what is padded may be written to.
            pad = ops.pop()
            if pad.ref() is None and pad.consumers == 1 and ops[-1].kind == "convolution":
                cast_to_convolve(pad, ops[-1])
            self.compute(pad)
        ops.reverse()
        input, made = ops[0].input(), nodes_made()
        with self.unwatched():
            converted = self._runs_channels_last(ops, input, restored)
            is_now = state_of(input.device) == op.state and hooks_on_saved() is None
            # In another stream than theirs counters aren't counted.
            with counting(self._counters) if is_now else under(op.state, input.device):
                if converted:
                    input = relaid(input, True)  # whose gradient is contiguous
                    order_nodes(input.grad_fn, made, ops[0].order)
                value = run_stretch(ops, input, self.log)
        tensor = op.ref()
        if tensor is not None:
            self._by_tensor.pop(id(tensor), None)
            tensor.__class__ = Tensor
            try:
                torch._C._swap_tensor_impl(tensor, value)
            except RuntimeError:  # a profiler that records shapes references the value
                torch._C._swap_tensor_impl(tensor, value.view_as(value))
            value = tensor
        op.value = value
        if value.requires_grad and op.kind == "activation" and op.settings[0] == "leaky_relu":
            self._kept_by_autograd[id(value)] = [weakref.ref(value)]
        if converted:
            self._keep_converted(value)
        for each in ops:
            each.finish()
        self._ops = [each for each in self._ops if not each.done]
        if not self._ops:
            self._by_tensor.clear()

    # --- Maps converted to channels-last ----------------------------------------------------------

    def _is_converted(self, tensor: Tensor) -> bool:
        held = self._converted.get(id(tensor))
        return held is not None and held() is tensor

    def _keep_converted(self, value: Any) -> None:
        """Remembers a value that isn't contiguous, but would be in eager."""
        is_map = isinstance(value, Tensor) and value.dim() == 4
        if is_map and value.stride() != map_strides(value.shape, False):
            self._converted[id(value)] = weakref.ref(value)

    def _restore_layout(self, tensor: Tensor) -> None:
        """Converts a value back to eager's layout; its node, hooks and references stay."""
        del self._converted[id(tensor)]
        with self.unwatched():
            tensor.data = laid_out(tensor.detach(), False)

    def _runs_channels_last(self, ops: list[Op], input: Tensor, restored: bool) -> bool:
        """Whether a stretch runs on channels-last maps, and eager's of its result is contiguous."""
        norm, is_converted = _is_instance_norm(ops[0]), self._is_converted(input)
        starts_channels_last = is_converted or (
            norm and is_channels_last(input) and not _hands_layout_on(input)
        )
        last = next((n for n, op in enumerate(ops) if _convolves_channels_last(op)), len(ops))
        if (
            starts_channels_last
            and (last < len(ops) or not is_converted)
            and self._sums_are_converted(ops[:last])
        ):
            ops[0].keeps_channels_last = norm
            for op in ops[:last]:
                op.is_converted = True
            for op in ops[last:]:
                self._restore_layouts(op.tensors)
            return last == len(ops)
        would = is_converted or (
            not _has_other_layout(input) and _saved_by_converting(ops, restored) > 0
        )
        if would and self._may_convert(ops):
            ops[0].keeps_channels_last = norm
            for op in ops:
                op.is_converted = True
            return True
        for op in ops:
            op.way = op.unconverted
        self._restore_layouts((input, *(tensor for op in ops for tensor in op.tensors)))
        return False

    def _sums_are_converted(self, ops: list[Op]) -> bool:
        others = (op.tensors[0] for op in ops if op.kind == "sum")
        return all(each is not None and self._is_converted(each) for each in others)

    def _restore_layouts(self, tensors: Iterable[Tensor | None]) -> None:
        for tensor in tensors:
            if tensor is not None and self._is_converted(tensor):
                self._restore_layout(tensor)

    def _may_convert(self, ops: list[Op]) -> bool:
        """Whether eager's result is contiguous, and no gradient's layout shows the conversion."""
        for op in ops:
            for tensor in op.tensors:
                if tensor is None or tensor.dim() != 4 or self._is_converted(tensor):
                    continue
                excluded = is_channels_last if op.kind == "convolution" else _prevents_conversion
                if excluded(tensor):
                    return False
        return True

    def _stays_contiguous(self, op: Op) -> bool:
        """Whether a sum runs on contiguous maps, though what it is added to may be converted."""
        if op.kind != "sum" or not _may_be_converted(op.source):
            return False
        (other,) = op.tensors
        return other is not None and _shows_its_gradient(other) and not self._is_converted(other)


def _saved_by_converting(ops: list[Op], restored: bool) -> float:
    """Milliseconds that channels-last maps save in a stretch whose input is contiguous.

    Each convolution's choice counts a conversion of its own input. Here only the stretch's input is
    converted, and its result if it is ``restored``. Infinite where nothing was measured.
    """
    if any(op.way.converts and op.way.saves == math.inf for op in ops):
        return math.inf
    saved, is_first = 0.0, True
    copied = 0.0  # milliseconds for each value
    for op in ops:
        if op.way.converts:
            saved += op.way.saves - op.unconverted.saves + (0.0 if is_first else op.way.copies)
            copied = op.way.copies / math.prod(op.source.shape)
        is_first = is_first and op.kind != "convolution"
    return saved - restored * copied * math.prod(ops[-1].shape)


def _is_held(source: Op | Tensor) -> bool:
    return isinstance(source, Tensor) or source.ref() is not None


def _is_instance_norm(op: Op) -> bool:
    return op.kind == "sample norm" and op.settings[1] is None


def _convolves_channels_last(op: Op) -> bool:
    """Whether an op is a convolution that eager lays out channels-last whatever it takes."""
    weight = op.tensors[0] if op.kind == "convolution" else None
    return weight is not None and is_channels_last(weight)


@functools.cache
def _convolutions_node() -> type:
    """The class of torch's convolutions' autograd nodes."""
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones(1, 1, 1, 1, requires_grad=True)
        return type(torch.conv2d(one, one).grad_fn)


def _hands_layout_on(map: Tensor) -> bool:
    """Whether the layout of a map's gradient may be visible to the user.

    The input gradients of convolutions and chains don't have the layout of their output's.
    """
    node = map.grad_fn
    convolves = isinstance(node, _convolutions_node()) or is_chain(node)
    return map.requires_grad and not convolves


def _has_other_layout(map: Tensor) -> bool:
    """Whether eager's result wouldn't be contiguous."""
    return is_channels_last(map) or not map.is_contiguous()


def _shows_its_gradient(map: Tensor) -> bool:
    """Whether a contiguous map's gradient has the layout of the gradient of what it is added to.

    In eager that is the user's, or contiguous.
    """
    return map.requires_grad and map.shape[2:] != (1, 1) and not is_channels_last(map)


def _prevents_conversion(map: Tensor) -> bool:
    """Whether a function of a converted map and this one would show the conversion."""
    return _has_other_layout(map) or _shows_its_gradient(map)


def _may_be_converted(source: Op | Tensor) -> bool:
    """Whether a pending result may be converted to channels-last."""
    while isinstance(source, Op) and source.value is None:
        if source.way.converts:
            return True
        source = source.source
    return isinstance(source, Op)


def _references(each: weakref.ref[Tensor]) -> int:
    tensor = each()
    return sys.getrefcount(tensor)


@functools.cache
def _fewest_references() -> int:
    """:func:`_references` of a tensor that only one variable of its caller references.

    Python versions count different references of running code.
    """
    tensor = torch.empty(0)
    return _references(weakref.ref(tensor))


@functools.cache
def _graph_counts_as_a_holder() -> bool:
    """Whether Python counts an additional reference to a tensor that C++ references (torch
    2.13)."""
    tensor = torch.ones(1, requires_grad=True) * 1
    before = sys.getrefcount(tensor)
    square = tensor * tensor
    return sys.getrefcount(tensor) > before and square.requires_grad
