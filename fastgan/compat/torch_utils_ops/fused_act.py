"""``fused_act``: bias and leaky ReLU, for code with its ops in ``op``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.ops.bias_act import bias_act

__all__ = ["FusedLeakyReLU", "fused_leaky_relu"]


def fused_leaky_relu(
    input: Tensor, bias: Tensor | None = None, negative_slope: float = 0.2, scale: float = 2**0.5
) -> Tensor:
    """``scale * leaky_relu(input + bias)``, the bias along dimension 1.

    Example:
        >>> fused_leaky_relu(torch.tensor([[-1.0, 2.0]]), torch.zeros(2), scale=1.0)
        tensor([[-0.2000,  2.0000]])
    """
    return bias_act(input, bias, act="lrelu", alpha=negative_slope, gain=scale)


class FusedLeakyReLU(nn.Module):
    """:func:`fused_leaky_relu` with its own bias, initially zero.

    Args:
        channel: number of channels.
        bias: whether there is one.
        negative_slope: of the leaky ReLU.
        scale: factor after it.

    Example:
        >>> FusedLeakyReLU(2, scale=1.0)(torch.tensor([[-1.0, 2.0]])).tolist()
        [[-0.20000000298023224, 2.0]]
    """

    def __init__(
        self, channel: int, bias: bool = True, negative_slope: float = 0.2, scale: float = 2**0.5
    ) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channel)) if bias else None
        self.negative_slope = negative_slope
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Bias, leaky ReLU, scale."""
        return fused_leaky_relu(input, self.bias, self.negative_slope, self.scale)
