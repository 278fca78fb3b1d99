"""Rules of linear maps: views, sums, pooling, padding, resampling, joining, adding."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.upfirdn2d import transposed
from fastgan.penalty.entries import Node, Value
from fastgan.penalty.rule import (
    AUTOGRAD,
    LINEAR,
    PIECEWISE,
    PIECEWISE_LINEAR,
    POINTWISE,
    Chosen,
    Grads,
    Rule,
    Slots,
    aligned,
    differentiated,
    empty,
    sum_to,
)

aten = torch.ops.aten


class _Linear(Rule):
    """A linear map: its jvp is the map itself, which autograd transposes.

    Args:
        transpose: (node, grad) -> J^T grad; None asks autograd.
        mapped: (node, tangent) -> J tangent; None is the op itself.
        dims: positions of the arguments that name dimensions.
        batched: (node, number of samples) -> whether it keeps samples apart; None: it does if
            ``dims`` don't include the first dimension.
        by_rows: whether it can be applied to a subset of rows.
        kind: PIECEWISE_LINEAR if ``run`` chooses the map.
        name: name in reports.
    """

    def __init__(
        self,
        transpose: Callable[[Node, Tensor], Tensor] | None = None,
        mapped: Callable[[Node, Tensor], Any] | None = None,
        *,
        dims: Sequence[int] = (),
        batched: Callable[[Node, int], bool] | None = None,
        by_rows: bool = True,
        kind: str = LINEAR,
        name: str = "",
    ) -> None:
        self.by_rows, self.kind, self.name = by_rows, kind, name
        self.transpose, self.mapped = transpose, mapped
        self.dims, self.keeps_apart = dims, batched

    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else AUTOGRAD

    def reads(self, node: Node) -> Iterable[Any]:
        return ()

    def batched(self, node: Node, samples: int) -> bool:
        if self.keeps_apart is not None:
            return self.keeps_apart(node, samples)
        if any(0 in _dims(node, position) for position in self.dims):
            return False
        return node.result.shape[:1] == node.slots[0].shape[:1] != ()

    def jvp(self, node: Node, tangents: Slots) -> list[Tensor | None]:
        tangent = tangents.get(0)
        if tangent is None:
            return [None] * len(node.outputs)
        if self.mapped is not None:
            return [self.mapped(node, tangent)]
        result = node.func(*node.replaced(tangents.get), **node.kwargs)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        if self.transpose is not None and grads[0] is not None:
            return {0: self.transpose(node, grads[0])}
        inputs: dict[Any, Tensor] = {
            slot: empty(value.shape, value).requires_grad_() for slot, value in node.slots.items()
        }
        with torch.enable_grad():
            results = self.jvp(node, {**inputs})
        return differentiated(results, grads, inputs, wanted)


def _dims(node: Node, position: int) -> list[int]:
    """The dimensions given by an argument; all if it is missing or empty."""
    rank = len(node.slots[0].shape)
    given = node.args[position] if position < len(node.args) else None
    listed = [given] if isinstance(given, int) else given
    return sorted(dim % max(rank, 1) for dim in listed) if listed else list(range(rank))


# One tensor ------------------------------------------------------------------------------------


class _View(_Linear):
    """The same elements in another shape; a copy if the layout doesn't allow a view."""

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            # Images are always channels-last here, so a view may be impossible.
            return args[0].contiguous().view(args[1])

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        return args[0].reshape(args[1])


def _reshaped(node: Node, input: Tensor) -> Tensor:
    return input.reshape(node.result.shape)


def _unshaped(node: Node, grad: Tensor) -> Tensor:
    return grad.reshape(node.slots[0].shape)


def _whole_samples(node: Node, samples: int) -> bool:
    """Whether rows are split or merged only within samples."""
    output = node.result.shape
    return len(output) > 0 and output[0] % samples == 0


class _Cast(_Linear):
    def for_node(self, node: Node) -> Rule:
        dtype = node.kwargs.get("dtype")
        real = dtype is None or dtype.is_floating_point
        return super().for_node(node) if real and node.kwargs.get("device") is None else AUTOGRAD

    def keeps_dtype(self, node: Node) -> bool:
        # Parameters' gradients are converted together, when all are known: one launch on a GPU.
        leaf = node.slots[0].leaf
        return leaf is not None and leaf.dtype != torch.float64

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        return {0: grads[0]} if self.keeps_dtype(node) else super().vjp(node, grads, wanted)


def _unsummed(node: Node, grad: Tensor) -> Tensor:
    """A sum's vjp: the gradient, repeated over the summed dimensions."""
    shape = node.slots[0].shape
    if shape and not (len(node.args) > 2 and node.args[2]):
        for dim in _dims(node, 1):
            grad = grad.unsqueeze(dim)
    return grad.to(node.slots[0].dtype).expand(shape)


