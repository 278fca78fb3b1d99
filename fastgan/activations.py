"""The table of activations, with everything that Python code needs.

=================  ======================================  =============================  ======
name               z(x)                                    z'                             keeps
=================  ======================================  =============================  ======
``"none"``         x                                       1                              output
``"relu"``         max(x, 0)                               0 where y <= 0, else 1         output
``"leaky_relu"``   x if x > 0 else s x                     1 where y > 0, else s          output
``"tanh"``         tanh(x)                                 1 - y^2                        output
``"sigmoid"``      1 / (1 + exp(-x))                       y (1 - y)                      output
``"silu"``         x sigmoid(x)                            S (1 + x (1 - S))              input
``"gelu"``         x Phi(x)                                Phi(x) + x phi(x)              input
``"gelu_tanh"``    x (1 + tanh(i(x))) / 2                  (1 + T + x (1 - T^2) i') / 2   input
=================  ======================================  =============================  ======

with y = z(x), s = ``negative_slope``, S = sigmoid(x), Phi and phi the normal distribution's
cumulative function and density, i(x) = sqrt(2 / pi) (x + 0.044715 x^3) and T = tanh(i(x)).
Sources: SiLU, Elfwing et al. 2017, arXiv 1702.03118; GELU, Hendrycks and Gimpel 2016,
arXiv 1606.08415, in the two forms of ``torch.nn.GELU``.

Each activation keeps one tensor for the backward pass: the output if z' can be computed from it,
otherwise the input (SiLU, GELU and leaky ReLU with a negative slope aren't monotonic). An
activation that keeps its input is applied on the next layer's load, like a batch norm, so that only
the input is kept.

A new activation is a row here, one in ``csrc/math/activation.h`` and one in
``fastgan/kernels/activations.py``; see CONTRIBUTING.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.errors import ConfigError

__all__ = [
    "ACTIVATIONS",
    "BY_CODE",
    "BY_FUNCTION",
    "Activation",
    "Call",
    "activation_call",
    "activation_named",
]

aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """A row of the table.

    Attributes:
        name: its name for users.
        code: its number in ``csrc/math/activation.h``.
        op: the ATen op; None if there is none.
        functions: torch's functions that compute it.
        arguments: the arguments of ``op`` and ``functions`` -> (input, negative_slope, inplace).
            Raises TypeError if they ask for something else.
        forward: (input, negative_slope) -> output.
        forward_: the same, in place.
        gradient: (grad, kept, negative_slope, out=None) -> grad * z', where ``kept`` is the output
            or the input (``keeps_input``). Differentiable by autograd, unless written to ``out``,
            which may be ``grad``. If z' is 0 or 1 the gradient is selected, not multiplied:
            infinity times 0 would be NaN. For piecewise-linear rows the input works as well.
        second_derivative: (kept, negative_slope) -> z''; None where it is zero wherever it exists.
        keeps_input: (negative_slope) -> whether z' is computed from the input instead of the
        output.
    """

    name: str
    code: int
    op: Any
    functions: Sequence[Any]
    arguments: Callable[..., tuple[Tensor, float, bool]]
    forward: Callable[[Tensor, float], Tensor]
    forward_: Callable[[Tensor, float], Tensor]
    gradient: Callable[..., Tensor]
    second_derivative: Callable[[Tensor, float], Tensor] | None = None
    keeps_input: Callable[[float], bool] = lambda slope: False

    @property
    def piecewise_linear(self) -> bool:
        """Whether the second derivative is zero wherever it exists."""
        return self.second_derivative is None

    def gradient_by_input(self, grad: Tensor, input: Tensor, negative_slope: float) -> Tensor:
        """``grad * z'(input)``; differentiable by autograd.

        Example:
            >>> tanh = ACTIVATIONS["tanh"]
            >>> tanh.gradient_by_input(torch.tensor(2.0), torch.tensor(0.0), 0.0)
            tensor(2.)
        """
        kept = input
        if not (self.piecewise_linear or self.keeps_input(negative_slope)):
            kept = self.forward(input, negative_slope)
        return self.gradient(grad, kept, negative_slope)

    def overwrite(self, input: Tensor, negative_slope: float) -> Tensor:
        """The output, in place unless autograd will read the input.

        Example:
            >>> x = torch.tensor([-1.0, 2.0])
            >>> ACTIVATIONS["relu"].overwrite(x, 0.0) is x
            True
        """
        if self.keeps_input(negative_slope) and input.requires_grad and torch.is_grad_enabled():
            return self.forward(input, negative_slope)
        return self.forward_(input, negative_slope)


class Call(NamedTuple):
    """A call of a torch function that computes an activation."""

    activation: Activation
    input: Tensor
    negative_slope: float
    inplace: bool


# --- Gradients ------------------------------------------------------------------------------------


def _by_aten(backward: Any, *arguments: Any, with_slope: bool = False, **named: Any) -> Any:
    """An ATen op (grad, kept, *arguments) as a row's ``gradient``."""

    def gradient(
        grad: Tensor, kept: Tensor, negative_slope: float, out: Tensor | None = None
    ) -> Tensor:
        rest = (negative_slope, False) if with_slope else arguments
        if out is None:
            return backward.default(grad, kept, *rest, **named)  # type: ignore[no-any-return]
        return backward.grad_input(grad, kept, *rest, **named, grad_input=out)  # type: ignore[no-any-return]

    return gradient


