"""Convolutions in two dimensions with gradients of any order, each a single convolution.

With T(x, W, g) = sum(conv(x, W) * g), linear in each of the three, the output and both gradients
are derivatives of T in one of them::

    y = dT/dg (x, W)      grad_input = dT/dx (W, g)      grad_weight = dT/dW (x, g)

and so are their derivatives. Autograd's double backward computes grad_weight's as a convolution
with a dilated filter of the map's size, and passes zeros for undefined gradients; here they stay
undefined. Each derivative runs on the backend that :mod:`fastgan.ops.backends` selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan._util.recording import is_recording
from fastgan.ops.backends import WINOGRAD, select_backend
from fastgan.ops.chain import OneDispatch, weights_are_left_out
from fastgan.ops.eligibility import autocast_dtype, why_not_chained, why_not_this_stage
from fastgan.ops.memory_format import is_channels_last, laid_out
from fastgan.ops.stages import Stage, padding_named, pair

Size = int | Sequence[int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``: the same arguments, results and errors.

    Order of gradients supported: any. Double backward takes one convolution per gradient, and none
    for undefined or unneeded gradients.

    Example:
        >>> x, weight = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3, requires_grad=True)
        >>> conv2d(x, weight, padding=1).shape
        torch.Size([1, 3, 4, 4])
    """
    named = (
        padding_named(padding, weight.shape[2:], pair(dilation), pair(stride))
        if isinstance(padding, str)
        else pair(padding)
    )
    if named is not None:
        stage = Stage("conv2d", pair(stride), named, pair(dilation), groups=groups)
        output = _convolution(stage, input, weight, bias)
        if output is not None:
            return output
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """``F.conv_transpose2d``, as :func:`conv2d`.

    Example:
        >>> x, weight = torch.ones(1, 2, 4, 4), torch.ones(2, 3, 4, 4, requires_grad=True)
        >>> conv_transpose2d(x, weight, stride=2, padding=1).shape
        torch.Size([1, 3, 8, 8])
    """
    stage = Stage(
        "conv_transpose2d",
        pair(stride),
        pair(padding),
        pair(dilation),
        pair(output_padding),
        groups,
    )
    output = _convolution(stage, input, weight, bias)
    if output is not None:
        return output
    return F.conv_transpose2d(
        input,
        weight,
        bias,
        stride,
        padding,
        output_padding,
        groups,
        dilation,
    )


