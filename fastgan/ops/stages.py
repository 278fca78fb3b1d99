"""The stages of a chain of fused layers, and their tensors.

A stage is a convolution (or a linear layer) with the batch norm and the activation after it:

    y   = conv(x, W) + b
    out = z((y - mean(y)) / sqrt(var(y) + eps) * norm_weight + norm_bias)

The statistics are the batch's or the running ones. The latter can be folded into the convolution
(:func:`fold_running_norm`), which is faster unless the weight is larger than the output, as in a
generator's first layer with a batch of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS

Pair = tuple[int, int]

#: "identity" has no weight and can only be a chain's first stage: norm and activation of the input
#: before the first convolution.
KINDS = ("conv2d", "conv_transpose2d", "linear", "identity")


def pair(size: int | Sequence[int]) -> Pair:
    """A convolution's setting for rows and columns; one number stands for both, as in torch.

    Example:
        >>> pair(2), pair([3]), pair((2, 3))
        ((2, 2), (3, 3), (2, 3))
    """
    if isinstance(size, int):
        return size, size
    rows, columns = size if len(size) == 2 else (size[0], size[0])
    return rows, columns


def padding_named(
    name: str, kernel_size: Sequence[int], dilation: Pair, stride: Pair
) -> Pair | None:
    """The padding for "valid" or "same"; None if it isn't symmetric.

    Example:
        >>> padding_named("same", (3, 5), (1, 1), (1, 1))
        (1, 2)
        >>> padding_named("same", (4, 4), (1, 1), (1, 1)) is None
        True
    """
    if name == "valid":
        return 0, 0
    added = [reach * (size - 1) for reach, size in zip(dilation, kernel_size, strict=True)]
    if name != "same" or stride != (1, 1) or any(size % 2 != 0 for size in added):
        return None
    return added[0] // 2, added[1] // 2


@dataclass(frozen=True)
class Stage:
    """A convolution with its norm and activation; names and meanings as in ``torch.nn``.

    Attributes:
        kind: one of :data:`KINDS`.
        stride: the convolution's, like the next four; unused by a linear layer.
        padding: rows and columns of zeros on each side.
        dilation: distance of the kernel's taps.
        output_padding: of a transposed convolution.
        groups: of the convolution.
        pad: rows and columns added on each side before the convolution, beside ``padding``.
        pad_mode: "reflect" or "replicate", as in ``F.pad``.
        norm: whether a batch norm follows.
        batch_statistics: whether it normalises with the batch's statistics; else the running ones.
        momentum: share of the new value in the running statistics.
        eps: added to the variance.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        negative_slope: of "leaky_relu".
    """

    kind: str
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    output_padding: Pair = (0, 0)
    groups: int = 1
    pad: Pair = (0, 0)
    pad_mode: str = "reflect"
    norm: bool = False
    batch_statistics: bool = True
    momentum: float = 0.1
    eps: float = 1e-5
    activation: str = "none"
    negative_slope: float = 0.0

    @property
    def activation_code(self) -> int:
        """The activation's number in C++ and in Triton."""
        return ACTIVATIONS[self.activation].code

    def channels(self, weight: torch.Size) -> Pair:
        """The input and output channels for a weight of this shape."""
        if self.kind == "conv_transpose2d":
            return weight[0], weight[1] * self.groups
        return weight[1] * self.groups, weight[0]

    def output_size(self, size: Pair, weight: Tensor) -> Pair:
        """Rows and columns of the convolution's output; (1, 1) for a linear layer."""
        if self.kind == "linear":
            return 1, 1
        along = zip(
            (n + 2 * added for n, added in zip(size, self.pad, strict=True)),
            weight.shape[2:],
            self.stride,
            self.padding,
            self.dilation,
            self.output_padding,
            strict=True,
        )
        rows, columns = (
            (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            if self.kind == "conv_transpose2d"
            else (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for n, kernel, stride, padding, dilation, extra in along
        )
        return rows, columns


IDENTITY = Stage("identity")


class StageTensors(NamedTuple):
    """One stage's tensors; missing ones are None.

    Attributes:
        weight: the layer's; None only for an identity.
        bias: (C,), C being the output's channels.
        norm_weight: (C,).
        norm_bias: (C,).
        running_mean: (C,), updated in place; has no gradient.
        running_var: (C,), as ``running_mean``.
    """

    weight: Tensor = None  # type: ignore[assignment]
    bias: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None


def is_folding_faster(stage: Stage, tensors: StageTensors, batch: int, size: Pair) -> bool:
    """Whether folding is faster: the weight is no larger than the output that a separate norm
    reads.

    False if the norm's weight or bias needs a gradient: through a folded weight it would be a
    difference of large sums, sum(g y) - mean sum(g), with several times the error of sum(g (y -
    mean)).

    Args:
        stage: geometry.
        tensors: the stage's.
        batch: samples.
        size: rows and columns of the input.
    """
    weight, of_norm = tensors.weight, (tensors.norm_weight, tensors.norm_bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in of_norm):
        return False
    rows, columns = stage.output_size(size, weight)
    _, channels = stage.channels(weight.shape)
    return weight.numel() <= batch * channels * rows * columns


def folded(stage: Stage, tensors: StageTensors) -> tuple[Stage, StageTensors]:
    """The stage with its norm folded into weight and bias (:func:`fold_running_norm`)."""
    assert tensors.running_mean is not None
    assert tensors.running_var is not None
    weight, bias = fold_running_norm(
        stage,
        tensors.weight,
        tensors.bias,
        tensors.norm_weight,
        tensors.norm_bias,
        tensors.running_mean,
        tensors.running_var,
    )
    return replace(stage, norm=False), StageTensors(weight, bias)


def fold_running_norm(
    stage: Stage,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
) -> tuple[Tensor, Tensor]:
    """Folds a batch norm with running statistics into the convolution before it.

        scale = norm_weight / sqrt(running_var + eps)
        W'    = W * scale                       per output channel
        b'    = (b - running_mean) * scale + norm_bias

    Uses torch functions, so it is differentiable.

    Args:
        stage: the convolution's geometry and ``eps``.
        weight: the convolution's.
        bias: the convolution's, or None.
        norm_weight: the batch norm's, or None for 1.
        norm_bias: the batch norm's, or None for 0.
        running_mean: (C,).
        running_var: (C,).

    Returns:
        Weight and bias of the folded convolution, in the weight's dtype; 16-bit weights are
        computed in float32.

    Example:
        >>> layer, norm = torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2).eval()
        >>> weight, bias = fold_running_norm(
        ...     Stage("linear"), layer.weight, layer.bias, norm.weight, norm.bias,
        ...     norm.running_mean, norm.running_var)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(x @ weight.T + bias, norm(layer(x)), atol=1e-6)
        True
    """
    dtype = weight.dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(running_var.to(wide) + stage.eps)
    if norm_weight is not None:
        scale = scale * norm_weight
    shift = -running_mean.to(wide) if bias is None else bias - running_mean.to(wide)
    shift = shift * scale
    if norm_bias is not None:
        shift = shift + norm_bias
    if stage.kind == "linear":
        return (weight * scale[:, None]).to(dtype), shift.to(dtype)
    if stage.kind == "conv2d":
        return (weight * scale[:, None, None, None]).to(dtype), shift.to(dtype)
    # (C_in, C / groups, kH, kW): output channel g * C / groups + j is column j of group g's rows.
    per_group = scale.view(stage.groups, 1, -1).expand(
        stage.groups, weight.shape[0] // stage.groups, -1
    )
    folded_weight = weight * per_group.reshape(weight.shape[0], -1)[:, :, None, None]
    return folded_weight.to(dtype), shift.to(dtype)
