"""``fastgan interpolate``: a walk through the latent space, as a GIF and as a strip."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastgan.cli.arguments import require_class
from fastgan.cli.terminal import say
from fastgan.errors import OutputError
from fastgan.files import check_writable
from fastgan.images import save_gif, save_strip
from fastgan.noise import sample_noise, spherical_interpolation
from fastgan.sampling import generate_images
from fastgan.training import load_generator

__all__ = ["run"]

# Images in the strip: as many as fit side by side on a page.
STRIP_IMAGES = 12


def run(options: argparse.Namespace) -> int:
    """Writes both pictures; returns 0."""
    out = Path(options.out)
    if out.suffix.lower() != ".gif":
        raise OutputError(f"{out}: expected a name that ends in .gif")
    generator, config, data = load_generator(options.checkpoint, ema=not options.no_ema)
    classes = data.num_classes if config.conditional else None
    require_class(options.label, classes)
    assert config.noise is not None
    stops = sample_noise(
        options.stops,
        config.nz,
        config.noise,
        truncation=options.truncation,
        generator=torch.Generator().manual_seed(options.seed),
    )
    # A closed walk: the GIF loops without a jump.
    ends = stops.roll(-1, dims=0)
    z = torch.stack(
        [
            spherical_interpolation(stops, ends, frame / options.frames)
            for frame in range(options.frames)
        ],
        dim=1,
    ).flatten(0, 1)
    labels = None
    if classes is not None:
        labels = torch.full((len(z),), options.label or 0)
    images = generate_images(generator, z, labels)
    strip = out.with_name(f"{out.stem}-strip.png")
    for place in (out, strip):
        check_writable(place)
    save_gif(images, out)
    save_strip(
        images[torch.linspace(0, len(images) - 1, min(STRIP_IMAGES, len(images))).long()], strip
    )
    say(f"{len(images)} frames: {out}; strip: {strip}")
    return 0
