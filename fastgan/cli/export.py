"""``fastgan export``: a generator for other programs."""

from __future__ import annotations

import argparse

from fastgan.cli.terminal import say
from fastgan.exporting import export_generator
from fastgan.trained import load_generator


def run(options: argparse.Namespace) -> int:
    """Writes the file; returns 0."""
    generator = load_generator(options.checkpoint, ema=not options.no_ema)
    checked = export_generator(
        generator, options.out, format=options.format, truncation=options.truncation
    )
    say(f"step {generator.step}: {options.out}, checked with {checked}")
    return 0
