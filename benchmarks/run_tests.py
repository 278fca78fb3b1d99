"""The whole test suite, several files at a time, on a machine that has pytest and nothing else.

    python benchmarks/run_tests.py [--json FILE] [--jobs N] [--limit SECONDS] [FILE ...]

pytest-xdist and pytest-timeout may be missing there: each file is a process of its own, the largest
first, and the limit is on all together. What hasn't finished by then counts as failed. The last
line says how many passed; the JSON file holds the same, with the names of those that failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(target: list[str], jobs: int, report: Path, deadline: float) -> str:
    """pytest's output; the report is missing if it was stopped."""
    # Without the project's addopts: they make settings of plugins that aren't there an error.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider"]
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    left = deadline - time.monotonic()
    if left <= 0:
        return "not started: the time was up\n"
    try:
        done = subprocess.run(
            [*command, f"--junitxml={report}", *target],
            cwd=ROOT,
            env={"OMP_NUM_THREADS": threads, **os.environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=left,
        )
    except subprocess.TimeoutExpired as stopped:
        said = stopped.stdout or b""
        return said.decode(errors="replace") + "\nstopped: the time was up\n"
    return done.stdout + done.stderr


def outcome(report: Path) -> tuple[int, int, list[str]]:
    """Tests run, tests skipped, names of those that failed."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return len(cases), sum(case.find("skipped") is not None for case in cases), failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="test files; all by default")
    parser.add_argument("--json", type=Path, help="write the outcome there")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all together")
    options = parser.parse_args()
    files = options.files or sorted(
        (ROOT / "tests").rglob("test_*.py"), key=lambda path: -path.stat().st_size
    )
    targets = {
        str(path.resolve().relative_to(ROOT)): [str(path.resolve().relative_to(ROOT))]
        for path in files
    }
    if not options.files:
        targets["docstrings"] = ["--doctest-modules", "fastgan"]
    deadline = time.monotonic() + options.limit
    passed = skipped = 0
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        reports = {name: Path(folder) / f"{n}.xml" for n, name in enumerate(targets)}
        outputs = {
            name: pool.submit(run, target, options.jobs, reports[name], deadline)
            for name, target in targets.items()
        }
        for name, output in outputs.items():
            text = output.result()
            try:
                count, left_out, bad = outcome(reports[name])
            except (OSError, ElementTree.ParseError):
                count, left_out, bad = 0, 0, [f"{name}: no report"]
            passed += count - left_out - len([each for each in bad if "::" in each])
            skipped += left_out
            failed += bad
            if bad:
                print(f"== {name}\n{text}", flush=True)
    if options.json is not None:
        found = {"passed": passed, "skipped": skipped, "failed": failed}
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(f"{passed} passed, {skipped} skipped, {len(failed)} failed: {', '.join(failed[:5])}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
