"""Rules of linear maps: views, sums, pooling, padding, resampling, joining, adding.

The tangent of a linear map is the map of the tangent. Its transpose is given, or found by autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.penalty.entries import Node, Value
from fastgan.penalty.rule import (
    Autograd,
    Found,
    Rule,
    aligned,
    dimension,
    elements,
    layout_of,
    sum_to,
)

__all__ = ["LINEAR", "REGION"]

aten = torch.ops.aten
_PLAIN = Autograd()
_POINTWISE = Autograd(pointwise=True)

Transpose = Callable[["Node", Tensor, Sequence[int]], Tensor]
Batched = Callable[["Node", int], bool]


class Linear(Rule):
    """A linear map of one tensor.

    Args:
        transpose: (node, grad, shape of the input) -> J^T grad; None has autograd find it.
        batched: (node, number of samples) -> whether it keeps samples apart.
        by_rows: whether it may be taken of some rows alone.
    """

    bends = False

    def __init__(
        self,
        transpose: Transpose | None = None,
        *,
        batched: Batched = lambda node, samples: True,
        by_rows: bool = True,
    ) -> None:
        self.transpose = transpose
        self.keeps_apart = batched
        self.by_rows = by_rows

    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else _PLAIN

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def batched(self, node: Node, samples: int) -> bool:
        return self.keeps_apart(node, samples)

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        if tangent is None:
            return [None] * len(node.outputs)
        return _listed(self.mapped(node, tangent))

    def mapped(self, node: Node, input: Tensor) -> Any:
        """The map itself."""
        rest = [node.arg(position) for position in range(1, len(node.args))]
        return node.func(input, *rest, **node.kwargs)

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        if 0 not in wanted:
            return {}
        value = node.slots[0]
        given = [grad for grad in grads if grad is not None]
        if self.transpose is not None:
            return {0: self.transpose(node, given[0], node.shape_of(value, given[0]))}
        like = given[0]
        shape = node.shape_of(value, like)
        input = torch.empty(
            shape,
            dtype=value.dtype,
            device=like.device,
            memory_format=layout_of(shape, value.dtype),
            requires_grad=True,
        )
        with torch.enable_grad():
            results = _listed(self.mapped(node, input))
        pairs = [(r, g) for r, g in zip(results, grads, strict=False) if g is not None]
        (found,) = torch.autograd.grad([r for r, _ in pairs], input, [g for _, g in pairs])
        return {0: found}


def _listed(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


# Which of them keep samples apart ---------------------------------------------------------------


def _not_first(position: int, default: int = 0) -> Batched:
    """The dimension that an argument names isn't the first."""
    return lambda node, samples: dimension(node, position, default) != 0


def _not_among(position: int) -> Batched:
    """The dimensions that an argument lists leave the first alone."""

    def check(node: Node, samples: int) -> bool:
        dims = node.args[position] if position < len(node.args) else None
        if dims is None or (isinstance(dims, (list, tuple)) and not dims):
            return False
        rank = len(node.slots[0].shape)
        listed = [dims] if isinstance(dims, int) else dims
        return all(dim % rank != 0 for dim in listed)

    return check


def _same_first(node: Node, samples: int) -> bool:
    """The first dimension is as long as it was, and as many dimensions come after it."""
    (output, *_) = node.outputs
    assert output is not None
    shape = node.slots[0].shape
    return len(shape) == len(output.shape) and shape[:1] == output.shape[:1]


def _whole_samples(node: Node, samples: int) -> bool:
    """Rows are divided, or joined, within samples."""
    (output, *_) = node.outputs
    assert output is not None
    return len(output.shape) > 0 and samples > 0 and output.shape[0] % samples == 0


def _first_stays(node: Node, samples: int) -> bool:
    return len(node.args[1]) > 0 and node.args[1][0] % len(node.args[1]) == 0


def _neither_first(node: Node, samples: int) -> bool:
    return dimension(node, 1) != 0 and dimension(node, 2) != 0


