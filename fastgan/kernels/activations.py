"""The activations of :mod:`fastgan.activations` in Triton: the function, and its derivative.

Each is a function of float32 values and of the negative slope. The derivative comes in two forms:
from the output, as a gradient's prologue has it, and from the input, as the epilogue that
recomputes the normalised value has it. Formulas, and what NaN does, are those of the table there.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["DERIVATIVE_FROM_INPUT", "DERIVATIVE_FROM_OUTPUT", "FORWARD"]


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
def none_from_output(y, negative_slope):
    """1, in y's shape."""
    return tl.full(y.shape, 1.0, tl.float32)


@triton.jit
def relu_from_output(y, negative_slope):
    """0 where y <= 0, else 1: torch lets a gradient through where y is NaN."""
    return tl.where(y <= 0, 0.0, 1.0)


@triton.jit
def leaky_relu_from_output(y, negative_slope):
    """1 where y > 0, else negative_slope."""
    return tl.where(y > 0, 1.0, negative_slope)


@triton.jit
def tanh_from_output(y, negative_slope):
    """1 - y^2."""
    return 1.0 - y * y


@triton.jit
def sigmoid_from_output(y, negative_slope):
    """y (1 - y)."""
    return y * (1.0 - y)


@triton.jit
def tanh_from_input(x, negative_slope):
    """1 - tanh(x)^2."""
    y = tanh(x, negative_slope)
    return 1.0 - y * y


@triton.jit
def sigmoid_from_input(x, negative_slope):
    """sigmoid(x) (1 - sigmoid(x))."""
    y = sigmoid(x, negative_slope)
    return y * (1.0 - y)


#: By the names of :data:`fastgan.activations.ACTIVATIONS`.
FORWARD = {
    "none": none,
    "relu": relu,
    "leaky_relu": leaky_relu,
    "tanh": tanh,
    "sigmoid": sigmoid,
}
DERIVATIVE_FROM_OUTPUT = {
    "none": none_from_output,
    "relu": relu_from_output,
    "leaky_relu": leaky_relu_from_output,
    "tanh": tanh_from_output,
    "sigmoid": sigmoid_from_output,
}
#: A ReLU's output has the sign of its input; a leaky one's too, unless the slope is negative, and
#: then the input is what counts.
DERIVATIVE_FROM_INPUT = {
    "none": none_from_output,
    "relu": relu_from_output,
    "leaky_relu": leaky_relu_from_output,
    "tanh": tanh_from_input,
    "sigmoid": sigmoid_from_input,
}
