"""A stage's convolution and gradients by ATen, against torch's functions and autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastgan.ops import aten_convolution
from fastgan.ops.stages import Stage

#: Stage, input's shape, weight's shape. The first four are products of matrices on a CPU.
CASES = {
    "first of a generator": (Stage("conv_transpose2d"), (3, 5, 1, 1), (5, 4, 4, 3)),
    "first, strided": (Stage("conv_transpose2d", stride=(2, 3)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "last of a critic": (Stage("conv2d"), (3, 5, 4, 3), (1, 5, 4, 3)),
    "last, strided": (Stage("conv2d", stride=(2, 2)), (3, 5, 4, 4), (6, 5, 4, 4)),
    "padded": (Stage("conv_transpose2d", padding=(1, 1)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "dilated": (Stage("conv_transpose2d", dilation=(2, 1)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "grouped": (Stage("conv2d", groups=2), (3, 4, 4, 4), (6, 2, 4, 4)),
    "wider": (
        Stage("conv_transpose2d", stride=(2, 2), output_padding=(1, 0)),
        (3, 5, 1, 1),
        (5, 4, 4, 3),
    ),
    "ordinary": (Stage("conv2d", stride=(2, 2), padding=(1, 1)), (3, 5, 8, 8), (6, 5, 4, 4)),
    "linear": (Stage("linear"), (3, 5), (6, 5)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("channels_last", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(name: str, channels_last: tuple[bool, bool], with_bias: bool) -> None:
    torch.manual_seed(0)
    stage, input_shape, weight_shape = CASES[name]
    input, weight = (torch.randn(s, dtype=torch.float64) for s in (input_shape, weight_shape))
    if stage.kind != "linear":
        if channels_last[0]:
            input = input.contiguous(memory_format=torch.channels_last)
        if channels_last[1]:
            weight = weight.contiguous(memory_format=torch.channels_last)
    wide = weight_shape[1 if stage.kind == "conv_transpose2d" else 0]
    bias = torch.randn(wide, dtype=torch.float64) if with_bias else None
    leaves = [t.requires_grad_() for t in (input, weight, bias) if t is not None]
    geometry = {"stride": stage.stride, "padding": stage.padding, "dilation": stage.dilation}
    if stage.kind == "linear":
        expected = F.linear(input, weight, bias)
    elif stage.kind == "conv2d":
        expected = F.conv2d(input, weight, bias, groups=stage.groups, **geometry)
    else:
        expected = F.conv_transpose2d(
            input, weight, bias, output_padding=stage.output_padding, **geometry
        )
    found = aten_convolution.forward(stage, input, weight, bias)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, grad)
    torch.testing.assert_close(torch.autograd.grad(found, leaves, grad), wanted)
    with torch.no_grad():
        grad_input = aten_convolution.input_gradient(stage, grad, input, weight)
        grad_weight, grad_bias = aten_convolution.weight_gradient(
            stage, grad, input, weight, with_bias
        )
    torch.testing.assert_close(grad_input, wanted[0])
    torch.testing.assert_close(grad_weight, wanted[1])
    if "first" in name or "last" in name:
        # Of the weight's own layout, so that autograd need not copy it.
        assert grad_weight.stride() == weight.stride()
    if with_bias:
        torch.testing.assert_close(grad_bias, wanted[2])
    else:
        assert grad_bias is None
