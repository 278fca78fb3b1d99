"""Rules of linear maps: views, sums, pooling, padding, resampling, joining, adding.

A linear map's jvp is the map itself; its transpose is given, or computed by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.entries import Node, Samples
from fastgan.penalty.rule import (
    AUTOGRAD,
    POINTWISE,
    Found,
    Grads,
    Rule,
    Single,
    aligned,
    dimension,
    layout_of,
    sum_to,
)

__all__ = ["LINEAR", "REGION"]

aten = torch.ops.aten
Transpose = Callable[[Node, Tensor], Tensor]
Map = Callable[[Node, Tensor], Any]
Batched = Callable[[Node, int], bool]


class _Linear(Single):
    """A linear map of one tensor.

    Args:
        transpose: (node, grad) -> J^T grad; None uses autograd.
        batched: (node, number of samples) -> whether it keeps samples apart.
        mapped: (node, tangent) -> J tangent; None is the op itself.
        by_rows: whether it can be applied to some rows only.
        other: the rule to use unless exactly the first argument is on the tape.
    """

    bends = False

    def __init__(
        self,
        transpose: Transpose | None = None,
        batched: Batched = lambda node, samples: True,
        mapped: Map | None = None,
        *,
        by_rows: bool = True,
        broadcasts: bool = False,
        other: Rule = AUTOGRAD,
    ) -> None:
        self.transpose = transpose
        self.keeps_apart = batched
        self.mapped = mapped or _itself
        self.by_rows = by_rows
        self.broadcasts = broadcasts
        self.other = other

    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else self.other

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def batched(self, node: Node, samples: int) -> bool:
        return self.keeps_apart(node, samples)

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        if tangent is None:
            return [None] * len(node.outputs)
        result = self.mapped(node, tangent)
        return list(result) if isinstance(result, (tuple, list)) else [result]

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        value = node.slots[0]
        like = next(grad for grad in grads if grad is not None)
        if self.transpose is not None:
            return {0: self.transpose(node, like)}
        input = torch.empty(
            value.shape,
            dtype=value.dtype,
            device=like.device,
            memory_format=layout_of(value.shape, value.dtype),
            requires_grad=True,
        )
        with torch.enable_grad():
            results = self.jvp(node, {0: input})
        pairs = [
            (r, g) for r, g in zip(results, grads, strict=False) if r is not None and g is not None
        ]
        (found,) = torch.autograd.grad([r for r, _ in pairs], input, [g for _, g in pairs])
        return {0: found}


def _itself(node: Node, input: Tensor) -> Any:
    rest = [node.arg(position) for position in range(1, len(node.args))]
    return node.func(input, *rest, **node.kwargs)


def _shape(node: Node) -> tuple[int, ...]:
    """The first result's."""
    value = node.outputs[0]
    assert value is not None
    return tuple(value.shape)


def _dims(node: Node, position: int) -> list[int]:
    """The dimensions that an argument lists; all where it is missing or empty."""
    rank = len(node.slots[0].shape)
    given = node.args[position] if position < len(node.args) else None
    if isinstance(given, int):
        given = [given]
    if not isinstance(given, (list, tuple)) or not given:
        return list(range(rank))
    return sorted(dim % max(rank, 1) for dim in given)


# Which maps keep samples separate --------------------------------------------------------------


def _not_first(position: int, default: int = 0) -> Batched:
    """The dimension that an argument names isn't the first."""
    return lambda node, samples: dimension(node, position, default) != 0


def _not_among(position: int) -> Batched:
    """The dimensions that an argument lists leave the first alone."""
    return lambda node, samples: 0 not in _dims(node, position)


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


class _View(_Linear):
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


def _cast(node: Node, input: Tensor) -> Tensor:
    return input.to(node.kwargs.get("dtype") or input.dtype)


class _Cast(_Linear):
    def for_node(self, node: Node) -> Rule:
        dtype = node.kwargs.get("dtype")
        real = dtype is None or dtype.is_floating_point
        return super().for_node(node) if real and node.kwargs.get("device") is None else AUTOGRAD


def _expanded(node: Node, input: Tensor) -> Tensor:
    return input.expand(_shape(node))


def _unshaped(node: Node, grad: Tensor) -> Tensor:
    return grad.reshape(node.slots[0].shape)


def _unsummed(node: Node, grad: Tensor) -> Tensor:
    """Of a sum: the gradient repeated over what was summed."""
    shape = node.slots[0].shape
    if shape and not (len(node.args) > 2 and node.args[2]):
        for dim in _dims(node, 1):
            grad = grad.unsqueeze(dim)
    return grad.to(node.slots[0].dtype).expand(shape)