def _unchanged(grad: Tensor, kept: Tensor, slope: float, out: Tensor | None = None) -> Tensor:
    return grad if out is None or out is grad else out.copy_(grad)


_silu_by_aten = _by_aten(aten.silu_backward)


def _silu_gradient(grad: Tensor, x: Tensor, slope: float, out: Tensor | None = None) -> Tensor:
    if out is None and torch.is_grad_enabled() and (grad.requires_grad or x.requires_grad):
        sigmoid = x.sigmoid()  # autograd has no formula for aten.silu_backward
        return grad * (sigmoid * (1 + x * (1 - sigmoid)))
    return _silu_by_aten(grad, x, slope, out)  # type: ignore[no-any-return]


# --- Second derivatives ---------------------------------------------------------------------------


def _silu_second(x: Tensor, slope: float) -> Tensor:
    sigmoid = x.sigmoid()
    return sigmoid * (1 - sigmoid) * (2 + x * (1 - 2 * sigmoid))


def _gelu_second(x: Tensor, slope: float) -> Tensor:
    return (2 - x * x) * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _gelu_tanh_second(x: Tensor, slope: float) -> Tensor:
    beta, kappa = math.sqrt(2 / math.pi), 0.044715
    tanh = torch.tanh(beta * (x + kappa * x**3))
    inner_first, inner_second = beta * (1 + 3 * kappa * x * x), 6 * beta * kappa * x
    return (1 - tanh * tanh) * (inner_first + x * (0.5 * inner_second - tanh * inner_first**2))


# --- Calls of torch's functions -------------------------------------------------------------------


def _of_torch(name: str) -> list[Any]:
    """``torch.relu``, ``torch.relu_``, ``Tensor.relu``, ``Tensor.relu_``."""
    return [getattr(home, name + end) for home in (torch, Tensor) for end in ("", "_")]


def _input_alone(input: Tensor, inplace: bool = False) -> tuple[Tensor, float, bool]:
    return input, 0.0, inplace


