"""A function that was called but hasn't run, and the tensor that represents its result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastgan.ops.backends import BY_TORCH, Way
from fastgan.ops.eligibility import PLAIN
from fastgan.ops.memory_format import map_strides
from fastgan.ops.stages import Stage

__all__ = [
    "Op",
    "State",
    "Waiting",
    "hooks_on_saved",
    "nodes_made",
    "of_two",
    "order_nodes",
    "state_of",
    "under",
]


class Waiting(Tensor):
    """A tensor without values. It becomes a plain tensor when it is computed."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise RuntimeError(
            f"{func} was called, within a fused module, on a value that is not computed yet, by "
            "code that torch's modes don't see (C++, torch.func): touch the value before, as by "
            "tensor.requires_grad"
        )

    def as_subclass(self, cls: Any) -> Any:
        """Of the computed tensor: torch's function modes don't see this method."""
        self.requires_grad  # noqa: B018 - computes it
        return Tensor.as_subclass(self, cls)

    @staticmethod
    def like(
        shape: torch.Size, dtype: torch.dtype, device: torch.device, channels_last: bool = False
    ) -> Tensor:
        """Makes one.

        Args:
            shape: its shape.
            dtype: its dtype.
            device: its device.
            channels_last: whether a map will be channels-last, for the selection of backends.
        """
        strides = map_strides(shape, True) if channels_last else None
        made: Tensor = torch._C.TensorBase._make_wrapper_subclass(
            Waiting, shape, strides, dtype=dtype, device=device
        )
        return made


PLAIN.add(Waiting)


class State(NamedTuple):
    """The parts of torch's state that affect a function's result.

    Attributes:
        grad: whether gradients are recorded.
        inference: whether inference mode is on.
        autocast: autocast's dtype; None if it is off.
        stream: the CUDA stream; None on other devices.
    """

    grad: bool
    inference: bool
    autocast: torch.dtype | None
    stream: Any


def state_of(device: torch.device) -> State:
    """Torch's current state for functions on a device."""
    autocast = device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
    return State(
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_autocast_dtype(device.type) if autocast else None,
        torch.cuda.current_stream(device) if device.type == "cuda" else None,
    )


_autograd: Any = torch._C._autograd
#: The number of autograd nodes made by this thread.
nodes_made: Callable[[], int] = _autograd._get_sequence_nr


def _place_among_nodes() -> int:
    """The unique sequence number of the node that a call would have made now."""
    number = nodes_made()
    torch._C._functions.UndefinedGrad()
    return number


def order_nodes(node: Any, made: int, order: int) -> None:
    """Gives the nodes that were made since the place that they would have had at a call.

    Backward passes go by it: gradients of one value are added up in eager's order, and laid out as
    the first of them.

    Args:
        node: of what was computed.
        made: how many there were before.
        order: of the call.
    """
    nodes, latest = [node], nodes_made()
    for each in nodes:
        if each is not None and made <= each._sequence_nr() < latest:
            each._set_sequence_nr(order)
            nodes += [following for following, _ in each.next_functions]


def hooks_on_saved() -> Any:
    """The innermost saved-tensor hooks, or None."""
    return _autograd._top_saved_tensors_default_hooks(True)


@contextmanager
def under(state: State, device: torch.device) -> Iterator[None]:
    """A context with torch's state at a function's call, without saved-tensor hooks."""
    hooks: list[tuple[Any, Any]] = []
    while hooks_on_saved() is not None:
        hooks.append(hooks_on_saved())
        _autograd._pop_saved_tensors_default_hooks()
    try:
        with ExitStack() as stack:
            if state_of(device) != state:
                dtype = state.autocast
                stack.enter_context(torch.inference_mode(state.inference))
                stack.enter_context(torch.set_grad_enabled(state.grad))
                stack.enter_context(torch.autocast(device.type, dtype, enabled=dtype is not None))
                if state.stream is not None:
                    stack.enter_context(torch.cuda.stream(state.stream))
            yield
    finally:
        for pack, unpack in reversed(hooks):
            _autograd._push_saved_tensors_default_hooks(pack, unpack)


def of_two(func: Any, place: int, other: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of two maps as a function of the one at ``place``."""
    return lambda input: func(*((input, other) if place == 0 else (other, input)))


def _nobody() -> None:
    return None


@dataclass(slots=True, eq=False)
class Op:
    """A function that was called but hasn't run.

    Attributes:
        kind: a kind of :mod:`fastgan.nn.calls`.
        name: the function's name.
        source: its input: a tensor, or a pending op.
        call: the call as a function of its input, for convolutions also of another bias.
        state: torch's state at the call.
        tensors: a convolution's weight and bias; a norm's weight, bias and running statistics; a
            binary function's other operand.
        stage: a convolution's geometry.
        settings: a batch norm's batch_statistics, momentum and eps; an instance or group
            norm's eps and groups; an activation's name and negative_slope; a binary function and
            its source's position.
        order: the sequence number of the autograd node that the call would have made.
        way: how a convolution runs.
        unconverted: how it runs where its maps stay contiguous.
        keeps_channels_last: whether an instance norm's result is channels-last like its input;
            torch's is contiguous.
        is_converted: whether it takes a channels-last map that eager's doesn't.
        layer: the name of the module that called it.
        shape: of its result.
        consumers: how many take its result.
        value: its result, once it is computed and somebody takes it.
        done: whether it ran, by itself or as a part of something.
        ref: gives the tensor that stands for its result, if anybody holds that.
    """

    kind: str
    name: str
    source: Op | Tensor
    call: Callable[..., Tensor]
    state: State
    tensors: tuple[Tensor | None, ...] = ()
    stage: Stage | None = None
    settings: tuple[Any, ...] = ()
    order: int = field(default_factory=_place_among_nodes)
    way: Way = BY_TORCH
    unconverted: Way = BY_TORCH
    keeps_channels_last: bool = False
    is_converted: bool = False
    layer: str = ""
    shape: tuple[int, ...] = ()
    consumers: int = 0
    value: Tensor | None = None
    done: bool = False
    ref: Callable[[], Tensor | None] = _nobody

    def __post_init__(self) -> None:
        if isinstance(self.source, Op):
            self.source.consumers += 1

    def input(self) -> Tensor:
        """Its input, computed."""
        value = self.source.value if isinstance(self.source, Op) else self.source
        assert value is not None
        return value

    @property
    def widens(self) -> bool:
        """Whether it is a float32 bias of a convolution that autocast runs in 16 bits."""
        bias = self.tensors[0] if self.kind == "bias" else None
        return bias is not None and self.state.autocast not in (None, bias.dtype)

    def writes(self) -> list[Tensor]:
        """The running statistics that it writes, even if its value isn't needed."""
        if self.kind != "norm" or not self.settings[0]:
            return []
        return [tensor for tensor in self.tensors[2:] if tensor is not None]

    def reads(self) -> Iterator[Tensor]:
        """The tensors that it will read or write when it runs."""
        yield from (tensor for tensor in self.tensors if tensor is not None)
        if isinstance(self.source, Tensor):
            yield self.source
        elif self.source.value is not None:
            yield self.source.value

    def finish(self) -> None:
        """Frees everything it needed to run."""
        self.done = True
        self.source = self.tensors = self.call = None  # type: ignore[assignment]
