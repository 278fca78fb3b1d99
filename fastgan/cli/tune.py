"""``fastgan tune``: measures the backends for the convolutions of one model's training steps."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastgan._util.files import check_writable
from fastgan.cli.arguments import TUNED
from fastgan.cli.terminal import say
from fastgan.data import ImageSource, PairSource
from fastgan.ops.backends import Selector, using
from fastgan.ops.backends.choices import ChoicesFile, cache_path
from fastgan.ops.backends.devices import device_name, fingerprint
from fastgan.training import TrainConfig, Trainer

STEPS = 2


class Noise(ImageSource):
    """Images of noise in ten classes, of any size."""

    def read(self, indices: Sequence[int]) -> Tensor:
        """One random image for each index."""
        random = torch.Generator().manual_seed(0)
        shape = (len(indices), self.channels, self.image_size, self.image_size)
        return torch.rand(shape, generator=random) * 2 - 1


def run(options: argparse.Namespace) -> int:
    """Trains briefly on noise; prints each problem with its backend and times; returns 0."""
    if options.table is not None:
        check_writable(options.table)
    given = {name: value for name, value in vars(options).items() if name in TUNED}
    selector = Selector("exhaustive")
    with tempfile.TemporaryDirectory() as folder, using(selector):
        config = TrainConfig(
            out=str(Path(folder) / "run"), steps=STEPS, n_samples=1, **given
        ).resolved()
        config.validate()
        size, channels = config.image_size or 64, config.channels or 3
        count = max(64, config.batch_size or 0)
        names = [str(number) for number in range(10)]
        source: ImageSource = Noise(
            "noise",
            length=count,
            channels=channels,
            image_size=size,
            labels=torch.arange(count) % len(names),
            class_names=names,
        )
        if config.kind.pairs:
            source = PairSource(source, source, paired=config.kind.pairs == "paired")
        trainer = Trainer(config, source=source)
        trainer.run()
        saved = ChoicesFile(Path(folder) / "run" / "backends.json").read()
    device = torch.empty(0, device=trainer.device).device  # with its index
    choices = saved.get(fingerprint(device), {})
    if options.table is not None:
        ChoicesFile(Path(options.table)).merge({device_name(device): choices})
    for problem, choice in sorted(choices.items()):
        say(f"{problem}: {choice}")
    where = cache_path(fingerprint(device))
    say(f"{len(choices)} problems measured on {device_name(device)}; kept in {where}")
    if options.table is not None:
        say(f"added to {options.table}")
    return 0
