"""Rules of linear maps: views, sums, pooling, padding, resampling, joining, adding.

A linear map's jvp is the map itself; autograd transposes it where no transpose is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.upfirdn2d import transposed
from fastgan.penalty.entries import Node, Samples
from fastgan.penalty.rule import (
    AUTOGRAD,
    PIECEWISE,
    POINTWISE,
    Found,
    Grads,
    Rule,
    aligned,
    differentiated,
    layout_of,
    sum_to,
)

__all__ = ["LINEAR", "REGION"]

aten = torch.ops.aten


class _Linear(Rule):
    """A linear map of several tensors, of which some may be constants."""

    nonlinear = False

    def reads(self, node: Node) -> Iterable[Any]:
        return ()

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        found: Found = {}
        for slot in wanted:
            value = node.slots[slot]
            input = torch.empty(
                value.shape,
                dtype=value.dtype,
                device=next(grad.device for grad in grads if grad is not None),
                memory_format=layout_of(value.shape, value.dtype),
                requires_grad=True,
            )
            with torch.enable_grad():
                results = self.jvp(node, {slot: input})
            found |= differentiated(results, grads, {slot: input}, [slot])
        return found


class _Map(_Linear):
    """A linear map of one tensor, its first argument.

    Args:
        transpose: (node, grad) -> J^T grad; None asks autograd.
        batched: (node, number of samples) -> whether it keeps samples apart.
        mapped: (node, tangent) -> J tangent; None is the op itself.
        by_rows: whether it can be applied to some rows only.
    """

    def __init__(
        self,
        transpose: Callable[[Node, Tensor], Tensor] | None = None,
        batched: Callable[[Node, int], bool] = lambda node, samples: True,
        mapped: Callable[[Node, Tensor], Any] | None = None,
        *,
        by_rows: bool = True,
    ) -> None:
        self.transpose = transpose
        self.keeps_apart = batched
        self.mapped = mapped or _itself
        self.by_rows = by_rows

    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else AUTOGRAD

    def batched(self, node: Node, samples: int) -> bool:
        return self.keeps_apart(node, samples)

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        if tangent is None:
            return [None] * len(node.outputs)
        result = self.mapped(node, tangent)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        if self.transpose is None or grads[0] is None:
            return super().vjp(node, grads, wanted)
        return {0: self.transpose(node, grads[0])}


def _itself(node: Node, input: Tensor) -> Any:
    rest = [node.arg(position) for position in range(1, len(node.args))]
    return node.func(input, *rest, **node.kwargs)


def _shape(node: Node) -> tuple[int, ...]:
    """The first result's."""
    value = node.outputs[0]
    assert value is not None
    return tuple(value.shape)


def _dims(node: Node, position: int) -> list[int]:
    """The dimensions that an argument names; all where it is missing or empty."""
    rank = len(node.slots[0].shape)
    given = node.args[position] if position < len(node.args) else None
    listed = [given] if isinstance(given, int) else given
    return sorted(dim % max(rank, 1) for dim in listed) if listed else list(range(rank))


# Which maps keep samples separate --------------------------------------------------------------


def _beside_first(*positions: int) -> Callable[[Node, int], bool]:
    """The dimensions that arguments name leave the first alone."""
    return lambda node, samples: all(0 not in _dims(node, position) for position in positions)


def _same_first(node: Node, samples: int) -> bool:
    """Rank and first dimension are unchanged."""
    shape, output = node.slots[0].shape, _shape(node)
    return len(shape) == len(output) and shape[:1] == output[:1]


def _whole_samples(node: Node, samples: int) -> bool:
    """Rows are split or merged within samples only."""
    output = _shape(node)
    return len(output) > 0 and output[0] % samples == 0


def _never(node: Node, samples: int) -> bool:
    return False


# Maps and transposes ---------------------------------------------------------------------------


class _View(_Map):
    """The same numbers in another shape; a copy where the layout doesn't allow a view."""

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            # Images are always channels-last here, so a view may not exist.
            return args[0].contiguous().view(args[1])

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        return args[0].reshape(args[1])


def _reshaped(node: Node, input: Tensor) -> Tensor:
    return input.reshape(_shape(node))


def _unshaped(node: Node, grad: Tensor) -> Tensor:
    return grad.reshape(node.slots[0].shape)


class _Cast(_Map):
    def for_node(self, node: Node) -> Rule:
        dtype = node.kwargs.get("dtype")
        real = dtype is None or dtype.is_floating_point
        return super().for_node(node) if real and node.kwargs.get("device") is None else AUTOGRAD


def _cast(node: Node, input: Tensor) -> Tensor:
    return input.to(node.kwargs.get("dtype") or input.dtype)


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