def _whole_slice(node: Node, samples: int) -> bool:
    return dimension(node, 1) != 0 or _same_first(node, samples)


def _never(node: Node, samples: int) -> bool:
    return False


# Transposes -------------------------------------------------------------------------------------


class _View(Linear):
    """The same numbers in another shape; a copy where the layout doesn't allow a view."""

    def __init__(self) -> None:
        super().__init__(lambda node, grad, shape: grad.reshape(shape), batched=_whole_samples)

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return func(*args, **kwargs)
        except RuntimeError:
            # Images are laid out channels-last here, whatever they were: no view may be possible.
            return args[0].contiguous().view(args[1])

    def mapped(self, node: Node, input: Tensor) -> Any:
        (output,) = node.outputs
        assert output is not None
        shape = list(output.shape)
        if node.by_images and shape and node.slots[0].shape:
            shape[0] = shape[0] * input.size(0) // node.slots[0].shape[0]
        return input.reshape(shape)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        return args[0].reshape(args[1])


class _Cast(Linear):
    """Another dtype, device or layout."""

    def __init__(self) -> None:
        super().__init__(lambda node, grad, shape: grad.to(node.slots[0].dtype))

    def for_node(self, node: Node) -> Rule:
        dtype = node.kwargs.get("dtype")
        real = dtype is None or dtype.is_floating_point
        return super().for_node(node) if real and node.kwargs.get("device") is None else _PLAIN

    def mapped(self, node: Node, input: Tensor) -> Any:
        return input.to(node.kwargs.get("dtype") or input.dtype)


class _Expand(Linear):
    def __init__(self) -> None:
        super().__init__(
            lambda node, grad, shape: sum_to(grad, shape).to(grad.dtype), batched=_same_first
        )

    def mapped(self, node: Node, input: Tensor) -> Any:
        (output,) = node.outputs
        assert output is not None
        rows = input.shape[:1] if self.batched(node, 0) else output.shape[:1]
        return input.expand(*rows, *output.shape[1:])


def _unsummed(node: Node, grad: Tensor, shape: Sequence[int]) -> Tensor:
    """Of a sum or mean: the gradient repeated over what was summed."""
    dims = (
        node.args[1] if len(node.args) > 1 and not isinstance(node.args[1], torch.dtype) else None
    )
    listed = [dims] if isinstance(dims, int) else list(dims or range(len(shape)))
    listed = sorted(dim % max(len(shape), 1) for dim in listed)
    keeps = len(node.args) > 2 and node.args[2]
    if not keeps:
        for dim in listed:
            grad = grad.unsqueeze(dim) if shape else grad
    return grad.to(node.slots[0].dtype).expand(tuple(shape))


def _unaveraged(node: Node, grad: Tensor, shape: Sequence[int]) -> Tensor:
    spread = _unsummed(node, grad, shape)
    count = elements(shape) // max(grad.numel(), 1)
    (scaled,) = [grad / count]
    return _unsummed(node, scaled, shape) if count != 1 else spread


def _permuted_back(node: Node, grad: Tensor, shape: Sequence[int]) -> Tensor:
    order = [dim % len(node.args[1]) for dim in node.args[1]]
    return grad.permute([order.index(dim) for dim in range(len(order))])


class _MaxPool(Rule):
    """Maximum over windows; the mask is where each maximum came from."""

    name = "max_pool2d"

    def for_node(self, node: Node) -> Rule:
        return self if len(node.slots[0].shape) == 4 else _PLAIN

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def batched(self, node: Node, samples: int) -> bool:
        return True

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        output, places = func(*args, **kwargs)
        node.kept = places
        return output, places

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        grad = grads[0]
        assert grad is not None
        shape = node.shape_of(node.slots[0], grad)
        flat = grad.new_zeros(*shape[:2], elements(shape[2:]))
        # Windows overlap where the stride is shorter than the window: sums, not assignments.
        flat.scatter_add_(2, node.windowed(node.kept).flatten(2), grad.flatten(2))
        return {0: flat.view(shape)}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(0)
        if tangent is None:
            return [None, None]
        places = node.windowed(node.kept)
        taken = tangent.flatten(2).gather(2, places.flatten(2))
        return [taken.view(places.shape), None]


