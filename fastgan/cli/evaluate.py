"""``fastgan evaluate``: how close a checkpoint's samples are to real data, and how varied."""

from __future__ import annotations

import argparse
import json

import torch

from fastgan._util.files import atomic_write, check_writable
from fastgan._version import __version__
from fastgan.cli.arguments import NEIGHBOURS
from fastgan.cli.terminal import say
from fastgan.data import load_data
from fastgan.errors import ConfigError
from fastgan.evaluation import evaluate_samples
from fastgan.sampling.batches import generate_images
from fastgan.sampling.noise import sample_noise
from fastgan.trained import load_generator

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Prints the report; returns 0."""
    if options.json:
        check_writable(options.json)
    found = load_generator(options.checkpoint, ema=not options.no_ema)
    if options.standing_statistics:
        found = found.with_standing_statistics(options.truncation)
    generator, config, shape = found.module, found.config, found.data
    spec = options.data or config.data
    # A run that converted its data to grey or to colour is measured against data so converted.
    source = load_data(spec, image_size=shape.image_size, channels=config.channels)
    if source.channels != shape.channels:
        raise ConfigError(
            f"data: {spec} has {source.channels} channel(s), the checkpoint draws {shape.channels}"
        )
    classes = found.num_classes
    if classes is not None and source.num_classes not in (None, classes):
        raise ConfigError(
            f"data: {spec} has {source.num_classes} classes, the checkpoint {classes}"
        )
    random = torch.Generator().manual_seed(options.seed)
    assert config.noise is not None
    z = sample_noise(
        options.n, config.nz, config.noise, truncation=options.truncation, generator=random
    )
    labels = None
    if classes is not None:
        labels = torch.randint(classes, (options.n,), generator=random)
    generated = generate_images(generator, z, labels)
    # Metrics of 10,000 real images are as steady as of more, and fit in memory.
    count = min(len(source), 10_000)
    chosen = torch.randperm(len(source), generator=random)[:count]
    real, real_labels = source.get(chosen.tolist())
    report = evaluate_samples(
        generated,
        real,
        labels=real_labels,
        num_classes=source.num_classes,
        class_names=source.class_names,
        k=NEIGHBOURS,
        feature_space=f"torchscript:{options.features}" if options.features else None,
    )
    if options.json:  # first: whoever reads what is printed may have left
        figures = {
            **report.to_dict(),
            "checkpoint": str(found.path),
            "step": found.step,
            "ema": found.averaged,
            "data": spec,
            "n": options.n,
            "seed": options.seed,
            "truncation": options.truncation,
            "standing_statistics": options.standing_statistics,
            "features": options.features,
            "fastgan": __version__,
            "torch": torch.__version__,
        }
        with atomic_write(options.json) as file:
            file.write(json.dumps(figures, indent=2).encode() + b"\n")
    say(str(report))
    return 0
