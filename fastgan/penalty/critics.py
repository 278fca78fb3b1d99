"""Runs critics for the record: what they are called, what they return, what moves meanwhile."""

from __future__ import annotations

import io
import logging
import pickle
import random
import sys
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fastgan.errors import UnsupportedCriticError
from fastgan.penalty.entries import Value
from fastgan.penalty.peephole import move_masks
from fastgan.penalty.points import within_transform
from fastgan.penalty.rule import layout_of
from fastgan.penalty.tape import Changed, Tape, Unrecordable

__all__ = [
    "Critic",
    "Joined",
    "Joining",
    "Recording",
    "Scores",
    "checked_scores",
    "inner_critic",
    "record",
]

Scores = Callable[[Any], Any]


def inner_critic(critic: Any) -> Any:
    """The module inside a ``torch.compile`` or DistributedDataParallel wrapper."""
    while True:
        if isinstance(critic, nn.parallel.DistributedDataParallel):
            critic = critic.module
        elif hasattr(critic, "_orig_mod"):
            critic = critic._orig_mod
        else:
            return critic


class Critic:
    """A user's critic, and how to get scores from it.

    Args:
        critic: a module or function; if its class has a method ``scores``, that is asked.
        args: its arguments after the images.
        scores: selects the scores from its output; None takes all tensors in it.
    """

    def __init__(self, critic: Any, args: Sequence[Any] = (), scores: Scores | None = None) -> None:
        self.given = critic
        self.inner = inner_critic(critic)
        self.args = tuple(args)
        self.scores = scores

    @property
    def name(self) -> str:
        """The critic's name, for messages."""
        return str(getattr(self.inner, "__name__", type(self.inner).__name__))

    def __call__(self, images: Tensor, *, inner: bool = False, args: Any = None) -> list[Tensor]:
        """The scores of a batch, checked: each a tensor with a row for each sample."""
        critic = self.inner if inner else self.given
        function = critic
        if callable(getattr(type(self.inner), "scores", None)):
            function = self.inner.scores
        output = function(images, *(self.args if args is None else args))
        return checked_scores(self.name, output, self.scores, images.size(0))


def checked_scores(name: str, output: Any, scores: Scores | None, samples: int) -> list[Tensor]:
    """The score tensors in a critic's output.

    Raises:
        UnsupportedCriticError: a tensor without a row for each sample, or no tensor at all (a
            ValueError).
    """
    chosen = output if scores is None else scores(output)
    found = list(_tensors(chosen))
    shapes: list[tuple[int, ...] | None] = [tuple(tensor.shape) for tensor in found]
    for shape in shapes or [None]:
        if not shape or shape[0] != samples:
            said = "no tensor" if shape is None else f"shape {shape}"
            raise UnsupportedCriticError(
                f"critic {name} returned {said} for {samples} samples; expected one score per "
                f"sample, or a map of scores, with {samples} rows: an output without the batch "
                "dimension, such as a batch mean, has no per-sample gradient. Return scores, give "
                "the class a scores(x) method that does, or take them from the output by "
                "scores=lambda out: ..."
            )
    for tensor in found:
        if not tensor.is_floating_point():
            raise UnsupportedCriticError(
                f"critic {name} returned scores of dtype {tensor.dtype}; expected a floating dtype"
            )
    return found


def _tensors(structure: Any) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    if isinstance(structure, dict):
        structure = list(structure.values())
    if isinstance(structure, (tuple, list)):
        return [tensor for item in structure for tensor in _tensors(item)]
    return []


@dataclass
class Recording:
    """One run of a critic.

    Attributes:
        tape: the recorded ops.
        scores: what it returned, without a graph.
        values: the scores as values of the tape.
    """

    tape: Tape
    scores: list[Tensor]
    values: list[Value]

    @property
    def apart(self) -> bool:
        """Whether no sample sees another."""
        return self.tape.mixes is None and all(v.batched and v.by_images for v in self.values)

    @property
    def one_score_each(self) -> bool:
        """Whether, beside that, each sample has one score: its signals are multiples of one."""
        return self.apart and [score.numel() for score in self.scores] == [len(self.scores[0])]


