"""What a chain can be asked to run; the rest is left to torch's own functions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fastgan.ops.dtypes import DTYPES
from fastgan.ops.stages import Stage

__all__ = ["PLAIN", "autocast_dtype", "why_not_chained", "why_not_this_stage"]

#: The classes of tensors that chains take; a subclass may be anything.
PLAIN: set[type] = {Tensor, nn.Parameter}
_NORM_DTYPES = {
    torch.float64: (torch.float64,),
    torch.float32: (torch.float32,),
    torch.float16: (torch.float16, torch.float32),
    torch.bfloat16: (torch.bfloat16, torch.float32),
}


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """What autocast would cast a convolution's arguments to; None where it is off."""
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
    """Why a chain can't take these, in words; None where it can.

    What torch would refuse is among it, so that torch's own function does so, in its own words.

    Args:
        input: of the first layer.
        dimensions: how many the layer's input has with a batch.
        dtype: autocast's, or None.
        convolved: weights and biases, which must be of the input's dtype but under autocast.
        others: the norms' tensors, of the dtype that is run in, or float32 beside 16 bits.
    """
    if type(input) not in PLAIN:
        return f"its input is a {type(input).__name__}"
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
    """Why a chain can't have such a stage, in words; None where it can."""
    along = zip(stage.output_padding, stage.stride, stage.dilation, strict=True)
    if any(extra >= max(stride, dilation) > 0 for extra, stride, dilation in along):
        return "its output_padding is not below its stride or dilation"
    if min(stage.stride) < 1 or min(stage.dilation) < 1 or min(stage.padding) < 0:
        return "its stride, dilation or padding is not one that a convolution can have"
    return None
