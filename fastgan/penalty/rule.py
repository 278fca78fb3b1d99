"""What a tape has to know of an op: its derivatives.

With J the derivative of the op's results in what it takes, d the gradient of the results (a
signal), u a tangent of what it takes:

    vjp         J^T d                                    from results to inputs and parameters
    jvp         J u                                      from inputs to results
    gradients   the gradient of <d, J u> in what the op takes, with d and u held fixed

:class:`Autograd` asks autograd for all three, one op at a time; so there is no op without them.
Ops that are worth it have rules of their own (:mod:`fastgan.penalty.rules` is their table).

Where arguments are meant, a slot is the position of one, or of a list and an item in it.
"""

# ruff: noqa: D102 - what a method means, Rule says

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.entries import Node

__all__ = [
    "AUTOGRAD",
    "GRAPH",
    "POINTWISE",
    "Autograd",
    "Found",
    "Grads",
    "Rule",
    "Single",
    "aligned",
    "dimension",
    "layout_of",
    "sum_to",
    "wide",
    "with_random",
]

Found = dict[Any, "Tensor | None"]
Grads = Sequence["Tensor | None"]


class Rule:
    """The derivatives of an op.

    Attributes:
        name: for tables; empty for the op's own.
        bends: whether the op isn't linear in the images.
        by_rows: whether the derivatives can be had of some of the rows alone.
        broadcasts: whether what the op takes meets row by row, so that a constant may have rows.
        merges: whether ``gradients`` is linear in the tangent as it is in the input itself, so that
            a sum of both may stand for it.
        left: the argument that ``merges`` speaks of.
        bias: the argument that is only added; None if there is none.
        ours: whether it is this library's, and not autograd's.
        keeps: whether what the node keeps is needed for good.
    """

    name = ""
    bends = True
    by_rows = True
    broadcasts = False
    merges = False
    left = 0
    bias: int | None = None
    ours = True
    keeps = False

    def for_node(self, node: Node) -> Rule:
        """This rule, or another one that fits the node's arguments."""
        return self

    def slots_read(self, node: Node) -> Iterable[Any]:
        """Of which inputs the derivatives want the data."""
        return node.slots

    def reads_output(self, node: Node) -> bool:
        """Whether the derivatives want the first result's data."""
        return False

    def moves(self, node: Node, args: Sequence[Any]) -> Iterable[Tensor]:
        """The tensors that the op changes beside its results, though its schema says nothing."""
        return ()

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The op itself."""
        return func(*args, **kwargs)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        """The op in functions that autograd differentiates to any order."""
        return node.func(*args, **node.kwargs)

    def batched(self, node: Node, samples: int) -> bool:
        """Whether each row of the result comes of the same row of the (batched) inputs."""
        return False

    def curved(self, node: Node) -> bool:
        """Whether the derivative depends on the images."""
        return False

    def backend(self, node: Node) -> tuple[str, str]:
        """Whose arithmetic it is, in :class:`fastgan.report.Row`'s word, and why."""
        return "aten", ""

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        """J^T d for the wanted slots."""
        raise NotImplementedError(type(self).__name__)

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        """J u, for each result."""
        raise NotImplementedError(type(self).__name__)

    def gradients(self, node: Node, tangents: Found, grads: Grads, wanted: Iterable[Any]) -> Found:
        """The gradient of <d, J u>."""
        return {}


class Single(Rule):
    """Of an op whose first result alone is differentiated: one slot at a time."""

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        """J^T d for a slot."""
        raise NotImplementedError(type(self).__name__)

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        """J u of a slot's tangent; J being symmetric, as ``back`` unless it says otherwise."""
        return self.back(node, tangent, slot)

    def bend(self, node: Node, grad: Tensor, tangents: Found, slot: Any) -> Tensor | None:
        """The gradient of <d, J u> in a slot."""
        return None

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        grad = grads[0]
        return {} if grad is None else {slot: self.back(node, grad, slot) for slot in wanted}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        total: Tensor | None = None
        for slot, tangent in tangents.items():
            if tangent is not None:
                part = self.along(node, tangent, slot)
                total = part if total is None else total + part
        return [total, *[None] * (len(node.outputs) - 1)]

    def gradients(self, node: Node, tangents: Found, grads: Grads, wanted: Iterable[Any]) -> Found:
        grad = grads[0]
        if grad is None:
            return {}
        return {slot: self.bend(node, grad, tangents, slot) for slot in wanted}