def record(
    critic: Critic,
    images: Tensor,
    *,
    times: int = 1,
    divided: bool = False,
    watching: bool = False,
    leave: bool = False,
    on_tape: Callable[[Tape], object] | None = None,
) -> Recording:
    """Runs a critic and records what it does.

    Args:
        critic: what to run.
        images: (N, ...); left as they are, unless there are several batches.
        times: number of batches concatenated in ``images``, which then belongs to the recording;
            arguments with a row for each sample are repeated as often.
        divided: see :class:`fastgan.penalty.tape.Tape`.
        watching: whether :attr:`fastgan.penalty.tape.Tape.moves` is to tell of what Python code
            moves as well.
        leave: whether to restore everything that the critic changed.
        on_tape: called with the tape before the critic runs.

    Raises:
        Unrecordable: no tape can be made.
        Changed: a joined batch can't be continued (state changes, or samples mix).
        UnsupportedCriticError: as :func:`checked_scores`.
    """
    refuse_what_no_tape_sees()
    joined = times > 1
    if not joined:
        images = torch.empty_like(
            images, memory_format=layout_of(images.shape, images.dtype)
        ).copy_(images.detach())
    state = _State(critic.inner, watching=watching)
    tape = Tape(images, joined=joined, divided=divided)
    del images
    if on_tape is not None:
        on_tape(tape)
    given = tape.images
    assert given is not None
    args = critic.args if times == 1 else _repeated(critic.args, len(given) // times, times)
    try:
        with torch.enable_grad(), tape:
            found = critic(given, inner=True, args=args)
            if tape.refused is not None:
                raise tape.refused
        outcomes = [(score.detach(), tape.outcome(score)) for score in found]
    except (Unrecordable, Changed):
        state.put_back(tape)
        tape.close()
        raise
    except Exception as error:
        tape.close()
        if leave or joined or tape.refused is not None:
            state.put_back(tape)
        if tape.refused is not None:
            raise tape.refused from None
        if "leaf Variable that requires grad" in str(error):
            raise Unrecordable("an op that torch's modes don't see changes a tensor") from error
        if joined:  # one that wants its batch's size; any other error comes again without joining
            raise Changed(f"a larger batch raises {type(error).__name__}") from error
        raise
    del given, found
    tape.close()
    if watching and tape.moves is None:
        tape.moves = state.moved()
    if leave or (joined and tape.moves is not None):
        state.put_back(tape)
    if joined and tape.moves is not None:
        raise Changed(tape.moves)
    values = [value for _, value in outcomes]
    move_masks(tape.nodes, values)
    return Recording(tape, [score for score, _ in outcomes], values)


def refuse_what_no_tape_sees() -> None:
    """Raises :class:`Unrecordable` where torch's modes don't see what happens."""
    if within_transform():
        raise Unrecordable("it is called within a transform of torch.func, which takes no tape")
    if nn_module._global_backward_hooks or nn_module._global_backward_pre_hooks:
        raise Unrecordable("a backward hook is registered for all modules")


def _repeated(args: Sequence[Any], samples: int, times: int) -> list[Any]:
    """The arguments, with those that have a row for each sample repeated for each batch."""
    return [
        torch.cat([arg] * times)
        if isinstance(arg, Tensor) and arg.dim() > 0 and arg.size(0) == samples
        else arg
        for arg in args
    ]


#: Objects that stand for themselves.
_NAMED = (
    *(Tensor, nn.Module, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(types.ModuleType, type, logging.Logger),
)
#: An attribute of these types changes only by being assigned.
_WHOLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, *_NAMED)
_OF_MODULES = frozenset(vars(nn.Module()))
_MOST_BYTES = 1 << 16


class _Pickler(pickle.Pickler):
    """Pickles tensors, modules and functions as their identity."""

    def persistent_id(self, obj: Any) -> int | None:
        """A number for objects that stand for themselves."""
        return id(obj) if isinstance(obj, _NAMED) else None


def _pickled(value: Any) -> bytes | None:
    """What an object holds, for comparison; None if it is too large, or can't be pickled."""
    if getattr(value, "nbytes", 0) > _MOST_BYTES or type(value).__module__ == "itertools":
        return None
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(value)
    except Exception:
        return None
    return buffer.getvalue()


class _State:
    """A snapshot of a critic's modules and of the random states before a recording.

    Args:
        critic: the critic; only a module's state can be seen.
        watching: whether :meth:`moved` will be asked for.
    """

    def __init__(self, critic: Any, *, watching: bool) -> None:
        modules = list(critic.modules()) if isinstance(critic, nn.Module) else []
        self.attributes = [(module, dict(vars(module))) for module in modules]
        self.registered: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (registry, dict(registry))
            for module in modules
            for registry in (module._parameters, module._buffers, module._modules)
            if registry
        ]
        self.torch = torch.get_rng_state()
        self.watching = watching
        if not watching:
            return
        self.inner = [
            (value, _pickled(value))
            for _, attributes in self.attributes
            for name, value in attributes.items()
            if name not in _OF_MODULES and not isinstance(value, _WHOLE)
        ]
        self.pointers = [
            (tensor, tensor.data_ptr())
            for registry, _ in self.registered
            for tensor in registry.values()
            if isinstance(tensor, Tensor) and type(tensor) in (Tensor, nn.Parameter)
        ]
        self.python = random.getstate()
        numpy = sys.modules.get("numpy")
        self.numpy = None if numpy is None else numpy.random.get_state()

    def moved(self) -> str | None:
        """Says what has changed since the snapshot, or None."""
        for module, before in self.attributes:
            if list(map(id, vars(module).values())) != list(map(id, before.values())):
                return f"the forward of {type(module).__name__} assigns to its attributes"
        for registry, entries in self.registered:
            if list(map(id, registry.values())) != list(map(id, entries.values())):
                return "a forward replaces a parameter or buffer"
        for value, pickled in self.inner:
            if pickled is None or _pickled(value) != pickled:
                return f"a forward may change the {type(value).__name__} that a module keeps"
        for tensor, pointer in self.pointers:
            if tensor.data_ptr() != pointer:
                return "a forward assigns to the .data of a parameter or buffer"
        if random.getstate() != self.python or self._numpy_moved():
            return "a forward draws random numbers in Python"
        return None

    def _numpy_moved(self) -> bool:
        if self.numpy is None:
            return False
        before, after = self.numpy, sys.modules["numpy"].random.get_state()
        return bool(before[2] != after[2] or (before[1] != after[1]).any())

    def put_back(self, tape: Tape) -> None:
        """Restores everything that the recording changed."""
        for module, before in self.attributes:
            vars(module).clear()
            vars(module).update(before)
        for registry, entries in self.registered:
            registry.clear()
            registry.update(entries)
        with torch.no_grad():
            for tensor, held in reversed(tape.undo):
                tensor.copy_(held)
        torch.set_rng_state(self.torch)
        if self.watching:
            random.setstate(self.python)
            if self.numpy is not None:
                sys.modules["numpy"].random.set_state(self.numpy)


