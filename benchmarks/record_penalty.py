"""Measures the gradient penalty and the critic loss, into benchmarks/results/penalty-cpu.json.

    python benchmarks/record_penalty.py [--threads N] [--rounds N] [--batches 16 32 64]
        [--norms none layer] [--compile]

The file holds time, commit, machine, load and versions, as optimizers-cpu.json does, and

    rows        one for each op, norm, dtype and batch of a DCGAN-64 critic:
        rounds                      how often each contender ran, in turns
        peak_mib                    the most memory a step takes, of the best peer and of fastgan
        median_ms, min_ms           milliseconds of each contender for the loss and its gradients
        best_peer                   the contender other than fastgan's with the least median
        times_faster                its median over that of fastgan's, channels-last
        times_faster_by_minima      the same of the minima
        times_faster_by_turn        median and quartiles of the ratio within one turn
"""

from __future__ import annotations

import argparse
import itertools
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
    parser.add_argument("--norms", nargs="+", choices=["none", "layer"], default=["none", "layer"])
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
    each = itertools.product(OPS, options.norms, options.dtypes, options.batches)
    for op, norm, dtype, batch in each:
        found = measure(op, dtype, batch, options.rounds, options.compile, norm)
        row = {
            "op": op,
            "norm": norm,
            "shape": [batch, 3, 64, 64],
            "dtype": dtype,
            "rounds": options.rounds,
            **found,
        }
        report["rows"].append(row)
        print(
            op,
            norm,
            dtype,
            batch,
            found["times_faster"],
            found["times_faster_by_turn"],
            found["peak_mib"],
            flush=True,
        )
    report["load"]["after"] = os.getloadavg()[0]
    path = RESULTS / "penalty-cpu.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
