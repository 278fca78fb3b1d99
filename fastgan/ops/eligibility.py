"""Checks whether a chain can run given arguments; torch's own functions run the rest."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

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


#: A context in which autocast casts nothing.
uncast = functools.partial(
    torch._C._ExcludeDispatchKeyGuard,
    torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU).add(
        torch._C.DispatchKey.AutocastCUDA
    ),
)


def dtype_under_autocast(name: str, input: Tensor) -> torch.dtype:
    """The dtype of a norm's or padding's result, by autocast's list for the device.

    Args:
        name: a key of ``_CAST``; for padding its mode.
        input: its input.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     dtype_under_autocast("reflect", torch.ones(1, dtype=torch.bfloat16))
        torch.float32
    """
    if name not in _CAST or autocast_dtype(input) is None:
        return input.dtype
    return _result_dtype(name, input.dtype, input.device.type)


#: Functions that autocast runs in float32 on some devices, in some versions of torch.
_CAST: dict[str, Callable[[Tensor], Tensor]] = {
    "instance_norm": F.instance_norm,
    "group_norm": lambda map: F.group_norm(map, 1),
    "layer_norm": lambda map: F.layer_norm(map, map.shape[1:]),
    "reflect": lambda map: F.pad(map, (1, 1, 1, 1), "reflect"),
    "replicate": lambda map: F.pad(map, (1, 1, 1, 1), "replicate"),
}


@functools.cache
def _result_dtype(name: str, dtype: torch.dtype, device: str) -> torch.dtype:
    with torch._C.DisableTorchFunction(), _disable_current_modes(), torch.no_grad():
        return _CAST[name](torch.ones(1, 1, 2, 2, dtype=dtype, device=device)).dtype


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
