"""Samples from a generator, in batches, without changing its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

STANDING_BATCH = 64


@torch.no_grad()
def generate_images(
    generator: nn.Module,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    batch_size: int = 256,
    **options: Any,
) -> Tensor:
    """Runs a generator in eval mode over latent vectors.

    Args:
        generator: maps z (and labels) to images in [-1, 1]; its mode is restored afterwards.
        z: shape (n, nz, 1, 1), on any device.
        labels: classes of shape (n,) for a conditional generator.
        batch_size: vectors at a time.
        options: of the generator's ``forward``.

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
            images = generator(z[part].to(device), *condition, **options)
            batches.append(images.float().cpu())
    finally:
        generator.train(training)
    return torch.cat(batches)


def standing_statistics_(generator: nn.Module, z: Tensor, labels: Tensor | None = None) -> None:
    """Sets the batch norms' running statistics to the means over batches of these latent vectors.

    Brock et al. 2018, arXiv 1809.11096, appendix D: training's statistics are for noise without
    truncation.

    Args:
        generator: in eval mode; its buffers are changed in place.
        z: shape (n, nz, 1, 1), passed in batches of 64.
        labels: classes of shape (n,) for a conditional generator.

    Example:
        >>> from fastgan.models import DCGANGenerator
        >>> generator = DCGANGenerator(nz=8, ngf=8, nc=1, image_size=16).eval()
        >>> standing_statistics_(generator, torch.randn(128, 8, 1, 1))
        >>> int(generator.main[1].num_batches_tracked)
        2
    """
    norms = [
        module
        for module in generator.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    momenta = [norm.momentum for norm in norms]
    device = next(generator.parameters()).device
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a mean over all batches
            norm.train()
        with torch.no_grad():
            for start in range(0, len(z) if norms else 0, STANDING_BATCH):
                part = slice(start, start + STANDING_BATCH)
                condition = () if labels is None else (labels[part].to(device),)
                generator(z[part].to(device), *condition)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
