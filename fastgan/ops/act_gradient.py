"""``torch.ops.fastgan.act_gradient``, and ``act_gradient_`` in place: back through an activation.

::

    grad_input = grad_output * z'

with z' from ``kept``, the activation's output or its input, as
:attr:`fastgan.activations.Activation.keeps_input` says. ``grad_output`` and ``kept`` have any
shape, the same for both, and one of the four dtypes; the result lies as ``kept`` does, and
``act_gradient_`` writes it over ``grad_output``. ``activation`` is a code of
:data:`fastgan.activations.ACTIVATIONS`, ``negative_slope`` that of "leaky_relu". Kernels:
``csrc/cpu/batch_norm.cpp``, ``csrc/cuda/norm_act.cu``; the formulas: ``csrc/math/activation.h``.

Order of gradients supported: none. Both raise where autograd would have to record them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS, BY_CODE
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_activation,
    check_alike,
    without_gaps,
)
from fastgan.ops.both_forms import define_both_forms, returning_what_it_writes

__all__ = ["IN_PLACE_SCHEMA", "SCHEMA", "check", "check_in_place", "plain_act_gradient"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "act_gradient(Tensor grad_output, Tensor kept, int activation, float negative_slope) -> Tensor"
)
IN_PLACE_SCHEMA = (
    "act_gradient_(Tensor(a!) grad_output, Tensor kept, int activation, float negative_slope) -> ()"
)


def _check_arguments(
    op: str, grad_output: Tensor, kept: Tensor, activation: int, negative_slope: float
) -> None:
    if kept.dtype not in DTYPES:
        raise RuntimeError(
            f"fastgan::{op}: kept has dtype {kept.dtype}; expected float64, float32, float16 "
            "or bfloat16"
        )
    check_alike(op, "grad_output", grad_output, "kept", kept)
    check_activation(op, activation)


def _formula(grad_output: Tensor, kept: Tensor, activation: int, negative_slope: float) -> Tensor:
    dtype = arithmetic_dtype(kept.dtype)
    return BY_CODE[activation].gradient(grad_output.to(dtype), kept.to(dtype), negative_slope)


def _empty(grad_output: Tensor, kept: Tensor, activation: int, negative_slope: float) -> Tensor:
    return torch.empty_like(kept.contiguous() if kept.dim() < 2 else without_gaps(kept))


plain_act_gradient, _plain_act_gradient_ = define_both_forms(
    SCHEMA, IN_PLACE_SCHEMA, check=_check_arguments, formula=_formula, empty=_empty
)


def _check_values(device: torch.device | str, name: str, call: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    for dtype in DTYPES:
        # An odd length: a vector's worth and a rest.
        grad, values = torch.randn((2, 1031), generator=generator, dtype=torch.float64)
        for activation in ACTIVATIONS.values():
            keeps_input = activation.keeps_input(0.2)
            kept = (values if keeps_input else activation.forward(values, 0.2)).to(dtype)
            actual = call(
                grad.to(dtype).to(device, copy=True), kept.to(device), activation.code, 0.2
            )
            expected = activation.gradient(grad.to(dtype).double(), kept.double(), 0.2)
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
