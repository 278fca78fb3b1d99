"""The epilogues of :mod:`fastgan.kernels.fusion`, applied when a kernel stores its result.

An epilogue computes the stored value:

    epilogue(accumulator, other, bias, mean, scale, negative_slope, FUNCTION) -> value

and a reduction computes two numbers per channel of each tile:

    reduction(value, other, mean, invstd, kept, count) -> (first, second)

``accumulator`` is the tile of the product, [positions, channels] in float32; ``other`` the same
tile of the second tensor, if the epilogue has one; the vectors are [1, channels] float32; FUNCTION
is an activation or the gradient through it, of ``fastgan.kernels.activations``. A reduction takes
the value *as stored*, rounded to the output's dtype, as the next layer reads it. ``kept`` masks the
tile's existing elements, ``count`` of them per channel.

A reduction sums one tile's rows, at most 128, in a tree: the error for terms t is at most 10 u
sum(|t|), u = 2^-24, for any number of positions. The tiles' results are merged in pairs of
float32 numbers (csrc/cuda/batch_norm_statistics.cu).
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def bias_activation(accumulator, other, bias, mean, scale, negative_slope, FUNCTION: tl.constexpr):
    """z(accumulator + bias)."""
    return FUNCTION(accumulator + bias, negative_slope)


@triton.jit
def activation_gradient(
    accumulator, kept, bias, mean, scale, negative_slope, FUNCTION: tl.constexpr
):
    """accumulator z', from the activation's kept tensor."""
    return FUNCTION(accumulator, kept, negative_slope)


@triton.jit
def norm_activation_gradient(
    accumulator, x, bias, mean, scale, negative_slope, FUNCTION: tl.constexpr
):
    """accumulator z'((x - mean) scale + bias), from the activation's input."""
    return FUNCTION(accumulator, (x - mean) * scale + bias, negative_slope)


@triton.jit
def statistics(value, other, mean, invstd, kept, count):
    """The tile's mean, and the sum of squared differences from it.

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
    """Sums of the gradient and of the gradient times xhat = (x - mean) invstd."""
    value = tl.where(kept, value, 0.0)
    return tl.sum(value, axis=0), tl.sum(value * (x - mean), axis=0) * tl.sum(invstd, axis=0)
