"""``fastgan interpolate``: a walk through the latent space, as a GIF and as a strip."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastgan._util.devices import choose_device
from fastgan._util.files import check_writable
from fastgan.cli.terminal import say
from fastgan.errors import OutputError
from fastgan.sampling.images import save_gif, save_strip, save_video
from fastgan.trained import load_generator

# Images in the strip: as many as fit on a page.
STRIP_IMAGES = 12


def run(options: argparse.Namespace) -> int:
    """Writes both pictures; returns 0."""
    out = Path(options.out)
    if out.suffix.lower() not in (".gif", ".mp4"):
        raise OutputError(f"{out}: expected a name that ends in .gif or .mp4")
    device = choose_device(options.device)
    generator = load_generator(options.checkpoint, ema=not options.no_ema).to(device)
    if options.standing_statistics:
        generator = generator.with_standing_statistics(options.truncation)
    if options.label is not None:
        generator.class_number(options.label)
    images = generator.interpolate(
        options.stops,
        options.frames,
        seed=options.seed,
        truncation=options.truncation,
        classes=options.label or 0,
    )
    strip = out.with_name(f"{out.stem}-strip.png")
    for place in (out, strip):
        check_writable(place)
    (save_video if out.suffix.lower() == ".mp4" else save_gif)(images, out)
    save_strip(
        images[torch.linspace(0, len(images) - 1, min(STRIP_IMAGES, len(images))).long()], strip
    )
    say(f"{len(images)} frames: {out}; strip: {strip}")
    return 0