def _unaveraged(node: Node, grad: Tensor) -> Tensor:
    count = math.prod(node.slots[0].shape) // max(grad.numel(), 1)
    return _unsummed(node, grad / count)


class _Kept(_Linear):
    """A map chosen in the forward pass (a dropout mask, the maxima's indices) and saved."""

    keeps_rows = True

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        output, *node.kept = func(*args, **kwargs)
        return output, *node.kept


def _to_maxima(node: Node, grad: Tensor) -> Tensor:
    """Max pooling's vjp: gradients go to the maxima's positions."""
    shape = node.slots[0].shape
    flat = grad.new_zeros(shape).flatten(-2)
    # Windows overlap if the stride is smaller than the window, so gradients are summed.
    return flat.scatter_add_(-1, node.kept[0].flatten(-2), grad.flatten(-2)).view(shape)


def _from_maxima(node: Node, tangent: Tensor) -> Tensor:
    (indices,) = node.kept
    result: Tensor = tangent.flatten(-2).gather(-1, indices.flatten(-2)).view(indices.shape)
    return result


def _dropped(node: Node, grad: Tensor) -> Tensor:
    """native_dropout(x, p, training): x * mask / (1 - p)."""
    p, (mask,) = node.args[1], node.kept
    if node.args[2] is False or p == 0:
        return grad
    result: Tensor = grad * mask * (0.0 if p == 1 else 1 / (1 - p))
    return result


def _every_row(node: Node, samples: int) -> bool:
    """Whether the first index selects all rows, or is arange(N)."""
    first = node.args[1][0]
    if first is None or not isinstance(first, Tensor):
        return first is None
    if first.dtype == torch.bool or first.dim() != 1:
        return False
    return torch.equal(first, torch.arange(node.slots[0].shape[0], device=first.device))


# Several tensors -------------------------------------------------------------------------------


class _Sum(Rule):
    """A linear combination of tensors, broadcast row by row.

    Args:
        multiple: (node, slot, tensor) -> its multiple.
    """

    kind = LINEAR
    broadcasts = True

    def __init__(self, multiple: Callable[[Node, Any, Tensor], Tensor]) -> None:
        self.multiple = multiple

    def reads(self, node: Node) -> Iterable[Any]:
        return ()

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        value = node.slots[slot]
        return sum_to(self.multiple(node, slot, grad), value.shape).to(value.dtype)

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return self.multiple(node, slot, tangent)


def _added(*factors: float) -> _Sum:
    """left * a + right * b; alpha multiplies the second term (for rsub, the first)."""
    scaled = 1 if factors[0] == 1 else 0

    def multiple(node: Node, slot: Any, tensor: Tensor) -> Tensor:
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        factor = factors[slot] * (alpha if slot == scaled else 1)
        return tensor if factor == 1 else tensor * factor

    return _Sum(multiple)


_divided = _Sum(lambda node, slot, tensor: tensor / node.arg(1))


def _quotient(node: Node) -> Rule:
    """a / b with a constant b."""
    if node.kwargs.get("rounding_mode") or node.inner != [0]:
        return POINTWISE
    return _divided if set(node.slots) == {0} else PIECEWISE


class _Copy(_Sum):
    """copy_(target, source): the result is the source, in the target's shape and dtype."""

    broadcasts = False

    def batched(self, node: Node, samples: int) -> bool:
        return set(node.slots) == {1} and node.slots[1].shape == node.result.shape

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        # The op itself has no derivative.
        return args[1].to(args[0].dtype).expand_as(args[0]).clone()


class _Several(_Linear):
    """A linear map of several tensors."""

    broadcasts = True

    def for_node(self, node: Node) -> Rule:
        return self

    def jvp(self, node: Node, tangents: Slots) -> list[Tensor | None]:
        given = next((t for t in tangents.values() if t is not None), None)
        if given is None:
            return [None]

        def tangent(slot: Any, argument: Any) -> Any:
            present = tangents.get(slot)
            if present is None and isinstance(argument, (Value, Tensor)):
                return given.new_zeros(argument.shape)
            return argument if present is None else present

        return [node.func(*node.replaced(tangent), **node.kwargs)]


class _Join(_Several):
    """cat and stack."""

    @staticmethod
    def _dim(node: Node) -> int:
        return int(node.args[1] if len(node.args) > 1 else 0) % len(node.result.shape)

    def batched(self, node: Node, samples: int) -> bool:
        return self._dim(node) != 0

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        (grad,), dim = grads, self._dim(node)
        assert grad is not None
        if node.func is aten.stack.default:
            pieces: Sequence[Tensor] = grad.unbind(dim)
        else:
            lengths = [p.shape[dim] if len(p.shape) > dim else 0 for p in node.args[0]]
            pieces = grad.split_with_sizes(lengths, dim)
        return {slot: pieces[slot[1]].to(node.slots[slot].dtype) for slot in wanted}


