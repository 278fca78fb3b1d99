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
    without_gaps,
)
from fastgan.ops.registration import (
    NAMESPACE,
    define_if_absent,
    register_fallback,
    register_in_place_on_lists,
)
from fastgan.ops.without_gradient import register_without_gradient

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


def plain_act_gradient(
    grad_output: Tensor, output: Tensor, activation: int, negative_slope: float
) -> Tensor:
    """The op in plain PyTorch."""
    _check_arguments("act_gradient", grad_output, output, activation, negative_slope)
    name = activation_of_code(activation).name
    wide_grad = grad_output.to(arithmetic_dtype(output.dtype))
    if name == "relu":
        gradient = torch.where(output <= 0, 0.0, wide_grad)
    elif name == "leaky_relu":
        gradient = torch.where(output > 0, wide_grad, wide_grad * negative_slope)
    else:
        wide = output.to(wide_grad.dtype)
        gradient = wide_grad * activation_of_code(activation).derivative(wide, negative_slope)
    return torch.empty_like(_dense(output)).copy_(gradient)


def _dense(tensor: Tensor) -> Tensor:
    return tensor.contiguous() if tensor.dim() < 2 else without_gaps(tensor)


def _plain_act_gradient_(
    grad_output: Tensor, output: Tensor, activation: int, negative_slope: float
) -> None:
    _check_arguments("act_gradient_", grad_output, output, activation, negative_slope)
    grad_output.copy_(plain_act_gradient(grad_output, output, activation, negative_slope))


def _fake(grad_output: Tensor, output: Tensor, activation: int, negative_slope: float) -> Tensor:
    _check_arguments("act_gradient", grad_output, output, activation, negative_slope)
    return torch.empty_like(_dense(output))


def _fake_(grad_output: Tensor, output: Tensor, activation: int, negative_slope: float) -> None:
    _check_arguments("act_gradient_", grad_output, output, activation, negative_slope)


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

    def call(grad_output: Tensor, *arguments: object) -> Tensor:
        torch.ops.fastgan.act_gradient_(grad_output, *arguments)
        return grad_output

    _check_values(device, "act_gradient_", call)


define_if_absent(SCHEMA)
define_if_absent(IN_PLACE_SCHEMA)
register_fallback("act_gradient", plain_act_gradient)
register_fallback("act_gradient_", _plain_act_gradient_)
torch.library.register_fake(f"{NAMESPACE}::act_gradient", _fake)
torch.library.register_fake(f"{NAMESPACE}::act_gradient_", _fake_)
register_without_gradient(torch.ops.fastgan.act_gradient.default)
register_in_place_on_lists(torch.ops.fastgan.act_gradient_.default, lambda args: [args[0]])
