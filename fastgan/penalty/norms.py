"""Rules of norms: layer, group and instance norm, batch norm in training and with fixed statistics.

With xhat = (x - mean) r over groups of M elements, r = (var + eps)^(-1/2), and

    T(p) = r (p - mean(p) - xhat mean(xhat p))

which is the derivative of xhat and symmetric:

    vjp         T(w d) for x;  sum(d xhat) for w;  sum(d) for b
    jvp         w T(u)
    gradients   x: d/dx <p, T(u)> = -r^2 (C (p - mean p) + B (u - mean u) + (A - 3 B C) xhat)
                w: sum(d T(u))
                with p = w d, A = mean(p (u - mean u)), B = mean(xhat p), C = mean(xhat u)

Ioffe and Szegedy 2015 (arXiv 1502.03167) for T; the second derivative follows by differentiating
it.
"""

# ruff: noqa: D102

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

import fastgan.ops.batch_norm
import fastgan.ops.penalty_norm  # noqa: F401 - defines the ops that are called here
from fastgan.losses import at_least_float32
from fastgan.ops.paths import op_path
from fastgan.penalty.entries import Node
from fastgan.penalty.rule import (
    AUTOGRAD,
    PIECEWISE_LINEAR,
    SMOOTH,
    Grads,
    Rule,
    Slots,
    layout_of,
    sum_to,
    wide,
)

aten = torch.ops.aten
ops = torch.ops.fastgan