class _Kept(_Map):
    """A map that its forward pass has drawn or found, and keeps beside the output."""

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        output, node.kept = func(*args, **kwargs)
        return output, node.kept

    def narrow(self, node: Node, rows: Samples) -> None:
        node.kept = rows.of(node.kept)


class _MaxPool(_Kept):
    """Maximum over windows; the map is where each maximum came from."""

    name = "max_pool2d"
    nonlinear = True

    def for_node(self, node: Node) -> Rule:
        return self if len(node.slots[0].shape) == 4 else AUTOGRAD


def _to_places(node: Node, grad: Tensor) -> Tensor:
    shape = node.slots[0].shape
    flat = grad.new_zeros(*shape[:2], math.prod(shape[2:]))
    # Windows overlap if the stride is smaller than the window, so gradients are summed.
    return flat.scatter_add_(2, node.kept.flatten(2), grad.flatten(2)).view(shape)


def _from_places(node: Node, tangent: Tensor) -> Tensor:
    indices: Tensor = node.kept
    return tangent.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)


def _dropped(node: Node, grad: Tensor) -> Tensor:
    """native_dropout(x, p, training): x * mask / (1 - p)."""
    p, training = node.args[1], node.args[2] is not False
    if not training or p == 0:
        return grad
    mask: Tensor = node.kept
    return grad * mask * (0.0 if p == 1 else 1 / (1 - p))


class _Index(_Map):
    """x[indices]; the first index may be arange(N)."""

    def batched(self, node: Node, samples: int) -> bool:
        first = node.args[1][0]
        if first is None:
            return True
        if not isinstance(first, Tensor) or first.dtype == torch.bool or first.dim() != 1:
            return False
        return torch.equal(first, torch.arange(node.slots[0].shape[0], device=first.device))


# Several tensors -------------------------------------------------------------------------------


class _Meeting(_Linear):
    """For tensors that are broadcast, row by row."""

    broadcasts = True

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        values = node.slots
        return {
            slot: sum_to(self.along(node, grad, slot), values[slot].shape).to(values[slot].dtype)
            for slot in wanted
        }


class _Sum(_Meeting):
    """left * a + right * b; alpha multiplies the second term (for rsub, the first)."""

    def __init__(self, left: float = 1.0, right: float = 1.0) -> None:
        self.factors = (left, right)

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        scaled = slot == (1 if self.factors[0] == 1 else 0)
        factor = self.factors[slot] * (alpha if scaled else 1)
        return tangent if factor == 1 else tangent * factor


class _Divide(_Meeting):
    """a / b by a constant b."""

    def for_node(self, node: Node) -> Rule:
        if node.kwargs.get("rounding_mode") or node.inner != [0]:
            return POINTWISE
        return self if set(node.slots) == {0} else PIECEWISE

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        quotient: Tensor = tangent / node.arg(1)
        return quotient


class _Copy(_Meeting):
    """copy_(target, source): what is written takes the place of what was there."""

    broadcasts = False

    def batched(self, node: Node, samples: int) -> bool:
        return set(node.slots) == {1} and node.slots[1].shape == _shape(node)

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return tangent if slot == 1 else torch.zeros_like(tangent)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        # Not the op itself, which has no derivative.
        return args[1].to(args[0].dtype).expand_as(args[0]).clone()


class _Join(_Linear):
    """cat and stack."""

    broadcasts = True

    def _dim(self, node: Node) -> int:
        return int(node.args[1] if len(node.args) > 1 else 0) % len(_shape(node))

    def batched(self, node: Node, samples: int) -> bool:
        return self._dim(node) != 0

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        (grad,), dim = grads, self._dim(node)
        assert grad is not None
        if node.func is aten.stack.default:
            pieces: Sequence[Tensor] = grad.unbind(dim)
        else:
            lengths = [p.shape[dim] if len(p.shape) > dim else 0 for p in node.args[0]]
            pieces = grad.split_with_sizes(lengths, dim)
        return {slot: pieces[slot[1]].to(node.slots[slot].dtype) for slot in wanted}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        given = next((t for t in tangents.values() if t is not None), None)
        if given is None:
            return [None]
        pieces: list[Tensor] = []
        for item, piece in enumerate(node.args[0]):
            tangent = tangents.get((0, item))
            if tangent is None:
                shape = list(piece.shape)
                if self._dim(node) != 0 and len(shape) > 1:  # cat takes empty ones of any rank
                    shape[0] = given.shape[0]
                tangent = given.new_zeros(shape)
            pieces.append(tangent)
        return [node.func(pieces, *node.args[1:])]


