"""The rule protocol: an op's derivatives.

With J the derivative of the op's results by its inputs, d an output gradient, u a tangent of the
inputs:

    vjp         J^T d                                    from results to inputs and parameters
    jvp         J u                                      from inputs to results
    gradients   the gradient of <d, J u> by the inputs, with d and u held fixed

:class:`Autograd` computes all three by autograd for a single op, so every op has a rule.
Common ops have rules of their own (:mod:`fastgan.penalty.rules` is their table).

A slot is an argument's position, or (position of a list, index in it).
"""

# ruff: noqa: D102 - documented in Rule

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.entries import Node, Value

Slots = dict[Any, "Tensor | None"]
Grads = Sequence["Tensor | None"]
OUTPUT = -1


#: Kinds of J, in the reports' words.
LINEAR = "linear"
PIECEWISE_LINEAR = "piecewise linear, its mask"
SMOOTH = "smooth; the gradient of its second derivative is carried back from here"
UNKNOWN = "its derivatives are unknown"


class Rule:
    """The derivatives of an op.

    Attributes:
        name: name in reports; empty for the op's own name.
        kind: the kind of J, a constant of this module.
        by_rows: whether derivatives can be computed for a subset of rows.
        broadcasts: whether inputs broadcast row by row, so that those independent of the images may
            also have a row per sample.
        keeps_rows: whether ``run`` saves tensors with rows for each sample.
        merges: whether ``gradients`` is the same linear function of the tangent as ``vjp`` is of
            the input, so one call with the sum of both computes both.
        left: the argument that ``merges`` refers to.
        bias: the argument that is only added, if any.
    """

    name = ""
    kind = PIECEWISE_LINEAR
    by_rows = True
    broadcasts = False
    keeps_rows = False
    merges = False
    left = 0
    bias: int | None = None

    def for_node(self, node: Node) -> Rule:
        """The rule for these arguments: this one or another."""
        return self

    def kind_of(self, node: Node) -> str:
        """The kind of a node's J."""
        return self.kind

    def smooth(self, node: Node) -> bool:
        """Whether J depends on the images by more than a mask."""
        return self.kind_of(node) in (SMOOTH, UNKNOWN)

    def reads(self, node: Node) -> Iterable[Any]:
        """The slots that the derivatives read; :data:`OUTPUT` is the first result."""
        return node.slots

    def moves(self, node: Node, args: Sequence[Any]) -> Iterable[Tensor]:
        """Tensors that the op changes in place without its schema saying so."""
        return ()

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Runs the op."""
        return func(*args, **kwargs)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        """Runs the op in functions that are differentiable to any order."""
        return node.func(*args, **node.kwargs)

    def batched(self, node: Node, samples: int) -> bool:
        """Whether each row of the result depends only on the same row of the batched inputs."""
        return aligned(node)

    def keeps_dtype(self, node: Node) -> bool:
        """Whether the derivatives take gradients of another dtype than the result's."""
        return False

    def backend(self, node: Node) -> tuple[str, str]:
        """The backend, as :class:`fastgan.explaining.report.Row` names it, and the reason."""
        return "aten", ""

    # By default the op has one differentiable result, and its slots are computed separately.

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        """J^T d for one slot."""
        raise NotImplementedError(type(self).__name__)

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        """J u for one slot's tangent; by default ``slot_vjp``, for symmetric J."""
        return self.slot_vjp(node, tangent, slot)

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        """The gradient of <d, J u> for one slot."""
        return None

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        """J^T d for the requested slots."""
        grad = grads[0]
        return {} if grad is None else {slot: self.slot_vjp(node, grad, slot) for slot in wanted}

    def jvp(self, node: Node, tangents: Slots) -> list[Tensor | None]:
        """J u, for each result."""
        total: Tensor | None = None
        for slot, tangent in tangents.items():
            if tangent is not None:
                part = self.slot_jvp(node, tangent, slot)
                total = part if total is None else total + part
        (output, *others) = node.outputs
        if total is not None and output is not None and total.shape != output.shape:
            total = total.expand(output.shape)
        return [total, *[None] * len(others)]

    def gradients(self, node: Node, tangents: Slots, grads: Grads, wanted: Iterable[Any]) -> Slots:
        """The gradient of <d, J u> for the requested slots."""
        grad = grads[0]
        if grad is None:
            return {}
        return {slot: self.slot_gradient(node, grad, tangents, slot) for slot in wanted}


