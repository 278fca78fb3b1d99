"""What a tape is made of: ops, the values they take and make, and groups of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastgan.penalty.rule import Rule

__all__ = ["Node", "Samples", "Value"]


@dataclass(frozen=True)
class Samples:
    """Some of a batch's samples, next to one another.

    Attributes:
        start: the first.
        stop: one after the last.
        batch: how many the batch has.
    """

    start: int
    stop: int
    batch: int

    def of(self, tensor: Tensor) -> Tensor:
        """Their rows of a tensor that has as many for each sample."""
        each = tensor.size(0) // self.batch
        return tensor[self.start * each : self.stop * each]

    def __len__(self) -> int:
        return self.stop - self.start


class Value:
    """A tensor on the tape.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        device_type: "cpu" or "cuda".
        by_images: whether it depends on the images.
        by_parameters: whether it depends on a parameter.
        leaf: the parameter itself, if it is one.
        batched: whether row n of it, or the n-th group of as many rows, depends on sample n alone.
        tensor: its data, kept if a rule reads them.
        readers: how many entries of the tape still want the data.
    """

    __slots__ = (
        "batched",
        "by_images",
        "by_parameters",
        "device_type",
        "dtype",
        "leaf",
        "readers",
        "shape",
        "tensor",
    )

    def __init__(self, tensor: Tensor, by_images: bool, by_parameters: bool, batched: bool) -> None:
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.device_type = tensor.device.type
        self.by_images = by_images
        self.by_parameters = by_parameters
        self.batched = batched
        self.leaf: Tensor | None = None
        self.tensor: Tensor | None = None
        self.readers = 0


class Node:
    """An op on the tape.

    Attributes:
        func: the ATen op.
        args: its arguments, with a :class:`Value` for each tensor on the tape.
        kwargs: its keyword arguments.
        slots: where it takes values, and which: those of images (``inner``), of parameters alone
            (``own``), and all that depend on parameters (``outer``).
        outputs: its results; None for those that aren't differentiable.
        rule: its derivatives.
        reads: the values whose data its derivatives want.
        by_images: whether it depends on the images.
        rows: the samples that the rule is to work on; None for all.
        overwrite: whether a rule may write its result over the signal, tangent or first argument
            that it is given.
        kept: what the rule's own forward pass kept.
        random: the random state that it began with, if it draws numbers.
        layer: the module that called it, if anybody asked (:func:`fastgan.explain`).
    """

    __slots__ = (
        "args",
        "by_images",
        "func",
        "inner",
        "kept",
        "kwargs",
        "layer",
        "outer",
        "outputs",
        "overwrite",
        "own",
        "random",
        "reads",
        "rows",
        "rule",
        "slots",
    )

    def __init__(self, func: Any, rule: Rule, args: list[Any], kwargs: dict[str, Any]) -> None:
        self.func = func
        self.rule = rule
        self.args = args
        self.kwargs = kwargs
        self.slots: dict[Any, Value] = {}
        self.inner: list[Any] = []
        self.own: list[Any] = []
        self.outer: list[Any] = []
        self.outputs: list[Value | None] = []
        self.reads: list[Value] = []
        self.by_images = False
        self.rows: Samples | None = None
        self.overwrite = False
        self.kept: Any = None
        self.random: tuple[torch.device, Tensor] | None = None
        self.layer = ""

    def take(self, slots: dict[Any, Value]) -> None:
        """Sets :attr:`slots`, and what follows from them."""
        self.slots = slots
        for slot, value in slots.items():
            if value.by_images:
                self.by_images = True
                self.inner.append(slot)
            elif value.by_parameters:
                self.own.append(slot)
            if value.by_parameters:
                self.outer.append(slot)

    def arg(self, position: int, default: Any = None) -> Any:
        """An argument; of a tensor the data, of rows only if only some are asked for."""
        if position >= len(self.args):
            return default
        found = self.args[position]
        if isinstance(found, Value):
            return self.data(found)
        if isinstance(found, Tensor):
            return self._constant(found)
        if isinstance(found, list):
            return [self.data(v) if isinstance(v, Value) else self._constant(v) for v in found]
        return found

    def resolved(self, data: dict[Value, Tensor]) -> list[Any]:
        """The arguments, with other tensors for the values."""

        def one(argument: Any) -> Any:
            if isinstance(argument, Value):
                return data[argument]
            return [one(item) for item in argument] if isinstance(argument, list) else argument

        return [one(argument) for argument in self.args]

    def data(self, value: Value) -> Tensor:
        """A value's data, or the rows of it that are asked for."""
        assert value.tensor is not None
        return self.windowed(value.tensor) if self.has_rows(value) else value.tensor

    def windowed(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor that are asked for."""
        return tensor if self.rows is None else self.rows.of(tensor)

    def has_rows(self, taken: Value | Tensor) -> bool:
        """Whether what the op takes has rows that go with those of the result."""
        (output, *_) = self.outputs
        if isinstance(taken, Value) and taken.by_images:
            return True
        return (
            self.rule.broadcasts
            and output is not None
            and len(taken.shape) == len(output.shape) > 0
            and taken.shape[0] == output.shape[0]
        )

    def _constant(self, found: Any) -> Any:
        cut = self.rows is not None and isinstance(found, Tensor) and self.has_rows(found)
        return self.windowed(found) if cut else found

    @property
    def output(self) -> Tensor:
        """The first result's data."""
        (value, *_) = self.outputs
        assert value is not None
        return self.data(value)

    def shape_of(self, value: Value, like: Tensor) -> tuple[int, ...]:
        """A value's shape, with as many rows as go with ``like``, a tensor of the first output."""
        (output, *_) = self.outputs
        assert output is not None
        if self.rows is None or not value.shape or not output.shape or not self.has_rows(value):
            return tuple(value.shape)
        return (value.shape[0] * like.size(0) // output.shape[0], *value.shape[1:])

    def released(self) -> None:
        """The op's derivatives are done with."""
        for value in self.reads:
            value.readers -= 1
            if value.readers == 0 and value.leaf is None:
                value.tensor = None
        if not self.rule.keeps:
            self.kept = None

    def reading(self) -> None:
        """The op's derivatives will want what its rule reads."""
        for value in self.reads:
            value.readers += 1
