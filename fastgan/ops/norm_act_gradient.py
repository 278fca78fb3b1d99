"""``torch.ops.fastgan.norm_act_gradient``, and ``norm_act_gradient_`` in place.

Back through a batch norm and an activation, to the input; the last of three stages, after
:mod:`fastgan.ops.norm_act_gradient_finalize`::

    u = (x - mean) * scale + bias,    g = grad_output * z'(u)
    grad_input = scale * g + (x - mean) * slope + offset

``grad_output`` and ``input`` are (N, C, ...), of one of the four dtypes; the others as for
:mod:`fastgan.ops.norm_act`, ``slope`` and ``offset`` as ``mean``. The result lies as ``input``
does; ``norm_act_gradient_`` writes it over ``grad_output``. Kernels: ``csrc/cpu/batch_norm.cpp``,
``csrc/cuda/norm_act_gradient.cu``; the formulas: ``csrc/math/batch_norm.h``.

Order of gradients supported: none. Both raise where autograd would have to record them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_alike,
    check_arrays,
    gradient_through,
    normalise,
    per_channel,
    without_gaps,
)
from fastgan.ops.both_forms import define_both_forms, returning_what_it_writes
from fastgan.ops.norm_act import check_norm

__all__ = ["IN_PLACE_SCHEMA", "SCHEMA", "check", "check_in_place", "plain_gradient"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "norm_act_gradient(Tensor grad_output, Tensor input, Tensor mean, Tensor scale, "
    "Tensor? bias, Tensor slope, Tensor offset, int activation, float negative_slope) -> Tensor"
)
IN_PLACE_SCHEMA = (
    "norm_act_gradient_(Tensor(a!) grad_output, Tensor input, Tensor mean, Tensor scale, "
    "Tensor? bias, Tensor slope, Tensor offset, int activation, float negative_slope) -> ()"
)


def _check_arguments(
    op: str,
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    slope: Tensor,
    offset: Tensor,
    activation: int,
    negative_slope: float,
) -> None:
    check_norm(op, input, mean, scale, bias, activation)
    check_alike(op, "grad_output", grad_output, "input", input)
    dtype = arithmetic_dtype(input.dtype)
    check_arrays(op, dtype, (input.shape[1],), slope=slope, offset=offset)


def _formula(
    grad_output: Tensor,
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    slope: Tensor,
    offset: Tensor,
    activation: int,
    negative_slope: float,
) -> Tensor:
    u = normalise(input, mean, scale, bias)
    g = gradient_through(grad_output.to(mean.dtype), u, activation, negative_slope)
    centred = input.to(mean.dtype) - per_channel(mean, input)
    slopes = per_channel(slope, input)
    # Constant statistics have a slope of 0, which leaves the input out: 0 times an infinity is NaN.
    through_statistics = torch.where(slopes == 0, 0.0, centred * slopes)
    return g * per_channel(scale, input) + (through_statistics + per_channel(offset, input))


def _empty(grad_output: Tensor, input: Tensor, *others: object) -> Tensor:
    return torch.empty_like(without_gaps(input))


plain_gradient, _plain_gradient_ = define_both_forms(
    SCHEMA, IN_PLACE_SCHEMA, check=_check_arguments, formula=_formula, empty=_empty
)


def _check_values(device: torch.device | str, name: str, call: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, scale, bias, slope, offset = torch.rand((5, 6), generator=generator)
    for dtype in DTYPES:
        grad, values = torch.randn((2, 3, 6, 5, 7), generator=generator).to(dtype)
        vectors = [
            v.to(arithmetic_dtype(dtype)).to(device) for v in (mean, scale, bias, slope, offset)
        ]
        for activation in ACTIVATIONS.values():
            for memory_format in (torch.contiguous_format, torch.channels_last):
                on_device = [
                    t.to(device, copy=True).contiguous(memory_format=memory_format)
                    for t in (grad, values)
                ]
                actual = call(*on_device, *vectors, activation.code, 0.2)
                x = values.double() - per_channel(mean.double(), values)
                wide_scale = per_channel(scale.double(), values)
                u = x * wide_scale + per_channel(bias.double(), values)
                g = gradient_through(grad.double(), u, activation.code, 0.2)
                expected = wide_scale * g + x * per_channel(slope.double(), values)
                expected = expected + per_channel(offset.double(), values)
                assert_close(name, activation.name, actual, expected, dtype)


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    _check_values(device, "norm_act_gradient", torch.ops.fastgan.norm_act_gradient)


def check_in_place(device: torch.device | str) -> None:
    """As :func:`check`, of ``norm_act_gradient_``.

    Raises:
        FastganError: a value is wrong.
    """
    in_place = returning_what_it_writes(torch.ops.fastgan.norm_act_gradient_)
    _check_values(device, "norm_act_gradient_", in_place)