class Autograd(Rule):
    """Asks autograd for the derivatives of one op.

    Args:
        pointwise: whether the op works element by element.
    """

    ours = False

    def __init__(self, *, pointwise: bool = False) -> None:
        self.by_rows = self.broadcasts = pointwise

    def batched(self, node: Node, samples: int) -> bool:
        return self.by_rows and aligned(node)

    def curved(self, node: Node) -> bool:
        return True

    def backend(self, node: Node) -> tuple[str, str]:
        return "autograd", "autograd, of this op alone"

    def graph(self, node: Node) -> tuple[Sequence[Any], dict[Any, Tensor]]:
        """The op run anew under autograd: its results, and what it took."""
        inputs = {slot: node.data(v).detach().requires_grad_() for slot, v in node.slots.items()}
        arguments = [node.arg(position) for position in range(len(node.args))]
        for slot, tensor in inputs.items():
            if isinstance(slot, tuple):
                arguments[slot[0]][slot[1]] = tensor
            else:
                arguments[slot] = tensor
        results = with_random(node, lambda: node.func(*arguments, **node.kwargs))
        return results if isinstance(results, (tuple, list)) else [results], inputs

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        with torch.enable_grad():
            results, inputs = self.graph(node)
        return _differentiated(results, grads, inputs, wanted)

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        # The derivative of <w, J u> = <J^T w, u> in w.
        with torch.enable_grad():
            results, inputs = self.graph(node)
            probes = {
                position: torch.zeros_like(result, requires_grad=True)
                for position, result in enumerate(results)
                if isinstance(result, Tensor) and result.requires_grad
            }
            every = [probes.get(position) for position in range(len(results))]
            product = _product(results, every, inputs, tangents)
        found = _differentiated([product], [_one(product)], probes, probes)
        return [found.get(position) for position in range(len(results))]

    def gradients(self, node: Node, tangents: Found, grads: Grads, wanted: Iterable[Any]) -> Found:
        with torch.enable_grad():
            results, inputs = self.graph(node)
            product = _product(results, grads, inputs, tangents)
        return _differentiated([product], [_one(product)], inputs, wanted)


class _Graph(Autograd):
    """The autograd graph of what torch's modes don't see, as it was recorded."""

    keeps = True

    def graph(self, node: Node) -> tuple[Sequence[Any], dict[Any, Tensor]]:
        result, leaves = node.kept
        return [result], dict(enumerate(leaves))

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return node.kept[0]

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        raise RuntimeError(
            "create_graph is set, but the critic calls what can't be run a second time "
            f"({node.func}); expected path='autograd', or create_graph=False"
        )


AUTOGRAD, POINTWISE, GRAPH = Autograd(), Autograd(pointwise=True), _Graph()


def with_random(node: Node, call: Callable[[], Any]) -> Any:
    """``call()``, drawing the numbers that the node drew."""
    if node.random is None:
        return call()
    device, state = node.random
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        if cuda:
            torch.cuda.set_rng_state(state, device)
        else:
            torch.set_rng_state(state)
        return call()


def _differentiated(
    results: Sequence[Any],
    grads: Grads,
    inputs: dict[Any, Tensor],
    wanted: Iterable[Any],
    *,
    create_graph: bool = False,
) -> Found:
    """The gradients of <grads, results>, for those that have any."""
    slots = list(wanted)
    pairs = [
        (result, grad)
        for result, grad in zip(results, grads, strict=False)
        if isinstance(result, Tensor) and result.requires_grad and grad is not None
    ]
    if not pairs or not slots:
        return {}
    found = torch.autograd.grad(
        [result for result, _ in pairs],
        [inputs[slot] for slot in slots],
        [grad for _, grad in pairs],
        allow_unused=True,
        retain_graph=True,
        create_graph=create_graph,
    )
    return dict(zip(slots, found, strict=True))


def _product(
    results: Sequence[Any], grads: Grads, inputs: dict[Any, Tensor], tangents: Found
) -> Tensor | None:
    """<d, J u> as a function of the inputs, or None where it is zero."""
    slots = [slot for slot, tangent in tangents.items() if tangent is not None]
    found = _differentiated(results, grads, inputs, slots, create_graph=True)
    total: Tensor | None = None
    for slot, grad in found.items():
        tangent = tangents[slot]
        if grad is not None and tangent is not None:
            if grad.is_complex():
                pair = (grad, tangent.to(grad.dtype))
                grad, tangent = (torch.view_as_real(each.resolve_conj()) for each in pair)
            part = (grad * tangent).sum()
            total = part if total is None else total + part
    return total


def _one(product: Tensor | None) -> Tensor | None:
    return None if product is None else torch.ones_like(product)


def aligned(node: Node) -> bool:
    """Whether the first dimension of what depends on the images is that of the result."""
    shapes = [node.slots[slot].shape for slot in node.inner]
    outputs = [value.shape for value in node.outputs if value is not None] or shapes[:1]
    return all(shapes) and all(
        len(shape) == len(output) and shape[0] == output[0]
        for shape in shapes
        for output in outputs
    )


def sum_to(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """``grad`` summed over what ``shape`` was broadcast along; halves are summed in float32."""
    if tuple(grad.shape) == tuple(shape):
        return grad
    if grad.dtype not in (torch.float16, torch.bfloat16):
        return grad.sum_to_size(tuple(shape))
    extra = grad.dim() - len(shape)
    summed = [d for d in range(grad.dim()) if d < extra or shape[d - extra] != grad.shape[d]]
    # On the CPU torch widens all before it sums: in pieces, which are small enough for its caches.
    pieces = grad.split(max(1, grad.size(0) // 16)) if 0 in summed else (grad,)
    sums = [piece.sum(summed, keepdim=True, dtype=torch.float32) for piece in pieces]
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return total.view(tuple(shape))


def dimension(node: Node, position: int, default: int = 0) -> int:
    """An argument that names a dimension of the first one, counted from its first."""
    dim = node.args[position] if position < len(node.args) else default
    return int(dim) % max(len(node.slots[0].shape), 1)


def layout_of(shape: Sequence[int], dtype: torch.dtype) -> torch.memory_format:
    """Of images: channels-last for maps in the dtypes that convolutions are fast in."""
    if len(shape) == 4 and dtype != torch.float64:
        return torch.channels_last
    return torch.contiguous_format


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype that statistics and sums of a tensor are computed in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
