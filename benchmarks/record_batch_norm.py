"""Measures batch norm with ReLU, and writes benchmarks/results/batch-norm-<device>.json.

    python benchmarks/record_batch_norm.py [--device cpu|cuda] [--threads N] [--results DIR]

The file holds time, commit, machine, load and versions, as optimizers-cpu.json does, and

    rows        one for each batch norm of DCGAN-64's generator, dtype and memory format:
        shape, dtype, memory_format, rounds     what was normalised, how often
        median_us, min_us               microseconds of each contender's forward and backward pass,
                                        Python included
        forward_median_us               of the forward pass alone
        best_peer                       the peer with the least median
        times_faster                    its median over fastgan's
        times_faster_by_minima          the least minimum of any peer over fastgan's
        gigabytes_per_second            eight times the tensor's bytes over fastgan's median: 3
                                        times they are read or written forward, 5 backward
        copy_gigabytes_per_second       twice the tensor's bytes over the median of Tensor.copy_,
                                        measured in the same rounds
        percent_of_copy                 the former over the latter
        percent_of_copy_by_minima       the same of the minima
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path

import torch
from batch_norm_cases import CASES, measure

import fastgan
from fastgan.bench.machine import commit, processor, utc_now

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; torch's own by default")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the file")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    report = {
        "time": utc_now(),
        "commit": commit(),
        "machine": {
            "processor": torch.cuda.get_device_name() if device == "cuda" else processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        },
        "load": {"before": os.getloadavg()[0]},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "fastgan": fastgan.__version__,
            "cpu_instruction_set": fastgan.build_info().cpu_instruction_set,
        },
        "rows": [],
    }
    for case in CASES:
        row = measure(case, device)
        print(json.dumps(row), flush=True)
        report["rows"].append(row)
    report["load"]["after"] = os.getloadavg()[0]
    arguments.results.mkdir(parents=True, exist_ok=True)
    path = arguments.results / f"batch-norm-{device}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
