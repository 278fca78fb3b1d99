"""A stage's convolution and gradients without kernels of our own, against torch's and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastgan.ops.backends import ATEN, BACKENDS, matrix_product
from fastgan.ops.stages import Stage

#: Stage, input's shape, weight's shape. In the first four the kernel spans the whole wide map.
CASES = {
    "first of a generator": (Stage("conv_transpose2d"), (3, 5, 1, 1), (5, 4, 4, 3)),
    "first, strided": (Stage("conv_transpose2d", stride=(2, 3)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "last of a critic": (Stage("conv2d"), (3, 5, 4, 3), (1, 5, 4, 3)),
    "last, strided": (Stage("conv2d", stride=(2, 2)), (3, 5, 4, 4), (6, 5, 4, 4)),
    "padded": (Stage("conv_transpose2d", padding=(1, 1)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "doubling": (
        Stage("conv_transpose2d", stride=(2, 2), padding=(1, 1)),
        (3, 5, 4, 4),
        (5, 4, 4, 4),
    ),
    "halving": (Stage("conv2d", stride=(2, 2), padding=(1, 1)), (3, 5, 8, 8), (6, 5, 4, 4)),
    "with positions left over": (
        Stage("conv2d", stride=(3, 2), padding=(0, 1)),
        (2, 5, 9, 8),
        (6, 5, 2, 3),
    ),
    "with rows to spare": (
        Stage("conv_transpose2d", stride=(3, 2), padding=(1, 0), output_padding=(2, 1)),
        (2, 5, 3, 2),
        (5, 4, 3, 1),
    ),
    "one by one": (Stage("conv2d"), (2, 5, 3, 4), (6, 5, 1, 1)),
}
BY_NAME = {backend.name: backend for backend in BACKENDS}
MATRIX_PRODUCT = BY_NAME["matrix_product"]
REARRANGED = (BY_NAME["aten_channels_last"], BY_NAME["aten_contiguous"])
#: Those that products of matrices are not written for.
OTHERS = {
    "dilated": (Stage("conv_transpose2d", dilation=(2, 1)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "grouped": (Stage("conv2d", groups=2), (3, 4, 4, 4), (6, 2, 4, 4)),
    "linear": (Stage("linear"), (3, 5), (6, 5)),
}


@pytest.mark.parametrize(
    ("convolution", "name"),
    [
        *((ATEN, name) for name in CASES | OTHERS),
        *((backend, name) for backend in REARRANGED for name in CASES | OTHERS if name != "linear"),
        *((MATRIX_PRODUCT, name) for name in CASES),
    ],
)
@pytest.mark.parametrize("channels_last", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients(
    convolution: Any, name: str, channels_last: tuple[bool, bool], with_bias: bool
) -> None:
    torch.manual_seed(0)
    stage, input_shape, weight_shape = (CASES | OTHERS)[name]
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
    grad = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, grad)
    if convolution is ATEN:
        found = convolution.forward(stage, input, weight, bias)
        torch.testing.assert_close(torch.autograd.grad(found, leaves, grad), wanted)
    with torch.no_grad():
        found = convolution.forward(stage, input, weight, bias)
        grad_input = convolution.input_gradient(stage, grad, input, weight)
        grad_weight, grad_bias = convolution.weight_gradient(stage, grad, input, weight, with_bias)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad_input, wanted[0])
    torch.testing.assert_close(grad_weight, wanted[1])
    if convolution is not ATEN and name != "one by one":
        # Of the weight's own layout, so that autograd need not copy it.
        assert grad_weight.stride() == weight.stride()
    if with_bias:
        torch.testing.assert_close(grad_bias, wanted[2])
    else:
        assert grad_bias is None


def test_a_batch_taken_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stage = Stage("conv2d", stride=(2, 2), padding=(1, 1))
    x, weight = torch.randn(7, 5, 8, 8).double(), torch.randn(6, 5, 4, 4).double()
    grad = torch.randn(7, 6, 4, 4).double()
    whole = [
        MATRIX_PRODUCT.forward(stage, x, weight, None),
        MATRIX_PRODUCT.input_gradient(stage, grad, x, weight),
        MATRIX_PRODUCT.weight_gradient(stage, grad, x, weight, False)[0],
    ]
    monkeypatch.setattr(matrix_product, "PATCHES_BYTES", 3 * 16 * weight[0].numel() * 8)
    portions = [
        MATRIX_PRODUCT.forward(stage, x, weight, None),
        MATRIX_PRODUCT.input_gradient(stage, grad, x, weight),
        MATRIX_PRODUCT.weight_gradient(stage, grad, x, weight, False)[0],
    ]
    torch.testing.assert_close(portions, whole)
