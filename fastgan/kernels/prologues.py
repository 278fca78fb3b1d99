"""What a kernel does with an operand on loading it: the prologues of :mod:`fastgan.kernels.fusion`.

All have one signature, so that a kernel can be given any of them:

    prologue(value, other, mean, scale, bias, slope, offset, negative_slope, FUNCTION) -> value

``value`` is the tile of the operand, [positions, channels] in float32; ``other`` the same tile of
the second tensor, if the prologue has one; the vectors are [1, channels] float32; FUNCTION is an
activation or the gradient through it, of ``fastgan.kernels.activations``. What a prologue has no
use for is whatever the kernel passes, and costs nothing: the compiler drops the loads.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "activation_gradient",
    "after_prologue",
    "batch_norm_gradient",
    "load_vector",
    "load_vectors",
    "norm_activation",
]


@triton.jit
def norm_activation(
    x, other, mean, scale, bias, slope, offset, negative_slope, FUNCTION: tl.constexpr
):
    """z((x - mean) scale + bias)."""
    return FUNCTION((x - mean) * scale + bias, negative_slope)


@triton.jit
def activation_gradient(
    g, kept, mean, scale, bias, slope, offset, negative_slope, FUNCTION: tl.constexpr
):
    """g z', by what the activation keeps."""
    return FUNCTION(g, kept, negative_slope)


@triton.jit
def batch_norm_gradient(
    g, x, mean, scale, bias, slope, offset, negative_slope, FUNCTION: tl.constexpr
):
    """scale g + (x - mean) slope + offset; where the slope is 0, x is left out.

    As in csrc/math/batch_norm.h: 0 times an infinite x would be NaN.
    """
    return scale * g + tl.where(slope == 0, 0.0, (x - mean) * slope) + offset


@triton.jit
def load_vector(pointer, channel, known):
    """[1, channels] of a per-channel vector; 0 past its end, and where there is none."""
    vector = 0.0
    if pointer is not None:
        vector = tl.load(pointer + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    return vector


@triton.jit
def load_vectors(mean, scale, bias, slope, offset, channel, known):
    """What a prologue reads per channel, in its order."""
    return (
        load_vector(mean, channel, known),
        load_vector(scale, channel, known),
        load_vector(bias, channel, known),
        load_vector(slope, channel, known),
        load_vector(offset, channel, known),
    )


@triton.jit
def after_prologue(
    value,
    other_pointer,
    offset,
    inside,
    vectors,
    negative_slope,
    PROLOGUE: tl.constexpr,
    FUNCTION: tl.constexpr,
):
    """The operand's tile after its prologue, in its own dtype, and 0 where there is no element."""
    result = value
    if PROLOGUE is not None:
        x = value.to(tl.float32)
        other = x
        if other_pointer is not None:
            other = tl.load(other_pointer + offset, mask=inside, other=0.0).to(tl.float32)
        mean, scale, bias, slope, shift = vectors
        x = PROLOGUE(x, other, mean, scale, bias, slope, shift, negative_slope, FUNCTION)
        result = tl.where(inside, x, 0.0).to(value.dtype)
    return result
