"""``conv2d_gradfix``: convolutions with gradients of any order, and a switch for weights.

See :mod:`fastgan.ops.convolution`.

Attributes:
    enabled: whether ``conv2d`` and ``conv_transpose2d`` are fastgan's (the default) or torch's, for
        which the switch has no effect. Assign to change it.
    weight_gradients_disabled: whether :func:`no_weight_gradients` is active.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import convolution as _ops
from fastgan.ops.chain import weights_are_left_out, weights_left_out

__all__ = ["conv2d", "conv_transpose2d", "enabled", "no_weight_gradients"]

enabled = True
weight_gradients_disabled: bool


def __getattr__(name: str) -> Any:
    if name == "weight_gradients_disabled":
        return weights_are_left_out()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def no_weight_gradients(disable: bool = True) -> Iterator[None]:
    """A context in which backward passes compute no gradients of convolutions' weights.

    For ``torch.autograd.grad(scores, images, create_graph=True)``, as in R1. Weights without a
    requested gradient cost nothing anyway. Applies to the whole process, as a GPU's backward pass
    runs on other threads.

    Args:
        disable: False to change nothing.

    Example:
        >>> import torch
        >>> x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1, requires_grad=True)
        >>> y = conv2d(x, w).sum()
        >>> with no_weight_gradients():
        ...     y.backward()
        >>> w.grad is None
        True
    """
    if not disable:
        yield
        return
    with weights_left_out():
        yield


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d``, the fastest for the device.

    Example:
        >>> import torch
        >>> conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2))
        tensor([[[[4.]]]])
    """
    function = _ops.conv2d if enabled else F.conv2d
    return function(input, weight, bias, stride, padding, dilation, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Tensor:
    """``F.conv_transpose2d``, the fastest for the device.

    Example:
        >>> import torch
        >>> conv_transpose2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 2), stride=2)
        tensor([[[[1., 1.]]]])
    """
    function = _ops.conv_transpose2d if enabled else F.conv_transpose2d
    return function(input, weight, bias, stride, padding, output_padding, groups, dilation)