def _unaveraged(node: Node, grad: Tensor) -> Tensor:
    count = math.prod(node.slots[0].shape) // max(grad.numel(), 1)
    return _unsummed(node, grad / count)


def _permuted_back(node: Node, grad: Tensor) -> Tensor:
    order = [dim % len(node.args[1]) for dim in node.args[1]]
    return grad.permute([order.index(dim) for dim in range(len(order))])


class _MaxPool(Single):
    """Maximum over windows; the mask is where each maximum came from."""

    name = "max_pool2d"

    def for_node(self, node: Node) -> Rule:
        return self if len(node.slots[0].shape) == 4 else AUTOGRAD

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def batched(self, node: Node, samples: int) -> bool:
        return True

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        output, node.kept = func(*args, **kwargs)
        return output, node.kept

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        shape = node.slots[0].shape
        flat = grad.new_zeros(*shape[:2], math.prod(shape[2:]))
        # Windows overlap if the stride is smaller than the window, so gradients are summed.
        flat.scatter_add_(2, node.kept.flatten(2), grad.flatten(2))
        return flat.view(shape)

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        places: Tensor = node.kept
        return tangent.flatten(2).gather(2, places.flatten(2)).view(places.shape)

    def narrow(self, node: Node, rows: Samples) -> None:
        node.kept = rows.of(node.kept)


class _Meeting(Single):
    """A linear map of several tensors, row by row; some may be constants."""

    bends = False
    broadcasts = True

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        value = node.slots[slot]
        grad = sum_to(self.along(node, grad, slot), value.shape)
        return grad.to(value.dtype)


class _Sum(_Meeting):
    """left * a + right * b; alpha multiplies the second term (for rsub, the first)."""

    def __init__(self, left: float = 1.0, right: float = 1.0) -> None:
        self.factors = (left, right)

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        scaled = slot == (1 if self.factors[0] == 1 else 0)
        factor = self.factors[slot] * (alpha if scaled else 1)
        return tangent if factor == 1 else tangent * factor


class _Select(_Meeting):
    """where(condition, a, b)."""

    def for_node(self, node: Node) -> Rule:
        return self if 0 not in node.slots and isinstance(node.args[0], Tensor) else POINTWISE

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        condition: Tensor = node.arg(0)
        zero = tangent.new_zeros(())
        return torch.where(condition, *((tangent, zero) if slot == 1 else (zero, tangent)))


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


class _Join(_Meeting):
    """cat and stack."""

    def __init__(self, *, new_dimension: bool) -> None:
        self.new_dimension = new_dimension

    def _dim(self, node: Node) -> int:
        return int(node.args[1] if len(node.args) > 1 else 0) % len(_shape(node))

    def batched(self, node: Node, samples: int) -> bool:
        return self._dim(node) != 0

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Found:
        (grad,), dim = grads, self._dim(node)
        assert grad is not None
        if self.new_dimension:
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
                if self._dim(node) != 0:
                    shape[0] = given.shape[0]
                tangent = given.new_zeros(shape)
            pieces.append(tangent)
        return [node.func(pieces, *node.args[1:])]


class _Split(_Linear):
    """unsafe_split: pieces that autograd takes for tensors of their own, and so are here."""

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return [piece.clone() for piece in func(*args, **kwargs)]


class _Index(_Linear):
    """x[indices]; the first index may be arange(N)."""

    def batched(self, node: Node, samples: int) -> bool:
        first = node.args[1][0]
        if first is None:
            return True
        if not isinstance(first, Tensor) or first.dtype == torch.bool or first.dim() != 1:
            return False
        return torch.equal(first, torch.arange(node.slots[0].shape[0], device=first.device))


class _Region(Single):
    """A flat storage with a piece written to its place; or, without a piece, that place read.

    Arguments: the storage before (or None where it wasn't on the tape), the piece, the place:
    (shape, strides, offset, length of the storage), and the storage's numbers where it wasn't.
    """

    name = "as_strided"
    bends = False
    by_rows = False

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        shape, strides, offset, length = node.args[2]
        if node.args[1] is None:
            return tangent.as_strided(shape, strides, offset)
        if slot == 0:
            result = tangent.clone(memory_format=torch.contiguous_format)
            result.as_strided(shape, strides, offset).zero_()
        else:
            result = tangent.new_zeros(length)
            result.as_strided(shape, strides, offset).copy_(tangent)
        return result

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        shape, strides, offset, length = node.args[2]
        if node.args[1] is None:
            result = grad.new_zeros(length)
            result.as_strided(shape, strides, offset).copy_(grad)
            return result
        if slot == 0:
            return self.along(node, grad, slot)
        return grad.contiguous().as_strided(shape, strides, offset).clone()

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
_view = _View(_unshaped, _whole_samples, _reshaped)
_same = _Linear(lambda node, grad: grad)
_split = _Linear(batched=_not_first(2))
_fill = _Linear(
    lambda node, grad: sum_to(grad.masked_fill(node.arg(1), 0), node.slots[0].shape),
    lambda node, samples: aligned(node),
    lambda node, input: input.masked_fill(node.arg(1), 0),
    broadcasts=True,
    other=POINTWISE,
)