class Chosen(Rule):
    """Selects a rule by the node's arguments."""

    def __init__(self, choose: Callable[[Node], Rule]) -> None:
        self.choose = choose

    def for_node(self, node: Node) -> Rule:
        return self.choose(node)


class Autograd(Rule):
    """Computes one op's derivatives by autograd.

    Args:
        kind: the kind of J.
        by_rows: whether the op keeps the rows of its inputs apart.
        broadcasts: whether the inputs broadcast row by row.
    """

    def __init__(
        self, kind: str = UNKNOWN, *, by_rows: bool = False, broadcasts: bool = False
    ) -> None:
        self.kind, self.by_rows, self.broadcasts = kind, by_rows, broadcasts

    def batched(self, node: Node, samples: int) -> bool:
        return self.by_rows and aligned(node)

    def backend(self, node: Node) -> tuple[str, str]:
        return "autograd", "autograd, for this op only"

    def graph(self, node: Node) -> tuple[Sequence[Any], dict[Any, Tensor]]:
        """Runs the op again under autograd; returns its results and inputs."""
        inputs = {slot: _leaf(value) for slot, value in node.slots.items()}
        arguments = node.replaced(inputs.get)
        results = with_random(node, lambda: node.func(*arguments, **node.kwargs))
        return results if isinstance(results, (tuple, list)) else [results], inputs

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        with torch.enable_grad():
            results, inputs = self.graph(node)
        return differentiated(results, grads, inputs, wanted)

    def jvp(self, node: Node, tangents: Slots) -> list[Tensor | None]:
        output = node.outputs[0]
        elementwise = self.by_rows and list(tangents) == [0]
        if elementwise and output is not None and node.slots[0].shape == output.shape:
            return [self.vjp(node, [tangents[0]], [0]).get(0)]  # J is diagonal
        # The derivative of <w, J u> = <J^T w, u> in w, at ones: some formulas are singular at zero.
        with torch.enable_grad():
            results, inputs = self.graph(node)
            probes = {
                position: torch.ones_like(result, requires_grad=True)
                for position, result in enumerate(results)
                if isinstance(result, Tensor) and result.requires_grad
            }
            every = [probes.get(position) for position in range(len(results))]
            product = _product(results, every, inputs, tangents)
        grads = differentiated([product], [torch.ones_like(product)], probes, probes)
        return [grads.get(position) for position in range(len(results))]

    def gradients(self, node: Node, tangents: Slots, grads: Grads, wanted: Iterable[Any]) -> Slots:
        with torch.enable_grad():
            results, inputs = self.graph(node)
            product = _product(results, grads, inputs, tangents)
        return differentiated([product], [torch.ones_like(product)], inputs, wanted)


class _Graph(Autograd):
    """A recorded autograd graph of ops that torch's modes don't see."""

    def graph(self, node: Node) -> tuple[Sequence[Any], dict[Any, Tensor]]:
        result, leaves = node.kept
        return [result], dict(enumerate(leaves))

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        raise RuntimeError(
            "create_graph is set, but the critic calls what can't be run a second time "
            f"({node.func}); expected path='autograd', or create_graph=False"
        )


AUTOGRAD, GRAPH = Autograd(), _Graph()
POINTWISE = Autograd(by_rows=True, broadcasts=True)
PIECEWISE = Autograd(PIECEWISE_LINEAR, by_rows=True, broadcasts=True)


