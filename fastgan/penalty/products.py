"""Rules of bilinear ops: convolutions, matrix products, elementwise products.

    y = f(a, b) + c,  f linear in a and in b

    vjp         a: f^T(d, b)       b: f^T(a, d)       c: d, summed over the dimensions c is
        broadcast along
    jvp         f(u_a, b) + f(a, u_b)
    gradients   a: f^T(d, u_b)         b: f^T(u_a, d)

where f^T is f's transpose for one factor. Usually a depends on the images and b is a parameter.
Then the gradient of <d, J u> by b equals that of <d, y> with u instead of a, so one product
computes both (``merges``).
"""

# ruff: noqa: D102

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastgan.kernels.fusion import ActivationGradient
from fastgan.ops.backends import TRITON, Pass, Triton, describe_layer, fusion, select_backend
from fastgan.ops.stages import Stage, pair
from fastgan.penalty.elementwise import ActivationRule
from fastgan.penalty.entries import Node
from fastgan.penalty.rule import AUTOGRAD, LINEAR, SMOOTH, Rule, Slots, empty, layout_of, sum_to

aten = torch.ops.aten


class Product(Rule):
    """y = f(a, b) + c.

    ``left``, ``right`` and ``bias`` are the positions of a, b and c.
    """

    right = 1
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
        """d, summed over the dimensions along which c is broadcast."""
        assert self.bias is not None
        return sum_to(grad, node.slots[self.bias].shape)

    def reads(self, node: Node) -> Iterable[Any]:
        left, right = node.slots.get(self.left), node.slots.get(self.right)
        if left is not None and right is not None:
            yield from (self.left, self.right)

    def kind_of(self, node: Node) -> str:
        return SMOOTH if self.left in node.inner and self.right in node.inner else LINEAR

    def slot_vjp(self, node: Node, grad: Tensor, slot: Any) -> Tensor:
        if slot == self.left:
            return self.to_left(node, grad, node.arg(self.right))
        if slot == self.right:
            return self.to_right(node, node.arg(self.left), grad)
        return self.to_bias(node, grad)

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        if slot == self.left:
            return self.product(node, tangent, node.arg(self.right))
        if slot == self.right:
            return self.product(node, node.arg(self.left), tangent)
        return tangent

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        left, right = tangents.get(self.left), tangents.get(self.right)
        if slot == self.left and right is not None:
            return self.to_left(node, grad, right)
        if slot == self.right and left is not None:
            return self.to_right(node, left, grad)
        return None


class MatrixProduct(Product):
    """mm, bmm and, with a bias, addmm, baddbmm.

    Args:
        bias: whether the first argument is a bias.
    """

    def __init__(self, *, bias: bool = False) -> None:
        self.left, self.right = (1, 2) if bias else (0, 1)
        self.bias = 0 if bias else None

    def for_node(self, node: Node) -> Rule:
        scaled = any(node.kwargs.get(name, 1) != 1 for name in ("alpha", "beta"))
        return AUTOGRAD if scaled else self

    def batched(self, node: Node, samples: int) -> bool:
        if self.left not in node.inner or (
            self.right in node.inner and len(node.result.shape) == 2
        ):
            return False
        return node.slots[self.left].shape[0] == node.result.shape[0]

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
        # a is the factor that depends on the images.
        return _REVERSED if 0 not in node.inner and 1 in node.inner else self

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        return (left * right).to(node.result.dtype)

    def to_left(self, node: Node, grad: Tensor, right: Any) -> Tensor:
        if node.overwrite and not isinstance(right, Tensor):
            return grad.mul_(right)
        value = node.slots[self.left]
        return sum_to(grad * right, value.shape).to(value.dtype)

    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        value = node.slots[self.right]
        return sum_to(left * grad, value.shape)


_REVERSED = Multiply(1)


