"""``torch.ops.fastgan.act_gradient``, and ``act_gradient_`` in place: back through an activation.

::

    grad_input = grad_output * z'

with z' from the activation's output, as :class:`fastgan.fusion.ActivationGradient` has it.
``grad_output`` and ``output`` have any shape, the same for both, and one of the four dtypes; the
result lies as ``output`` does, and ``act_gradient_`` writes it over ``grad_output``. ``activation``
is a code of :data:`fastgan.activations.ACTIVATIONS`; ``negative_slope``, of "leaky_relu", is at
least 0, since the derivative can't be had from the output otherwise. Kernels:
``csrc/cpu/batch_norm.cpp``, ``csrc/cuda/norm_act.cu``; the formula: ``csrc/math/activation.h``.

Order of gradients supported: none. Both raise where autograd would have to record them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    activation_of_code,
    arithmetic_dtype,
    assert_close,
    check_activation,
    check_alike,
    gradient_by_output,
    without_gaps,
)
from fastgan.ops.both_forms import define_both_forms, returning_what_it_writes

__all__ = ["IN_PLACE_SCHEMA", "SCHEMA", "check", "check_in_place", "plain_act_gradient"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "act_gradient(Tensor grad_output, Tensor output, int activation, float negative_slope) -> "
    "Tensor"
)
IN_PLACE_SCHEMA = (
    "act_gradient_(Tensor(a!) grad_output, Tensor output, int activation, "
    "float negative_slope) -> ()"
)


def _check_arguments(
    op: str, grad_output: Tensor, output: Tensor, activation: int, negative_slope: float
) -> None:
    if output.dtype not in DTYPES:
        raise RuntimeError(
            f"fastgan::{op}: output has dtype {output.dtype}; expected float64, float32, float16 "
            "or bfloat16"
        )
    check_alike(op, "grad_output", grad_output, "output", output)
    check_activation(op, activation)
    if activation_of_code(activation).name == "leaky_relu" and not negative_slope >= 0:
        raise RuntimeError(
            f"fastgan::{op}: negative_slope is {negative_slope}; expected at least 0: the "
            "derivative can't be had from the output otherwise"
        )


def _formula(grad_output: Tensor, output: Tensor, activation: int, negative_slope: float) -> Tensor:
    dtype = arithmetic_dtype(output.dtype)
    return gradient_by_output(grad_output.to(dtype), output.to(dtype), activation, negative_slope)


def _empty(grad_output: Tensor, output: Tensor, activation: int, negative_slope: float) -> Tensor:
    return torch.empty_like(output.contiguous() if output.dim() < 2 else without_gaps(output))


plain_act_gradient, _plain_act_gradient_ = define_both_forms(
    SCHEMA, IN_PLACE_SCHEMA, check=_check_arguments, formula=_formula, empty=_empty
)


def _check_values(device: torch.device | str, name: str, call: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        # An odd length: a vector's worth and a rest.
        grad, values = torch.randn((2, 1031), generator=generator, dtype=torch.float64)
        for activation in ACTIVATIONS.values():
            output = activation.forward(values, 0.2).to(dtype)
            actual = call(
                grad.to(dtype).to(device, copy=True), output.to(device), activation.code, 0.2
            )
            wide = output.double()
            expected = grad.to(dtype).double() * activation.derivative(wide, 0.2)
            assert_close(name, activation.name, actual, expected, dtype)


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    _check_values(device, "act_gradient", torch.ops.fastgan.act_gradient)


def check_in_place(device: torch.device | str) -> None:
    """As :func:`check`, of ``act_gradient_``.

    Raises:
        FastganError: a value is wrong.
    """
    in_place = returning_what_it_writes(torch.ops.fastgan.act_gradient_)
    _check_values(device, "act_gradient_", in_place)
