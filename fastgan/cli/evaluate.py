"""``fastgan evaluate``: how close a checkpoint's samples are to real data, and how varied."""

from __future__ import annotations

import argparse
import json

import torch

from fastgan._util.devices import choose_device
from fastgan._util.files import atomic_write, check_writable
from fastgan._version import __version__
from fastgan.cli.arguments import NEIGHBOURS
from fastgan.cli.terminal import say
from fastgan.data import PairSource
from fastgan.errors import ConfigError
from fastgan.trained import TrainedGenerator, load_generator


def run(options: argparse.Namespace) -> int:
    """Prints the report; returns 0."""
    if options.json:
        check_writable(options.json)
    device = choose_device(options.device)
    generator = load_generator(options.checkpoint, ema=not options.no_ema).to(device)
    if options.standing_statistics:
        generator = generator.with_standing_statistics(options.truncation)
    if options.features and options.inception:
        raise ConfigError("features: expected --features or --inception, got both")
    space = f"torchscript:{options.features}" if options.features else None
    if options.inception:
        space = f"inception:{options.inception}"
    source = options.data
    if options.data_a or options.data_b:
        if options.data:
            raise ConfigError("data: expected --data, or --data-a and --data-b, got both")
        source = generator.pairs(options.data_a, options.data_b)
    reports = {
        direction: generator.evaluate(
            source,
            options.n,
            seed=options.seed,
            truncation=options.truncation,
            feature_space=space,
            k=NEIGHBOURS,
            direction=direction,
        )
        for direction in generator.directions or ("a2b",)
    }
    shown = [
        f"{direction}: {report}" if len(reports) > 1 else str(report)
        for direction, report in reports.items()
    ]
    if options.json:  # written before printing, as the reader may have left
        figures = {
            **reports.pop("a2b").to_dict(),
            **{direction: report.to_dict() for direction, report in reports.items()},
            "checkpoint": str(generator.path),
            "step": generator.step,
            "ema": generator.averaged,
            "data": _data_name(source, generator),
            "n": options.n,
            "seed": options.seed,
            "truncation": options.truncation,
            "standing_statistics": options.standing_statistics,
            "features": options.features or options.inception,
            "fastgan": __version__,
            "torch": torch.__version__,
        }
        with atomic_write(options.json) as file:
            file.write(json.dumps(figures, indent=2).encode() + b"\n")
    say("\n".join(shown))
    return 0


def _data_name(source: PairSource | str | None, generator: TrainedGenerator) -> str:
    if isinstance(source, PairSource):
        return source.name
    return source or (generator.data.name if generator.config.kind.pairs else generator.config.data)