class Convolution(Product):
    """Convolution and transposed convolution in any number of dimensions.

    Runs on the backend that the library selects: Triton's kernels, C++ on CPUs, or ATen. The node
    keeps its weight in that backend's layout.

    Args:
        after: the activation of its output, if Triton's kernels mask the tangents with it.
        before: the activation of its input, if they mask the gradients with it.
    """

    bias = 2

    def __init__(self, after: Node | None = None, before: Node | None = None) -> None:
        self.after, self.before = after, before

    def for_node(self, node: Node) -> Rule:
        others = [node.slots.get(i) for i in (1, 2)]
        if 0 not in node.slots or any(v is not None and v.by_images for v in others):
            return AUTOGRAD
        return self if len(node.slots[0].shape) == len(node.args[1].shape) else AUTOGRAD

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        self.prepared(node, args[1].detach())
        return self._forward(node, args[0], args[2])

    def product(self, node: Node, left: Tensor, right: Tensor) -> Tensor:
        stage, weight = self.prepared(node)
        if self.after is None or stage is None:
            return self._forward(node, left, None)
        backend = _masking_backend("forward", stage, left, weight)
        return backend.fused_forward(stage, left, weight, None, _mask(self.after))[0]

    def to_left(self, node: Node, grad: Tensor, right: Tensor) -> Tensor:
        stage, weight = self.prepared(node)
        if self.before is not None and stage is not None:
            mask = _mask(self.before)
            masking = _masking_backend("input_gradient", stage, mask.kept, weight)
            return masking.fused_input_gradient(stage, grad, mask.kept, weight, None, mask)[0]
        value = node.slots[0]
        # Only its shape and layout count.
        input = empty(value.shape, grad) if value.tensor is None else value.tensor
        if stage is None:
            return self._backward(node, grad, input, weight, [True, False, False])[0]
        backend = select_backend("input_gradient", stage, input, weight)
        return backend.input_gradient(stage, grad, input, weight)

    def to_right(self, node: Node, left: Tensor, grad: Tensor) -> Tensor:
        stage, weight = self.prepared(node)
        if stage is None:
            return self._backward(node, grad, left, weight, [False, True, False])[1]
        backend = select_backend("weight_gradient", stage, left, weight)
        return backend.weight_gradient(stage, grad, left, weight, False)[0]

    def to_bias(self, node: Node, grad: Tensor) -> Tensor:
        (channels,) = node.slots[2].shape
        return sum_to(grad, (1, channels, *[1] * (grad.dim() - 2))).view(channels)

    def backend(self, node: Node) -> tuple[str, str]:
        stage, weight = self.prepared(node)
        if stage is None:
            return "aten", "a convolution in other than two dimensions"
        path, reason = describe_layer(stage, weight, node.slots[0].dtype, weight.device)
        masks = [
            f"{what} by {activation.named(_rule(activation).activation.name)}"
            for what, activation in (("tangents", self.after), ("gradients", self.before))
            if activation is not None
        ]
        return path, f"on storing, masks {' and '.join(masks)}" if masks else reason

    @staticmethod
    def prepared(node: Node, weight: Tensor | None = None) -> tuple[Stage | None, Tensor]:
        """The geometry, if two-dimensional, and the weight in the backend's layout."""
        if node.kept is None:
            weight = node.arg(1) if weight is None else weight
            assert weight is not None
            weight = weight.contiguous(memory_format=layout_of(weight.shape, weight.dtype))
            node.kept = _stage(node.args) if weight.dim() == 4 else None, weight
        kept: tuple[Stage | None, Tensor] = node.kept
        return kept

    def _forward(self, node: Node, input: Tensor, bias: Tensor | None) -> Tensor:
        stage, weight = self.prepared(node)
        if stage is None:
            output: Tensor = torch.convolution(input, weight, bias, *node.args[3:])
            return output
        return select_backend("forward", stage, input, weight).forward(stage, input, weight, bias)

    @staticmethod
    def _backward(
        node: Node, grad: Tensor, input: Tensor, weight: Tensor, wanted: list[bool]
    ) -> Sequence[Tensor]:
        results: Sequence[Tensor] = aten.convolution_backward.default(
            grad, input, weight, None, *node.args[3:9], wanted
        )
        return results


def _rule(activation: Node) -> ActivationRule:
    assert isinstance(activation.rule, ActivationRule)
    return activation.rule


def _masking_backend(which: Pass, stage: Stage, input: Tensor, weight: Tensor) -> Triton:
    """The fastest of the kernels that apply masks; of fewer rows another backend may be faster."""
    backend = select_backend(which, stage, input, weight, fusion(store="activation"))
    return backend if isinstance(backend, Triton) else TRITON


def _mask(activation: Node) -> ActivationGradient:
    """An activation's mask, for the kernels to apply."""
    rule = _rule(activation)
    return ActivationGradient(activation.output, rule.activation.name, rule.negative_slope)


def _stage(args: Sequence[Any]) -> Stage:
    stride, padding, dilation, output_padding = map(pair, (*args[3:6], args[7]))
    kind = "conv_transpose2d" if args[6] else "conv2d"
    return Stage(kind, stride, padding, dilation, output_padding, args[8])
