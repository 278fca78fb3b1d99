"""A stage's convolution and gradients without kernels of our own, against torch's and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastgan.ops import aten_convolution, matrix_convolution
from fastgan.ops.stages import Stage

#: Stage, input's shape, weight's shape. Of the first four the kernel covers the whole wide map.
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
    "with places left over": (
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
#: Those that products of matrices are not written for.
OTHERS = {
    "dilated": (Stage("conv_transpose2d", dilation=(2, 1)), (3, 5, 1, 1), (5, 4, 4, 3)),
    "grouped": (Stage("conv2d", groups=2), (3, 4, 4, 4), (6, 2, 4, 4)),
    "linear": (Stage("linear"), (3, 5), (6, 5)),
}


@pytest.mark.parametrize(
    ("convolution", "name"),
    [
        *((aten_convolution, name) for name in CASES | OTHERS),
        *((matrix_convolution, name) for name in CASES),
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
    if convolution is aten_convolution:
        found = convolution.forward(stage, input, weight, bias)
        torch.testing.assert_close(torch.autograd.grad(found, leaves, grad), wanted)
    with torch.no_grad():
        found = convolution.forward(stage, input, weight, bias)
        grad_input = convolution.input_gradient(stage, grad, input, weight)
        grad_weight, grad_bias = convolution.weight_gradient(stage, grad, input, weight, with_bias)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad_input, wanted[0])
    torch.testing.assert_close(grad_weight, wanted[1])
    if convolution is matrix_convolution and channels_last[1] and name != "one by one":
        # Of the weight's own layout, so that autograd need not copy it.
        assert grad_weight.stride() == weight.stride()
    if with_bias:
        torch.testing.assert_close(grad_bias, wanted[2])
    else:
        assert grad_bias is None


def is_product(
    stage: Stage,
    shape: tuple[int, ...],
    weight: Tensor,
    dtype: torch.dtype,
    of: str = "forward",
) -> bool:
    return matrix_convolution.pays(
        stage,
        torch.empty(shape, dtype=dtype),
        weight.to(dtype),
        of,
    )


def test_products_are_taken_where_they_were_measured_to_pay() -> None:
    halving = Stage("conv2d", stride=(2, 2), padding=(1, 1))
    deep = torch.empty(512, 256, 4, 4).contiguous(memory_format=torch.channels_last)
    assert is_product(halving, (64, 256, 8, 8), deep, torch.float32)
    assert not is_product(halving, (64, 256, 16, 16), deep, torch.float32)
    assert not is_product(halving, (64, 256, 8, 8), deep, torch.bfloat16)
    assert is_product(halving, (64, 256, 8, 8), deep, torch.bfloat16, "weight_gradient")
    assert not is_product(halving, (64, 256, 16, 16), deep, torch.bfloat16, "weight_gradient")
    assert not is_product(halving, (64, 256, 8, 8), deep.contiguous(), torch.float32)
    doubling = Stage("conv_transpose2d", stride=(2, 2), padding=(1, 1))
    assert is_product(doubling, (64, 512, 4, 4), deep, torch.float32)
    assert not is_product(doubling, (64, 512, 8, 8), deep, torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        assert is_product(Stage("conv_transpose2d"), (64, 512, 1, 1), deep, dtype)
        assert is_product(Stage("conv2d"), (64, 256, 4, 4), deep, dtype)
    assert not is_product(Stage("linear"), (64, 256), torch.empty(3, 256), torch.float32)
    for name in ("dilated", "grouped"):
        stage, shape, weight_shape = OTHERS[name]
        assert not is_product(stage, shape, torch.empty(weight_shape), torch.float32)


def test_a_batch_taken_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    stage = Stage("conv2d", stride=(2, 2), padding=(1, 1))
    x, weight = torch.randn(7, 5, 8, 8).double(), torch.randn(6, 5, 4, 4).double()
    grad = torch.randn(7, 6, 4, 4).double()
    whole = [
        matrix_convolution.forward(stage, x, weight, None),
        matrix_convolution.input_gradient(stage, grad, x, weight),
        matrix_convolution.weight_gradient(stage, grad, x, weight, False)[0],
    ]
    monkeypatch.setattr(matrix_convolution, "PATCHES_BYTES", 3 * 16 * weight[0].numel() * 8)
    portions = [
        matrix_convolution.forward(stage, x, weight, None),
        matrix_convolution.input_gradient(stage, grad, x, weight),
        matrix_convolution.weight_gradient(stage, grad, x, weight, False)[0],
    ]
    torch.testing.assert_close(portions, whole)
