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
import shutil
from pathlib import Path

import torch

from fastgan.bench.machine import commit, machine_facts, utc_now, versions
from fastgan.training.config_files import read_settings
from fastgan.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "demo-cpu.json"
PICTURE = ROOT / "docs" / "images" / "demo.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the demo's folder")
    run = parser.parse_args().run
    config = read_settings(run / "config.toml")
    result = {
        "time": utc_now(),
        "commit": commit(),
        "machine": machine_facts(torch.device("cpu")),
        "versions": versions(),
        "config": {name: value for name, value in config.items() if name != "out"},
        "training_seconds": read_metrics(run / "metrics.csv")[-1]["seconds"],
        "evaluation": json.loads((run / "evaluation.json").read_text()),
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    shutil.copyfile(run / "samples.png", PICTURE)
    print(f"wrote {RESULT} and {PICTURE}; `make tables` puts the figures into README.md")


if __name__ == "__main__":
    main()
