"""Images from a generator, in batches, without touching its state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["generate_images"]


@torch.no_grad()
def generate_images(
    generator: nn.Module, z: Tensor, labels: Tensor | None = None, *, batch_size: int = 256
) -> Tensor:
    """Runs a generator in eval mode over latent vectors.

    Args:
        generator: maps z (and labels) to images in [-1, 1]; its mode is put back afterwards.
        z: shape (n, nz, 1, 1), on any device.
        labels: classes of shape (n,) for a conditional generator.
        batch_size: vectors at a time.

    Returns:
        float32 tensor of shape (n, channels, size, size) on the CPU.

    Example:
        >>> from fastgan.models import DCGANGenerator
        >>> generator = DCGANGenerator(nz=8, ngf=8, nc=1, image_size=16)
        >>> tuple(generate_images(generator, torch.randn(5, 8, 1, 1), batch_size=2).shape)
        (5, 1, 16, 16)
    """
    device = next(generator.parameters()).device
    training = generator.training
    generator.eval()
    try:
        batches = []
        for start in range(0, len(z), batch_size):
            part = slice(start, start + batch_size)
            condition = () if labels is None else (labels[part].to(device),)
            batches.append(generator(z[part].to(device), *condition).float().cpu())
    finally:
        generator.train(training)
    return torch.cat(batches)