class GroupNorm(Rule):
    """native_group_norm(x, w, b, N, C, positions, groups, eps), w and b of shape (C,).

    Runs ``fastgan::penalty_norm_*`` on maps (M, C, ...) with C split into groups.

    Attributes:
        weight: position of w; b is the next argument.
    """

    name = "group_norm"
    kind = SMOOTH
    keeps_rows = True
    weight = 1

    def groups(self, node: Node) -> int:
        """Groups of channels within a sample."""
        return int(node.args[6])

    def maps(self, node: Node, tensor: Tensor) -> Tensor:
        """The ops' view of a tensor like x; a copy if its layout is another."""
        layout = layout_of(node.slots[0].shape, tensor.dtype)
        return tensor.contiguous(memory_format=layout)

    def unmapped(self, node: Node, maps: Tensor) -> Tensor:
        """The inverse of :meth:`maps`; also of the view of a parameter as a vector."""
        return maps

    def vector(self, node: Node, parameter: Tensor | None, like: Tensor) -> Tensor | None:
        """The ops' view of a weight or bias."""
        return None if parameter is None else parameter.to(wide(like)).contiguous()

    def for_node(self, node: Node) -> Rule:
        return self if _normalises_first(node) else AUTOGRAD

    def reads(self, node: Node) -> Iterable[Any]:
        return (self.weight,)

    def backend(self, node: Node) -> tuple[str, str]:
        path = op_path("penalty_norm_forward_", node.slots[0].device.type)
        return path.path, path.reason

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        maps, groups = self.maps(node, args[0]), self.groups(node)
        overwrite = node.overwrite or maps.data_ptr() != args[0].data_ptr()
        xhat, output = maps if overwrite else torch.empty_like(maps), torch.empty_like(maps)
        invstd = torch.empty(maps.size(0), groups, dtype=wide(maps), device=maps.device)
        weight, bias = (self.vector(node, args[self.weight + i], maps) for i in (0, 1))
        ops.penalty_norm_forward_(maps, weight, bias, groups, args[-1], xhat, invstd, output)
        node.kept = xhat, invstd
        # torch.nn.functional ignores these two statistics.
        return self.unmapped(node, output), invstd.new_empty(0), invstd.new_empty(0)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        input, groups = at_least_float32(args[0]), self.groups(node)
        maps = self.maps(node, input)
        affine = (self.vector(node, args[self.weight + i], maps) for i in (0, 1))
        grouped = maps.reshape(maps.size(0), groups, maps.size(1) // groups, -1)
        result = normalised(grouped, (2, 3), args[-1], (groups, -1, 1), *affine)
        return self.unmapped(node, result.reshape(maps.shape)).to(args[0].dtype), None, None

    def _call(self, op: Any, node: Node, tensors: Sequence[Tensor], *settings: Any) -> Tensor:
        """Calls an op that has a result like x."""
        (xhat, invstd), maps = node.kept, [self.maps(node, tensor) for tensor in tensors]
        overwrite = node.overwrite and op is ops.penalty_norm_project_
        output = maps[0] if overwrite else torch.empty_like(maps[0])
        weight = self.vector(node, node.arg(self.weight), output)
        op(*maps, xhat, invstd, weight, self.groups(node), *settings, output)
        return self.unmapped(node, output)

    def _sums(self, node: Node, grad: Tensor, tangent: Tensor | None = None) -> list[Tensor]:
        """The gradients of weight and bias; with a tangent, those of <d, J u>."""
        (xhat, invstd), maps = node.kept, self.maps(node, grad)
        along = None if tangent is None else self.maps(node, tangent)
        sums = invstd.new_empty(2, maps.size(0), maps.size(1))
        means = sums.new_empty(2, *invstd.shape)
        ops.penalty_norm_gradients_(maps, along, xhat, invstd, self.groups(node), *sums, means)
        return [self.unmapped(node, vector) for vector in sums.sum(1)]

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        grad, slots = grads[0], set(wanted)
        assert grad is not None
        results: Slots = {}
        if slots - {0}:
            results[self.weight], results[self.weight + 1] = self._sums(node, grad)
        if 0 in slots:
            results[0] = self._call(ops.penalty_norm_project_, node, [grad], False)
        return {slot: results[slot] for slot in slots}

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return self._call(ops.penalty_norm_project_, node, [tangent], True)

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        tangent = tangents.get(0)
        if tangent is None or slot == self.weight + 1:
            return None
        if slot == self.weight:
            return self._sums(node, grad, tangent)[0]
        return self._call(ops.penalty_norm_curvature_, node, [grad, tangent])


class LayerNorm(GroupNorm):
    """native_layer_norm(x, shape, w, b, eps): over the last dimensions, w and b for each element.

    For the ops, each element is a channel and each normalised group is a sample.
    """

    name = "layer_norm"
    weight = 2

    def groups(self, node: Node) -> int:
        return 1

    def batched(self, node: Node, samples: int) -> bool:
        return len(node.slots[0].shape) > len(node.args[1])

    def _channels_last(self, node: Node) -> bool:
        value = node.slots[0]
        return len(node.args[1]) == 3 and layout_of(value.shape, value.dtype) == torch.channels_last

    def _in_memory_order(self, node: Node, tensor: Tensor) -> Tensor:
        return tensor.movedim(-3, -1) if self._channels_last(node) else tensor

    def maps(self, node: Node, tensor: Tensor) -> Tensor:
        dense = self._in_memory_order(node, tensor).contiguous()
        return dense.view(-1, math.prod(node.args[1]))

    def unmapped(self, node: Node, maps: Tensor) -> Tensor:
        samples = node.slots[0].shape[: -len(node.args[1])] if maps.dim() > 1 else ()
        if not self._channels_last(node):
            return maps.view(*samples, *node.args[1])
        channels, *size = node.args[1]
        return maps.view(*samples, *size, channels).movedim(-1, -3)

    def vector(self, node: Node, parameter: Tensor | None, like: Tensor) -> Tensor | None:
        if parameter is not None:
            parameter = self._in_memory_order(node, parameter).reshape(-1)
        return super().vector(node, parameter, like)


class BatchNorm(Rule):
    """native_batch_norm(x, w, b, running mean, running variance, training, momentum, eps).

    In training mode a group is a channel of the whole batch, which couples samples. The weight is
    constant in a group, so T(w d) = w T(d), and ATen's backward pass is also the jvp. With fixed
    statistics the op is linear.
    """

    name = "batch_norm"
    by_rows = False

    def for_node(self, node: Node) -> Rule:
        return self if _normalises_first(node) and len(node.slots[0].shape) > 1 else AUTOGRAD

    def reads(self, node: Node) -> Iterable[Any]:
        return (0, 1)

    def batched(self, node: Node, samples: int) -> bool:
        return not node.args[5]

    def kind_of(self, node: Node) -> str:
        return SMOOTH if node.args[5] else PIECEWISE_LINEAR

    def moves(self, node: Node, args: Sequence[Any]) -> Iterable[Tensor]:
        return [tensor for tensor in args[3:5] if tensor is not None and args[5]]

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if args[5] and _has_one_wide_dtype(args[:3]):
            # ATen's statistics are less accurate in channels-last layout, which these images have.
            input, weight, bias, running_mean, running_var, _, momentum, eps = args
            mean, invstd, scale = ops.batch_norm_statistics(
                input, weight, running_mean, running_var, momentum, eps
            )
            results = (ops.norm_act(input, mean, scale, bias, 0, 0.0), mean, invstd)
        else:
            results = func(*args, **kwargs)
        node.kept = results[1:]
        if args[5]:  # the running statistics have changed, and aren't needed again
            node.args[3] = node.args[4] = None
        return results

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        input, weight, bias, mean, variance, training, momentum, eps = args
        if training:
            dims, shape = (0, *range(2, input.dim())), (-1, *[1] * (input.dim() - 2))
            result = normalised(at_least_float32(input), dims, eps, shape, weight, bias)
            return result.to(input.dtype), None, None
        given = (input, mean, variance, weight, bias, training, momentum, eps)
        return torch.nn.functional.batch_norm(*given), None, None

    def _backward(
        self, node: Node, grad: Tensor, weight: Tensor | None, wanted: Iterable[Any] = (0,)
    ) -> Sequence[Tensor]:
        mask = [slot in wanted for slot in range(3)]
        input, running = node.arg(0), (node.arg(3), node.arg(4))
        results: Sequence[Tensor] = aten.native_batch_norm_backward.default(
            grad, input, weight, *running, *node.kept, node.args[5], node.args[7], mask
        )
        return results

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        (grad, *_), slots = grads, list(wanted)
        assert grad is not None
        results = self._backward(node, grad, node.arg(1), slots)
        return {slot: results[slot] for slot in slots}

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return self._backward(node, tangent, node.arg(1))[0]

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        tangent = tangents.get(0)
        if tangent is None or slot == 2:
            return None
        if slot == 0:
            return self._curvature(node, grad, tangent) if node.args[5] else None
        unscaled = self._backward(node, tangent, None)[0]
        product = unscaled.to(wide(unscaled)) * grad
        return sum_to(product, (1, product.size(1), *[1] * (product.dim() - 2))).view(-1)

    def _curvature(self, node: Node, grad: Tensor, tangent: Tensor) -> Tensor:
        dims, dtype = (0, *range(2, grad.dim())), wide(grad)
        spread = (-1, *[1] * (grad.dim() - 2))

        def mean(maps: Tensor) -> Tensor:
            return maps.mean(dims, keepdim=True)

        batch_mean, invstd = (vector.to(dtype).view(spread) for vector in node.kept)
        xhat = (node.arg(0).to(dtype) - batch_mean).mul_(invstd)
        p, u = (maps - mean(maps) for maps in (grad.to(dtype), tangent.to(dtype)))
        weight = node.arg(1)
        if weight is not None:
            p.mul_(weight.to(dtype).view(spread))
        a, b, c = mean(p * u), mean(xhat * p), mean(xhat * u)
        result = p.mul_(c).add_(u.mul_(b)).add_(xhat.mul_(a - 3 * b * c))
        return result.mul_(invstd.square().neg_()).to(grad.dtype)


def normalised(
    maps: Tensor,
    dims: tuple[int, ...],
    eps: float,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """weight * xhat + bias, with xhat over ``dims`` and the parameters viewed in a shape.

    torch's own norms have wrong third derivatives (2.13).
    """
    centred = maps - maps.mean(dims, keepdim=True)
    result = centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()
    if weight is not None:
        result = result * weight.view(shape)
    return result if bias is None else result + bias.view(shape)


def _has_one_wide_dtype(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all tensors are float32, or all float64."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return dtypes in ({torch.float32}, {torch.float64})


def _normalises_first(node: Node) -> bool:
    """Whether x depends on the images, and weight and bias don't."""
    return node.inner == [0]
