"""Records a critic's forward as a tape of ATen ops.

The unchanged critic runs once on real tensors under two of torch's modes. A function mode sees
every call of a torch function. A call with the images, or anything computed from them, runs without
autograd under a dispatch mode that records its ATen ops. Everything else (spectral norm, embeddings
of labels, counters) runs under autograd as usual. A recorded op's input that requires grad becomes
one of the tape's parameters and keeps its graph.

The critic gets plain tensors that require grad, as in double backward. So calls that torch's modes
don't see (a ``torch.autograd.Function``, a scripted module) leave an autograd graph, which the tape
records as one op (:class:`fastgan.penalty.rule.Autograd`).

In-place ops are recorded as new values, also for other views of the same memory:
:meth:`Tape._write`.
"""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastgan._util import recording
from fastgan.penalty.casts import Cast, Casts, casts_alone, storage_of
from fastgan.penalty.entries import Node, Samples, Value
from fastgan.penalty.linear import read_region, write_region
from fastgan.penalty.rule import AUTOGRAD, GRAPH, OUTPUT
from fastgan.penalty.rules import RULES, Op, rule_of


class Unrecordable(BaseException):
    """No tape can be made; the message says why.

    Not an ``Exception``: a critic's ``except Exception`` must not catch it.
    """


class Changed(BaseException):
    """A joined batch must be split (an op changes state or mixes samples), or batches can be
    joined."""


class _Memory:
    """What is known of a storage."""

    #: Its first value, or its data before the first write if that isn't on the tape; and where.
    owner: tuple[Value | Tensor, tuple[Any, ...]] | None = None
    #: The values with data in it that derivatives read.
    saved: tuple[Value, ...] = ()
    #: The ops' arguments in it that aren't on the tape: lists and positions in these.
    constants: tuple[tuple[list[Any], int], ...] = ()
    #: If it was written in place: the written tensor, or the base of which that is a view.
    whole: weakref.ref[Tensor] | None = None
    #: The values written, and where.
    writes: tuple[tuple[Value, tuple[Any, ...]], ...] = ()
    #: Whether it was allocated during the recording.
    is_new = False
    #: Whether it is a copy where the critic asked for a view.
    is_copy = False


