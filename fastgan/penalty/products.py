"""Rules of bilinear ops: convolutions, matrix products, elementwise products.

    y = f(a, b) + c,  f linear in a and in b

    vjp         a: f^T(d, b)       b: f^T(a, d)       c: d, summed over the dimensions c is
        broadcast along
    jvp         f(u_a, b) + f(a, u_b)
    gradients   a: f^T(d, u_b)         b: f^T(u_a, d)

where f^T is f's transpose in one of its factors. Usually a depends on the images and b is a
parameter. Then the gradient of <d, J u> in b is that of <d, y> with u in place of a, so one product
computes both (``merges``).
"""

# ruff: noqa: D102

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastgan.ops.backends import ATEN, describe_layer, select_backend
from fastgan.ops.stages import Stage
from fastgan.penalty.entries import Node
from fastgan.penalty.rule import AUTOGRAD, POINTWISE, Found, Rule, Single, aligned, sum_to

__all__ = ["Convolution", "Divide", "MatrixProduct", "Multiply"]

aten = torch.ops.aten


class Product(Single):
    """y = f(a, b) + c.

    Attributes:
        left: the argument that is a.
        right: the argument that is b.
        bias: the argument that is c, or None.
    """

    left = 0
    right = 1
    bias: int | None = None
    bends = False
    merges = True

    @abstractmethod
    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        """f(a, b)."""

    @abstractmethod
    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        """f^T(d, b), in the shape of a."""

    @abstractmethod
    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        """f^T(a, d), in the shape of b."""

    def to_bias(self, node: Node, grad: Tensor) -> Tensor:
        """The sum of d over what c is repeated for."""
        assert self.bias is not None
        return sum_to(grad, node.slots[self.bias].shape)

    def slots_read(self, node: Node) -> Iterable[Any]:
        left, right = node.slots.get(self.left), node.slots.get(self.right)
        if left is not None and right is not None:
            yield from (self.left, self.right)

    def curved(self, node: Node) -> bool:
        return self.left in node.inner and self.right in node.inner

    def back(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        if slot == self.left:
            return self.to_left(node, grad, node.arg(self.right))
        if slot == self.right:
            return self.to_right(node, node.arg(self.left), grad)
        return self.to_bias(node, grad)

    def along(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        if slot == self.left:
            return self.product(node, tangent, node.arg(self.right))
        if slot == self.right:
            return self.product(node, node.arg(self.left), tangent)
        return tangent

    def bend(self, node: Node, grad: Tensor, tangents: Found, slot: Any) -> Tensor | None:
        left, right = tangents.get(self.left), tangents.get(self.right)
        if slot == self.left and right is not None:
            return self.to_left(node, grad, right)
        if slot == self.right and left is not None:
            return self.to_right(node, left, grad)
        return None


class MatrixProduct(Product):
    """mm, bmm and, with a bias, addmm, baddbmm.

    Args:
        bias: whether the first argument is one.
    """

    def __init__(self, *, bias: bool = False) -> None:
        self.left, self.right = (1, 2) if bias else (0, 1)
        self.bias = 0 if bias else None

    def for_node(self, node: Node) -> Rule:
        scaled = any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
        return AUTOGRAD if scaled else self

    def batched(self, node: Node, samples: int) -> bool:
        value, output = node.slots.get(self.left), node.outputs[0]
        other = node.slots.get(self.right)
        assert output is not None
        if value is None or not value.by_images:
            return False
        if len(output.shape) == 2 and other is not None and other.by_images:
            return False
        return value.shape[0] == output.shape[0]

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        return left @ right

    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        return grad @ right.mT

    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        return left.mT @ grad


class Multiply(Product):
    """a * b, element by element, with broadcasting.

    Args:
        left: the argument that is a.
    """

    broadcasts = True

    def __init__(self, left: int = 0) -> None:
        self.left, self.right = left, 1 - left

    def for_node(self, node: Node) -> Rule:
        # What comes of the images is a.
        return _REVERSED if 0 not in node.inner and 1 in node.inner else self

    def batched(self, node: Node, samples: int) -> bool:
        return aligned(node)

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).to(self._dtype(node))

    def to_left(self, node: Node, grad: Tensor, right: Any) -> Tensor:
        if node.overwrite and not isinstance(right, Tensor):
            return grad.mul_(right)
        value = node.slots[self.left]
        return sum_to(grad * right, value.shape).to(value.dtype)

    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        value = node.slots[self.right]
        return sum_to(left * grad, value.shape)

    @staticmethod
    def _dtype(node: Node) -> torch.dtype:
        (output,) = node.outputs
        assert output is not None
        return output.dtype


_REVERSED = Multiply(1)


class Divide(Multiply):
    """a / b, which is linear in a and in 1 / b."""

    def for_node(self, node: Node) -> Rule:
        fits = node.inner == [0] and not node.kwargs.get("rounding_mode")
        return self if fits else POINTWISE

    def slots_read(self, node: Node) -> Iterable[Any]:
        yield from super().slots_read(node)
        if 1 in node.slots:
            yield 1

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        return (left / right).to(self._dtype(node))

    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        value = node.slots[0]
        return sum_to(grad / right, value.shape).to(value.dtype)

    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        divisor: Tensor = node.arg(1)
        return -super().to_right(node, left, grad) / divisor.square()


class Convolution(Product):
    """Convolution and transposed convolution in any number of dimensions.

    Runs where the library's choice of backends sends it: Triton's kernels, C++ on CPUs, or ATen.
    The node keeps its weight as that backend wants it.
    """

    bias = 2

    def for_node(self, node: Node) -> Rule:
        others = [node.slots.get(i) for i in (1, 2)]
        if 0 not in node.slots or any(v is not None and v.by_images for v in others):
            return AUTOGRAD
        return self if len(node.slots[0].shape) == len(node.args[1].shape) else AUTOGRAD

    def batched(self, node: Node, samples: int) -> bool:
        return True

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        input, weight, bias = args[:3]
        return self._forward(node, input, self._prepared(node, weight.detach()), bias)

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        return self._forward(node, left, self._prepared(node, right), None)

    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        prepared = self._prepared(node, right)
        stage, weight = prepared.stage, prepared.weight
        input = grad.new_empty(()).expand(node.slots[0].shape)
        if stage is None:
            whole: Tensor = self._backward(node, grad, input, weight, [True, False, False])[0]
            return whole
        backend = select_backend("input_gradient", stage, input, weight)
        if backend is ATEN:
            return self._transpose(node, grad, input, weight)
        return backend.input_gradient(stage, grad, input, weight)

    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        prepared = self._prepared(node, None)
        stage, weight = prepared.stage, prepared.weight
        if stage is None:
            whole: Tensor = self._backward(node, grad, left, weight, [False, True, False])[1]
            return whole
        backend = select_backend("weight_gradient", stage, left, weight)
        return backend.weight_gradient(stage, grad, left, weight, False)[0]

    def to_bias(self, node: Node, grad: Tensor) -> Tensor:
        (channels,) = node.slots[2].shape
        return sum_to(grad, (1, channels, *[1] * (grad.dim() - 2))).view(channels)

    def backend(self, node: Node) -> tuple[str, str]:
        prepared = self._prepared(node, None)
        stage, weight = prepared.stage, prepared.weight
        if stage is None:
            return "aten", "a convolution in other than two dimensions"
        return describe_layer(stage, weight, node.slots[0].dtype, weight.device)

    def _forward(
        self, node: Node, input: Tensor, prepared: _Prepared, bias: Tensor | None
    ) -> Tensor:
        stage, weight = prepared.stage, prepared.weight
        if stage is None:
            output: Tensor = torch.convolution(input, weight, bias, *node.args[3:])
            return output
        backend = select_backend("forward", stage, input, weight)
        return backend.forward(stage, input, weight, bias)

    @staticmethod
    def _prepared(node: Node, weight: Tensor | None) -> _Prepared:
        prepared: _Prepared | None = node.kept
        if prepared is None:
            weight = node.arg(1) if weight is None else weight
            assert weight is not None
            if weight.dim() == 4 and weight.dtype != torch.float64:
                weight = weight.contiguous(memory_format=torch.channels_last)
            prepared = node.kept = _Prepared(
                weight, _stage(node.args) if weight.dim() == 4 else None
            )
        return prepared

    @staticmethod
    def _transpose(node: Node, grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
        """The convolution's transpose by ATen: conv_transpose of a conv and vice versa."""
        stride, padding, dilation, transposed, _, groups = node.args[3:9]
        size = input.shape[2:]
        if transposed:
            found: Tensor = torch.convolution(
                grad, weight, None, stride, padding, dilation, False, [0] * len(size), groups
            )
            for dim, length in enumerate(size):
                # An output padding larger than the stride (possible with dilation) gives extra rows
                # and columns.
                found = found.narrow(dim + 2, 0, length)
            return found
        # Rows and columns that the stride skipped become output padding.
        skipped = [
            n - ((m - 1) * s - 2 * p + r * (k - 1) + 1)
            for n, m, s, p, r, k in zip(
                size,
                grad.shape[2:],
                _pair(stride),
                _pair(padding),
                _pair(dilation),
                weight.shape[2:],
                strict=True,
            )
        ]
        return torch.convolution(
            grad, weight, None, stride, padding, dilation, True, skipped, groups
        )

    @staticmethod
    def _backward(
        node: Node, grad: Tensor, input: Tensor, weight: Tensor, mask: list[bool]
    ) -> Sequence[Any]:
        found: Sequence[Any] = aten.convolution_backward.default(
            grad, input, weight, None, *node.args[3:9], mask
        )
        return found


@dataclass
class _Prepared:
    """What a convolution's node keeps.

    Attributes:
        weight: laid out as its backends want it.
        stage: its geometry; None unless two-dimensional.
    """

    weight: Tensor
    stage: Stage | None


def _stage(args: Sequence[Any]) -> Stage:
    stride, padding, dilation, transposed, output_padding, groups = args[3:9]
    kind = "conv_transpose2d" if transposed else "conv2d"
    pairs = [_pair(setting) for setting in (stride, padding, dilation, output_padding)]
    return Stage(kind, pairs[0], pairs[1], pairs[2], pairs[3], groups)


def _pair(setting: Sequence[int]) -> tuple[int, int]:
    return (setting[0], setting[-1])
