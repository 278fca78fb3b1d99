"""Trains the models with docs pages on digits, and evaluates their samples before and after.

    python benchmarks/record_families.py [MODEL ...]

Writes benchmarks/results/families-cpu.json: for each model the time, commit, machine and versions
of its run, its flags, the seconds of its training, and what `fastgan evaluate` (docs/evaluation.md)
finds of 1,000 samples, or of as many translations, after one step ("start") and after all ("end").
The last grid becomes docs/images/MODEL.png.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch

from fastgan.bench.machine import context
from fastgan.cli import main as fastgan
from fastgan.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "families-cpu.json"

SMALL = "--data digits --conditional --batch-size 64 --ngf 16 --ndf 16 --lr-decay linear"
PAIRS = "--data-a digit-outlines --data-b digits --image-size 32"
FEWER = SMALL.replace("64", "32")
IMAGES = SMALL.replace(" --conditional", "")
FLAGS = {
    "gan": "--data digits --steps 6000 --lr-decay linear",
    "dcgan": f"{IMAGES} --steps 2000 --lr 5e-4 --augment color,translation",
    "cgan": f"{SMALL} --steps 2000 --lr 5e-4 --augment color,translation",
    "wgan": f"{IMAGES} --steps 2000 --lr 5e-4",
    "wgan-gp": f"{IMAGES} --steps 1500 --lr 1e-3",
    "sngan": f"{SMALL} --steps 800 --lr 1e-3 --n-critic 1",
    "acgan": f"{SMALL} --steps 800 --lr 1e-3 --augment color,translation",
    "infogan": f"{IMAGES} --steps 1000 --lr 1e-3 --augment color,translation",
    "biggan": f"{SMALL} --steps 600 --lr-g 5e-4 --lr-d 1e-3 --n-critic 1",
    "stylegan2": f"{FEWER} --nz 64 --mapping-layers 4 --r1 0.02 --steps 2500",
    "r3gan": f"{SMALL} --steps 350 --lr 1e-3 --r1 1 --r2 1",
    "cyclegan": f"{PAIRS} --batch-size 4 --ngf 12 --ndf 16 --blocks 3 --steps 2000",
    "pix2pix": f"{PAIRS} --batch-size 8 --ngf 16 --ndf 16 --lr-decay half --steps 1000",
}


def run(*words: str) -> None:
    code = fastgan(list(words))
    if code:
        raise SystemExit(code)


def measured(model: str, folder: Path, at: str | None) -> dict[str, object]:
    record: dict[str, object] = {
        **context(torch.device("cpu")),
        "commit": at,
        "flags": FLAGS[model],
    }
    for name, more in (("start", ["--steps", "1"]), ("end", [])):
        out, report = folder / name, folder / f"{name}.json"
        run("train", "--model", model, "--out", str(out), *FLAGS[model].split(), *more)
        run("evaluate", str(out), "--n", "1000", "--json", str(report))
        record[name] = json.loads(report.read_text())
        del record[name]["checkpoint"]
    record["training_seconds"] = read_metrics(folder / "end" / "metrics.csv")[-1]["seconds"]
    shutil.copyfile(folder / "end" / "samples.png", ROOT / "docs" / "images" / f"{model}.png")
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="by default all")
    models = parser.parse_args().models or list(FLAGS)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"models": {}}
    at = context(torch.device("cpu"))["commit"]  # before the results make it dirty
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            result["models"][model] = measured(model, Path(folder), at)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{model}: written to {RESULT}")


if __name__ == "__main__":
    main()
