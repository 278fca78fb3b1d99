"""Runs critics on a tape: their names, their scores, and the state they change."""

from __future__ import annotations

import io
import logging
import pickle
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fastgan.errors import DtypeError, UnsupportedCriticError
from fastgan.penalty.casts import Cast
from fastgan.penalty.entries import Samples, Value
from fastgan.penalty.peephole import move_masks
from fastgan.penalty.points import within_transform
from fastgan.penalty.rule import empty
from fastgan.penalty.tape import Changed, Tape, Unrecordable, tensors_in

Scores = Callable[[Any], Any]


def _unwrapped(critic: Any) -> Iterator[Any]:
    """The critic and its inner modules, as wrapped by ``torch.compile`` or
    DistributedDataParallel."""
    yield critic
    if isinstance(critic, nn.parallel.DistributedDataParallel):
        yield from _unwrapped(critic.module)
    elif hasattr(critic, "_orig_mod"):
        yield from _unwrapped(critic._orig_mod)


def inner_critic(critic: Any) -> Any:
    """The module inside any wrapper."""
    return [*_unwrapped(critic)][-1]


def run_within(critic: Any, images: Tensor, run: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Calls ``run()``, through ``critic``'s forward if ``critic`` is DistributedDataParallel.

    DDP averages gradients by hooks on the parameters, which fire however ``.grad`` is written. But
    it expects one call of its ``forward`` per step, where it broadcasts buffers, prepares its
    buckets and searches the output's graph for unused parameters. So the fused pass runs *as* the
    inner module's forward.

    Args:
        critic: the user's critic.
        images: the forward pass's input.
        run: returns a tuple that begins with the loss, which has a graph to the parameters.
    """
    parallel = nn.parallel.DistributedDataParallel
    wrapper = next((m for m in _unwrapped(critic) if isinstance(m, parallel)), None)
    if wrapper is None:
        return run()
    attributes = vars(wrapper.module)
    earlier = {name: value for name, value in attributes.items() if name == "forward"}

    def put_back() -> None:
        attributes.pop("forward", None)
        attributes.update(earlier)

    def forward(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
        put_back()  # the pass calls the critic's own
        return run()

    attributes["forward"] = forward
    try:
        results: tuple[Any, ...] = wrapper(images)
    finally:
        put_back()
    return results


class Critic:
    """A user's critic, and how to get scores from it.

    Args:
        critic: a module or function; if its class has a method ``scores``, that is called instead.
        args: its arguments after the images.
        scores: selects the scores from its output; None takes all tensors in it.
    """

    def __init__(self, critic: Any, args: Sequence[Any] = (), scores: Scores | None = None) -> None:
        if not isinstance(args, (tuple, list)):
            # A tensor would be unpacked into its rows.
            raise DtypeError(
                f"critic_args is of type {type(args).__name__}; expected a tuple of what the "
                "critic takes beside the images, such as (labels,)"
            )
        self.given = critic
        self.inner = inner_critic(critic)
        self.args = tuple(args)
        self.scores = scores

    @property
    def name(self) -> str:
        """The critic's name, for messages."""
        return str(getattr(self.inner, "__name__", type(self.inner).__name__))

    def __call__(self, images: Tensor, *, inner: bool = False, args: Any = None) -> list[Tensor]:
        """The scores of a batch, each a tensor with a row for each sample.

        Raises:
            UnsupportedCriticError: a tensor of another shape, or of no floating dtype, or no tensor
                at all (a ValueError).
        """
        function = self.inner if inner else self.given
        if callable(getattr(type(self.inner), "scores", None)):
            function = self.inner.scores
        output = function(images, *(self.args if args is None else args))
        scores = list(tensors_in(output if self.scores is None else self.scores(output)))
        samples = images.size(0)
        every: list[Tensor | None] = [*scores] or [None]
        for tensor in every:
            if tensor is None or tensor.dim() == 0 or tensor.size(0) != samples:
                said = "no tensor" if tensor is None else f"shape {tuple(tensor.shape)}"
                raise UnsupportedCriticError(
                    f"critic {self.name} returned {said} for {samples} samples; expected one score "
                    f"per sample, or a map of scores, with {samples} rows: an output without the "
                    "batch dimension, such as a batch mean, has no per-sample gradient. Return "
                    "scores, give the class a scores(x) method that does, or take them from the "
                    "output by scores=lambda out: ..."
                )
            if not tensor.is_floating_point():
                raise UnsupportedCriticError(
                    f"critic {self.name} returned scores of dtype {tensor.dtype}; expected a "
                    "floating dtype"
                )
        return scores


@dataclass
class Recording:
    """One run of a critic.

    Attributes:
        names: the batches' names, in order.
        tape: the recorded ops.
        scores: the returned scores, without a graph.
        values: the scores as values of the tape.
    """

    names: Sequence[str]
    tape: Tape
    scores: list[Tensor]
    values: list[Value]

    def rows(self, name: str) -> Samples:
        """The samples of one batch."""
        samples = self.scores[0].size(0)
        count = samples // len(self.names)
        start = self.names.index(name) * count
        return Samples(start, start + count, samples)

    def scores_of(self, name: str) -> list[Tensor]:
        """The scores of one batch."""
        return [self.rows(name).of(score) for score in self.scores]

    @property
    def apart(self) -> bool:
        """Whether each score depends on its own sample only."""
        return self.tape.mixes is None and all(v.batched and v.by_images for v in self.values)

    @property
    def one_score_each(self) -> bool:
        """Whether also each sample has one score, so gradients are proportional."""
        return self.apart and [score.numel() for score in self.scores] == [self.scores[0].size(0)]


def record(
    critic: Critic,
    images: Tensor,
    names: Sequence[str] = ("points",),
    *,
    divided: bool = False,
    watching: bool = False,
    leave: bool = False,
    casts: list[Cast] | None = None,
    on_tape: Callable[[Tape], object] | None = None,
) -> Recording:
    """Runs a critic and records its ops.

    Args:
        critic: what to run.
        images: (N, ...); left as they are, unless there are several batches.
        names: the batches in ``images``. If there are several, the recording owns ``images``, and
            arguments with a row per sample are repeated for each batch.
        divided: see :class:`fastgan.penalty.tape.Tape`.
        watching: whether :attr:`fastgan.penalty.tape.Tape.moves` also reports state changed by
            Python code.
        leave: whether to restore all state that the critic changed.
        casts: see :class:`fastgan.penalty.tape.Tape`.
        on_tape: called with the tape before the critic runs.

    Raises:
        Unrecordable: no tape can be made.
        Changed: a joined batch can't be continued (state changes, or samples mix).
        UnsupportedCriticError: as :class:`Critic`.
    """
    if within_transform():
        raise Unrecordable("it is called within a transform of torch.func, which takes no tape")
    if nn_module._global_backward_hooks or nn_module._global_backward_pre_hooks:
        raise Unrecordable("a backward hook is registered for all modules")
    joined = len(names) > 1
    if not joined:
        images = empty(images.shape, images).copy_(images.detach())
    state = _State(critic.inner, watching=watching)
    tape = Tape(images, joined=joined, divided=divided, casts=casts)
    del images
    if on_tape is not None:
        on_tape(tape)
    given = tape.images
    assert given is not None
    args = _repeated(critic.args, given.size(0), len(names))
    try:
        with torch.enable_grad(), tape:
            scores = critic(given, inner=True, args=args)
            if tape.refused is not None:
                raise tape.refused
        outcomes = [(score.detach(), tape.outcome(score)) for score in scores]
    except (Unrecordable, Changed, Exception) as error:
        tape.close()
        refused = tape.refused or (None if isinstance(error, Exception) else error)
        if leave or joined or refused is not None:
            state.put_back(tape)
        if refused is not None:
            raise refused from None
        if "leaf Variable that requires grad" in str(error):
            raise Unrecordable("an op that torch's modes don't see changes a tensor") from error
        if joined:  # the critic may need this batch size; any other error recurs without joining
            raise Changed(f"a larger batch raises {type(error).__name__}") from error
        raise
    del given, scores
    tape.close()
    if watching and tape.moves is None:
        tape.moves = state.moved()
    if leave or (joined and tape.moves is not None):
        state.put_back(tape)
    if joined and tape.moves is not None:
        raise Changed(tape.moves)
    values = [value for _, value in outcomes]
    move_masks(tape.nodes, values)
    return Recording(names, tape, [score for score, _ in outcomes], values)


def _repeated(args: Sequence[Any], rows: int, times: int) -> Sequence[Any]:
    """The arguments, with those that have a row for each sample repeated for each batch."""
    if times == 1:
        return args
    return [
        torch.cat([arg] * times)
        if isinstance(arg, Tensor) and arg.dim() > 0 and arg.size(0) * times == rows
        else arg
        for arg in args
    ]


#: Objects compared by identity.
_NAMED = (
    *(Tensor, nn.Module, types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(types.ModuleType, type, logging.Logger),
)
#: An attribute of these types changes only by being assigned.
_CONSTANT = {bool, int, float, complex, str, bytes, type(None), Tensor}
_OF_MODULES = frozenset(vars(nn.Module()))
_MOST_BYTES = 1 << 16


class _Pickler(pickle.Pickler):
    """Pickles objects' contents; tensors, modules and functions by identity."""

    def persistent_id(self, obj: Any) -> int | None:
        """A number for objects compared by identity."""
        if getattr(obj, "nbytes", 0) > _MOST_BYTES or type(obj).__module__ == "itertools":
            raise pickle.PicklingError("takes too long, or changes by being pickled")
        return id(obj) if isinstance(obj, _NAMED) else None


def _pickled(values: list[Any]) -> bytes | None:
    """The objects' contents, for comparison; None if they can't be pickled."""
    buffer = io.BytesIO()
    try:
        if values:
            _Pickler(buffer).dump(values)
    except Exception:  # a user's class may raise anything
        return None
    return buffer.getvalue()


def _random_states() -> tuple[Any, bytes, Any]:
    """Python's random state, and NumPy's twice: for comparison and for restoring."""
    numpy = sys.modules.get("numpy")
    state = None if numpy is None else numpy.random.get_state()
    return random.getstate(), b"" if state is None else state[1].tobytes(), state


class _State:
    """A snapshot of a critic's modules and of the random states before a recording.

    Args:
        critic: the critic; only a module's state can be seen.
        watching: whether :meth:`moved` will be called.
    """

    def __init__(self, critic: Any, *, watching: bool) -> None:
        modules = list(critic.modules()) if isinstance(critic, nn.Module) else []
        self.dicts: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (live, dict(live))
            for module in modules
            for live in (vars(module), module._parameters, module._buffers, module._modules)
            if live
        ]
        self.torch = torch.get_rng_state()
        self.watching = watching
        if watching:
            # These can change without an assignment.
            self.values = [
                value
                for module in modules
                for name, value in vars(module).items()
                if name not in _OF_MODULES
                and type(value) not in _CONSTANT
                and not (type(value) is tuple and _CONSTANT.issuperset(map(type, value)))
            ]
            self.pickled = _pickled(self.values)
            self.pointers = [
                (tensor, tensor.data_ptr())
                for _, held in self.dicts
                for tensor in held.values()
                if type(tensor) in (Tensor, nn.Parameter)
            ]
            self.random = _random_states()

    def moved(self) -> str | None:
        """Says what has changed since the snapshot, or None."""
        if any(list(map(id, a.values())) != list(map(id, b.values())) for a, b in self.dicts):
            return "the forward of a module assigns to its attributes, parameters or buffers"
        if self.pickled is None or self.pickled != _pickled(self.values):
            return "a forward may change an object that a module keeps"
        if any(tensor.data_ptr() != pointer for tensor, pointer in self.pointers):
            return "a forward assigns to the .data of a parameter or buffer"
        if _random_states()[:2] != self.random[:2]:
            return "a forward draws random numbers in Python"
        return None

    def put_back(self, tape: Tape) -> None:
        """Restores everything that the recording changed."""
        for live, before in self.dicts:
            live.clear()
            live.update(before)
        with torch.no_grad():
            for tensor, held in reversed(tape.undo):
                tensor.copy_(held)
        torch.set_rng_state(self.torch)
        if self.watching:
            random.setstate(self.random[0])
            if self.random[2] is not None:
                sys.modules["numpy"].random.set_state(self.random[2])


@dataclass
class Joining:
    """Whether a critic's batches may be joined, judging by earlier calls.

    Attributes:
        tries: how many calls may still test it. There are two, because lazy modules change state in
            the first call only.
        joined: whether joined batches gave the same scores as separate ones.
        casts: see :class:`fastgan.penalty.tape.Tape`.
    """

    tries: int = 2
    joined: bool = False
    casts: list[Cast] = field(default_factory=list)


_known: weakref.WeakKeyDictionary[nn.Module, dict[Any, Joining]] = weakref.WeakKeyDictionary()


def joining(critic: Critic, images: Tensor, names: tuple[str, ...]) -> Joining:
    """What is known of joining this critic's batches, for images of this kind.

    Kept only for modules without hooks: a hook would run once for all batches.
    """
    inner = critic.inner
    modules = list(inner.modules()) if isinstance(inner, nn.Module) else []
    hooks: list[Any] = [nn_module._global_forward_hooks, nn_module._global_forward_pre_hooks]
    for m in modules:
        hooks += (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)
    if any(hooks) or not modules:
        return Joining(tries=0)
    key = (
        *(images.shape, images.dtype, images.device, names),
        torch.is_autocast_enabled(images.device.type),
        tuple(arg.shape if isinstance(arg, Tensor) else type(arg) for arg in critic.args),
        any(module.training for module in modules),
    )
    return _known.setdefault(inner, {}).setdefault(key, Joining())
