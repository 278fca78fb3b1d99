"""What a chain of fused layers is made of: its stages, and the tensors each of them uses.

A stage is a convolution (or a linear layer) with the batch norm and the activation after it:

    y   = conv(x, W) + b
    out = z((y - mean(y)) / sqrt(var(y) + eps) * norm_weight + norm_bias)

With a batch norm the statistics are those of the batch; one that normalises with its running
statistics is folded into ``W`` and ``b`` before a chain sees them (:func:`fold_running_norm`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS

__all__ = ["KINDS", "Stage", "StageTensors", "fold_running_norm"]

KINDS = ("conv2d", "conv_transpose2d", "linear")


@dataclass(frozen=True)
class Stage:
    """One convolution with what follows it. Names and meanings as in ``torch.nn``.

    Attributes:
        kind: one of :data:`KINDS`.
        stride: of the convolution, as the next four; unused by a linear layer.
        padding: rows and columns of zeros on each side.
        dilation: distance of the kernel's taps.
        output_padding: of a transposed convolution.
        groups: of the convolution.
        norm: whether a batch norm with the batch's statistics follows.
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        negative_slope: of "leaky_relu".
    """

    kind: str
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1
    norm: bool = False
    momentum: float = 0.1
    eps: float = 1e-5
    activation: str = "none"
    negative_slope: float = 0.0

    @property
    def activation_code(self) -> int:
        """The activation's number in C++ and in Triton."""
        return ACTIVATIONS[self.activation].code


class StageTensors(NamedTuple):
    """The tensors of one stage; those that it lacks are None.

    Attributes:
        weight: as the layer's of the stage's kind.
        bias: (C,), C being the output's channels.
        norm_weight: (C,).
        norm_bias: (C,).
        running_mean: (C,), updated in place; has no gradient.
        running_var: (C,), as ``running_mean``.
    """

    weight: Tensor
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


def fold_running_norm(
    stage: Stage,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
) -> tuple[Tensor, Tensor]:
    """A batch norm that uses its running statistics, as part of the convolution before it.

        scale = norm_weight / sqrt(running_var + eps)
        W'    = W * scale                       per output channel
        b'    = (b - running_mean) * scale + norm_bias

    Made of torch functions, so that autograd goes through it.

    Args:
        stage: whose convolution this is; ``eps`` is read from it.
        weight: the convolution's.
        bias: the convolution's, or None.
        norm_weight: the batch norm's, or None for 1.
        norm_bias: the batch norm's, or None for 0.
        running_mean: (C,).
        running_var: (C,).

    Returns:
        The weight and bias of the convolution that does both.

    Example:
        >>> layer, norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2).eval()
        >>> weight, bias = fold_running_norm(
        ...     Stage("linear"), layer.weight, layer.bias, norm.weight, norm.bias,
        ...     norm.running_mean, norm.running_var)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(x @ weight.T + bias, norm(layer(x)), atol=1e-6)
        True
    """
    scale = torch.rsqrt(running_var + stage.eps)
    if norm_weight is not None:
        scale = scale * norm_weight
    shift = -running_mean if bias is None else bias - running_mean
    shift = shift * scale
    if norm_bias is not None:
        shift = shift + norm_bias
    if stage.kind == "linear":
        return weight * scale[:, None], shift
    if stage.kind == "conv2d":
        return weight * scale[:, None, None, None], shift
    # (C_in, C / groups, kH, kW): output channel g * C / groups + j is column j of group g's rows.
    per_group = scale.view(stage.groups, 1, -1).expand(
        stage.groups, weight.shape[0] // stage.groups, -1
    )
    return weight * per_group.reshape(weight.shape[0], -1)[:, :, None, None], shift