def read_region(flat: Tensor, place: tuple[Any, ...]) -> Tensor:
    """Reads a region (shape, strides, offset) of a flat storage."""
    return flat.as_strided(*place)


def write_region(flat: Tensor, piece: Tensor, place: tuple[Any, ...]) -> Tensor:
    """A copy of a flat storage with a region overwritten."""
    # as_strided_scatter has wrong gradients (2.13).
    result = flat.clone(memory_format=torch.contiguous_format)
    result.as_strided(*place).copy_(piece)
    return result


def _unfiltered(node: Node, grad: Tensor) -> Tensor:
    f, *settings = (node.arg(position) for position in range(1, 7))
    return transposed(grad, f, node.slots[0].shape, *settings)


def _each(rule: Rule, *ops: Any) -> dict[Any, Rule]:
    return dict.fromkeys(ops, rule)


def _never(node: Node, samples: int) -> bool:
    return False


def _aligned(node: Node, samples: int) -> bool:
    return aligned(node)


#: Op -> its rule.
LINEAR_RULES: dict[Any, Rule] = {
    **_each(
        _View(_unshaped, _reshaped, batched=_whole_samples),
        *(aten.view.default, aten._unsafe_view.default),
    ),
    **_each(
        _Linear(_unshaped, _reshaped, batched=_whole_samples),
        *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default),
    ),
    **_each(_Linear(lambda node, grad: grad), aten.alias.default, aten.clone.default),
    aten._to_copy.default: _Cast(
        lambda node, grad: grad.to(node.slots[0].dtype),
        lambda node, input: input.to(node.kwargs.get("dtype") or input.dtype),
    ),
    aten.expand.default: _Linear(
        lambda node, grad: sum_to(grad, node.slots[0].shape).to(grad.dtype),
        lambda node, input: input.expand(node.result.shape),
        batched=_aligned,
    ),
    aten.permute.default: _Linear(
        batched=lambda node, samples: node.args[1][0] % len(node.args[1]) == 0
    ),
    aten.t.default: _Linear(lambda node, grad: grad.t(), batched=_never),
    aten.transpose.int: _Linear(dims=(1, 2)),
    **_each(
        _Linear(dims=(2,)),
        *(aten.split.Tensor, aten.split_with_sizes.default),
        *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
        aten.roll.default,
    ),
    **_each(
        _Linear(dims=(1,)),
        *(aten.select.int, aten.unbind.int, aten.cumsum.default, aten.flip.default),
    ),
    aten.repeat.default: _Linear(batched=_aligned, by_rows=False),
    aten.index.Tensor: _Linear(batched=_every_row, by_rows=False),
    **_each(_Linear(_unsummed, dims=(1,)), aten.sum.default, aten.sum.dim_IntList),
    **_each(_Linear(_unaveraged, dims=(1,)), aten.mean.default, aten.mean.dim),
    aten.neg.default: _Linear(lambda node, grad: -grad),
    aten.constant_pad_nd.default: _Linear(
        mapped=lambda node, input: aten.constant_pad_nd(input, node.args[1])
    ),
    aten.max_pool2d_with_indices.default: _Kept(
        _to_maxima, _from_maxima, kind=PIECEWISE_LINEAR, name="max_pool2d"
    ),
    aten.native_dropout.default: _Kept(_dropped, _dropped),
    aten.im2col.default: _Linear(batched=_whole_samples),
    torch.ops.fastgan.upfirdn2d.default: _Linear(_unfiltered),
    **_each(
        _Linear(),
        aten.slice.Tensor,
        *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
        *(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default),
        *(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default),
        *(aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default),
        *(aten.reflection_pad1d.default, aten.reflection_pad2d.default),
        *(aten.replication_pad1d.default, aten.replication_pad2d.default),
        *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default),
    ),
    **_each(_added(1.0, 1.0), aten.add.Tensor, aten.add.Scalar),
    **_each(_added(1.0, -1.0), aten.sub.Tensor, aten.sub.Scalar),
    **_each(_added(-1.0, 1.0), aten.rsub.Tensor, aten.rsub.Scalar),
    **_each(Chosen(_quotient), aten.div.Tensor, aten.div.Scalar),
    **_each(_Join(), aten.cat.default, aten.stack.default),
    aten.copy.default: _Copy(
        lambda node, slot, tensor: tensor if slot == 1 else torch.zeros_like(tensor)
    ),
    read_region: _Linear(name="as_strided", batched=_never, by_rows=False),
    write_region: _Several(name="as_strided", batched=_never, by_rows=False),
}
