"""The DCGAN's initialisation: Radford et al. 2015, arXiv 1511.06434, section 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["keep_channels_last", "weights_init"]


@torch.no_grad()
def weights_init(module: nn.Module) -> None:
    """Initialises convolutions' weights from N(0, 0.02), batch norms' from N(1, 0.02), with bias 0.

    For ``network.apply(weights_init)``. Layers are recognised by "Conv" or "BatchNorm" in their
    class's name, as in pytorch/examples and WassersteinGAN, so that the same seed gives the same
    weights. Everything else, including a convolution's bias, is unchanged.

    Args:
        module: any module; changed in place.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> layer = nn.Conv2d(64, 64, 4)
        >>> _ = layer.apply(weights_init)
        >>> round(layer.weight.std().item(), 3)
        0.02
    """
    name = type(module).__name__
    layer: Any = module
    if "Conv" in name:
        nn.init.normal_(layer.weight, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.zeros_(layer.bias)


def keep_channels_last(module: nn.Module) -> None:
    """Converts a network's weights to channels-last memory, the fastest for convolutions.

    Call it after :func:`weights_init`, which assigns random numbers in memory order. Values and
    ``state_dict`` are unchanged.

    Args:
        module: any module; changed in place.

    Example:
        >>> layer = nn.Conv2d(8, 4, 3)
        >>> keep_channels_last(layer)
        >>> layer.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
