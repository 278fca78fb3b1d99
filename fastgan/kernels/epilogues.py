"""What a kernel does with its result on storing it: the epilogues of :mod:`fastgan.kernels.fusion`.

An epilogue says what is stored:

    epilogue(accumulator, other, bias, mean, scale, negative_slope, FUNCTION) -> value

and a reduction which two numbers per channel the tile leaves beside it:

    reduction(value, other, mean, invstd, kept, count) -> (first, second)

``accumulator`` is the tile of the product, [positions, channels] in float32; ``other`` the same
tile of the second tensor, if the epilogue has one; the vectors are [1, channels] float32; FUNCTION
is an activation or the gradient through it, of ``fastgan.kernels.activations``. A reduction sees
the value *as stored*, rounded to the output's dtype: it is what the next layer will read. ``kept``
says which elements of the tile exist, and ``count`` how many of a channel.

A reduction's sums are of one tile's rows, at most 128, by a tree: those of terms t are off by 10 u
sum(|t|) at most, u = 2^-24, however many positions there are. The tiles' results are merged in
float64 (csrc/math/batch_norm.h).
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "activation_gradient",
    "bias_activation",
    "gradient_sums",
    "norm_activation_gradient",
    "statistics",
]


@triton.jit
def bias_activation(accumulator, other, bias, mean, scale, negative_slope, FUNCTION: tl.constexpr):
    """z(accumulator + bias)."""
    return FUNCTION(accumulator + bias, negative_slope)


@triton.jit
def activation_gradient(
    accumulator, kept, bias, mean, scale, negative_slope, FUNCTION: tl.constexpr
):
    """accumulator z', by what the activation keeps."""
    return FUNCTION(accumulator, kept, negative_slope)


@triton.jit
def norm_activation_gradient(
    accumulator, x, bias, mean, scale, negative_slope, FUNCTION: tl.constexpr
):
    """accumulator z'((x - mean) scale + bias), by the activation's input."""
    return FUNCTION(accumulator, (x - mean) * scale + bias, negative_slope)


@triton.jit
def statistics(value, other, mean, invstd, kept, count):
    """Mean of the tile, and the sum of squared differences from it.

    In two passes, with the rounding error of the first one corrected: Chan, Golub and LeVeque 1983,
    "Algorithms for computing the sample variance", (1.7).
    """
    rough_mean = tl.sum(tl.where(kept, value, 0.0), axis=0) / count
    difference = tl.where(kept, value - rough_mean[None, :], 0.0)
    excess = tl.sum(difference, axis=0)
    m2 = tl.sum(difference * difference, axis=0) - excess * (excess / count)
    return rough_mean + excess / count, tl.maximum(m2, 0.0)


@triton.jit
def gradient_sums(value, x, mean, invstd, kept, count):
    """Sum of the gradient, and of the gradient times xhat = (x - mean) invstd."""
    value = tl.where(kept, value, 0.0)
    return tl.sum(value, axis=0), tl.sum(value * (x - mean), axis=0) * tl.sum(invstd, axis=0)
