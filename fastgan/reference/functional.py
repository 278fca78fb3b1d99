"""Convolution, batch norm and activation, one torch function after the other.

    y   = conv(x, W) + b
    z   = bn_weight * (y - mean(y)) / sqrt(var(y) + eps) + bn_bias      per channel
    out = activation(z)

Mean and (biased) variance are those of the batch in training and the running ones otherwise:
Ioffe and Szegedy 2015, arXiv 1502.03167, Algorithms 1 and 2. The running variance is updated
with the unbiased one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

Size = int | tuple[int, int]


def _activate(input: Tensor, activation: str, negative_slope: float) -> Tensor:
    if activation == "none":
        return input
    if activation == "leaky_relu":
        return F.leaky_relu(input, negative_slope)
    if activation == "gelu_tanh":
        return F.gelu(input, approximate="tanh")
    function = getattr(F, activation, None)
    if function is None:
        raise ValueError(
            f"activation is {activation!r}; expected 'none', 'leaky_relu', 'gelu_tanh', or a "
            "function of torch.nn.functional such as 'relu', 'tanh', 'sigmoid', 'silu' or 'gelu'"
        )
    output: Tensor = function(input)
    return output


def bn_act(
    input: Tensor,
    *,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """Batch norm, then an activation.

    Args:
        input: shape (N, C, ...).
        bn_weight: scale, shape (C,), or None for 1.
        bn_bias: shift, shape (C,), or None for 0.
        running_mean: shape (C,), updated in place in training; None keeps no statistics.
        running_var: shape (C,), as ``running_mean``; takes the unbiased variance.
        training: normalise with the batch's statistics (True) or the running ones (False).
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        activation: "none", "leaky_relu", "gelu_tanh", or a function of ``torch.nn.functional`` of
            the input alone: "relu", "tanh", "sigmoid", "silu" or "gelu".
        negative_slope: slope of "leaky_relu" below zero.

    Returns:
        A tensor of ``input``'s shape and dtype.

    Raises:
        ValueError: an unknown activation, or (from torch) one value per channel in training.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> bn_act(x, bn_weight=None, bn_bias=None, running_mean=None, running_var=None,
        ...        training=True).round(decimals=3)
        tensor([[0.],
                [1.]])
    """
    normalised = F.batch_norm(
        input, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps
    )
    return _activate(normalised, activation, negative_slope)


def conv2d_bn_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: Size = 1,
    padding: Size | str = 0,
    groups: int = 1,
    dilation: Size = 1,
    activation: str = "relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """``F.conv2d``, then :func:`bn_act`.

    Args:
        input: shape (N, C_in, H, W).
        weight: shape (C_out, C_in / groups, kH, kW).
        bias: shape (C_out,) or None.
        bn_weight: see :func:`bn_act`; shape (C_out,), as the next three.
        bn_bias: see :func:`bn_act`.
        running_mean: see :func:`bn_act`.
        running_var: see :func:`bn_act`.
        training: see :func:`bn_act`.
        momentum: see :func:`bn_act`.
        eps: see :func:`bn_act`.
        stride: as in ``F.conv2d``, and so the next three.
        padding: as in ``F.conv2d``.
        groups: as in ``F.conv2d``.
        dilation: as in ``F.conv2d``.
        activation: see :func:`bn_act`.
        negative_slope: see :func:`bn_act`.

    Returns:
        Shape (N, C_out, H_out, W_out).

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> import torch
        >>> conv2d_bn_act(torch.ones(2, 3, 8, 8), torch.ones(5, 3, 4, 4), bn_weight=None,
        ...               bn_bias=None, running_mean=None, running_var=None, training=True,
        ...               stride=2, padding=1, activation="leaky_relu").shape
        torch.Size([2, 5, 4, 4])
    """
    output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    return bn_act(
        output,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        activation=activation,
        negative_slope=negative_slope,
    )


def conv_transpose2d_bn_act(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
    activation: str = "relu",
    negative_slope: float = 0.2,
) -> Tensor:
    """``F.conv_transpose2d``, then :func:`bn_act`.

    Args:
        input: shape (N, C_in, H, W).
        weight: shape (C_in, C_out / groups, kH, kW).
        bias: shape (C_out,) or None.
        bn_weight: see :func:`bn_act`; shape (C_out,), as the next three.
        bn_bias: see :func:`bn_act`.
        running_mean: see :func:`bn_act`.
        running_var: see :func:`bn_act`.
        training: see :func:`bn_act`.
        momentum: see :func:`bn_act`.
        eps: see :func:`bn_act`.
        stride: as in ``F.conv_transpose2d``, and so the next four.
        padding: as in ``F.conv_transpose2d``.
        output_padding: as in ``F.conv_transpose2d``.
        groups: as in ``F.conv_transpose2d``.
        dilation: as in ``F.conv_transpose2d``.
        activation: see :func:`bn_act`.
        negative_slope: see :func:`bn_act`.

    Returns:
        Shape (N, C_out, H_out, W_out).

    Raises:
        ValueError: an unknown activation.

    Example:
        >>> import torch
        >>> conv_transpose2d_bn_act(torch.ones(2, 3, 4, 4), torch.ones(3, 5, 4, 4),
        ...                         bn_weight=None, bn_bias=None, running_mean=None,
        ...                         running_var=None, training=True, stride=2, padding=1).shape
        torch.Size([2, 5, 8, 8])
    """
    output = F.conv_transpose2d(
        input, weight, bias, stride, padding, output_padding, groups, dilation
    )
    return bn_act(
        output,
        bn_weight=bn_weight,
        bn_bias=bn_bias,
        running_mean=running_mean,
        running_var=running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        activation=activation,
        negative_slope=negative_slope,
    )