class _Sum(Rule):
    """a + factor * alpha * b, with broadcasting; either may be a constant.

    Args:
        left: a's factor.
        right: b's.
    """

    bends = False
    broadcasts = True

    def __init__(self, left: float = 1.0, right: float = 1.0) -> None:
        self.factors = (left, right)

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def _factor(self, node: Node, slot: int) -> float:
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        # rsub(a, b, alpha) is b - alpha a.
        scaled = (slot == 1) if self.factors[0] == 1 else (slot == 0)
        return float(self.factors[slot] * (alpha if scaled else 1))

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        found: Found = {}
        for slot in wanted:
            value = node.slots[slot]
            summed = sum_to(grad, node.shape_of(value, grad))
            factor = self._factor(node, slot)
            found[slot] = (summed if factor == 1 else summed * factor).to(value.dtype)
        return found

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        (output,) = node.outputs
        assert output is not None
        result: Tensor | None = None
        for slot, tangent in tangents.items():
            if tangent is None:
                continue
            factor = self._factor(node, slot)
            part = tangent if factor == 1 else tangent * factor
            result = part if result is None else result + part
        if result is not None:
            result = result.to(output.dtype)
            if output.shape and result.shape[1:] != output.shape[1:]:
                whole = len(result.shape) != len(output.shape)
                rows = output.shape[0] if whole else result.size(0)
                result = result.expand(rows, *output.shape[1:])
        return [result]


class _Join(Rule):
    """cat and stack: some pieces may be constants."""

    bends = False
    broadcasts = True

    def __init__(self, *, new_dimension: bool) -> None:
        self.new_dimension = new_dimension

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def _dim(self, node: Node) -> int:
        dim = node.args[1] if len(node.args) > 1 else 0
        (output,) = node.outputs
        assert output is not None
        return int(dim) % len(output.shape)

    def batched(self, node: Node, samples: int) -> bool:
        return self._dim(node) != 0

    def _pieces(self, node: Node, grad: Tensor) -> Sequence[Tensor]:
        dim = self._dim(node)
        if self.new_dimension:
            return list(grad.unbind(dim))
        return list(torch.split(grad, [_length(piece, dim) for piece in node.args[0]], dim))

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        pieces = self._pieces(node, grad)
        return {slot: pieces[slot[1]].to(node.slots[slot].dtype) for slot in wanted}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        given = next((t for t in tangents.values() if t is not None), None)
        if given is None:
            return [None]
        rows = given.size(0)
        whole = not self.batched(node, 0)
        pieces = []
        for item, piece in enumerate(node.args[0]):
            tangent = tangents.get((0, item))
            if tangent is None:
                shape = piece.shape if whole else (rows, *piece.shape[1:])
                tangent = given.new_zeros(shape)
            pieces.append(tangent)
        return [node.func(pieces, *node.args[1:])]


def _length(piece: Value | Tensor, dim: int) -> int:
    return piece.shape[dim] if len(piece.shape) > dim else 0


class _Select(Rule):
    """where(condition, a, b): either may be a constant."""

    bends = False
    broadcasts = True

    def for_node(self, node: Node) -> Rule:
        return self if 0 not in node.slots and isinstance(node.args[0], Tensor) else _POINTWISE

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def _masked(self, node: Node, tensor: Tensor, slot: int) -> Tensor:
        condition = node.arg(0)
        zero = tensor.new_zeros(())
        pieces = (tensor, zero) if slot == 1 else (zero, tensor)
        return torch.where(condition, *pieces)

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        return {
            slot: sum_to(self._masked(node, grad, slot), node.shape_of(node.slots[slot], grad))
            for slot in wanted
        }

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        parts = [self._masked(node, t, slot) for slot, t in tangents.items() if t is not None]
        return [sum(parts[1:], parts[0]) if parts else None]


