"""``conv_transpose2d_bn_act`` and ``conv2d_bn_act``: a convolution, batch norm and activation.

    y   = conv(x, W) + b
    out = z((y - mean) / sqrt(var + eps) * bn_weight + bn_bias)          per channel

z being the activation. Mean and (biased) variance are the batch's in training; otherwise the
running ones, folded into W and b: Ioffe and Szegedy 2015, arXiv 1502.03167, algorithms 1 and 2.
They are chains of one stage (:mod:`fastgan.ops.chain`); for several layers use
:class:`fastgan.nn.FusedSequential`, which stores no normalised tensor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.activations import activation_named
from fastgan.explaining.fallback import warn_once
from fastgan.ops.backends import ATEN
from fastgan.ops.bn_act import bn_act
from fastgan.ops.chain import Chain, run_chain
from fastgan.ops.eligibility import autocast_dtype, why_not_chained, why_not_this_stage
from fastgan.ops.stages import (
    Stage,
    StageTensors,
    folded,
    is_folding_faster,
    padding_named,
    pair,
)

Size = int | tuple[int, int]


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
    """``F.conv_transpose2d``, ``F.batch_norm`` and an activation in one.

    See the module for the formula. Differentiable to any order in ``input``, ``weight``, ``bias``,
    ``bn_weight`` and ``bn_bias``. The convolution and its gradients run on the fastest backend by
    measurement (:mod:`fastgan.ops.backends`; :func:`fastgan.explain` shows it): on a GPU the Triton
    kernels (except float64 and ``groups`` above 1) or cuDNN. Autocast casts as for
    ``F.conv_transpose2d``.

    Args:
        input: (N, C_in, H, W); float64, float32, bfloat16 or float16.
        weight: (C_in, C_out / groups, kH, kW), of the input's dtype. Fastest in channels-last
            memory, like the input.
        bias: (C_out,) or None.
        bn_weight: scale, (C_out,), or None for 1; float32 or the input's dtype, like the next
            three.
        bn_bias: shift, (C_out,), or None for 0.
        running_mean: (C_out,), updated in place in training; None keeps no statistics.
        running_var: (C_out,), as ``running_mean``; takes the unbiased variance.
        training: normalise with the batch's statistics (True) or the running ones (False).
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        stride: as in ``F.conv_transpose2d``, like the next four.
        padding: rows and columns removed from each side of the result.
        output_padding: rows and columns added to one side of it.
        groups: of channels that don't mix.
        dilation: distance of the kernel's taps.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`, such as "none", "relu",
            "leaky_relu", "silu" or "gelu".
        negative_slope: slope of "leaky_relu" below zero.

    Returns:
        (N, C_out, H_out, W_out), in the dtype that the convolution ran in.

    Raises:
        ConfigError: an unknown activation (a ValueError).
        ValueError: one value per channel in training, or no running statistics in evaluation.
        RuntimeError: shapes, dtypes or devices that torch refuses.

    Example:
        >>> x, weight = torch.randn(2, 8, 4, 4), torch.randn(8, 5, 4, 4)
        >>> conv_transpose2d_bn_act(
        ...     x, weight, bn_weight=torch.ones(5), bn_bias=torch.zeros(5), running_mean=None,
        ...     running_var=None, training=True, stride=2, padding=1).shape
        torch.Size([2, 5, 8, 8])
    """
    stage = Stage(
        "conv_transpose2d",
        pair(stride),
        pair(padding),
        pair(dilation),
        pair(output_padding),
        groups,
        norm=True,
        batch_statistics=training,
        momentum=momentum,
        eps=eps,
        activation=activation_named(activation).name,
        negative_slope=negative_slope,
    )
    tensors = StageTensors(weight, bias, bn_weight, bn_bias, running_mean, running_var)
    return _conv_bn_act(stage, tensors, input)


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
    """``F.conv2d``, ``F.batch_norm`` and an activation in one.

    As :func:`conv_transpose2d_bn_act`, with the differences below.

    Args:
        input: (N, C_in, H, W); float64, float32, bfloat16 or float16.
        weight: (C_out, C_in / groups, kH, kW), of the input's dtype.
        bias: (C_out,) or None.
        bn_weight: as there, like the next seven.
        bn_bias: shift, (C_out,), or None for 0.
        running_mean: (C_out,), updated in place in training; None keeps no statistics.
        running_var: (C_out,), as ``running_mean``; takes the unbiased variance.
        training: normalise with the batch's statistics (True) or the running ones (False).
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        stride: as in ``F.conv2d``, like the next three.
        padding: rows and columns of zeros on each side, or "valid" or "same".
        groups: of channels that don't mix.
        dilation: distance of the kernel's taps.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`, such as "none", "relu",
            "leaky_relu", "silu" or "gelu".
        negative_slope: slope of "leaky_relu" below zero.

    Returns:
        (N, C_out, H_out, W_out), in the dtype that the convolution ran in.

    Raises:
        ConfigError: an unknown activation (a ValueError).
        ValueError: one value per channel in training, or no running statistics in evaluation.
        RuntimeError: shapes, dtypes or devices that torch refuses.

    Example:
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 4, 4)
        >>> conv2d_bn_act(
        ...     x, weight, bn_weight=None, bn_bias=None, running_mean=torch.zeros(5),
        ...     running_var=torch.ones(5), training=False, stride=2, padding=1,
        ...     activation="leaky_relu").shape
        torch.Size([2, 5, 4, 4])
    """
    named = (
        padding_named(padding, weight.shape[2:], pair(dilation), pair(stride))
        if isinstance(padding, str)
        else pair(padding)
    )
    stage = Stage(
        "conv2d",
        pair(stride),
        (0, 0) if named is None else named,
        pair(dilation),
        groups=groups,
        norm=True,
        batch_statistics=training,
        momentum=momentum,
        eps=eps,
        activation=activation_named(activation).name,
        negative_slope=negative_slope,
    )
    tensors = StageTensors(weight, bias, bn_weight, bn_bias, running_mean, running_var)
    if named is None:  # asymmetric padding, or one that torch refuses
        output = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        return _norm_act(stage, tensors, output)
    return _conv_bn_act(stage, tensors, input)


def _conv_bn_act(stage: Stage, tensors: StageTensors, input: Tensor) -> Tensor:
    compiling = torch.compiler.is_compiling()
    reason = None if compiling else _why_not(stage, tensors, input)
    if compiling or reason is not None:
        if reason is not None:
            warn_once(f"{stage.kind}_bn_act runs as two functions: {reason}", stacklevel=4)
        output = ATEN.forward(stage, input, tensors.weight, tensors.bias)
        return _norm_act(stage, tensors, output)
    size = (input.shape[2], input.shape[3])
    if not stage.batch_statistics and is_folding_faster(stage, tensors, len(input), size):
        stage, tensors = folded(stage, tensors)
    return run_chain(Chain((stage,), autocast_dtype(input)), input, [tensors])


def _norm_act(stage: Stage, tensors: StageTensors, input: Tensor) -> Tensor:
    """Batch norm and activation without the convolution."""
    return bn_act(
        input,
        bn_weight=tensors.norm_weight,
        bn_bias=tensors.norm_bias,
        running_mean=tensors.running_mean,
        running_var=tensors.running_var,
        training=stage.batch_statistics,
        momentum=stage.momentum,
        eps=stage.eps,
        activation=stage.activation,
        negative_slope=stage.negative_slope,
    )


def _why_not(stage: Stage, tensors: StageTensors, input: Tensor) -> str | None:
    """Says why the two run separately. Errors are left to torch's own checks."""
    weight, bias, *of_norm = tensors
    reason = why_not_chained(input, 4, autocast_dtype(input), (weight, bias), of_norm)
    if reason is not None:
        return reason
    if weight.dim() != 4:
        return f"its weight has {weight.dim()} dimensions, not 4"
    _, channels = stage.channels(weight.shape)
    if any(tensor is not None and tensor.shape != (channels,) for tensor in of_norm):
        return "a tensor of the norm does not have one value per channel"
    if (tensors.running_mean is None) != (tensors.running_var is None):
        return "it has one running statistic of two"
    if not stage.batch_statistics and tensors.running_mean is None:
        return "it has no running statistics"
    return why_not_this_stage(stage)