#: How a critic's batches may be joined, by how it was called.
_known: weakref.WeakKeyDictionary[nn.Module, dict[Any, _Found]] = weakref.WeakKeyDictionary()
#: Lazy modules change state in the first call only, so a second one is tried.
_TRIES = 2


@dataclass(frozen=True)
class Joined:
    """A way to run several batches as one.

    Attributes:
        batches: their names, in order.
        divided: whether derivatives are asked of some of them alone.
    """

    batches: tuple[str, ...]
    divided: bool


class Joining:
    """How a critic's batches may be joined, as far as earlier calls have shown.

    Results are kept for modules only, and not for modules with hooks: a hook would run once for all
    batches.

    Args:
        critic: the critic; its module and training mode are part of the key.
        images: an example batch; its shape, dtype and device are part of the key.
        ways: the acceptable ways, best first.
    """

    def __init__(self, critic: Critic, images: Tensor, ways: Sequence[Joined]) -> None:
        inner = critic.inner
        modules = list(inner.modules()) if isinstance(inner, nn.Module) else []
        hooked = any(
            m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
            for m in modules
        )
        globally = nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks
        self.possible = bool(modules) and not hooked and not globally
        self.critic = critic
        self.ways = ways
        self.key = (
            images.shape,
            images.dtype,
            images.device,
            torch.is_autocast_enabled(images.device.type),
            tuple(type(arg) for arg in critic.args),
            any(module.training for module in modules),
            tuple(ways),
        )

    @property
    def known(self) -> bool:
        """Whether earlier calls have decided."""
        return not self.possible or self._found().tries >= _TRIES or self.way is not None

    @property
    def way(self) -> Joined | None:
        """What an earlier call found."""
        return self._found().way if self.possible else None

    def _found(self) -> _Found:
        return _known.setdefault(self.critic.inner, {}).setdefault(self.key, _Found())

    def learn(self, recordings: Sequence[Recording]) -> Joined | None:
        """The best way to join batches that have just been run one by one, or None.

        Args:
            recordings: of them.
        """
        self._found().tries += 1
        if any(r.tape.moves is not None or not r.apart for r in recordings):
            return None
        nodes = [node for each in recordings for node in each.tape.nodes if node.by_images]
        divisible = all(node.rule.by_rows and not node.rule.curved(node) for node in nodes)
        return next((way for way in self.ways if divisible or not way.divided), None)

    def remember(self, way: Joined | None) -> None:
        """Stores the way that gave the same scores as separate batches; None if none did."""
        self._found().way = way


@dataclass
class _Found:
    """The entry for one critic and one key.

    Attributes:
        way: how its batches are joined.
        tries: how many calls have tried to find one.
    """

    way: Joined | None = None
    tries: int = 0
