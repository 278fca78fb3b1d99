"""The standard deviation over groups of samples as additional channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastgan.errors import ConfigError
from fastgan.ops.memory_format import is_channels_last

__all__ = ["MinibatchStdDev"]


class MinibatchStdDev(nn.Module):
    """Appends the standard deviation over groups of samples, as ``num_channels`` channels.

        s = mean over C / num_channels channels, and places, of (var over the group + 1e-8)^(1/2)

    It shows the discriminator a batch's variety (Karras et al. 2017, arXiv 1710.10196, section 3).
    Sample n of N belongs to group n % (N / G), with G samples in each.

    Args:
        group_size: G; at most N. None for N.
        num_channels: number of channels appended; must divide C.

    Shape:
        (N, C, H, W) -> (N, C + num_channels, H, W), of the same dtype and memory format.

    Raises:
        ConfigError: a number below 1; in the forward pass, a batch that G doesn't divide or
            channels that ``num_channels`` doesn't (a ValueError).

    Example:
        >>> MinibatchStdDev()(torch.randn(8, 16, 4, 4)).shape
        torch.Size([8, 17, 4, 4])
    """

    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        if num_channels < 1 or (group_size is not None and group_size < 1):
            raise ConfigError(
                f"group_size is {group_size}, num_channels is {num_channels}; expected numbers "
                "from 1 on"
            )
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """The input with the channels appended."""
        batch, channels, height, width = x.shape
        group = max(1, batch if self.group_size is None else min(self.group_size, batch))
        if batch % group != 0 or channels % self.num_channels != 0:
            raise ConfigError(
                f"x has shape {tuple(x.shape)}; expected a batch that {group} samples of a group "
                f"divide, and channels that {self.num_channels} divides"
            )
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        groups = wide.unflatten(0, (group, batch // group)).unflatten(2, (self.num_channels, -1))
        # torch.var is slow along the first dimension.
        apart = groups - groups.mean(0)
        spread = ((apart * apart).mean(0) + 1e-8).sqrt().mean((2, 3, 4)).to(x.dtype)
        planes = spread.repeat(group, 1)[:, :, None, None].expand(-1, -1, height, width)
        output = torch.cat([x, planes], 1)
        format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        return output.contiguous(memory_format=format)

    def extra_repr(self) -> str:
        """The settings."""
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
