"""The memory format of torch's convolutions' results, which ours match.

A convolution's output and the gradient of its input are channels-last if its input or its weight
is, and contiguous otherwise: torch's rule, on CPUs and with cuDNN
(``aten/src/ATen/native/ConvUtils.h``). Code that calls ``view`` on either relies on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_channels_last(tensor: Tensor) -> bool:
    """Whether torch considers a tensor channels-last: its ``suggest_memory_format``.

    Not ``is_contiguous(memory_format=torch.channels_last)``, which is also true for contiguous
    tensors with one channel or one pixel.

    Example:
        >>> image = torch.zeros(2, 1, 4, 4)
        >>> is_channels_last(image), is_channels_last(image.as_strided(image.shape, (16, 1, 4, 1)))
        (False, True)
    """
    if tensor.dim() not in (4, 5):
        return False
    sizes, strides = tensor.shape, tensor.stride()
    if strides[1] == 0:
        return False
    least = 0
    for d in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return False
        least = strides[d] * max(sizes[d], 1)
    return True


def gives_channels_last(input: Tensor, weight: Tensor) -> bool:
    """Whether torch's convolution of the two, and its input gradient, are channels-last."""
    return is_channels_last(input) or is_channels_last(weight)


def empty_map(
    like: Tensor, sizes: Sequence[int], channels_last: bool, device: str | None = None
) -> Tensor:
    """An uninitialised (N, C, H, W) tensor of ``like``'s dtype and device; not a view."""
    return torch.empty(
        sizes, dtype=like.dtype, device=device or like.device, memory_format=_format(channels_last)
    )


def map_strides(sizes: Sequence[int], channels_last: bool) -> tuple[int, int, int, int]:
    """The strides of a dense (N, C, H, W) tensor."""
    _, channels, rows, columns = sizes
    image = channels * rows * columns
    if channels_last:
        return image, 1, columns * channels, channels
    return image, rows * columns, columns, 1


def laid_out(map: Tensor, channels_last: bool) -> Tensor:
    """``map`` itself if it has the layout (strides of size-1 dimensions included); else a copy."""
    if map.dim() != 4:
        return map
    strides = map_strides(map.shape, channels_last)
    if map.stride() == strides:
        return map
    if map.is_contiguous(memory_format=_format(channels_last)):
        return map.as_strided(map.shape, strides)
    return map.contiguous(memory_format=_format(channels_last))


class _Relaid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, map: Tensor, channels_last: bool) -> Tensor:
        ctx.channels_last = channels_last
        ctx.set_materialize_grads(False)  # no gradient is eager's, not zeros
        copy = laid_out(map, channels_last)
        return torch.ops.aten.alias(copy) if copy is map else copy

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, None]:
        if grad_output is None or not (
            grad_output.is_contiguous() or is_channels_last(grad_output)
        ):
            return grad_output, None  # the user's: as of the map itself
        return laid_out(grad_output, not ctx.channels_last), None


def relaid(map: Tensor, channels_last: bool) -> Tensor:
    """A copy of a map in the other layout; its gradient has the map's own, or neither.

    Example:
        >>> relaid(torch.ones(2, 3, 4, 4), True).stride()
        (48, 1, 12, 3)
    """
    if is_channels_last(map) == channels_last:
        return map
    if not (map.requires_grad and torch.is_grad_enabled()):
        return laid_out(map, channels_last)
    copy: Tensor = _Relaid.apply(map, channels_last)  # type: ignore[no-untyped-call]
    return copy


def lay_out_weight_gradient(output: Tensor, weight: Tensor) -> None:
    """Makes the gradient of a convolution's contiguous weight contiguous, whatever its maps are.

    Args:
        output: of torch's convolution.
        weight: its weight.
    """
    if output.grad_fn is not None and weight.requires_grad and not is_channels_last(weight):
        output.grad_fn.register_hook(_with_contiguous_weight_gradient)


def _with_contiguous_weight_gradient(grads: Any, _: Any) -> Any:
    input, weight, bias = grads
    return input, None if weight is None else weight.contiguous(), bias


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format