def with_random(node: Node, call: Callable[[], Any]) -> Any:
    """Runs ``call()`` with the node's random state."""
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


def differentiated(
    results: Sequence[Any],
    grads: Grads,
    inputs: dict[Any, Tensor],
    wanted: Iterable[Any],
    *,
    create_graph: bool = False,
) -> Slots:
    """The gradients of <grads, results> by autograd."""
    slots = list(wanted)
    pairs = [
        (result, grad)
        for result, grad in zip(results, grads, strict=False)
        if isinstance(result, Tensor) and result.requires_grad and grad is not None
    ]
    if not pairs or not slots:
        return {}
    computed = torch.autograd.grad(
        [result for result, _ in pairs],
        [inputs[slot] for slot in slots],
        [grad for _, grad in pairs],
        allow_unused=True,
        retain_graph=True,
        create_graph=create_graph,
    )
    return dict(zip(slots, computed, strict=True))


def _product(
    results: Sequence[Any], grads: Grads, inputs: dict[Any, Tensor], tangents: Slots
) -> Tensor:
    """<d, J u> as a function of the inputs."""
    slots = [slot for slot, tangent in tangents.items() if tangent is not None]
    derivatives = differentiated(results, grads, inputs, slots, create_graph=True)
    parts = []
    for slot, grad in derivatives.items():
        tangent = tangents[slot]
        if grad is not None and tangent is not None:
            if grad.is_complex():
                pair = (grad, tangent.to(grad.dtype))
                grad, tangent = (torch.view_as_real(t.resolve_conj()) for t in pair)
            parts.append((grad * tangent).sum())
    return sum(parts[1:], parts[0]) if parts else torch.zeros(())


def _leaf(value: Value) -> Tensor:
    assert value.tensor is not None
    return value.tensor.detach().requires_grad_()


def aligned(node: Node) -> bool:
    """Whether all inputs that depend on the images share the first result's first dimension."""
    output = node.outputs[0]
    shape = node.slots[node.inner[0]].shape if output is None else output.shape
    for slot in node.inner:
        other = node.slots[slot].shape
        if len(other) != len(shape) or other[:1] != shape[:1]:
            return False
    return len(shape) > 0


def sum_to(grad: Tensor, shape: Sequence[int]) -> Tensor:
    """Sums ``grad`` over dimensions broadcast from ``shape``; half precision is summed in
    float32."""
    if tuple(grad.shape) == tuple(shape):
        return grad
    if grad.dtype not in (torch.float16, torch.bfloat16):
        return grad.sum_to_size(tuple(shape))
    extra = grad.dim() - len(shape)
    summed = [d for d in range(grad.dim()) if d < extra or shape[d - extra] != grad.shape[d]]
    in_pieces = 0 in summed and sums_in_pieces(grad)
    pieces = grad.split(max(1, grad.size(0) // 16)) if in_pieces else (grad,)
    sums = [piece.sum(summed, keepdim=True, dtype=torch.float32) for piece in pieces]
    total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
    return total.view(tuple(shape))


def sums_in_pieces(tensor: Tensor) -> bool:
    """Whether 16-bit tensors are summed in pieces that fit the cache: on a CPU.

    There torch converts a whole tensor before it sums. On a GPU each piece would be a launch.
    """
    return tensor.device.type == "cpu"


def layout_of(shape: Sequence[int], dtype: torch.dtype) -> torch.memory_format:
    """The layout for images: channels-last for maps, in dtypes with fast convolutions."""
    if len(shape) == 4 and dtype != torch.float64:
        return torch.channels_last
    return torch.contiguous_format


def empty(shape: Sequence[int], like: Tensor | Value) -> Tensor:
    """An empty tensor of another's dtype and device, in the images' layout."""
    layout = layout_of(shape, like.dtype)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype of a tensor's statistics and sums."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