class _MaskedFill(Linear):
    """Zero for the tangent where the value was replaced."""

    broadcasts = True

    def for_node(self, node: Node) -> Rule:
        return self if set(node.slots) == {0} else _POINTWISE

    def __init__(self) -> None:
        super().__init__(
            lambda node, grad, shape: sum_to(grad.masked_fill(node.arg(1), 0), shape),
            batched=lambda node, samples: aligned(node),
        )

    def mapped(self, node: Node, input: Tensor) -> Any:
        return input.masked_fill(node.arg(1), 0)


class _Pad(Linear):
    """A border of a constant: of zeros for the tangent."""

    def __init__(self) -> None:
        super().__init__(
            lambda node, grad, shape: aten.constant_pad_nd(grad, [-n for n in node.args[1]]),
            batched=lambda node, samples: len(node.args[1]) <= 2 * (len(node.slots[0].shape) - 1),
        )

    def mapped(self, node: Node, input: Tensor) -> Any:
        return aten.constant_pad_nd(input, node.args[1])


class _Index(Linear):
    """x[indices]: the first of them may count the samples."""

    def __init__(self) -> None:
        super().__init__(None, by_rows=False)

    def batched(self, node: Node, samples: int) -> bool:
        first = node.args[1][0]
        if first is None:
            return True
        if not isinstance(first, Tensor) or first.dtype == torch.bool or first.dim() != 1:
            return False
        counted = torch.arange(node.slots[0].shape[0], device=first.device)
        return torch.equal(first, counted)


class _Copy(Linear):
    """copy_: what is written takes the place of what was there."""

    def for_node(self, node: Node) -> Rule:
        return self if 1 in node.slots else _PLAIN

    def batched(self, node: Node, samples: int) -> bool:
        return 0 not in node.slots and _same(node.slots[1].shape, node.outputs[0])

    def __init__(self) -> None:
        super().__init__()

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        value = node.slots[1]
        if 1 not in wanted:
            return {}
        return {1: sum_to(grad, node.shape_of(value, grad)).to(value.dtype)}

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        tangent = tangents.get(1)
        (output,) = node.outputs
        assert output is not None
        if tangent is None:
            return [None]
        return [tangent.to(output.dtype).expand(node.shape_of(output, tangent))]


def _same(shape: Sequence[int], output: Value | None) -> bool:
    return output is not None and tuple(shape) == tuple(output.shape)


class _Region(Rule):
    """A flat storage with a piece written to its place; or, without a piece, that place read.

    Arguments: the storage before (or None where it wasn't on the tape), the piece, the place:
    (shape, strides, offset, length of the storage), and the storage's numbers where it wasn't.
    """

    name = "as_strided"
    bends = False
    by_rows = False

    def slots_read(self, node: Node) -> Iterable[Any]:
        return ()

    def _flat(self, node: Node, tensor: Tensor | None, like: Tensor) -> Tensor:
        length = node.args[2][3]
        return like.new_zeros(length) if tensor is None else tensor.clone()

    def jvp(self, node: Node, tangents: Found) -> list[Tensor | None]:
        flat, piece = tangents.get(0), tangents.get(1)
        shape, strides, offset, _ = node.args[2]
        if node.args[1] is None:
            return [None if flat is None else flat.as_strided(shape, strides, offset)]
        like = piece if flat is None else flat
        if like is None:
            return [None]
        result = self._flat(node, flat, like)
        place = result.as_strided(shape, strides, offset)
        place.copy_(like.new_zeros(()) if piece is None else piece)
        return [result]

    def vjp(self, node: Node, grads: Sequence[Tensor | None], wanted: Iterable[Any]) -> Found:
        (grad,) = grads
        assert grad is not None
        shape, strides, offset, length = node.args[2]
        found: Found = {}
        if node.args[1] is None:
            result = grad.new_zeros(length)
            result.as_strided(shape, strides, offset).copy_(grad)
            return {0: result}
        flat = grad.contiguous()
        if 1 in wanted:
            found[1] = flat.as_strided(shape, strides, offset).clone()
        if 0 in wanted:
            rest = flat.clone()
            rest.as_strided(shape, strides, offset).zero_()
            found[0] = rest
        return found

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return self.replay(node, args)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        flat, piece, (shape, strides, offset, length), *before = args
        if piece is None:
            return flat.as_strided(shape, strides, offset)
        if flat is None:
            flat = before[0] if before and before[0] is not None else piece.new_zeros(length)
        return torch.as_strided_scatter(flat, piece, shape, strides, offset)


