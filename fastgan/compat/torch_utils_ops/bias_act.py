"""``bias_act.bias_act`` and the table ``activation_funcs``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from fastgan.ops import bias_act as _op
from fastgan.reference import style_ops

__all__ = ["ActivationFunc", "activation_funcs", "bias_act"]


class ActivationFunc(NamedTuple):
    """A row of :data:`activation_funcs`.

    Attributes:
        def_alpha: the default of ``alpha``.
        def_gain: the default of ``gain``.
        has_2nd_grad: whether the second derivative isn't zero.
    """

    def_alpha: float
    def_gain: float
    has_2nd_grad: bool


#: By name.
activation_funcs: Mapping[str, ActivationFunc] = {
    name: ActivationFunc(row.alpha, row.gain, row.has_second_gradient)
    for name, row in _op.ACTIVATIONS.items()
}


def _init() -> bool:
    return True


def bias_act(
    x: Tensor,
    b: Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    impl: str = "cuda",
) -> Tensor:
    """``clamp(gain * act(x + b))``; differentiable to any order.

    Args:
        x: any shape.
        b: (x.shape[dim],), or None for 0.
        dim: the dimension that b is along.
        act: a name of :data:`activation_funcs`.
        alpha: slope of "lrelu" below zero; None for the default.
        gain: factor after the activation; None for the default.
        clamp: largest magnitude of the result; None or a negative number for no bound.
        impl: "ref" for plain PyTorch; any other for fastgan's op, on any device.

    Example:
        >>> import torch
        >>> bias_act(torch.tensor([[-1.0, 2.0]]), act="lrelu", gain=1.0)
        tensor([[-0.2000,  2.0000]])
    """
    function = style_ops.bias_act if impl == "ref" else _op.bias_act
    return function(x, b, dim, act, alpha, gain, clamp)
