"""What a convolution can fuse: prologues on loading its operand, epilogues on storing its result.

Batch norm in training mode needs the whole batch's statistics, so the convolution before it can't
finish it. Instead, that convolution's *epilogue* computes per-tile statistics of its output, a
small step merges them, and the next convolution's *prologue* normalises and activates on loading.
These classes describe both; the kernels in ``fastgan.kernels`` apply them in registers, other
backends in separate passes.

An activation without a norm is part of the convolution's epilogue (``BiasActivation``), if its
derivative can be computed from its output. One that needs its input (SiLU, GELU) is applied by the
next convolution's prologue, as a norm of mean 0 and scale 1: the raw result is kept, and
``ActivationGradient`` reads it in the backward pass.

Tensors of shape (C,) are float32, float64 for float64 data. With z the activation, per channel:

    NormActivation          x  ->  z((x - mean) * scale + bias)
    ActivationGradient      g  ->  g * z'                    z' from the activation's kept tensor
    BatchNormGradient       g  ->  scale * g + (x - mean) * slope + offset
    BiasActivation          acc -> z(acc + bias)
    Statistics              acc -> acc + bias, and (count, mean, M2) of each tile
    NormActivationGradient  acc -> acc * z'((x - mean) * scale + bias), and each tile's sums of
                                   that and of that times (x - mean) * invstd

with scale = weight * invstd. The input is centred before scaling, because a mean much larger than
the spread would cancel otherwise. Batch norm's gradient in these terms, over n values a channel
(Ioffe and Szegedy 2015, arXiv 1502.03167, section 3), with g the gradient of the normalised and
scaled value and xhat = (x - mean) * invstd:

    grad_weight = sum(g * xhat),    grad_bias = sum(g)
    slope = -scale * invstd * grad_weight / n,    offset = -scale * grad_bias / n
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
    """Prologue of a gradient, or epilogue: multiplies by the activation's derivative.

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
    """Epilogue: stores acc + bias, and the statistics of each tile's stored values.

    Attributes:
        bias: (C,) of the convolution's output, or None.
    """

    bias: Tensor | None = None


@dataclass(frozen=True)
class NormActivationGradient:
    """Epilogue of an input gradient: the activation's gradient, and batch norm's two sums.

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
    """Per-channel statistics of a tensor's tiles.

    Merged by Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", (2.1).

    Attributes:
        count: (tiles,), the tile's number of values per channel, in the dtype of ``mean``.
        mean: (tiles, C).
        m2: (tiles, C), the sum of squared differences from ``mean``.
    """

    count: Tensor
    mean: Tensor
    m2: Tensor


@dataclass(frozen=True)
class GradientSums:
    """Batch norm's two sums over each of the gradient's tiles.

    Attributes:
        grad: (tiles, C), the sum of g.
        grad_xhat: (tiles, C), the sum of g * xhat.
    """

    grad: Tensor
    grad_xhat: Tensor


GradPrologue = ActivationGradient | BatchNormGradient
Epilogue = BiasActivation | Statistics | NormActivationGradient | ActivationGradient
