"""Makes the committed record of a `make demo` run: the result file, the picture, README's figures.

    make demo && .venv/bin/python benchmarks/record_demo.py runs/demo

The result file, benchmarks/results/demo-cpu.json, holds:

    time              when it was recorded, UTC
    commit            of the code that ran
    machine           processor, cores that the process may use
    versions          of python, torch, numpy, fastgan
    config            every setting of the run
    training_seconds  from the first step to the last, without set-up
    evaluation        what `fastgan evaluate` found, see docs/evaluation.md
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path

from fastgan.training.config_files import read_settings
from fastgan.training.recorder import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "demo-cpu.json"
PICTURE = ROOT / "docs" / "images" / "demo.png"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def table(result: dict) -> str:
    evaluation = result["evaluation"]
    rows = [
        ("training", f"{result['training_seconds']:.0f} s"),
        (
            "mean top probability a classifier gives 1,000 samples, over held-out real digits'",
            f"{evaluation['confidence_ratio']:.3f}",
        ),
        ("the rarest of the ten classes", f"{100 * min(evaluation['class_histogram']):.1f}%"),
        (
            "the classifier's accuracy on held-out real digits",
            f"{100 * evaluation['classifier_accuracy']:.1f}%",
        ),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the demo's folder")
    run = parser.parse_args().run
    result = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "machine": {"processor": processor(), "cores": len(os.sched_getaffinity(0))},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "numpy", "fastgan")},
        },
        "config": {
            name: value
            for name, value in read_settings(run / "config.toml").items()
            if name != "out"
        },
        "training_seconds": read_metrics(run / "metrics.csv")[-1]["seconds"],
        "evaluation": json.loads((run / "evaluation.json").read_text()),
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run / "samples.png", PICTURE)
    readme = ROOT / "README.md"
    begin, end = "<!-- demo figures: begin -->", "<!-- demo figures: end -->"
    before, rest = readme.read_text().split(begin)
    after = rest.split(end)[1]
    readme.write_text(f"{before}{begin}\n{table(result)}\n{end}{after}")
    print(f"wrote {RESULT}, {PICTURE} and the figures in {readme}")


if __name__ == "__main__":
    main()
