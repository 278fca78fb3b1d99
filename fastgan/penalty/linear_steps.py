"""The linear maps among a critic's layers: convolutions, products, pooling, sums, shapes.

Every method means what :class:`fastgan.penalty.steps.Step` says of it.
"""

# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.losses import widened
from fastgan.ops import aten_convolution
from fastgan.ops.convolution_choice import fastest
from fastgan.ops.matrix_convolution import traced
from fastgan.ops.stages import Stage
from fastgan.penalty.steps import (
    Gradients,
    PairedRows,
    Parameters,
    Rows,
    Step,
    Target,
    Tensors,
    over_samples_and_positions,
)

__all__ = [
    "AveragePool",
    "BatchNorm",
    "Cast",
    "Concatenation",
    "Convolution",
    "FullConvolution",
    "Linear",
    "LinearMap",
    "Reshape",
    "Sum",
    "TensorScaling",
    "TensorShift",
]

aten = torch.ops.aten


def _sum_to(grad: Tensor, shape: Sequence[int]) -> Tensor:
    return grad if grad.shape == torch.Size(shape) else grad.sum_to_size(tuple(shape))


class Convolution(Step):
    """Convolution or transposed convolution in any number of dimensions, zero padding."""

    op = "convolution"
    casts = True
    offsets = (1,)

    def __init__(
        self,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        transposed: bool,
        output_padding: Sequence[int],
        groups: int,
    ) -> None:
        self.stride = list(stride)
        self.padding = list(padding)
        self.dilation = list(dilation)
        self.transposed = transposed
        self.output_padding = list(output_padding)
        self.groups = groups
        self.stage = self._as_stage()

    def _as_stage(self) -> Stage | None:
        """The convolution as :mod:`fastgan.ops` has it; None in other than two dimensions."""
        if len(self.stride) != 2:
            return None
        return Stage(
            "conv_transpose2d" if self.transposed else "conv2d",
            (self.stride[0], self.stride[1]),
            (self.padding[0], self.padding[1]),
            (self.dilation[0], self.dilation[1]),
            (self.output_padding[0], self.output_padding[1]),
            self.groups,
        )

    def _faster(self, input: Tensor, weight: Tensor, of: str) -> tuple[Stage, Any] | None:
        """The stage, and who does a pass faster than ATen; None where autograd records."""
        stage = self.stage
        if stage is None or (
            torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
        ):
            return None
        convolution = fastest(stage, input, weight, of)
        return None if convolution is aten_convolution else (stage, convolution)

    def _convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = aten.convolution(
            input,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )
        return output

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        weight, bias = parameters
        assert weight is not None
        return self._convolve(inputs[0], weight, bias)

    def example(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        # By hand: a convolution without memory imports torch's compiler, which takes seconds.
        weight = parameters[0]
        assert weight is not None
        images = inputs[0]
        channels = weight.size(1) * self.groups
        expected = weight.size(0) if self.transposed else channels
        if images.size(1) != expected:
            raise ValueError(f"a convolution of {expected} channels got {images.size(1)}")
        size = []
        for length, taps, stride, padding, dilation, extra in zip(
            images.shape[2:],
            weight.shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding,
            strict=True,
        ):
            reach = dilation * (taps - 1) + 1 - 2 * padding
            if self.transposed:
                size.append((length - 1) * stride + reach + extra)
            else:
                size.append((length - reach) // stride + 1)
        if min(size) < 1:
            raise ValueError(f"a convolution makes shape {tuple(images.shape)} empty")
        reached = channels if self.transposed else weight.size(0)
        return images.new_empty(images.size(0), reached, *size)

    def prepare(self, parameters: Parameters) -> list[Tensor | None]:
        weight, bias = parameters
        assert weight is not None
        if self.channels_last and weight.dim() == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        return [weight, bias]

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        weight, bias = parameters
        assert weight is not None
        whole = rows.primal == inputs[0].size(0)
        if (faster := self._faster(inputs[0], weight, "forward")) is not None:
            stage, convolution = faster
            output = convolution.forward(stage, inputs[0], weight, bias if whole else None)
        else:
            output = self._convolve(inputs[0], weight, bias if whole else None)
        if bias is not None and not whole and rows.primal:
            output[: rows.primal].add_(bias.view(-1, *[1] * (output.dim() - 2)))
        return output, None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        weight = parameters[0]
        assert weight is not None
        size = to.shapes[0][1:]
        input = grad.new_empty(()).expand(grad.size(0), *to.shapes[0])
        if (faster := self._faster(input, weight, "input_gradient")) is not None:
            stage, convolution = faster
            return [convolution.input_gradient(stage, grad, input, weight)]
        if self.transposed:
            input_grad = aten.convolution(
                grad,
                weight,
                None,
                self.stride,
                self.padding,
                self.dilation,
                False,
                [0] * len(size),
                self.groups,
            )
            for dimension, length in enumerate(size):
                # An output padding beyond the stride (dilation allows it) makes some too many.
                input_grad = input_grad.narrow(dimension + 2, 0, length)
            return [input_grad]
        # The transpose of a convolution; the rows that its stride skipped come back as padding.
        skipped = [
            length - ((reached - 1) * stride - 2 * padding + dilation * (taps - 1) + 1)
            for length, reached, stride, padding, dilation, taps in zip(
                size,
                grad.shape[2:],
                self.stride,
                self.padding,
                self.dilation,
                weight.shape[2:],
                strict=True,
            )
        ]
        return [
            aten.convolution(
                grad,
                weight,
                None,
                self.stride,
                self.padding,
                self.dilation,
                True,
                skipped,
                self.groups,
            )
        ]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        weight_grad = bias_grad = None
        weight = parameters[0]
        assert weight is not None
        faster = self._faster(inputs[0], weight, "weight_gradient")
        if rows.wanted[0] and faster is not None:
            stage, convolution = faster
            weight_grad, _ = convolution.weight_gradient(stage, grad, inputs[0], weight, False)
        elif rows.wanted[0]:
            weight_grad = aten.convolution_backward(
                grad,
                inputs[0],
                weight,
                None,
                self.stride,
                self.padding,
                self.dilation,
                self.transposed,
                self.output_padding,
                self.groups,
                [False, True, False],
            )[1]
        if rows.wanted[1]:
            bias_grad = over_samples_and_positions(grad[: rows.primal])
        return [weight_grad, bias_grad]


class FullConvolution(Step):
    """A convolution whose kernel is as large as its input: one dot product per output channel."""

    op = "convolution"
    casts = True
    offsets = (1,)

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        weight, bias = parameters
        assert weight is not None
        output = F.linear(inputs[0].flatten(1), weight.flatten(1), bias)
        return output.view(*output.shape, *[1] * (weight.dim() - 2))

    def _in_memory_order(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1) if self.channels_last and maps.dim() == 4 else maps

    def _rows(self, maps: Tensor) -> Tensor:
        return self._in_memory_order(maps).flatten(1)

    def _maps(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of ``_rows``."""
        if self.channels_last and len(shape) == 3:
            channels, height, width = shape
            return rows.view(-1, height, width, channels).permute(0, 3, 1, 2)
        return rows.view(-1, *shape)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        weight, bias = parameters
        assert weight is not None
        with traced("forward"):
            output = self._rows(inputs[0]) @ self._rows(weight).t()
        if bias is not None and rows.primal:
            output[: rows.primal].add_(bias)
        return output.view(*output.shape, *[1] * (weight.dim() - 2)), None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        weight = parameters[0]
        assert weight is not None
        with traced("input_gradient"):
            return [self._maps(grad.flatten(1) @ self._rows(weight), to.shapes[0])]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        weight = parameters[0]
        assert weight is not None
        grad = grad.flatten(1)
        weight_grad = bias_grad = None
        if rows.wanted[0]:
            with traced("weight_gradient"):
                weight_grad = self._maps(grad.t() @ self._rows(inputs[0]), weight.shape[1:])
        if rows.wanted[1]:
            bias_grad = grad[: rows.primal].sum(0)
        return [weight_grad, bias_grad]


class Linear(Step):
    """x W^T + b over the last dimension."""

    op = "linear"
    casts = True
    offsets = (1,)

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        weight, bias = parameters
        assert weight is not None
        return F.linear(inputs[0], weight, bias)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        weight, bias = parameters
        assert weight is not None
        whole = rows.primal == inputs[0].size(0)
        output = F.linear(inputs[0], weight, bias if whole else None)
        if bias is not None and not whole and rows.primal:
            output[: rows.primal].add_(bias)
        return output, None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        weight = parameters[0]
        assert weight is not None
        return [grad @ weight]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        weight_grad = bias_grad = None
        if rows.wanted[0]:
            weight_grad = grad.flatten(0, -2).t() @ inputs[0].flatten(0, -2)
        if rows.wanted[1]:
            bias_grad = grad[: rows.primal].flatten(0, -2).sum(0)
        return [weight_grad, bias_grad]


class BatchNorm(Step):
    """Batch norm with fixed statistics: one scale and one shift per channel.

    Parameters: weight, bias, running mean, running variance.
    """

    op = "batch_norm"
    offsets = (1,)

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        weight, bias, mean, variance = parameters
        return F.batch_norm(inputs[0], mean, variance, weight, bias, eps=self.eps)

    def prepare(self, parameters: Parameters) -> list[Tensor | None]:
        weight, bias, mean, variance = parameters
        assert mean is not None
        assert variance is not None
        mean, variance = widened(mean), widened(variance)
        invstd = (variance + self.eps).rsqrt()
        scale = invstd if weight is None else invstd * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return [scale, shift, mean, invstd]

    @staticmethod
    def _per_channel(vector: Tensor | None, maps: Tensor) -> Tensor:
        assert vector is not None
        # Float32 with maps of halves, too: what is computed with it is, and rounded once.
        wide = torch.float64 if maps.dtype == torch.float64 else torch.float32
        return vector.to(wide).view(-1, *[1] * (maps.dim() - 2))

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        scale, shift = (self._per_channel(v, inputs[0]) for v in parameters[:2])
        output = inputs[0] * scale
        if rows.primal:
            output[: rows.primal].add_(shift)
        return output.to(inputs[0].dtype), None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        scale = self._per_channel(parameters[0], grad)
        return [grad.mul_(scale) if to.overwrite else (grad * scale).to(grad.dtype)]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        mean, invstd = (self._per_channel(v, inputs[0]) for v in parameters[2:])
        weight_grad = bias_grad = None
        if rows.wanted[0]:
            centred = inputs[0].to(mean.dtype, copy=True)
            centred[: rows.primal].sub_(mean)
            weight_grad = over_samples_and_positions(centred.mul_(invstd).mul_(grad))
        if rows.wanted[1]:
            bias_grad = over_samples_and_positions(grad[: rows.primal])
        return [weight_grad, bias_grad, None, None]


class LinearMap(Step):
    """Any linear function of one tensor without parameters; its transpose is found by autograd.

    Args:
        op: torch's name.
        function: a linear map of each sample.
        fresh: whether its output never shares memory with its input.
    """

    def __init__(
        self, op: str, function: Callable[[Tensor], Tensor], *, fresh: bool = False
    ) -> None:
        self.op = op
        self.function = function
        self.fresh = fresh

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return self.function(inputs[0])

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        return self.function(inputs[0]), None

    def _empty(self, grad: Tensor, shape: Sequence[int]) -> Tensor:
        format = torch.contiguous_format
        if self.channels_last and len(shape) == 3:
            format = torch.channels_last
        return torch.empty(
            (grad.size(0), *shape), dtype=grad.dtype, device=grad.device, memory_format=format
        )

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        with torch.enable_grad():
            # The derivative doesn't depend on the point, so any memory will do for one.
            point = self._empty(grad, to.shapes[0]).requires_grad_()
            image = self.function(point)
            (result,) = torch.autograd.grad(image, point, grad.to(image.dtype))
        return [result]


class AveragePool(LinearMap):
    """Average over windows. Kept apart so that its transpose needs no forward pass."""

    def __init__(
        self,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        ceil_mode: bool,
        count_include_pad: bool,
        divisor_override: int | None,
    ) -> None:
        window: Any = (
            list(kernel_size),
            list(stride),
            list(padding),
            ceil_mode,
            count_include_pad,
            divisor_override,
        )
        super().__init__("avg_pool2d", lambda x: F.avg_pool2d(x, *window), fresh=True)
        self.window = window

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        # Only the shape and the layout of the input matter.
        like = self._empty(grad, to.shapes[0])
        return [aten.avg_pool2d_backward(grad, like, *self.window)]


class Reshape(Step):
    """Another shape for each sample, elements in the same order."""

    op = "reshape"
    fresh = False

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(shape)

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0].reshape(inputs[0].size(0), *self.shape)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        return self.apply(inputs, parameters), None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return [grad.reshape(grad.size(0), *to.shapes[0])]


class Cast(Step):
    """Another floating dtype."""

    op = "to"
    fresh = False

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        return inputs[0].to(self.dtype)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        return inputs[0].to(self.dtype), None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        # Whoever takes a signal brings it to the dtype that it computes in.
        return [grad]


class Sum(Step):
    """c_1 x_1 + ... + c_k x_k + a constant, with numbers c, over inputs that broadcast."""

    def __init__(self, op: str, factors: Sequence[float], constant: float = 0.0) -> None:
        self.op = op
        self.factors = list(factors)
        self.constant = constant

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        output = inputs[0] if self.factors[0] == 1 else inputs[0] * self.factors[0]
        for input, factor in zip(inputs[1:], self.factors[1:], strict=True):
            output = torch.add(output, input, alpha=factor)
        return output + self.constant if self.constant else output

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        output = inputs[0]
        if self.factors[0] != 1 or len(inputs) == 1:
            output = output * self.factors[0]
        for input, factor in zip(inputs[1:], self.factors[1:], strict=True):
            output = torch.add(output, input, alpha=factor)
        if self.constant:
            output[: rows.primal].add_(self.constant)
        return output, None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return [
            _sum_to(grad if factor == 1 else grad * factor, (grad.size(0), *shape))
            if want
            else None
            for factor, shape, want in zip(self.factors, to.shapes, to.wanted, strict=True)
        ]


def _rows_of(constant: Tensor, rows: int, dimensions: int) -> Tensor:
    """A constant for ``rows`` samples: repeated if it has one row per sample, else as it is."""
    if constant.dim() == dimensions and constant.size(0) not in (1, rows):
        return constant.repeat(rows // constant.size(0), *[1] * (dimensions - 1))
    return constant


def _constant_grad(grad: Tensor, constant: Tensor) -> Tensor:
    """The sum of ``grad`` over whatever the constant was repeated and broadcast along."""
    if constant.dim() == grad.dim() and 1 < constant.size(0) < grad.size(0):
        grad = grad.unflatten(0, (-1, constant.size(0))).sum(0)
    return _sum_to(grad, constant.shape)


class TensorShift(Step):
    """x + factor * c for a tensor c that doesn't depend on the input."""

    offsets = (0,)

    def __init__(self, op: str, factor: float = 1.0, scale: float = 1.0) -> None:
        self.op = op
        self.factor = factor
        self.scale = scale

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        (constant,) = parameters
        assert constant is not None
        return torch.add(inputs[0] * self.scale, constant, alpha=self.factor)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        (constant,) = parameters
        assert constant is not None
        # A multiplication by 1 costs what the copy would that adding in place needs.
        output = inputs[0] * self.scale
        if rows.primal:
            constant = _rows_of(constant, rows.primal, output.dim())
            output[: rows.primal].add_(constant, alpha=self.factor)
        return output, None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return [grad if self.scale == 1 else grad * self.scale]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        (constant,) = parameters
        assert constant is not None
        if not rows.wanted[0]:
            return [None]
        return [_constant_grad(grad[: rows.primal] * self.factor, constant)]


class TensorScaling(Step):
    """x * c, or x / c, elementwise, for a tensor c that doesn't depend on the input."""

    def __init__(self, op: str, *, divide: bool = False) -> None:
        self.op = op
        self.divide = divide

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        (constant,) = parameters
        assert constant is not None
        constant = _rows_of(constant, inputs[0].size(0), inputs[0].dim())
        return inputs[0] / constant if self.divide else inputs[0] * constant

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        return self.apply(inputs, parameters), None

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return [self.apply([grad], parameters)]

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        (constant,) = parameters
        assert constant is not None
        if not rows.wanted[0]:
            return [None]
        product = _constant_grad(inputs[0] * grad, constant)
        return [-product / constant.square() if self.divide else product]


class Concatenation(Step):
    """Inputs and constants, such as label planes, side by side along a dimension beyond the batch.

    Args:
        dim: the dimension, at least 1.
        is_constant: for each piece, whether it is a parameter (a constant) or an input.
        widths: each piece's length along ``dim``.
    """

    op = "cat"

    def __init__(self, dim: int, is_constant: Sequence[bool], widths: Sequence[int]) -> None:
        self.dim = dim
        self.is_constant = list(is_constant)
        self.widths = list(widths)
        self.offsets = tuple(range(sum(self.is_constant)))

    def _pieces(self, inputs: Tensors, constants: Sequence[Tensor]) -> list[Tensor]:
        remaining, others = iter(inputs), iter(constants)
        return [next(others) if constant else next(remaining) for constant in self.is_constant]

    def apply(self, inputs: Tensors, parameters: Parameters) -> Tensor:
        constants = [c for c in parameters if c is not None]
        return torch.cat(self._pieces(inputs, constants), self.dim)

    def run(self, inputs: Tensors, parameters: Parameters, rows: Rows) -> tuple[Tensor, Any]:
        input = inputs[0]
        constants = []
        for constant in parameters:
            assert constant is not None
            whole = constant.new_zeros(input.size(0), *constant.shape[1:])
            if rows.primal:
                whole[: rows.primal] = _rows_of(constant, rows.primal, input.dim())
            constants.append(whole)
        return torch.cat(self._pieces(inputs, constants), self.dim), None

    def _split(self, grad: Tensor, constants: bool) -> list[Tensor]:
        pieces = grad.split(self.widths, self.dim)
        return [p for p, c in zip(pieces, self.is_constant, strict=True) if c == constants]

    def signal(self, grad: Tensor, parameters: Parameters, to: Target) -> Gradients:
        return list(self._split(grad, constants=False))

    def gradients(
        self, inputs: Tensors, grad: Tensor, parameters: Parameters, rows: PairedRows
    ) -> Gradients:
        pieces = self._split(grad[: rows.primal], constants=True)
        results: Gradients = []
        for piece, constant, want in zip(pieces, parameters, rows.wanted, strict=True):
            assert constant is not None
            if not want:
                results.append(None)
            else:
                results.append(_constant_grad(piece, constant))
        return results
