"""The DCGAN's initialisation: Radford et al. 2015, arXiv 1511.06434, section 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["keep_channels_last", "weights_init"]


@torch.no_grad()
def weights_init(module: nn.Module) -> None:
    """Draws a convolution's weight from N(0, 0.02) and a batch norm's from N(1, 0.02), bias 0.

    For ``network.apply(weights_init)``. A layer is known by its class's name, which holds "Conv"
    or "BatchNorm", as in pytorch/examples and WassersteinGAN: so the same layers draw from the
    same random stream in the same order, and the same seed gives the same weights. Everything
    else, a convolution's bias included, is left as it is.

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
    """Puts a network's weights into channels-last memory, where convolutions want them.

    To be called after :func:`weights_init`, which on weights in another order would take the same
    random numbers for other places. The values, and ``state_dict``, are not touched.

    Args:
        module: any module; changed in place.

    Example:
        >>> layer = nn.Conv2d(8, 4, 3)
        >>> keep_channels_last(layer)
        >>> layer.weight.is_contiguous(memory_format=torch.channels_last)
        True
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
