"""Makes the committed record of a `make demo` run: the result file and the picture.

    make demo && .venv/bin/python benchmarks/record_demo.py runs/demo && make tables

The result file, benchmarks/results/demo-cpu.json, holds:

    time              when it was recorded, UTC
    commit            of the code that ran
    machine, versions see fastgan/bench/machine.py
    config            every setting of the run
    training_seconds  from the first step to the last, without set-up
    evaluation        what `fastgan evaluate` found, see docs/evaluation.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fastgan import load_generator
from fastgan.bench.machine import context
from fastgan.data import load_data
from fastgan.sampling.images import save_grid
from fastgan.training.config_files import read_settings
from fastgan.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "demo-cpu.json"
PICTURE = ROOT / "docs" / "images" / "demo.png"

ROWS = 6


def save_picture(run: Path) -> None:
    """Samples on the left and real digits on the right, a column a class."""
    generator = load_generator(run)
    classes = generator.num_classes
    drawn = generator.sample(ROWS * classes, seed=1)
    source = load_data("digits", image_size=drawn.shape[-1])
    images, labels = source.get(list(range(len(source))))
    real = torch.stack([images[labels == label][:ROWS] for label in range(classes)], 1)
    gap = torch.full((ROWS, 1, *drawn.shape[1:]), -1.0)
    cells = torch.cat([drawn.unflatten(0, (ROWS, classes)), gap, real], 1).flatten(0, 1)
    names = [generator.data.class_name(label) for label in range(classes)]
    save_grid(cells, PICTURE, columns=2 * classes + 1, captions=[*names, "", *names] * ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the demo's folder")
    run = parser.parse_args().run
    config = read_settings(run / "config.toml")
    result = {
        **context(torch.device("cpu")),
        "config": {name: value for name, value in config.items() if name != "out"},
        "training_seconds": read_metrics(run / "metrics.csv")[-1]["seconds"],
        "evaluation": json.loads((run / "evaluation.json").read_text()),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    save_picture(run)
    print(f"wrote {RESULT} and {PICTURE}; `make tables` puts the figures into README.md")


if __name__ == "__main__":
    main()
