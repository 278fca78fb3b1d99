"""Measures the optimisers and writes the results; `make tables` makes docs/optimisers.md's of them.

    python benchmarks/record_optimizers.py [--device cpu|cuda] [--threads N] [--tries N]
    python benchmarks/record_optimizers.py --device cuda --results DIR

The measuring is fastgan.bench's. `fastgan bench` has these cases too; here they run longer, until
nobody disturbs them, and beside a copy of their own size.

benchmarks/results/optimizers-<device>.json holds:

    time        when it was measured, UTC
    commit      of the code that ran; "-dirty" is added where files differed from it; null where
                there is no git checkout
    machine     processor or GPU, cores that the process may use, torch's threads
    versions    of python, torch, fastgan, and the instruction set of the CPU loops
    rows        one for each work and list of shapes:
        work, shapes, weights, rounds   what was done, on how many float32 weights, how often
        cold                            whether each contender had weights of its own, see
                                        optimizer_cases.py
        median_us, min_us               microseconds of each contender, Python included
        best_peer                       the peer with the least median
        times_faster                    its median over fastgan's
        times_faster_by_minima          the least minimum of any peer over fastgan's
        times_faster_by_turn            median and quartiles of the ratio to best_peer in a round
        gigabytes_per_second            20, 28 or 8 bytes a weight over fastgan's median
        copy_gigabytes_per_second       8 bytes over the median of Tensor.copy_ of as many weights,
                                        measured in the same rounds
        percent_of_copy                 the former over the latter
        percent_of_copy_by_minima       the same of the minima
        disturbance_percent             of all cores' time during the case, what other processes
                                        used; a case with more than 3 is measured again, up to
                                        --tries times, and the least disturbed run is kept
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from pathlib import Path

import torch
from optimizer_cases import CASES, Case, measure

import fastgan
from fastgan.bench.machine import commit, utc_now
from fastgan.ops.backends.devices import processor

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def measure_undisturbed(case: Case, device: str, tries: int) -> dict[str, object]:
    best: dict[str, object] = {}
    for _ in range(tries):
        row = measure(case, device)
        if not best or row["disturbance_percent"] < best["disturbance_percent"]:
            best = row
        if best["disturbance_percent"] <= 3:
            break
        time.sleep(5)
    print(json.dumps(best), flush=True)
    return best


def record(device: str, tries: int) -> dict[str, object]:
    rows = [measure_undisturbed(case, device, tries) for case in CASES]
    return {
        "time": utc_now(),
        "commit": commit(),
        "machine": {
            "processor": torch.cuda.get_device_name() if device == "cuda" else processor(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "fastgan": fastgan.__version__,
            "cpu_instruction_set": fastgan.build_info().cpu_instruction_set,
        },
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; torch's own by default")
    parser.add_argument(
        "--tries", type=int, default=5, help="how often to measure a disturbed case"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the file")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.results.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record(arguments.device, arguments.tries), indent=2) + "\n"
    path = arguments.results / f"optimizers-{arguments.device}.json"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
