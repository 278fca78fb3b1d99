"""Checks whether a chain can run given arguments; torch's own functions run the rest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgan.ops.dtypes import DTYPES
from fastgan.ops.stages import Stage

#: Tensor classes that chains accept; other subclasses may behave in any way.
PLAIN: set[type] = {Tensor, nn.Parameter}
_NORM_DTYPES = {
    torch.float64: (torch.float64,),
    torch.float32: (torch.float32,),
    torch.float16: (torch.float16, torch.float32),
    torch.bfloat16: (torch.bfloat16, torch.float32),
}


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """Autocast's dtype for a convolution's arguments; None if it is off."""
    device = input.device.type
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def why_not_chained(
    input: Tensor,
    dimensions: int,
    dtype: torch.dtype | None,
    convolved: Iterable[Tensor | None],
    others: Iterable[Tensor | None],
) -> str | None:
    """Says why a chain can't run these arguments; None if it can.

    Includes everything that torch refuses, so that torch's own function raises its own error.

    Args:
        input: of the first layer.
        dimensions: the number of dimensions of the layer's batched input.
        dtype: autocast's, or None.
        convolved: weights and biases; without autocast they must have the input's dtype.
        others: the norms' tensors, in the arithmetic's dtype, or float32 with 16-bit data.
    """
    if type(input) not in PLAIN:
        return f"its input is a {type(input).__name__}"
    if input.layout is not torch.strided:
        return f"its input is {input.layout}"
    if input.device.type not in ("cpu", "cuda"):
        return f"its input is on {input.device.type}"
    if input.dtype not in DTYPES:
        return f"its input is {input.dtype}"
    if dtype is not None and (input.dtype == torch.float64 or dtype not in DTYPES):
        return f"autocast does not take {input.dtype} to {dtype} as a chain would"
    if torch.autograd.forward_ad._current_level >= 0:
        return "forward-mode differentiation is on"
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is on"
    if input.numel() == 0:
        return "its input is empty"
    if input.dim() != dimensions:
        return f"its input has {input.dim()} dimensions, not {dimensions}"
    device = input.device
    for tensor in convolved:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or tensor.device != device:
            return "a weight is of another kind or on another device"
        if tensor.dtype != input.dtype and dtype is None:
            return "input and weights differ in dtype"
        if dtype is not None and tensor.dtype == torch.float64:
            return "autocast does not cast float64"
    allowed = _NORM_DTYPES[input.dtype if dtype is None else dtype]
    for tensor in others:
        if tensor is None:
            continue
        if type(tensor) not in PLAIN or tensor.device != device:
            return "a tensor of a norm is of another kind or on another device"
        if tensor.dtype not in allowed:
            return f"a tensor of a norm is {tensor.dtype}"
    return None


def why_not_this_stage(stage: Stage) -> str | None:
    """Says why a chain can't have this stage; None if it can."""
    along = zip(stage.output_padding, stage.stride, stage.dilation, strict=True)
    if any(extra >= max(stride, dilation) > 0 for extra, stride, dilation in along):
        return "its output_padding is not below its stride or dilation"
    if min(stage.stride) < 1 or min(stage.dilation) < 1 or min(stage.padding) < 0:
        return "its stride, dilation or padding is not one that a convolution can have"
    return None
