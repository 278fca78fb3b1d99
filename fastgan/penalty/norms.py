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
        """A dense tensor (see :meth:`dense`), viewed as the ops' maps."""
        return tensor

    def vector(self, node: Node, parameter: Tensor) -> Tensor:
        """A weight or bias, viewed as the ops' vector."""
        return parameter

    def parameter(self, node: Node, vector: Tensor) -> Tensor:
        """The inverse of :meth:`vector`, or of :meth:`maps` for tensors with a batch dimension."""
        return vector

    def for_node(self, node: Node) -> Rule:
        return self if _normalises_first(node) else AUTOGRAD

    def reads(self, node: Node) -> Iterable[Any]:
        return (self.weight,)

    def backend(self, node: Node) -> tuple[str, str]:
        path = op_path("penalty_norm_forward_", node.slots[0].device.type)
        return path.path, path.reason

    def dense(self, node: Node, tensor: Tensor) -> Tensor:
        """The tensor in the ops' layout; a copy if necessary."""
        return tensor.contiguous(memory_format=self.layout(node, tensor.dtype))

    def layout(self, node: Node, dtype: torch.dtype) -> torch.memory_format:
        """The maps' layout."""
        return layout_of(node.slots[0].shape, dtype)

    def run(self, node: Node, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        input = self.dense(node, args[0])
        maps = self.maps(node, input)
        eps = args[-1]
        overwrite = node.overwrite or input is not args[0]
        xhat, output = input if overwrite else torch.empty_like(input), torch.empty_like(input)
        invstd = torch.empty(
            maps.size(0), self.groups(node), dtype=wide(input), device=input.device
        )
        weight, bias = (self._vector(node, args[i], input) for i in (self.weight, self.weight + 1))
        outs = self.maps(node, xhat), invstd, self.maps(node, output)
        ops.penalty_norm_forward_(maps, weight, bias, self.groups(node), eps, *outs)
        node.kept = xhat, invstd
        # torch.nn.functional ignores these two statistics.
        return output, invstd.new_empty(0), invstd.new_empty(0)

    def replay(self, node: Node, args: Sequence[Any]) -> Any:
        input, eps = args[0], args[-1]
        maps = at_least_float32(self.maps(node, self.dense(node, input)))
        groups = self.groups(node)
        grouped = maps.reshape(maps.size(0), groups, maps.size(1) // groups, -1)
        affine = [
            None if parameter is None else self.vector(node, parameter)
            for parameter in args[self.weight : self.weight + 2]
        ]
        result = _affine(normalised(grouped, (2, 3), eps), (groups, -1, 1), *affine)
        return self.parameter(node, result.reshape(maps.shape)).to(input.dtype), None, None

    def _vector(self, node: Node, parameter: Tensor | None, like: Tensor) -> Tensor | None:
        if parameter is None:
            return None
        return self.vector(node, parameter).to(wide(like)).contiguous()

    def _call(
        self, op: Any, node: Node, maps: Sequence[Tensor], *settings: Any, overwrite: bool = False
    ) -> Tensor:
        """Calls an op on maps, xhat and the weight, and undoes the view of its result."""
        (xhat, invstd), first = node.kept, maps[0]
        output = first if overwrite else torch.empty_like(first)
        weight = self._vector(node, node.arg(self.weight), first)
        given = (self.maps(node, tensor) for tensor in (*maps, xhat))
        op(*given, invstd, weight, self.groups(node), *settings, self.maps(node, output))
        return output

    def _project(self, node: Node, grad: Tensor, tangent: bool) -> Tensor:
        dense, project = [self.dense(node, grad)], ops.penalty_norm_project_
        return self._call(project, node, dense, tangent, overwrite=node.overwrite)

    def _sums(self, node: Node, grad: Tensor, tangent: Tensor | None) -> list[Tensor]:
        """The gradients of weight and bias; with a tangent, those of <d, J u>."""
        xhat, invstd = node.kept
        maps = self.maps(node, self.dense(node, grad))
        along = None if tangent is None else self.maps(node, self.dense(node, tangent))
        sums = invstd.new_empty(2, maps.size(0), maps.size(1))
        means = sums.new_empty(2, *invstd.shape)
        ops.penalty_norm_gradients_(
            maps, along, self.maps(node, xhat), invstd, self.groups(node), *sums, means
        )
        return [self.parameter(node, vector) for vector in sums.sum(1)]

    def vjp(self, node: Node, grads: Grads, wanted: Iterable[Any]) -> Slots:
        grad, slots = grads[0], set(wanted)
        assert grad is not None
        results: Slots = {}
        if slots - {0}:
            results[self.weight], results[self.weight + 1] = self._sums(node, grad, None)
        if 0 in slots:
            results[0] = self._project(node, grad, tangent=False)
        return {slot: results[slot] for slot in slots}

    def slot_jvp(self, node: Node, tangent: Tensor, slot: Any) -> Tensor:
        return self._project(node, tangent, tangent=True)

    def slot_gradient(self, node: Node, grad: Tensor, tangents: Slots, slot: Any) -> Tensor | None:
        tangent = tangents.get(0)
        if tangent is None or slot == self.weight + 1:
            return None
        if slot == self.weight:
            return self._sums(node, grad, tangent)[0]
        dense = [self.dense(node, maps) for maps in (grad, tangent)]
        return self._call(ops.penalty_norm_curvature_, node, dense)


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

    def layout(self, node: Node, dtype: torch.dtype) -> torch.memory_format:
        # In channels-last layout the last dimensions aren't contiguous.
        return super().layout(node, dtype) if len(node.args[1]) == 3 else torch.contiguous_format

    def _is_channels_last(self, node: Node) -> bool:
        return self.layout(node, node.slots[0].dtype) == torch.channels_last

    def _ordered(self, node: Node, tensor: Tensor) -> Tensor:
        return tensor.movedim(-3, -1) if self._is_channels_last(node) else tensor

    def maps(self, node: Node, tensor: Tensor) -> Tensor:
        return self._ordered(node, tensor).view(-1, math.prod(node.args[1]))

    def vector(self, node: Node, parameter: Tensor) -> Tensor:
        return self._ordered(node, parameter).reshape(-1)

    def parameter(self, node: Node, vector: Tensor) -> Tensor:
        shape = node.slots[0].shape[: -len(node.args[1])] if vector.dim() > 1 else ()
        if self._is_channels_last(node):
            channels, height, width = node.args[1]
            return vector.reshape(*shape, height, width, channels).movedim(-1, -3)
        return vector.reshape(*shape, *node.args[1])


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
            dims = (0, *range(2, input.dim()))
            result = normalised(at_least_float32(input), dims, eps)
            result = _affine(result, (-1, *[1] * (input.dim() - 2)), weight, bias)
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
        dims = (0, *range(2, grad.dim()))
        dtype = wide(grad)

        def mean(maps: Tensor) -> Tensor:
            return maps.mean(dims, keepdim=True)

        def spread(vector: Tensor) -> Tensor:
            return vector.to(dtype).view(-1, *[1] * (grad.dim() - 2))

        batch_mean, invstd = map(spread, node.kept)
        xhat = (node.arg(0).to(dtype) - batch_mean).mul_(invstd)
        weight = node.arg(1)
        p, u = grad.to(dtype), tangent.to(dtype)
        p, u = p - mean(p), u - mean(u)
        if weight is not None:
            p = p.mul_(spread(weight))
        a, b, c = mean(p * u), mean(xhat * p), mean(xhat * u)
        result = p.mul_(c).add_(u.mul_(b)).add_(xhat.mul_(a - 3 * b * c))
        return result.mul_(invstd.square().neg_()).to(grad.dtype)


def normalised(maps: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """xhat over the given dimensions.

    torch's own norms have wrong third derivatives (2.13).
    """
    centred = maps - maps.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _affine(
    xhat: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    if weight is not None:
        xhat = xhat * weight.view(shape)
    return xhat if bias is None else xhat + bias.view(shape)


def _has_one_wide_dtype(tensors: Iterable[Tensor | None]) -> bool:
    """Whether all tensors are float32, or all float64."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return dtypes in ({torch.float32}, {torch.float64})


def _normalises_first(node: Node) -> bool:
    """Whether x depends on the images, and weight and bias don't."""
    return node.inner == [0]