class _Region(_Linear):
    """A flat storage with a piece written to its place; or, without a piece, that place read.

    Arguments: the storage before (or None where it wasn't on the tape), the piece, the place:
    (shape, strides, offset, length of the storage), and the storage's numbers where it wasn't.
    """

    name = "as_strided"
    by_rows = False

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        piece, place = node.args[1:3]
        given = (None, tangent) if slot == 1 else (tangent, piece)
        if slot == 0 and piece is not None:
            given = (tangent, tangent.new_zeros(()))
        result: Tensor = self.replay(node, (*given, place, None))
        return result

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return self.replay(node, args)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        flat, piece, (shape, strides, offset, length), before = args
        if piece is None:
            return flat.as_strided(shape, strides, offset)
        if flat is None:
            flat = piece.new_zeros(length) if before is None else before
        # Not as_strided_scatter, whose gradients are wrong (2.13).
        result = flat.clone(memory_format=torch.contiguous_format)
        result.as_strided(shape, strides, offset).copy_(piece)
        return result


REGION = _Region()


def _unfiltered(node: Node, grad: Tensor) -> Tensor:
    f, *settings = (node.arg(position) for position in range(1, 7))
    return transposed(grad, f, node.slots[0].shape, *settings)


_same = _Map(lambda node, grad: grad)

#: Op -> its rule.
LINEAR: dict[Any, Rule] = {
    **dict.fromkeys(
        (aten.view.default, aten._unsafe_view.default), _View(_unshaped, _whole_samples, _reshaped)
    ),
    **dict.fromkeys(
        (
            *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
            aten.unsqueeze.default,
        ),
        _Map(_unshaped, _whole_samples, _reshaped),
    ),
    torch.ops.fastgan.upfirdn2d.default: _Map(_unfiltered),
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten._to_copy.default: _Cast(lambda node, grad: grad.to(node.slots[0].dtype), mapped=_cast),
    aten.expand.default: _Map(
        lambda node, grad: sum_to(grad, node.slots[0].shape).to(grad.dtype),
        _same_first,
        lambda node, input: input.expand(_shape(node)),
    ),
    aten.permute.default: _Map(
        batched=lambda node, samples: node.args[1][0] % len(node.args[1]) == 0
    ),
    aten.transpose.int: _Map(batched=_beside_first(1, 2)),
    aten.t.default: _Map(lambda node, grad: grad.t(), _never),
    aten.slice.Tensor: _Map(batched=_same_first),
    aten.repeat.default: _Map(batched=_same_first, by_rows=False),
    **dict.fromkeys(
        (
            *(aten.split.Tensor, aten.split_with_sizes.default),
            *(aten.unsafe_split.Tensor, aten.unsafe_split_with_sizes.default),
            aten.roll.default,
        ),
        _Map(batched=_beside_first(2)),
    ),
    **dict.fromkeys(
        (aten.select.int, aten.unbind.int, aten.cumsum.default, aten.flip.default),
        _Map(batched=_beside_first(1)),
    ),
    aten.index.Tensor: _Index(by_rows=False),
    aten.sum.default: _Map(_unsummed, _never),
    aten.sum.dim_IntList: _Map(_unsummed, _beside_first(1)),
    aten.mean.default: _Map(_unaveraged, _never),
    aten.mean.dim: _Map(_unaveraged, _beside_first(1)),
    aten.neg.default: _Map(lambda node, grad: -grad),
    aten.constant_pad_nd.default: _Map(
        None,
        lambda node, samples: len(node.args[1]) < 2 * len(node.slots[0].shape),
        lambda node, input: aten.constant_pad_nd(input, node.args[1]),
    ),
    aten.max_pool2d_with_indices.default: _MaxPool(_to_places, mapped=_from_places),
    aten.native_dropout.default: _Kept(_dropped, mapped=_dropped),
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar), _Sum()),
    **dict.fromkeys((aten.sub.Tensor, aten.sub.Scalar), _Sum(1.0, -1.0)),
    **dict.fromkeys((aten.rsub.Tensor, aten.rsub.Scalar), _Sum(-1.0, 1.0)),
    **dict.fromkeys((aten.div.Tensor, aten.div.Scalar), _Divide()),
    **dict.fromkeys((aten.cat.default, aten.stack.default), _Join()),
    aten.copy.default: _Copy(),
    **dict.fromkeys(
        (
            *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
            *(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default),
            *(aten.upsample_nearest1d.default, aten.upsample_nearest2d.default),
            *(aten.upsample_bilinear2d.default, aten.upsample_bicubic2d.default),
            *(aten.reflection_pad1d.default, aten.reflection_pad2d.default),
            *(aten.replication_pad1d.default, aten.replication_pad2d.default),
            *(aten.pixel_shuffle.default, aten.pixel_unshuffle.default, aten.im2col.default),
        ),
        _Map(),
    ),
}
