"""The activations of :mod:`fastgan.activations` in Triton, with their gradients.

All take float32 values and the negative slope. A gradient has two forms: by the kept tensor (output
or input, see that table), for a gradient's prologue and a convolution's epilogue, and by the input,
for the epilogue that recomputes the normalised value. A ReLU replaces masked gradients by 0;
multiplying would turn infinite ones into NaN. NaN behaves as in that table.
"""

# mypy: ignore-errors
# Kernels are written in Triton's language, whose types only its compiler knows.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


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

    The quotient cancels near 0, so |x| < 0.35 uses the Taylor series to x^11: its next term is less
    than half a unit in float32's last place.
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
    # Selecting the factor, not the result, saves up to 39 registers (sm_90, scatter, float32,
    # 64x64x32).
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


@triton.jit
def silu(x, negative_slope):
    """x sigmoid(x)."""
    return x / (1.0 + tl.exp(-x))


@triton.jit
def silu_gradient(grad, x, negative_slope):
    """grad S (1 + x (1 - S)), S = sigmoid(x)."""
    s = sigmoid(x, negative_slope)
    return grad * (s * (1.0 + x * (1.0 - s)))


@triton.jit
def normal_at(x):
    """Phi(x) and phi(x), as in csrc/math/activation.h.

    Phi(-m) = exp(-m^2 / 2) P(q) / (1 + m), q = (m - 4) / (m + 4): so neither tail cancels, both
    results share one exponential, and the largest tiles fit in registers, unlike with erf.
    """
    m = tl.minimum(tl.abs(x), 14.0, propagate_nan=tl.PropagateNan.ALL)
    e = tl.exp(-0.5 * x * x)
    inverse = 1.0 / ((m + 4.0) * (m + 1.0))
    q = (m - 4.0) * (m + 1.0) * inverse
    p = 9.871037e-05
    p = 0.0007440134 + q * p
    p = -0.00040180457 + q * p
    p = -0.0050602183 + q * p
    p = 0.01795976 + q * p
    p = -0.032183874 + q * p
    p = 0.02859851 + q * p
    p = 0.013998616 + q * p
    p = -0.09670343 + q * p
    p = 0.47205323 + q * p
    tail = e * p * ((m + 4.0) * inverse)
    return tl.where(x < 0, tail, 1.0 - tail), 0.3989422804014327 * e


@triton.jit
def gelu(x, negative_slope):
    """x Phi(x)."""
    cumulative, _ = normal_at(x)
    return x * cumulative


@triton.jit
def gelu_gradient(grad, x, negative_slope):
    """grad (Phi(x) + x phi(x))."""
    cumulative, density = normal_at(x)
    return grad * (cumulative + x * density)


@triton.jit
def gelu_tanh(x, negative_slope):
    """x (1 + tanh(i)) / 2 = x sigmoid(2 i), with i = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return x * sigmoid(1.5957691216057308 * (x + 0.044715 * (x * x * x)), negative_slope)


@triton.jit
def gelu_tanh_gradient(grad, x, negative_slope):
    """grad (S + 2 x S (1 - S) i'), S = sigmoid(2 i)."""
    s = sigmoid(1.5957691216057308 * (x + 0.044715 * (x * x * x)), negative_slope)
    slope = 1.5957691216057308 * (1.0 + 0.134145 * (x * x))
    return grad * (s + x * ((s * (1.0 - s)) * slope))


class Functions(NamedTuple):
    """A row of the table.

    Attributes:
        forward: (x, negative_slope) -> z(x).
        gradient: (grad, kept, negative_slope) -> grad * z', with ``kept`` as
            :attr:`fastgan.activations.Activation.keeps_input` says.
        gradient_by_input: (grad, x, negative_slope) -> grad * z'(x).
    """

    forward: Any
    gradient: Any
    gradient_by_input: Any


#: Keys are those of :data:`fastgan.activations.ACTIVATIONS`.
FUNCTIONS = {
    "none": Functions(none, none_gradient, none_gradient),
    "relu": Functions(relu, relu_gradient, relu_gradient),
    # A leaky ReLU's output has the sign of its input unless the slope is negative; then the input
    # is kept.
    "leaky_relu": Functions(leaky_relu, leaky_relu_gradient, leaky_relu_gradient),
    "tanh": Functions(tanh, tanh_gradient, tanh_gradient_by_input),
    "sigmoid": Functions(sigmoid, sigmoid_gradient, sigmoid_gradient_by_input),
    "silu": Functions(silu, silu_gradient, silu_gradient),
    "gelu": Functions(gelu, gelu_gradient, gelu_gradient),
    "gelu_tanh": Functions(gelu_tanh, gelu_tanh_gradient, gelu_tanh_gradient),
}
