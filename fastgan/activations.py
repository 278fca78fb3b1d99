"""The activations that fastgan fuses: formula, derivative, and number, in one table.

======================  =======================  ===================================
name                    formula                  derivative, from the output y
======================  =======================  ===================================
``"none"``              x                        1
``"relu"``              max(x, 0)                1 where y > 0, else 0
``"leaky_relu"``        x if x > 0 else s * x    1 where y > 0, else s   (s >= 0)
``"tanh"``              tanh(x)                  1 - y^2
``"sigmoid"``           1 / (1 + exp(-x))        y * (1 - y)
======================  =======================  ===================================

s is ``negative_slope``. Every derivative can be had from the output, so that nothing else need be
saved for it; that of a leaky ReLU with a negative slope can't, and takes the input. The numbers are
those of ``csrc/math/activation.h`` and of the kernels in ``fastgan.kernels``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError

__all__ = ["ACTIVATIONS", "Activation", "activation_named"]


@dataclass(frozen=True)
class Activation:
    """One row of the table.

    Attributes:
        name: as users write it.
        code: its number in C++ and in Triton.
        forward: (input, negative_slope) -> output.
        derivative: (output, negative_slope) -> the derivative there, differentiable by autograd.
        piecewise_linear: whether its second derivative is zero wherever it exists.
    """

    name: str
    code: int
    forward: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]
    piecewise_linear: bool


def _relu_derivative(output: Tensor, negative_slope: float) -> Tensor:
    # torch's relu lets a gradient through where its output is NaN; its leaky_relu scales it.
    return torch.where(output <= 0, output.new_zeros(()), output.new_ones(()))


def _leaky_relu_derivative(output: Tensor, negative_slope: float) -> Tensor:
    # The slope in the output's own precision: a number alone would be rounded to float32.
    return torch.where(output > 0, output.new_ones(()), output.new_full((), negative_slope))


ACTIVATIONS: dict[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("none", 0, lambda x, s: x, lambda y, s: torch.ones_like(y), True),
        Activation(
            "relu",
            1,
            lambda x, s: F.relu(x),
            _relu_derivative,
            True,
        ),
        Activation("leaky_relu", 2, lambda x, s: F.leaky_relu(x, s), _leaky_relu_derivative, True),
        Activation("tanh", 3, lambda x, s: x.tanh(), lambda y, s: 1 - y * y, False),
        Activation("sigmoid", 4, lambda x, s: x.sigmoid(), lambda y, s: y * (1 - y), False),
    )
}


def activation_named(name: str) -> Activation:
    """The row of the table.

    Raises:
        ConfigError: there is none of that name (a ValueError).

    Example:
        >>> activation_named("leaky_relu").forward(torch.tensor([-1.0, 1.0]), 0.25)
        tensor([-0.2500,  1.0000])
    """
    if name not in ACTIVATIONS:
        raise ConfigError(f"activation is {name!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
