"""``fastgan sample``: a grid of images from a checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from fastgan.cli.arguments import add_checkpoint, add_sampling, positive, require_class
from fastgan.images import save_grid
from fastgan.noise import sample_noise
from fastgan.sampling import generate_images
from fastgan.training import load_generator

__all__ = ["add_parser", "run"]


def add_parser(commands: Any) -> None:
    """Adds the command to the parser's sub-commands."""
    parser = commands.add_parser(
        "sample", help="draw images from a checkpoint", description="Draw a grid of images."
    )
    add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="FILE.png", help="the picture to write")
    parser.add_argument("--n", type=positive, default=64, metavar="N", help="images (default 64)")
    add_sampling(parser)
    parser.add_argument(
        "--class",
        dest="label",
        type=int,
        metavar="K",
        help="of a conditional model; by default all classes in turn, a column each",
    )
    parser.set_defaults(run=run)


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
    print(f"{options.n} images: {options.out}")
    return 0
