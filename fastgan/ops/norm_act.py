"""``torch.ops.fastgan.norm_act``: a normalisation and an activation in one pass.

::

    y = z((x - mean) * scale + bias)

per channel (dimension 1), z being the activation: what
:class:`fastgan.fusion.NormActivation` does as a prologue, for stand-alone use. With a batch norm's
mean and scale = weight * invstd it is that batch norm with its activation.

``input`` is (N, C, ...), of one of the four dtypes; contiguous and channels-last tensors are read
as they lie, others copied; the result lies as the input does. ``mean``, ``scale`` and ``bias`` (or
None) are (C,), float32, float64 of float64 input; a bias may also be of another of the four dtypes.
``activation`` is a code of :data:`fastgan.activations.ACTIVATIONS`. Kernels:
``csrc/cpu/batch_norm.cpp``, ``csrc/cuda/norm_act.cu``; the formulas: ``csrc/math/batch_norm.h``,
``csrc/math/activation.h``.

Order of gradients supported: none. The op raises where autograd would have to record it;
:mod:`fastgan.ops.bn_act` has the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastgan.activations import ACTIVATIONS, BY_CODE
from fastgan.ops.batch_norm_formulas import (
    DTYPES,
    arithmetic_dtype,
    assert_close,
    check_activation,
    check_arrays,
    check_image,
    check_vectors,
    normalise,
    per_channel,
    without_gaps,
)
from fastgan.ops.registration import NAMESPACE, define_if_absent, register_fallback
from fastgan.ops.without_gradient import register_without_gradient

__all__ = ["SCHEMA", "check", "check_norm", "plain_norm_act"]

#: As in csrc/batch_norm_ops.cpp.
SCHEMA = (
    "norm_act(Tensor input, Tensor mean, Tensor scale, Tensor? bias, int activation, "
    "float negative_slope) -> Tensor"
)


def check_norm(
    op: str, input: Tensor, mean: Tensor, scale: Tensor, bias: Tensor | None, activation: int
) -> None:
    """The checks of csrc/batch_norm_ops.cpp, of a normalisation's arguments."""
    check_image(op, "input", input)
    dtype = arithmetic_dtype(input.dtype)
    check_arrays(op, dtype, (input.shape[1],), mean=mean, scale=scale)
    check_vectors(op, input.shape[1], bias=bias)
    check_activation(op, activation)


def plain_norm_act(
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """The op in plain PyTorch."""
    check_norm("norm_act", input, mean, scale, bias, activation)
    input = without_gaps(input)
    u = normalise(input, mean, scale, bias)
    output = BY_CODE[activation].forward(u, negative_slope)
    # A copy even where nothing was done, laid out as the input.
    return torch.empty_like(input).copy_(output)


def _fake(
    input: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    activation: int,
    negative_slope: float,
) -> Tensor:
    check_norm("norm_act", input, mean, scale, bias, activation)
    return torch.empty_like(without_gaps(input))


def check(device: torch.device | str) -> None:
    """Runs the op on `device` and compares with its formula in float64; for ``fastgan doctor``.

    Raises:
        FastganError: a value is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    mean, scale, bias = torch.randn((3, 6), generator=generator)
    for dtype in DTYPES:
        values = torch.randn((3, 6, 5, 7), generator=generator).to(dtype)
        vectors = [v.to(arithmetic_dtype(dtype)).to(device) for v in (mean, scale, bias)]
        for activation in ACTIVATIONS.values():
            for memory_format in (torch.contiguous_format, torch.channels_last):
                input = values.to(device).contiguous(memory_format=memory_format)
                actual = torch.ops.fastgan.norm_act(input, *vectors, activation.code, 0.2)
                centred = values.double() - per_channel(mean.double(), values)
                u = centred * per_channel(scale.double(), values)
                u = u + per_channel(bias.double(), values)
                expected = activation.forward(u, 0.2)
                assert_close("norm_act", activation.name, actual, expected, dtype)


define_if_absent(SCHEMA)
register_fallback("norm_act", plain_norm_act)
torch.library.register_fake(f"{NAMESPACE}::norm_act", _fake)
register_without_gradient(torch.ops.fastgan.norm_act.default)