REGION = _Region()
_sum = Linear(_unsummed, batched=_not_among(1))
_mean = Linear(_unaveraged, batched=_not_among(1))
_view = _View()
_split = Linear(batched=_not_first(2))
_maps = Linear()

#: Op -> its rule.
LINEAR: dict[Any, Rule] = {
    aten.view.default: _view,
    aten._unsafe_view.default: _view,
    aten.reshape.default: _view,
    aten.alias.default: Linear(lambda node, grad, shape: grad),
    aten.clone.default: Linear(lambda node, grad, shape: grad),
    aten._to_copy.default: _Cast(),
    aten.expand.default: _Expand(),
    aten.permute.default: Linear(_permuted_back, batched=_first_stays),
    aten.transpose.int: Linear(
        lambda node, grad, shape: grad.transpose(node.args[1], node.args[2]),
        batched=_neither_first,
    ),
    aten.t.default: Linear(lambda node, grad, shape: grad.t(), batched=_never),
    aten.unsqueeze.default: Linear(
        lambda node, grad, shape: grad.squeeze(node.args[1]),
        batched=lambda node, samples: node.args[1] % (len(node.slots[0].shape) + 1) != 0,
    ),
    aten.squeeze.default: Linear(
        lambda node, grad, shape: grad.reshape(shape), batched=_whole_samples, by_rows=False
    ),
    aten.squeeze.dim: Linear(lambda node, grad, shape: grad.reshape(shape), batched=_not_first(1)),
    aten.squeeze.dims: Linear(lambda node, grad, shape: grad.reshape(shape), batched=_not_among(1)),
    aten.select.int: Linear(batched=_not_first(1)),
    aten.slice.Tensor: Linear(batched=_whole_slice),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: Linear(batched=_not_first(1)),
    aten.index.Tensor: _Index(),
    aten.sum.default: Linear(_unsummed, batched=_never),
    aten.sum.dim_IntList: _sum,
    aten.mean.default: Linear(_unaveraged, batched=_never),
    aten.mean.dim: _mean,
    aten.neg.default: Linear(lambda node, grad, shape: -grad),
    aten.add.Tensor: _Sum(),
    aten.add.Scalar: _Sum(),
    aten.sub.Tensor: _Sum(1.0, -1.0),
    aten.sub.Scalar: _Sum(1.0, -1.0),
    aten.rsub.Tensor: _Sum(-1.0, 1.0),
    aten.rsub.Scalar: _Sum(-1.0, 1.0),
    aten.cat.default: _Join(new_dimension=False),
    aten.stack.default: _Join(new_dimension=True),
    aten.where.self: _Select(),
    aten.masked_fill.Scalar: _MaskedFill(),
    aten.masked_fill.Tensor: _MaskedFill(),
    aten.constant_pad_nd.default: _Pad(),
    aten.copy.default: _Copy(),
    aten.max_pool2d_with_indices.default: _MaxPool(),
    aten.flip.default: Linear(
        lambda node, grad, shape: grad.flip(node.args[1]), batched=_not_among(1)
    ),
    aten.roll.default: Linear(batched=_not_among(2)),
    aten.cumsum.default: Linear(batched=_not_first(1)),
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
        _maps,
    ),
}