#: Op -> its rule.
LINEAR: dict[Any, Rule] = {
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.alias.default: _same,
    aten.clone.default: _same,
    aten._to_copy.default: _Cast(lambda node, grad: grad.to(node.slots[0].dtype), mapped=_cast),
    aten.expand.default: _Linear(
        lambda node, grad: sum_to(grad, node.slots[0].shape).to(grad.dtype), _same_first, _expanded
    ),
    aten.permute.default: _Linear(
        _permuted_back, lambda node, samples: node.args[1][0] % len(node.args[1]) == 0
    ),
    aten.transpose.int: _Linear(
        lambda node, grad: grad.transpose(node.args[1], node.args[2]),
        lambda node, samples: 0 not in (dimension(node, 1), dimension(node, 2)),
    ),
    aten.t.default: _Linear(lambda node, grad: grad.t(), _never),
    aten.unsqueeze.default: _Linear(
        lambda node, grad: grad.squeeze(node.args[1]),
        lambda node, samples: node.args[1] % (len(node.slots[0].shape) + 1) != 0,
    ),
    aten.squeeze.default: _Linear(_unshaped, _whole_samples, by_rows=False),
    aten.squeeze.dim: _Linear(_unshaped, _not_first(1)),
    aten.squeeze.dims: _Linear(_unshaped, _not_among(1)),
    aten.select.int: _Linear(batched=_not_first(1)),
    aten.slice.Tensor: _Linear(
        batched=lambda node, samples: dimension(node, 1) != 0 or _same_first(node, samples)
    ),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unsafe_split.Tensor: _Split(batched=_not_first(2)),
    aten.unsafe_split_with_sizes.default: _Split(batched=_not_first(2)),
    aten.unbind.int: _Linear(batched=_not_first(1)),
    aten.index.Tensor: _Index(by_rows=False),
    aten.sum.default: _Linear(_unsummed, _never),
    aten.sum.dim_IntList: _Linear(_unsummed, _not_among(1)),
    aten.mean.default: _Linear(_unaveraged, _never),
    aten.mean.dim: _Linear(_unaveraged, _not_among(1)),
    aten.neg.default: _Linear(lambda node, grad: -grad),
    aten.add.Tensor: _Sum(),
    aten.add.Scalar: _Sum(),
    aten.sub.Tensor: _Sum(1.0, -1.0),
    aten.sub.Scalar: _Sum(1.0, -1.0),
    aten.rsub.Tensor: _Sum(-1.0, 1.0),
    aten.rsub.Scalar: _Sum(-1.0, 1.0),
    aten.cat.default: _Join(new_dimension=False),
    aten.stack.default: _Join(new_dimension=True),
    aten.where.self: _Select(),
    aten.masked_fill.Scalar: _fill,
    aten.masked_fill.Tensor: _fill,
    aten.constant_pad_nd.default: _Linear(
        lambda node, grad: aten.constant_pad_nd(grad, [-n for n in node.args[1]]),
        lambda node, samples: len(node.args[1]) < 2 * len(node.slots[0].shape),
        lambda node, input: aten.constant_pad_nd(input, node.args[1]),
    ),
    aten.copy.default: _Copy(),
    aten.max_pool2d_with_indices.default: _MaxPool(),
    aten.flip.default: _Linear(lambda node, grad: grad.flip(node.args[1]), _not_among(1)),
    aten.repeat.default: _Linear(batched=_same_first, by_rows=False),
    aten.roll.default: _Linear(batched=_not_among(2)),
    aten.cumsum.default: _Linear(batched=_not_first(1)),
    **dict.fromkeys(
        (
            aten.avg_pool2d.default,
            aten.avg_pool1d.default,
            aten.avg_pool3d.default,
            aten._adaptive_avg_pool2d.default,
            aten._adaptive_avg_pool3d.default,
            aten.upsample_nearest1d.default,
            aten.upsample_nearest2d.default,
            aten.upsample_bilinear2d.default,
            aten.upsample_bicubic2d.default,
            aten.reflection_pad1d.default,
            aten.reflection_pad2d.default,
            aten.replication_pad1d.default,
            aten.replication_pad2d.default,
            aten.pixel_shuffle.default,
            aten.pixel_unshuffle.default,
            aten.im2col.default,
        ),
        _Linear(),
    ),
}
