"""The functions of a forward pass that wait, and when they run.

A value that waits is computed as soon as anything else touches its tensor; it is fused through if
nobody holds that tensor by then, and produced otherwise. Running statistics are written once, in
the order of the calls, before anything reads them. A write in place, to memory that something
which waits will read, has it computed first.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastgan.nn.stretch import Log, run_stretch
from fastgan.nn.touches import ANYTHING, same_memory, tensors_in, written_by
from fastgan.nn.waiting import Op, Waiting, hooks_on_saved, nodes_made, state_of, under

__all__ = ["Pending"]


class Pending:
    """What waits in one forward pass.

    Args:
        log: takes what runs.

    Attributes:
        log: as given.
        watches: false within what is not to be recorded.
    """

    def __init__(self, log: Log) -> None:
        self.log = log
        self.watches = True
        self._ops: list[Op] = []
        self._by_tensor: dict[int, Op] = {}

    def __len__(self) -> int:
        return len(self._ops)

    def find(self, tensor: Any) -> Op | None:
        """What a tensor waits for; None where it has its values."""
        op = self._by_tensor.get(id(tensor))
        if op is None or op.ref() is not tensor:
            return None
        return op

    def add(self, op: Op, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Has an op wait; returns the tensor that stands for its result.

        Args:
            op: a new one.
            shape: its result's.
            dtype: its result's.
            device: its result's.
        """
        tensor = Waiting.like(shape, dtype, device)
        op.layer, op.shape = self.log.layer(), shape
        op.ref = weakref.ref(tensor)
        self._by_tensor[id(tensor)] = op
        self._ops.append(op)
        return tensor

    def add_in_place(self, op: Op, tensor: Tensor) -> Tensor:
        """Has an op wait that writes over a tensor which waits; returns that.

        Args:
            op: a new one.
            tensor: stands for its source, and from here on for its result.
        """
        source = op.source
        assert isinstance(source, Op)
        op.layer, op.shape = self.log.layer(), source.shape
        op.ref, source.ref = source.ref, lambda: None
        self._by_tensor[id(tensor)] = op
        self._ops.append(op)
        return tensor

    def will_write(self, tensor: Tensor | None) -> bool:
        """Whether an op that waits will write a norm's running statistic."""
        return any(tensor is each for op in self._ops for each in op.writes())

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Within it no function is recorded."""
        before, self.watches = self.watches, False
        try:
            yield
        finally:
            self.watches = before

    # --- What runs --------------------------------------------------------------------------------

    def prepare(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Computes what a function will touch, before it runs."""
        written = written_by(func, args, kwargs)
        if written is ANYTHING:
            return self.flush()
        touched = list(tensors_in((args, kwargs)))
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

    def produce(self, tensors: Iterable[Tensor | None]) -> None:
        """Computes those of the tensors that wait."""
        for tensor in tensors:
            op = self.find(tensor)
            if op is not None:
                self.compute(op)

    def flush(self) -> None:
        """Computes all that somebody holds, and writes the running statistics."""
        for op in self._ops:
            if not op.done and op.ref() is not None:
                self.compute(op)
        for op in self._ops:
            if op.writes():
                self.compute(op)

    def compute(self, op: Op) -> None:
        """Runs an op, with those before it that nobody else wants the values of."""
        ops, source = [op], op.source
        while isinstance(source, Op) and source.value is None:
            if source.consumers > 1 or source.ref() is not None or source.state != op.state:
                self.compute(source)
                break
            ops.append(source)
            source = source.source
        ops.reverse()
        input, made = ops[0].input(), nodes_made()
        with self.unwatched():
            if state_of(input.device) == op.state and hooks_on_saved() is None:
                value = run_stretch(ops, input, self.log)
            else:
                with under(op.state, input.device):
                    value = run_stretch(ops, input, self.log)
        _order_nodes(value.grad_fn, made, ops[0].order)
        tensor = op.ref()
        if tensor is not None:
            self._by_tensor.pop(id(tensor), None)
            tensor.__class__ = Tensor
            try:
                torch._C._swap_tensor_impl(tensor, value)
            except RuntimeError:  # a profiler that records shapes holds the value
                torch._C._swap_tensor_impl(tensor, value.view_as(value))
            value = tensor
        op.value = value
        for each in ops:
            each.finish()
        self._ops = [each for each in self._ops if not each.done]
        if not self._ops:
            self._by_tensor.clear()


def _order_nodes(node: Any, made: int, order: int) -> None:
    """Gives the nodes that were made since the place that they would have had at the call.

    Backward passes go by it: gradients of one value are added up in eager's order, and laid out as
    the first of them.
    """
    nodes, latest = [node], nodes_made()
    for each in nodes:
        if each is not None and made <= each._sequence_nr() < latest:
            each._set_sequence_nr(order)
            nodes += [following for following, _ in each.next_functions]
