"""StyleGAN's ops under torch.func and forward-mode autograd, against the formulas under them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

import fastgan
from fastgan.explaining import fallback
from fastgan.ops.bias_act import bias_act
from fastgan.ops.filtered_lrelu import filtered_lrelu
from fastgan.ops.upfirdn2d import upfirdn2d
from fastgan.reference import style_ops

Function = Callable[[Tensor], Tensor]

FIR = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
BIAS = torch.randn(3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
PAIRS: dict[str, tuple[Function, Function]] = {
    "lrelu": (
        lambda x: bias_act(x, BIAS, act="lrelu", clamp=1.5),
        lambda x: style_ops.bias_act(x, BIAS, act="lrelu", clamp=1.5),
    ),
    "swish": (
        lambda x: bias_act(x, BIAS, act="swish"),
        lambda x: style_ops.bias_act(x, BIAS, act="swish"),
    ),
    "upfirdn2d": (
        lambda x: upfirdn2d(x, FIR, (2, 1), (1, 2), (2, 1, 2, 1), gain=4.0),
        lambda x: style_ops.upfirdn2d(x, FIR, (2, 1), (1, 2), (2, 1, 2, 1), gain=4.0),
    ),
    "filtered_lrelu": (
        lambda x: filtered_lrelu(x, FIR[:, 0], FIR[:, 1], BIAS, 2, 2, (3, 2, 3, 2), clamp=2.0),
        lambda x: style_ops.filtered_lrelu(
            x, FIR[:, 0], FIR[:, 1], BIAS, 2, 2, (3, 2, 3, 2), clamp=2.0
        ),
    ),
}


def _norm(function: Function) -> Function:
    return lambda x: function(x).square().sum()


def _forward_mode(function: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        result = function(forward_ad.make_dual(x, x.sin()))
        tangent = forward_ad.unpack_dual(result).tangent
    assert tangent is not None
    return tangent


TRANSFORMS: dict[str, Callable[[Function, Tensor], Tensor]] = {
    "grad": lambda function, x: grad(_norm(function))(x),
    "grad of grad": lambda function, x: grad(_norm(grad(_norm(function))))(x),
    "jvp": lambda function, x: jvp(function, (x,), (x.sin(),))[1],
    "vmap": lambda function, x: vmap(function)(torch.stack([x, x.sin()])),
    "vmap of grad": lambda function, x: vmap(grad(_norm(function)))(torch.stack([x, x.sin()])),
    "forward mode": _forward_mode,
}


@pytest.mark.filterwarnings("ignore::fastgan.FallbackWarning")
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", PAIRS)
def test_values_are_those_of_the_formulas(op: str, transform: str) -> None:
    ours, formula = PAIRS[op]
    x = torch.randn(2, 3, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, expected = (TRANSFORMS[transform](each, x) for each in (ours, formula))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_plain_pytorch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_seen", set())
    with pytest.warns(fastgan.FallbackWarning, match=r"upfirdn2d runs as plain PyTorch under"):
        vmap(PAIRS["upfirdn2d"][0])(torch.zeros(2, 1, 3, 4, 4, dtype=torch.float64))
