"""Pixel arithmetic: bytes to [-1, 1], grey and colour, square crops, resizing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# A table rather than x / 127.5 - 1: torch multiplies by a rounded reciprocal on CUDA and divides
# on CPU, and the same data should have the same values everywhere. Endpoints are exactly +-1.
_UNIT_RANGE = (torch.arange(256, dtype=torch.float64) / 127.5 - 1.0).float()

# ITU-R BT.601 luma, as in every image library.
_LUMA = (0.299, 0.587, 0.114)


def bytes_to_unit_range(images: Tensor) -> Tensor:
    """Maps bytes to [-1, 1]: ``x / 127.5 - 1``, correctly rounded, equal on every device.

    Args:
        images: uint8, any shape.

    Returns:
        float32 of the same shape, on the same device.

    >>> bytes_to_unit_range(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-1.,  1.])
    """
    table = _UNIT_RANGE.to(images.device)
    return table.index_select(0, images.reshape(-1).to(torch.int32)).view(images.shape)


def centre_square(images: Tensor) -> Tensor:
    """Crops (N, C, H, W) to the largest centred square; an odd surplus is cut right or below."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def convert_channels(images: Tensor, channels: int) -> Tensor:
    """Convert float (N, 1 or 3, H, W) between grey and colour.

    Grey to colour repeats the plane; colour to grey is BT.601's 0.299 R + 0.587 G + 0.114 B.
    """
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(1)


def fit_images(images: Tensor, *, image_size: int, channels: int) -> Tensor:
    """Converts images to a model's size, channel count and range.

    Centre crop to a square, then grey or colour, then bilinear resizing with antialiasing.

    Args:
        images: (N, 1 or 3, H, W); uint8, or float32 already in [-1, 1].
        image_size: side of the result in pixels.
        channels: 1 or 3.

    Returns:
        float32 (N, channels, image_size, image_size) in [-1, 1].

    >>> fit_images(torch.zeros(2, 1, 5, 8, dtype=torch.uint8), image_size=4, channels=3).shape
    torch.Size([2, 3, 4, 4])
    """
    images = centre_square(images)
    if images.dtype == torch.uint8:
        images = bytes_to_unit_range(images)
    images = convert_channels(images, channels)
    if images.shape[-1] != image_size:
        images = F.interpolate(
            images.contiguous(),
            size=(image_size, image_size),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
    # Weighted means stay within the range up to rounding.
    return images.clamp(-1.0, 1.0).contiguous()
