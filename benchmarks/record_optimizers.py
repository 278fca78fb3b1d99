"""Measures the optimisers and writes the results, and docs/optimisers.md's table from them.

    python benchmarks/record_optimizers.py [--device cpu|cuda] [--threads N] [--tries N]
    python benchmarks/record_optimizers.py --device cuda --results DIR    # leaves the page alone
    python benchmarks/record_optimizers.py --table-only    # the table again, nothing measured

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
from fastgan.bench.machine import commit, processor, utc_now

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "optimisers.md"
MARKS = ("<!-- table: benchmarks/record_optimizers.py -->", "<!-- end of table -->")


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


def table(device: str) -> str:
    path = RESULTS / f"optimizers-{device}.json"
    if not path.exists():
        return f"`{device}`: not measured."
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, versions = result["machine"], result["versions"]
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, torch {versions['torch']}, "
        f"{versions['cpu_instruction_set']}; {result['time'][:10]}, "
        f"[`{path.name}`](../benchmarks/results/{path.name}):",
        "",
        "| work | weights | fastgan | best of torch's | which | times faster | of copy bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        median = row["median_us"]
        best = row["best_peer"]
        shapes = row["shapes"] + ", cold" * (row["cold"] and row["weights"] < 10_000_000)
        lines.append(
            f"| {row['work']} | {shapes} | {median['fastgan'] / 1000:.2f} ms | "
            f"{median[best] / 1000:.2f} ms | {best} | {row['times_faster']:.2f} | "
            f"{row['percent_of_copy']}% |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="torch.set_num_threads; torch's own by default")
    parser.add_argument(
        "--tries", type=int, default=5, help="how often to measure a disturbed case"
    )
    parser.add_argument(
        "--results", type=Path, help="write the results there, and leave the page's table alone"
    )
    parser.add_argument("--table-only", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if not arguments.table_only:
        results = arguments.results or RESULTS
        results.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record(arguments.device, arguments.tries), indent=2) + "\n"
        (results / f"optimizers-{arguments.device}.json").write_text(text, encoding="utf-8")
    if arguments.results is not None:
        return
    page = PAGE.read_text(encoding="utf-8")
    start, end = (page.index(mark) for mark in MARKS)
    tables = "\n\n".join(table(device) for device in ("cpu", "cuda"))
    PAGE.write_text(f"{page[:start]}{MARKS[0]}\n{tables}\n{page[end:]}", encoding="utf-8")


if __name__ == "__main__":
    main()
