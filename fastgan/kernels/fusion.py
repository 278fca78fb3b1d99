"""What a convolution can do on the side: on loading its operand, and on storing its result.

A batch norm in training mode needs the whole batch's statistics, so it can't be finished inside the
convolution that feeds it. It is split instead: the convolution's *epilogue* leaves per-tile
statistics of what it stores, a small step merges them, and the next convolution's *prologue*
normalises and activates while it loads. These classes say which; the kernels in
``fastgan.kernels`` do it in registers; around other convolutions it takes passes of its own.

An activation without a norm is part of the convolution's epilogue (``BiasActivation``), if its
derivative can be computed from its output. One that needs its input (SiLU, GELU) is left to the
next convolution's prologue, as a norm of mean 0 and scale 1: the raw result is what is kept, and
the backward pass's ``ActivationGradient`` reads it.

Tensors of shape (C,) are float32, float64 for float64 data. With z the activation, per channel:

    NormActivation          x  ->  z((x - mean) * scale + bias)
    ActivationGradient      g  ->  g * z'                    z' from what the activation keeps
    BatchNormGradient       g  ->  scale * g + (x - mean) * slope + offset
    BiasActivation          acc -> z(acc + bias)
    Statistics              acc -> acc + bias, and (count, mean, M2) of each tile
    NormActivationGradient  acc -> acc * z'((x - mean) * scale + bias), and each tile's sums of
                                   that and of that times (x - mean) * invstd

with scale = weight * invstd. The input is centred before it is scaled, not after: a mean much
larger than the spread would otherwise cancel. Batch norm's gradient in these terms, over n values
a channel (Ioffe and Szegedy 2015, arXiv 1502.03167, section 3), with g the gradient of the
normalised and scaled value and xhat = (x - mean) * invstd:

    grad_weight = sum(g * xhat),    grad_bias = sum(g)
    slope = -scale * invstd * grad_weight / n,    offset = -scale * grad_bias / n
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = [
    "ActivationGradient",
    "BatchNormGradient",
    "BiasActivation",
    "Epilogue",
    "GradPrologue",
    "GradientSums",
    "NormActivation",
    "NormActivationGradient",
    "PartialStatistics",
    "Statistics",
]


@dataclass(frozen=True)
class NormActivation:
    """Prologue of an input: z((x - mean) * scale + bias).

    Attributes:
        mean: (C,).
        scale: (C,), weight * invstd.
        bias: (C,), or None for 0.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        negative_slope: of "leaky_relu".
    """

    mean: Tensor
    scale: Tensor
    bias: Tensor | None
    activation: str
    negative_slope: float


@dataclass(frozen=True)
class ActivationGradient:
    """Prologue of a gradient, or epilogue: times the activation's derivative.

    Attributes:
        kept: the activation's output or its input, as
            :attr:`fastgan.activations.Activation.keeps_input` says; of the gradient's shape.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        negative_slope: of "leaky_relu".
    """

    kept: Tensor
    activation: str
    negative_slope: float


@dataclass(frozen=True)
class BatchNormGradient:
    """Prologue of a gradient: scale * g + (x - mean) * slope + offset.

    Attributes:
        input: x, what the batch norm took, of the gradient's shape.
        mean: (C,).
        scale: (C,), weight * invstd.
        slope: (C,), see the formulas above.
        offset: (C,).
    """

    input: Tensor
    mean: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor


@dataclass(frozen=True)
class BiasActivation:
    """Epilogue: z(acc + bias).

    Attributes:
        bias: (C,) of the convolution's output, or None.
        activation: a name of :data:`fastgan.activations.ACTIVATIONS`.
        negative_slope: of "leaky_relu".
    """

    bias: Tensor | None = None
    activation: str = "none"
    negative_slope: float = 0.0


@dataclass(frozen=True)
class Statistics:
    """Epilogue: stores acc + bias, and the statistics of each tile of the values as stored.

    Attributes:
        bias: (C,) of the convolution's output, or None.
    """

    bias: Tensor | None = None


@dataclass(frozen=True)
class NormActivationGradient:
    """Epilogue of an input gradient: back through the activation, with batch norm's two sums.

    Attributes:
        input: x, what the batch norm took, of the result's shape.
        norm: its forward.
        invstd: (C,).
    """

    input: Tensor
    norm: NormActivation
    invstd: Tensor


@dataclass(frozen=True)
class PartialStatistics:
    """Statistics of the tiles that a tensor's values per channel were cut into.

    Merged by Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", (2.1).

    Attributes:
        count: (tiles,), how many values of a channel the tile holds, in the dtype of ``mean``.
        mean: (tiles, C).
        m2: (tiles, C), the sum of squared differences from ``mean``.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor


@dataclass(frozen=True)
class GradientSums:
    """Batch norm's two sums, over the tiles that the gradient was cut into.

    Attributes:
        grad: (tiles, C), the sum of g.
        grad_xhat: (tiles, C), the sum of g * xhat.
    """

    grad: Tensor
    grad_xhat: Tensor


GradPrologue = ActivationGradient | BatchNormGradient
Epilogue = BiasActivation | Statistics | NormActivationGradient | ActivationGradient
