"""The activations of :mod:`fastgan.activations` in Triton: the function, and a gradient through it.

Each is a function of float32 values and of the negative slope. A gradient comes in two forms: by
the activation's output, as a gradient's prologue has it, and by its input, as the epilogue that
recomputes the normalised value has it. Where a ReLU's is masked it is replaced by 0, not
multiplied: an infinite one would become NaN. Formulas, and what NaN does, are those of the table
there.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["FORWARD", "GRADIENT_BY_INPUT", "GRADIENT_BY_OUTPUT"]


@triton.jit
def none(x, negative_slope):
    """x."""
    return x


@triton.jit
def relu(x, negative_slope):
    """max(x, 0), NaN where x is."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def leaky_relu(x, negative_slope):
    """x if x > 0 else negative_slope * x."""
    return tl.where(x > 0, x, x * negative_slope)


@triton.jit
def tanh(x, negative_slope):
    """tanh(x) = sign(x) (1 - e^{-2|x|}) / (1 + e^{-2|x|}).

    The quotient cancels near 0, where the Taylor series to x^11 takes its place: below 0.35 its
    next term is less than half a unit in float32's last place.
    """
    decay = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - decay) / (1.0 + decay)
    square = x * x
    series = -1382.0 / 155925.0
    series = 62.0 / 2835.0 + square * series
    series = -17.0 / 315.0 + square * series
    series = 2.0 / 15.0 + square * series
    series = -1.0 / 3.0 + square * series
    series = x + x * square * series
    return tl.where(tl.abs(x) < 0.35, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def sigmoid(x, negative_slope):
    """1 / (1 + e^{-x})."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def none_gradient(grad, y, negative_slope):
    """grad."""
    return grad


@triton.jit
def relu_gradient(grad, y, negative_slope):
    """0 where y <= 0, else grad: torch lets a gradient through where y is NaN."""
    return tl.where(y <= 0, 0.0, grad)


@triton.jit
def leaky_relu_gradient(grad, y, negative_slope):
    """grad where y > 0, else grad * negative_slope."""
    # One product of a choice, where a choice of grad or a product would give the same: the latter
    # takes up to 39 registers more (sm_90, scatter, float32, 64x64x32).
    return grad * tl.where(y > 0, 1.0, negative_slope)


@triton.jit
def tanh_gradient(grad, y, negative_slope):
    """grad (1 - y^2)."""
    return grad * (1.0 - y * y)


@triton.jit
def sigmoid_gradient(grad, y, negative_slope):
    """grad y (1 - y)."""
    return grad * (y * (1.0 - y))


@triton.jit
def tanh_gradient_by_input(grad, x, negative_slope):
    """grad (1 - tanh(x)^2)."""
    return tanh_gradient(grad, tanh(x, negative_slope), negative_slope)


@triton.jit
def sigmoid_gradient_by_input(grad, x, negative_slope):
    """grad sigmoid(x) (1 - sigmoid(x))."""
    return sigmoid_gradient(grad, sigmoid(x, negative_slope), negative_slope)


#: By the names of :data:`fastgan.activations.ACTIVATIONS`.
FORWARD = {
    "none": none,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
}
GRADIENT_BY_OUTPUT = {
    "none": none_gradient,
    "relu": relu_gradient,
    "leaky_relu": leaky_relu_gradient,
    "tanh": tanh_gradient,
    "sigmoid": sigmoid_gradient,
}
#: A ReLU's output has the sign of its input; a leaky one's too, unless the slope is negative, and
#: then the input is what counts.
GRADIENT_BY_INPUT = {
    **GRADIENT_BY_OUTPUT,
    "tanh": tanh_gradient_by_input,
    "sigmoid": sigmoid_gradient_by_input,
}