def _leaky_relu_arguments(
    input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    return input, negative_slope, inplace


def _gelu_arguments(form: str) -> Callable[..., tuple[Tensor, float, bool]]:
    def arguments(input: Tensor, *, approximate: str = "none") -> tuple[Tensor, float, bool]:
        if approximate != form:
            raise TypeError(f"approximate is {approximate!r}, not {form!r}")
        return input, 0.0, False

    return arguments


# --- The table ------------------------------------------------------------------------------------


def _always(slope: float) -> bool:
    return True


_ROWS = (
    Activation(
        "none", 0, None, (), _input_alone, lambda x, s: x, lambda x, s: x, gradient=_unchanged
    ),
    Activation(
        "relu",
        1,
        aten.relu.default,
        (F.relu, F.relu_, *_of_torch("relu")),
        _input_alone,
        lambda x, s: F.relu(x),
        lambda x, s: x.relu_(),
        # Passes the gradient if the output is NaN; leaky_relu's scales it.
        gradient=_by_aten(aten.threshold_backward, 0),
    ),
    Activation(
        "leaky_relu",
        2,
        aten.leaky_relu.default,
        (F.leaky_relu, F.leaky_relu_),
        _leaky_relu_arguments,
        lambda x, s: F.leaky_relu(x, s),
        lambda x, s: F.leaky_relu_(x, s),
        gradient=_by_aten(aten.leaky_relu_backward, with_slope=True),
        keeps_input=lambda slope: not slope >= 0,
    ),
    Activation(
        "tanh",
        3,
        aten.tanh.default,
        _of_torch("tanh"),
        _input_alone,
        lambda x, s: x.tanh(),
        lambda x, s: x.tanh_(),
        gradient=_by_aten(aten.tanh_backward),
        second_derivative=lambda y, s: 2 * y * (y * y - 1),
    ),
    Activation(
        "sigmoid",
        4,
        aten.sigmoid.default,
        _of_torch("sigmoid"),
        _input_alone,
        lambda x, s: x.sigmoid(),
        lambda x, s: x.sigmoid_(),
        gradient=_by_aten(aten.sigmoid_backward),
        second_derivative=lambda y, s: y * (1 - y) * (1 - 2 * y),
    ),
    Activation(
        "silu",
        5,
        aten.silu.default,
        (F.silu,),
        _input_alone,
        lambda x, s: F.silu(x),
        lambda x, s: F.silu(x, inplace=True),
        gradient=_silu_gradient,
        second_derivative=_silu_second,
        keeps_input=_always,
    ),
    Activation(
        "gelu",
        6,
        aten.gelu.default,
        (F.gelu,),
        _gelu_arguments("none"),
        lambda x, s: F.gelu(x),
        lambda x, s: aten.gelu_(x),
        gradient=_by_aten(aten.gelu_backward),
        second_derivative=_gelu_second,
        keeps_input=_always,
    ),
    Activation(
        "gelu_tanh",
        7,
        aten.gelu.default,
        (F.gelu,),
        _gelu_arguments("tanh"),
        lambda x, s: F.gelu(x, approximate="tanh"),
        lambda x, s: aten.gelu_(x, approximate="tanh"),
        gradient=_by_aten(aten.gelu_backward, approximate="tanh"),
        second_derivative=_gelu_tanh_second,
        keeps_input=_always,
    ),
)

#: By name.
ACTIVATIONS: Mapping[str, Activation] = {row.name: row for row in _ROWS}
#: By code.
BY_CODE: Mapping[int, Activation] = {row.code: row for row in _ROWS}
#: By torch function and ATen op; arguments decide between several rows.
BY_FUNCTION: Mapping[Any, Sequence[Activation]] = {
    function: [row for row in _ROWS if function in (*row.functions, row.op)]
    for row in _ROWS
    for function in (*row.functions, row.op)
    if function is not None
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


def activation_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call | None:
    """The activation that a torch function or ATen op computes; None if it computes none.

    Example:
        >>> call = activation_call(F.gelu, (torch.ones(2),), {"approximate": "tanh"})
        >>> call.activation.name, call.inplace
        ('gelu_tanh', False)
    """
    for activation in BY_FUNCTION.get(function, ()):
        with suppress(TypeError):
            return Call(activation, *activation.arguments(*args, **kwargs))
    return None
