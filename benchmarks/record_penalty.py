"""Measures the gradient penalty and the critic loss, into benchmarks/results/penalty-cpu.json.

    python benchmarks/record_penalty.py [--threads N] [--rounds N] [--batches 16 32 64] [--compile]

The file holds time, commit, machine, load and versions, as optimizers-cpu.json does, and

    rows        one for each op, dtype and batch of a DCGAN-64 critic:
        rounds                      how often each contender ran, in turns
        median_ms, min_ms           milliseconds of each contender for the loss and its gradients
        best_peer                   the contender other than fastgan's with the least median
        times_faster                its median over that of fastgan's, channels-last
        times_faster_by_minima      the same of the minima
        times_faster_by_turn        median and quartiles of the ratio within one turn
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time

import torch
from penalty_cases import DTYPES, OPS, measure
from record_optimizers import RESULTS, ROOT, commit, processor

import fastgan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--compile", action="store_true", help="torch.compile as one more peer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": options.threads,
        },
        "load": {"before": os.getloadavg()[0]},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "fastgan": fastgan.__version__,
        },
        "rows": [],
    }
    for op in OPS:
        for dtype in options.dtypes:
            for batch in options.batches:
                found = measure(op, dtype, batch, options.rounds, options.compile)
                shape = [batch, 3, 64, 64]
                row = {"op": op, "shape": shape, "dtype": dtype, "rounds": options.rounds, **found}
                report["rows"].append(row)
                print(op, dtype, batch, found["times_faster"], found["times_faster_by_turn"])
    report["load"]["after"] = os.getloadavg()[0]
    path = RESULTS / "penalty-cpu.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
