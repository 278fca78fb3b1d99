"""``fastgan sample``: a grid of images from a checkpoint."""

from __future__ import annotations

import argparse

import torch

from fastgan.cli.arguments import require_class
from fastgan.cli.terminal import say
from fastgan.images import save_grid
from fastgan.noise import sample_noise
from fastgan.sampling import generate_images
from fastgan.training import load_generator

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Writes the grid; returns 0."""
    generator, config, data = load_generator(options.checkpoint, ema=not options.no_ema)
    classes = data.num_classes if config.conditional else None
    require_class(options.label, classes)
    assert config.noise is not None
    z = sample_noise(
        options.n,
        config.nz,
        config.noise,
        truncation=options.truncation,
        generator=torch.Generator().manual_seed(options.seed),
    )
    labels = None
    columns = None
    if classes is not None:
        labels = torch.arange(options.n) % classes
        columns = min(classes, options.n)
        if options.label is not None:
            labels = torch.full_like(labels, options.label)
            columns = None
    save_grid(generate_images(generator, z, labels), options.out, columns=columns)
    say(f"{options.n} images: {options.out}")
    return 0