def _convolution(stage: Stage, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """None if torch's own function should run: compilers, tracers, tapes, unsupported arguments."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None or is_recording():
        return None
    dtype = autocast_dtype(input)
    if (
        weight.dim() != 4
        or why_not_this_stage(stage) is not None
        or why_not_chained(input, 4, dtype, (weight, bias), ()) is not None
    ):
        return None
    if dtype is not None:
        input, weight = input.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _Derivative.apply(stage, _OUTPUT, None, bias, input, weight)  # type: ignore[no-any-return, no-untyped-call]


#: Most channels of an image: a 1x1 convolution to it takes less time than passes over its input.
MOST_IMAGE_CHANNELS = 4


def modulates_on_load(input: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether :func:`modulated_convolution` takes these: float32 on a CPU, and nothing records.

    Args:
        input: the map.
        weight: the convolution's.
        others: scales and noise.
    """
    tensors = (input, weight, *others)
    return (
        input.is_cpu
        and input.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not is_recording()
        and not (
            torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        )
        and autocast_dtype(input) is None
        and why_not_chained(input, 4, None, tensors, ()) is None
    )


def modulated_convolution(
    input_scale: Tensor,
    output_scale: Tensor | None,
    noise: Tensor | None,
    kind: str,
    input: Tensor,
    weight: Tensor,
    stride: Size = 1,
    padding: Size = 0,
    groups: int = 1,
) -> Tensor:
    """``output_scale * convolution(input_scale * input) + noise``, without gradients.

    Winograd's kernels scale on load and on store, a product with the image's few channels scales
    its weight: neither passes over the maps for it.

    Args:
        input_scale: (N, C).
        output_scale: (N, C_out); None for ones.
        noise: broadcasts to the output; None for zeros.
        kind: "conv2d" or "conv_transpose2d".
        input: (N, C, H, W); :func:`modulates_on_load` is true of all tensors.
        weight: this and the rest as of :func:`conv2d` or :func:`conv_transpose2d`.

    Example:
        >>> x, weight = torch.ones(2, 3, 4, 4), torch.ones(5, 3, 3, 3)
        >>> modulated_convolution(2 * x[:, :, 0, 0], None, None, "conv2d", x, weight).amax()
        tensor(54.)
    """
    stage = Stage(kind, pair(stride), pair(padding), groups=groups)
    # Only of dense maps the product has the same layout.
    is_dense = input.is_contiguous() or is_channels_last(input)
    if is_dense and select_backend("forward", stage, input, weight) is WINOGRAD:
        places = stage.output_size((input.shape[2], input.shape[3]), weight)
        on_store = None if noise is None else _noise_of_places(noise, len(input), places)
        with OneDispatch():
            output = WINOGRAD.modulated_forward(
                stage, input, weight, None, input_scale, output_scale, on_store
            )
        return output if noise is None or on_store is not None else output.add_(noise)
    is_product = weight.shape[2:] == (1, 1) and stage == Stage("conv2d")
    if is_dense and is_product and len(weight) <= MOST_IMAGE_CHANNELS:
        output, output_scale = _image(input, weight, input_scale, output_scale), None
    else:
        function = conv2d if kind == "conv2d" else conv_transpose2d
        input = input * input_scale[:, :, None, None]
        output = function(input, weight, stride=stride, padding=padding, groups=groups)
    if output_scale is None:
        return output if noise is None else output.add_(noise)
    output_scale = output_scale[:, :, None, None]
    return (
        output.mul_(output_scale) if noise is None else torch.addcmul(noise, output, output_scale)
    )


def _image(
    input: Tensor, weight: Tensor, input_scale: Tensor, output_scale: Tensor | None
) -> Tensor:
    """A 1x1 convolution with scaled weights, (N, C_out, C)."""
    weights = weight[:, :, 0, 0] * input_scale[:, None]
    if output_scale is not None:
        weights = weights * output_scale[:, :, None]
    batch, channels, rows, columns = input.shape
    if is_channels_last(input):
        pixels = input.permute(0, 2, 3, 1).reshape(batch, -1, channels) @ weights.mT
        return pixels.view(batch, rows, columns, -1).permute(0, 3, 1, 2)
    image = (weights @ input.reshape(batch, channels, -1)).view(batch, -1, rows, columns)
    return laid_out(image, is_channels_last(weight))


def _noise_of_places(noise: Tensor, batch: int, places: tuple[int, int]) -> Tensor | None:
    """(N or 1, 1, H, W); None for noise that differs by channel or not by place."""
    noise = noise[(None,) * (4 - noise.dim())]
    sizes = tuple(noise.shape)
    return noise if sizes[1:] == (1, *places) and sizes[0] in (1, batch) else None


_INPUT, _WEIGHT, _OUTPUT = range(3)
#: The other two arguments, on which a derivative by one of the three depends.
_FACTORS = {_INPUT: (_WEIGHT, _OUTPUT), _WEIGHT: (_INPUT, _OUTPUT), _OUTPUT: (_INPUT, _WEIGHT)}


class _Derivative(torch.autograd.Function):
    """dT by one of input, weight and output, given the other two."""

    @staticmethod
    def forward(
        ctx: Any,
        stage: Stage,
        by: int,
        like: Tensor | None,
        bias: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.stage, ctx.by = stage, by
        ctx.save_for_backward(*factors)
        first, second = factors
        with OneDispatch():
            if by == _OUTPUT:
                return select_backend("forward", stage, first, second).forward(
                    stage, first, second, bias
                )
            assert like is not None
            if by == _INPUT:
                backend = select_backend("input_gradient", stage, like, first)
                return backend.input_gradient(stage, second, like, first)
            backend = select_backend("weight_gradient", stage, first, like)
            return backend.weight_gradient(stage, second, first, like, False)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        stage, by = ctx.stage, ctx.by
        values: dict[int, Tensor] = dict(zip(_FACTORS[by], ctx.saved_tensors, strict=True))
        values[by] = grad
        bias = grad.sum((0, 2, 3)) if needs_gradient(ctx, 3, 0) else None
        gradients: list[Tensor | None] = [None, None, None, bias]
        for place, factor in zip((-2, -1), _FACTORS[by], strict=True):
            if needs_gradient(ctx, place, place) and not (
                factor == _WEIGHT and weights_are_left_out()
            ):
                others = (values[name] for name in _FACTORS[factor])
                like = values[factor].detach()
                gradient = _Derivative.apply(stage, factor, like, None, *others)  # type: ignore[no-untyped-call]
                gradients.append(gradient)
            else:
                gradients.append(None)
        return tuple(gradients)


def needs_gradient(node: Any, argument: int, tensor: int) -> bool:
    """Whether the current backward pass needs the gradient of a node's argument.

    ``needs_input_grad`` is true of weights even in ``torch.autograd.grad(scores, images)``.

    Args:
        node: the ``ctx`` of an autograd function.
        argument: its position among all arguments.
        tensor: its position among the tensor arguments.
    """
    if not node.needs_input_grad[argument]:
        return False
    try:
        goes: bool = torch._C._will_engine_execute_node(node.next_functions[tensor][0])
    except RuntimeError:  # a leaf whose gradient is needed
        return True
    return goes
