"""The prologues of :mod:`fastgan.kernels.fusion`, applied when a kernel loads an operand.

All have the same signature:

    prologue(value, other, mean, scale, bias, slope, offset, negative_slope, FUNCTION) -> value

``value`` is the tile of the operand, [positions, channels] in float32; ``other`` the same tile of
the second tensor, if the prologue has one; the vectors are [1, channels] float32; FUNCTION is an
activation or the gradient through it, of ``fastgan.kernels.activations``. Unused arguments cost
nothing: the compiler drops their loads.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl


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
    """g z', from the activation's kept tensor."""
    return FUNCTION(g, kept, negative_slope)


@triton.jit
def batch_norm_gradient(
    g, x, mean, scale, bias, slope, offset, negative_slope, FUNCTION: tl.constexpr
):
    """scale g + (x - mean) slope + offset; x isn't used if the slope is 0.

    As in csrc/math/batch_norm.h: 0 times an infinite x would be NaN.
    """
    return scale * g + tl.where(slope == 0, 0.0, (x - mean) * slope) + offset


@triton.jit
def load_vector(pointer, channel, known):
    """[1, channels] of a per-channel vector; 0 past its end or if it is None."""
    vector = 0.0
    if pointer is not None:
        vector = tl.load(pointer + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    return vector


@triton.jit
def load_vectors(mean, scale, bias, slope, offset, channel, known):
    """A prologue's per-channel vectors, in its order."""
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
    """The operand's tile after its prologue, in the operand's dtype; 0 where the mask is off."""
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
