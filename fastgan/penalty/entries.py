"""The tape's data structures: ops, their input and output values, and ranges of samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastgan.penalty.rule import Rule


@dataclass(frozen=True)
class Samples:
    """A contiguous range of a batch's samples: ``start`` up to ``stop`` of ``batch``."""

    start: int
    stop: int
    batch: int

    def of(self, tensor: Tensor) -> Tensor:
        """The samples' rows of a tensor with a fixed number of rows per sample."""
        if self.stop - self.start == self.batch:
            return tensor
        rows = tensor.size(0) // self.batch
        return tensor[self.start * rows : self.stop * rows]

    @property
    def whole(self) -> bool:
        """Whether these are all of the batch's samples."""
        return self.stop - self.start == self.batch

    @property
    def others(self) -> Samples:
        """The batch's other samples, which must be contiguous, too."""
        assert self.start == 0 or self.stop == self.batch
        start, stop = (0, self.start) if self.start else (self.stop, self.batch)
        return Samples(start, stop, self.batch)

    def shape(self, of_all: torch.Size) -> torch.Size:
        """The shape of the samples' rows of a tensor of shape ``of_all``."""
        return torch.Size((of_all[0] // self.batch * len(self), *of_all[1:]))

    def __len__(self) -> int:
        return self.stop - self.start


class Value:
    """A tensor on the tape. Its shape counts only the rows of samples on the tape.

    Attributes:
        by_images: whether it depends on the images.
        by_parameters: whether it depends on a parameter.
        leaf: the parameter, if the value is one.
        batched: whether its n-th row (or group of rows, if each sample has several) depends on
            sample n only.
        tensor: its data, kept if a rule reads them.
        readers: how many ops have yet to read the data.
    """

    __slots__ = (
        *("batched", "by_images", "by_parameters", "device", "dtype", "leaf"),
        *("readers", "shape", "tensor"),
    )

    def __init__(self, tensor: Tensor, by_images: bool, by_parameters: bool, batched: bool) -> None:
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self.device = tensor.device
        self.by_images = by_images
        self.by_parameters = by_parameters
        self.batched = batched
        self.leaf: Tensor | None = None
        self.tensor: Tensor | None = None
        self.readers = 0


@dataclass(eq=False, slots=True)
class Node:
    """An op on the tape.

    Attributes:
        args: the op's arguments, with a :class:`Value` for each tensor on the tape.
        slots: its inputs on the tape by slot.
        inner: the slots that depend on the images.
        own: the slots that depend on parameters only.
        outer: all slots that depend on parameters.
        outputs: its results; None for those that aren't differentiable.
        reads: the values whose data its derivatives read.
        overwrite: whether a rule may write its result in place of its output gradient, tangent or
            first argument.
        kept: what the rule's forward pass saved for its derivatives.
        random: the random state before it ran, if it draws random numbers.
        layer: the name of the calling module, for :func:`fastgan.explain`.
    """

    func: Any
    rule: Rule
    args: list[Any]
    kwargs: dict[str, Any]
    slots: dict[Any, Value] = field(default_factory=dict)
    inner: list[Any] = field(default_factory=list)
    own: list[Any] = field(default_factory=list)
    outer: list[Any] = field(default_factory=list)
    outputs: list[Value | None] = field(default_factory=list)
    reads: list[Value] = field(default_factory=list)
    by_images: bool = False
    overwrite: bool = False
    kept: Any = None
    random: tuple[torch.device, Tensor] | None = None
    layer: str = ""

    def take(self, slots: dict[Any, Value]) -> None:
        """Sets :attr:`slots` and the attributes derived from them."""
        self.slots = slots
        for slot, value in slots.items():
            if value.by_images:
                self.by_images = True
                self.inner.append(slot)
            elif value.by_parameters:
                self.own.append(slot)
            if value.by_parameters:
                self.outer.append(slot)

    def put(self, slot: Any, argument: Any) -> tuple[list[Any], int]:
        """Sets an argument, or an item of a list among them; returns its list and position."""
        items, position = (
            (self.args[slot[0]], slot[1]) if type(slot) is tuple else (self.args, slot)
        )
        items[position] = argument
        return items, position

    def arg(self, position: int) -> Any:
        """An argument, with values replaced by their tensors."""
        argument = self.args[position]
        if isinstance(argument, list):
            return [item.tensor if isinstance(item, Value) else item for item in argument]
        return argument.tensor if isinstance(argument, Value) else argument

    def named(self, name: str) -> str:
        """``name`` with the calling module's, for reports."""
        return f"{name} of '{self.layer}'" if self.layer else name

    def replaced(self, other: Callable[[Any, Any], Any]) -> list[Any]:
        """The arguments, with each (or each item of a list) replaced by other(slot, argument)."""
        return [
            [other((position, index), item) for index, item in enumerate(argument)]
            if isinstance(argument, list)
            else other(position, argument)
            for position, argument in enumerate(self.args)
        ]

    @property
    def result(self) -> Value:
        """The first result."""
        value = self.outputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> Tensor:
        """The first result's data."""
        assert self.result.tensor is not None
        return self.result.tensor

    def released(self) -> None:
        """Called when the op's derivatives are no longer needed."""
        for value in self.reads:
            value.readers -= 1
            if value.readers == 0 and value.leaf is None:
                value.tensor = None
        self.reads, self.kept = [], None