def _geometry(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """The tensors in tuples, lists and dicts."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, (tuple, list, dict)):
        for item in structure.values() if isinstance(structure, dict) else structure:
            yield from tensors_in(item)


class Tape(TorchFunctionMode):
    """Records a forward pass: a context manager within which the critic is called on
    :attr:`images`.

    Args:
        images: (N, ...), a tensor that nothing else references.
        joined: whether ``images`` concatenates several batches, which must not influence one
            another: :class:`Changed` is raised before an op changes state or mixes samples.
        divided: whether the tape will be :meth:`narrowed`: :class:`Changed` is also raised before
            an op that can't be.
        casts: the parameters that the critic's last recording cast; replaced by this one's.

    Attributes:
        images: the critic's argument.
        nodes: the ops in order.
        parameters: leaves, in order of first use.
        moves: why a second forward pass might differ, or None.
        mixes: the op that may couple samples, or None.
        undo: changed tensors and their earlier values.
    """

    def __init__(
        self,
        images: Tensor,
        *,
        joined: bool = False,
        divided: bool = False,
        casts: list[Cast] | None = None,
    ) -> None:
        super().__init__()
        self._known_casts = [] if casts is None else casts
        self._casts = Casts(self._known_casts.copy())
        self.nodes: list[Node] = []
        self.parameters: list[Value] = []
        self.moves: str | None = None
        self.mixes: str | None = None
        self.undo: list[tuple[Tensor, Tensor]] = []
        self.refused: Unrecordable | Changed | None = None
        self.joined = joined
        self.divided = divided
        self.layer = ""
        self._ops = _Ops(self)
        self._active = False
        self._entries: dict[int, tuple[weakref.ref[Tensor], Value, int]] = {}
        self._memory: defaultdict[int, _Memory] = defaultdict(_Memory)
        self._any_writes = False
        self._clean: set[Any] = set()
        #: Results computed under ``no_grad``.
        self._constants: list[weakref.ref[Tensor]] = []
        self.images: Tensor | None = images.requires_grad_()
        self.root = self._add(images, Value(images, True, False, True))

    # Entering and leaving -----------------------------------------------------------------------

    def __enter__(self) -> Tape:
        # Casts made here have no graph, so autocast must not cache them.
        self._cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)
        self._recording = recording.start()
        # A compiled submodule would trace the modes as part of it.
        compiler = "torch._dynamo" in sys.modules
        self._stance = torch.compiler.set_stance("force_eager") if compiler else None
        self._ops.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        self._ops.__exit__(*details)  # type: ignore[no-untyped-call]
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
        recording.end(self._recording)
        torch.set_autocast_cache_enabled(self._cached)

    def outcome(self, tensor: Tensor) -> Value:
        """The value of one of the critic's outputs; it may be a constant or a parameter."""
        return self._look_up(tensor) or Value(tensor, False, False, False)

    @contextlib.contextmanager
    def narrowed(self, rows: Samples, only: Node | None = None) -> Iterator[None]:
        """Narrows the tape, or ``only`` one op's inputs and outputs, to some samples' rows.

        Restored afterwards: the shapes and, with ``only``, the ops' saved tensors.
        """
        nodes = [] if rows.whole else [only] if only else [n for n in self.nodes if n.by_images]
        nodes_before = [(node, node.args, node.kept if only else None) for node in nodes]
        before: dict[Value, tuple[torch.Size, Tensor | None]] = {}
        for node in nodes:
            values = [node.slots[slot] for slot in (*node.inner, *_with_rows(node))]
            for value in (*values, *node.outputs):
                if value is not None:
                    saved = value.tensor if only or value.leaf is not None else None
                    before[value] = (value.shape, saved)
            if node.rule.broadcasts:
                node.args = node.replaced(partial(_cut, node, rows))
            if node.kept is not None and node.rule.keeps_rows:
                node.kept = [rows.of(tensor) for tensor in node.kept]
        for value in before:
            value.shape = rows.shape(value.shape)
            value.tensor = None if value.tensor is None else rows.of(value.tensor)
        try:
            yield
        finally:
            for node, args, kept in nodes_before:
                node.args, node.kept = args, kept
            for value, (shape, tensor) in before.items():
                value.shape, value.tensor = shape, tensor

    def close(self) -> None:
        """Ends the recording, and detaches tensors that the critic still holds."""
        held = {id(leaf) for node in self.nodes if node.rule is GRAPH for leaf in node.kept[1]}
        survivors = [
            tensor
            for ref, value, _ in self._entries.values()
            if value.by_images and (tensor := ref()) is not None and id(tensor) not in held
        ]
        self._entries.clear()
        self._memory.clear()
        self._clean.clear()
        self._constants.clear()
        self.images = None
        self._casts.end()
        self._known_casts[:] = self._casts.made
        for tensor in survivors:
            # Refused for autograd's own results; grad_fn raises for views of overwritten tensors.
            with contextlib.suppress(RuntimeError):
                tensor.requires_grad_(False)

    # Called by the function mode ----------------------------------------------------------------

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._active or func in _ASKING or torch._C._are_functorch_transforms_active():
            return func(*args, **kwargs)
        if self.refused is not None:
            raise self.refused
        if not (self._touched(args) or self._touched(kwargs)):
            return func(*args, **kwargs)
        if func in _OF_GRAPHS and args[0] is not self.images and self._by_images(args[0]):
            self._refuse("its forward reads a tensor's grad_fn or is_leaf")
        if not torch.is_grad_enabled():
            self._mixing("a tensor is used without a gradient")
            result = func(*args, **kwargs)
            self._constants.extend(map(weakref.ref, tensors_in(result)))
            return result
        if func in _REFUSED:
            self._refuse(f"its forward calls {_REFUSED[func]} on a tensor computed from the images")
        if func in _STOPPING:
            self._mixing("a tensor is used without its gradient")
            return func(*args, **kwargs)
        if func is torch.Tensor.requires_grad_:
            return args[0]
        replaced = _REPLACED.get(func)
        self._active = True
        torch._C._set_grad_enabled(False)  # torch.no_grad's own call, at a fifth of the time
        try:
            whole = func if replaced is None else partial(replaced, func)
            result = whole(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(True)
            self._active = False
        for tensor in tensors_in(result):
            known = self._by_images(tensor)
            if not known and func not in _NEW:
                self._mixing(f"{getattr(func, '__name__', func)} has a result without a gradient")
            if known:
                # Views of such tensors say that they require grad, but without this have no graph.
                tensor.requires_grad_()
        return result

    def _touched(self, structure: Any) -> bool:
        """Whether any tensor in a structure depends on the images."""
        for tensor in tensors_in(structure):
            if self._by_images(tensor):
                return True
            if tensor.grad_fn is not None and self._from_tape(tensor.grad_fn):
                return True
            if self._any_writes and self._memory[storage_of(tensor)].writes:
                return True
        return False

    def _by_images(self, tensor: Tensor | None) -> bool:
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor and entry[1].by_images

    # Called by the dispatch mode ----------------------------------------------------------------

    def op(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Runs an ATen op and, if necessary, records it."""
        info = rule_of(func)
        if info.writes:
            self._casts.written(tensors_in(args))
        if not self._active:
            return self._beside(info, args, kwargs)
        if info.writes:
            return self._write(info, args, kwargs)
        values, constants = self._values(info, args)
        if not values or info.constant:
            return self._beside(info, args, kwargs)
        for argument in kwargs.values():
            if isinstance(argument, Tensor) and self._find(argument) is not None:
                self._refuse(f"{func} takes a tensor computed from the images by keyword")
        node = self._node(info, args, kwargs, values, constants)
        for tensor in node.rule.moves(node, args):
            self._moving(f"{func} changes the critic's state in place", tensor)
        node.overwrite = recording.offered(args[0]) and not self._memory[storage_of(args[0])].saved
        if func is _CAST and isinstance(args[0], torch.nn.Parameter) and casts_alone(kwargs):
            result = self._casts.cast(args[0], kwargs["dtype"])
        else:
            result = node.rule.run(node, func, args, kwargs)
        node.overwrite = False
        if not info.view:
            self._fresh(result)
        elif func in _RESHAPING and storage_of(result) != storage_of(args[0]):
            self._fresh(result)
            self._memory[storage_of(result)].is_copy = True
        self._record(node, args, result)
        return result

    def _beside(self, info: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Runs an op that isn't recorded."""
        func = info.func
        if info.random:
            self._moving(f"{func} draws random numbers")
        for tensor in info.written(args, kwargs) if info.writes else ():
            memory = self._memory[storage_of(tensor)]
            if memory.owner is not None:
                self._refuse(
                    f"{func} changes a tensor computed from the images, unseen by autograd"
                )
            if not memory.is_new:
                self._moving(f"{func} changes the critic's state in place", tensor)
            self._preserve(memory)
        result = func(*args, **kwargs)
        if not info.view:
            self._fresh(result)
        return result

    def _fresh(self, result: Any) -> None:
        """Forgets the history of a result's memory, which is newly allocated."""
        for tensor in (result,) if isinstance(result, Tensor) else tensors_in(result):
            if tensor.layout == torch.strided:
                memory = self._memory[storage_of(tensor)]
                memory.owner, memory.writes = None, ()
                memory.is_new, memory.is_copy = True, False

    def _values(self, info: Op, args: Sequence[Any]) -> tuple[dict[Any, Value], dict[Any, Tensor]]:
        """Splits tensors into those on the tape, adding parameters to it, and others."""
        values: dict[Any, Value] = {}
        constants: dict[Any, Tensor] = {}
        for slot, tensor in _slots(info, args):
            value = self._look_up(tensor)
            if value is None:
                constants[slot] = tensor
            else:
                values[slot] = value
        return values, constants

    def _look_up(self, tensor: Tensor) -> Value | None:
        value = self._find(tensor)
        if value is None and tensor.requires_grad:
            if tensor.grad_fn is not None and self._from_tape(tensor.grad_fn):
                return self._graph(tensor)
            return self._parameter(tensor)
        return value

    def _find(self, tensor: Tensor) -> Value | None:
        entry = self._entries.get(id(tensor))
        known = entry is not None and entry[0]() is tensor
        if self._any_writes:
            memory = self._memory[storage_of(tensor)]
            if memory.writes and not (known and entry[2] == len(memory.writes)):  # type: ignore[index]
                if known or (self._is_part(tensor, memory) and not self._is_from_graph(tensor)):
                    return self._reread(tensor, memory)
                return None
        return entry[1] if known else None  # type: ignore[index]

    def _node(
        self,
        info: Op,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        values: dict[Any, Value],
        constants: dict[Any, Tensor],
    ) -> Node:
        rule = info.rule
        node = Node(info.func, rule, list(args), kwargs)
        node.layer = self.layer
        if info.random:
            self._moving(f"{info.func} draws random numbers")
            node.random = _random_state(args)
        for position in info.lists:
            if isinstance(args[position], (list, tuple)):
                node.args[position] = list(args[position])
        for slot, value in values.items():
            node.put(slot, value)
        for slot, tensor in constants.items():
            # detach() has its own data pointer, so a later `.data = ` has no effect here.
            place = node.put(slot, tensor.detach())
            if tensor.layout == torch.strided:
                self._memory[storage_of(tensor)].constants += (place,)
        node.take(values)
        node.rule = (
            AUTOGRAD
            if any(value.dtype.is_complex for value in values.values())
            else rule.for_node(node)
        )
        return node

    def _record(self, node: Node, args: Sequence[Any], result: Any) -> None:
        results = result if isinstance(result, (tuple, list)) else [result]
        by_parameters = bool(node.outer)
        for tensor in results:
            value = None
            if isinstance(tensor, Tensor) and (tensor.is_floating_point() or tensor.is_complex()):
                value = self._add(tensor, Value(tensor, node.by_images, by_parameters, False))
                if tensor.is_complex() and node.rule is not GRAPH:
                    # Autograd knows when to conjugate, also with mixed real and complex arguments.
                    node.rule = AUTOGRAD
            node.outputs.append(value)
        if node.by_images:
            batched = all(node.slots[slot].batched for slot in node.inner)
            if not batched or not node.rule.batched(node, self.root.shape[0]):
                self._mixing(f"{node.func} may mix the samples of a batch")
                batched = False
            if self.joined and self.divided and not _divisible(node):
                self._changed(f"{node.func} has no derivatives of some rows alone")
            for value in node.outputs:
                if value is not None:
                    value.batched = batched
        if by_parameters or node.by_images:
            self._keep(node, args, results)
            self.nodes.append(node)

    def _keep(self, node: Node, args: Sequence[Any], results: Sequence[Any]) -> None:
        for slot in node.rule.reads(node):
            if slot == OUTPUT:
                value, tensor = node.outputs[0], results[0]
            else:
                value = node.slots.get(slot)
                tensor = args[slot[0]][slot[1]] if isinstance(slot, tuple) else args[slot]
            if value is not None:
                value.readers += 1
                node.reads.append(value)
                if value.tensor is None:
                    self._hold(value, tensor)

    def _hold(self, value: Value, tensor: Tensor) -> None:
        # A separate tensor: other references to the data then show in the storage's count.
        value.tensor = tensor.detach()
        self._memory[storage_of(tensor)].saved += (value,)

    def _add(self, tensor: Tensor, value: Value) -> Value:
        version = 0
        if value.leaf is None:
            memory = self._memory[storage_of(tensor)]
            version = len(memory.writes)
            if memory.owner is None:
                memory.owner = value, _geometry(tensor)
        self._entries[id(tensor)] = (weakref.ref(tensor), value, version)
        return value

    def _parameter(self, tensor: Tensor) -> Value:
        value = Value(tensor, False, True, False)
        value.leaf = tensor
        self._hold(value, tensor)
        self._add(tensor, value)
        self.parameters.append(value)
        return value

    # Graphs of ops that the modes don't see -----------------------------------------------------

    def _is_from_graph(self, tensor: Tensor) -> bool:
        """Whether a view is the result of an op that the modes don't see."""
        try:
            grad_fn = tensor.grad_fn
        except RuntimeError:  # a view of what was written
            return False
        return grad_fn is not None and self._from_tape(grad_fn)

    def _from_tape(self, grad_fn: Any) -> bool:
        """Whether an autograd graph leads back to the tape."""
        functions = []
        for function in _functions(grad_fn, self._clean):
            if self._by_images(getattr(function, "variable", None)):
                return True  # searched again next time
            functions.append(function)
        self._clean.update(functions)
        return False

    def _graph(self, tensor: Tensor) -> Value:
        """Records the autograd graph that ends in ``tensor``."""
        if self.joined:
            self._changed("a graph that torch's modes don't see may mix the samples of a batch")
        leaves: list[Tensor] = []
        for function in _functions(tensor.grad_fn):
            if (unknown := _UNSEEN.get(type(function).__name__)) is not None:
                self._refuse(unknown)
            if _differentiable_once(function):
                self._refuse(f"{type(function).__name__} is marked once_differentiable")
            variable = getattr(function, "variable", None)
            if variable is not None and all(variable is not leaf for leaf in leaves):
                leaves.append(variable)
        values: dict[Any, Value] = {}
        for position, leaf in enumerate(leaves):
            value = self._find(leaf)
            values[position] = self._parameter(leaf) if value is None else value
        node = Node(type(tensor.grad_fn).__name__, GRAPH, list(values.values()), {})
        node.take(values)
        node.layer = self.layer
        node.kept = (tensor, leaves)
        self._record(node, leaves, tensor)
        return node.result

    # Writing in place ---------------------------------------------------------------------------

    def _preserve(self, memory: _Memory) -> None:
        """Copies what is needed of a storage that is about to be overwritten."""
        for value in memory.saved:
            if value.tensor is not None:
                value.tensor = value.tensor.clone()
        for arguments, position in memory.constants:
            if arguments[position] is not None:
                arguments[position] = arguments[position].clone()
        memory.saved = memory.constants = ()

    def _write(self, info: Op, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Records an in-place op as a new value of the written tensor."""
        func, (values, constants) = info.func, self._values(info, args)
        written = list(info.written(args, kwargs))
        if not values:
            return self._beside(info, args, kwargs)
        if torch.Tag.inplace_view in func.tags and info.functional is not None:
            node = self._node(rule_of(info.functional), args, kwargs, values, constants)
            self._record(node, args, func(*args, **kwargs))
            return args[0]
        if len(written) != 1 or written[0] is not args[0] or info.functional is None:
            self._refuse(f"{func} writes a tensor computed from the images to one of the critic's")
        target = written[0]
        memory = self._memory[storage_of(target)]
        if memory.is_copy:
            self._refuse(f"{func} writes to a view with another memory layout")
        if not memory.is_new and memory.owner is None:
            self._moving(f"{func} changes the critic's state in place", target)
        node = self._node(rule_of(info.functional), args, kwargs, values, constants)
        if 0 in values and 0 in node.rule.reads(node) and values[0].tensor is None:
            self._hold(values[0], target)
        if not memory.writes:
            whole = target if target._base is None else target._base
            memory.whole = weakref.ref(whole)
            if memory.owner is None and whole.requires_grad:
                memory.owner = self._find(whole) or self._parameter(whole), _geometry(whole)
            elif memory.owner is None:
                elements = target.untyped_storage().nbytes() // target.element_size()
                flat = target.as_strided((elements,), (1,), 0)
                memory.owner = flat.clone(), _geometry(flat)
        self._preserve(memory)
        result = func(*args, **kwargs)
        self._record(node, args, target)
        memory.writes += ((node.result, _geometry(target)),)
        self._any_writes = True
        self._entries[id(target)] = (weakref.ref(target), node.result, len(memory.writes))
        return result

    def _is_part(self, tensor: Tensor, memory: _Memory) -> bool:
        """Whether a tensor off the tape is a view of memory that was written.

        Detached tensors and views made without gradients don't count.
        """
        assert memory.whole is not None
        assert memory.owner is not None
        whole, base = memory.whole(), tensor._base
        if tensor is whole or base is None or base is not whole:
            return tensor is whole
        if self._active and isinstance(memory.owner[0], Tensor):
            # Within a call, views of the critic's own memory are also made without gradients.
            return all(constant() is not tensor for constant in self._constants)
        made = torch._C._autograd._get_creation_meta(tensor)
        return made != torch._C._autograd.CreationMeta.NO_GRAD_MODE

    def _reread(self, tensor: Tensor, memory: _Memory) -> Value:
        """A tensor's value after a write through another view."""
        geometry = _geometry(tensor)
        value, where = memory.writes[-1]
        if where != geometry or value.dtype != tensor.dtype:
            if self.joined:
                self._changed("a view of a written tensor may mix the samples of a batch")
            elements = tensor.untyped_storage().nbytes() // tensor.element_size()
            flat: Value | Tensor = tensor.new_zeros(()).expand(elements)
            assert memory.owner is not None
            for piece, place in (memory.owner, *memory.writes):
                if piece.dtype != tensor.dtype:
                    self._refuse("its forward writes to a view that has another dtype")
                flat = self._region(write_region, tensor, (elements,), flat, piece, place)
            value = self._region(read_region, tensor, geometry[0], flat, geometry)
        self._entries[id(tensor)] = (weakref.ref(tensor), value, len(memory.writes))
        return value

    def _region(self, func: Any, like: Tensor, shape: Sequence[int], *args: Any) -> Value:
        """Records a read or write of a flat storage."""
        node = Node(func, RULES[func], list(args), {})
        node.take({i: arg for i, arg in enumerate(args) if isinstance(arg, Value)})
        value = Value(like, node.by_images, bool(node.outer), False)
        value.shape = torch.Size(shape)
        node.outputs = [value]
        self.nodes.append(node)
        return value

    # Giving up ----------------------------------------------------------------------------------

    def _moving(self, reason: str, tensor: Tensor | None = None) -> None:
        """Notes a side effect, and saves the tensor's data in case the recording is abandoned."""
        if tensor is not None and not self.joined:
            self.undo.append((tensor, tensor.detach().clone()))
        self.moves = self.moves or reason
        if self.joined:
            self._changed(reason)

    def _mixing(self, reason: str) -> None:
        """Notes an op that may mix samples, or after which rows can't be followed."""
        self.mixes = self.mixes or reason
        if self.joined:
            self._changed(reason)

    def _changed(self, reason: str) -> None:
        self.refused = Changed(reason)
        raise self.refused

    def _refuse(self, reason: str) -> None:
        self.refused = Unrecordable(reason)
        raise self.refused


def _slots(info: Op, args: Sequence[Any]) -> Iterator[tuple[Any, Tensor]]:
    """The tensors among an op's arguments."""
    given: list[tuple[Any, Any]]
    given = [(position, args[position]) for position in info.tensors if position < len(args)]
    for position in info.lists:
        if position < len(args) and isinstance(args[position], (list, tuple)):
            given += [((position, index), item) for index, item in enumerate(args[position])]
    for slot, tensor in given:
        if isinstance(tensor, Tensor):
            yield slot, tensor


def _has_rows(node: Node, slot: Any, argument: Value | Tensor) -> bool:
    """Whether an argument's rows match the result's rows one to one."""
    output = node.outputs[0]
    if output is None:
        return False
    same_rank = isinstance(slot, tuple) or len(argument.shape) == len(output.shape)
    return same_rank and argument.shape[:1] == output.shape[:1] != ()


def _with_rows(node: Node) -> list[Any]:
    """The slots, among those depending on parameters only, that have a row per result row."""
    if not node.own or not node.rule.broadcasts:
        return []
    return [slot for slot in node.own if _has_rows(node, slot, node.slots[slot])]


def _divisible(node: Node) -> bool:
    """Whether a joined batch with this op can be :meth:`Tape.narrowed`."""
    own = (node.slots[slot] for slot in _with_rows(node))
    return node.rule.by_rows and all(value.leaf is not None for value in own)


def _cut(node: Node, rows: Samples, slot: Any, argument: Any) -> Any:
    """A constant's rows if it has one per result row; any other argument unchanged."""
    is_cut = isinstance(argument, Tensor) and _has_rows(node, slot, argument)
    return rows.of(argument) if is_cut else argument


_CAST = torch.ops.aten._to_copy.default

#: View ops that copy if the memory layout requires it.
_RESHAPING = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}


def _functions(grad_fn: Any, known: Container[Any] = ()) -> Iterator[Any]:
    """An autograd graph's functions, except known ones and those only these lead to."""
    pending, seen = [grad_fn], {None}
    while pending:
        function = pending.pop()
        if function not in seen and function not in known:
            seen.add(function)
            yield function
            pending.extend(f for f, _ in function.next_functions)


#: The code that ``once_differentiable`` wraps a backward in.
_ONCE = once_differentiable(print).__code__


def _differentiable_once(function: Any) -> bool:
    """Whether a custom function's backward is marked so.

    torch raises where such a backward pass is differentiated together with its output gradients,
    which are constants here.
    """
    backward = getattr(getattr(type(function), "_forward_cls", None), "backward", None)
    while backward is not None and getattr(backward, "__code__", None) is not _ONCE:
        backward = getattr(backward, "__wrapped__", None)
    return backward is not None


#: Autograd's nodes that can't be differentiated one at a time.
_UNSEEN = {
    "BackwardHookFunctionBackward": "a module has a backward hook",
    "CheckpointFunctionBackward": "a reentrant checkpoint runs its part again in backward",
}


class _Ops(TorchDispatchMode):
    """Passes ATen ops to the tape."""

    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = weakref.proxy(tape)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.tape.op(func, args, kwargs or {})


def _random_state(args: Iterable[Any]) -> tuple[torch.device, Tensor]:
    """The device that an op draws random numbers on, and its current random state."""
    for tensor in tensors_in(tuple(args)):
        if tensor.device.type == "cuda":
            return tensor.device, torch.cuda.get_rng_state(tensor.device)
    return torch.device("cpu"), torch.get_rng_state()


def _by_products(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Attention as matrix products: the fused kernels have no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        return func(*args, **kwargs)


def _instance_norm(func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Instance norm with batch statistics is group norm with one group per channel."""
    names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    own = given.get("use_input_stats", True) and given.get("running_mean") is None
    if not own or input.dim() < 3 or math.prod(input.shape[2:]) < 2:
        result: Tensor = func(input, *args, **kwargs)
        return result
    return F.group_norm(
        input, input.size(1), given.get("weight"), given.get("bias"), given.get("eps", 1e-5)
    )


def _of_tensors(*names: str) -> set[Any]:
    return {getattr(torch.Tensor, name) for name in names}


_DATA: Any = torch.Tensor.data
#: Queries of metadata, which aren't recorded.
_ASKING = {
    *_of_tensors("size", "__len__", "dim", "numel", "is_floating_point", "stride", "is_contiguous"),
    *(
        query.__get__
        for query in _of_tensors("shape", "dtype", "device", "ndim", "layout", "requires_grad")
    ),
    getattr(torch.Tensor, "is_cuda").__get__,  # noqa: B009 - typed as its value
}
#: Attributes that have other values than under autograd.
_OF_GRAPHS = {getattr(torch.Tensor, name).__get__ for name in ("grad_fn", "is_leaf")}
#: Their results depend on a tensor's shape alone.
_NEW = _of_tensors("new_empty", "new_full", "new_ones", "new_zeros", "new_tensor") | {
    getattr(torch, f"{name}_like") for name in ("empty", "full", "ones", "zeros", "rand", "randn")
}
#: Their results are constants, as with autograd.
_STOPPING = {torch.Tensor.detach, torch.detach, _DATA.__get__}
#: Calls that can't be recorded.
_REFUSED = {
    torch.autograd.grad: "torch.autograd.grad",
    torch.autograd.backward: "backward",
    _DATA.__set__: "an assignment to .data",
    **{
        getattr(torch.Tensor, name): name
        for name in (
            *("backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad"),
            *("detach_", "set_"),
        )
    },
}
_REPLACED = {
    F.scaled_dot_product_attention: _by_products,
    F.multi_head_attention_forward: _by_products,
    F.instance_norm: _instance_norm,
    torch.instance_norm: _instance_norm,
}
