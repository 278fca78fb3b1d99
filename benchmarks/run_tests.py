"""Runs the tests that need a GPU, on a machine with only pytest.

    python benchmarks/run_tests.py [--json FILE] [--workers N] [--limit SECONDS] [FILE ...]

By default those marked ``gpu``, and tests/kernels/execution, which runs on the GPU there; of FILEs,
all. Each of the workers takes the next test that none has taken yet, so that a slow one holds up no
other, and writes down what came of it at once: what is known when the time is up is kept. A test
that was running then has failed, and so has one that ended its worker. The last line says how many
passed; the JSON file holds the same, with the names of those that failed.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Without the project's addopts: they make settings of plugins that aren't there an error.
PYTEST = ["-o", "addopts=", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]


class Worker:
    """A plugin of pytest that shares the tests with the other workers.

    Args:
        folder: where the workers leave ``next``, the number of the next test, and a file each of
            lines: {"all": number of tests}, {"test", "outcome", "text"}.
        everything: whether to keep tests that need no GPU.
    """

    def __init__(self, folder: Path, everything: bool) -> None:
        self.folder, self.everything = folder, everything
        self.lines = (folder / f"{os.getpid()}.jsonl").open("w", encoding="utf-8", buffering=1)
        self.broken = False

    def say(self, **line: object) -> None:
        self.lines.write(json.dumps(line) + "\n")

    def take(self) -> int:
        with (self.folder / "next").open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            number = int(file.read())
            file.seek(0)
            file.write(str(number + 1))
        return number

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        execution = ROOT / "tests" / "kernels" / "execution"
        items[:] = [
            item
            for item in items
            if self.everything
            or item.get_closest_marker("gpu") is not None
            or execution in item.path.parents
        ]

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.say(test=report.nodeid, outcome="failed", text=report.longreprtext)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = session.items
        self.say(all=len(items))
        while not self.broken and (number := self.take()) < len(items):
            item = items[number]
            self.say(test=item.nodeid, outcome="stopped", text="")
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.say(test=report.nodeid, outcome=report.outcome, text=report.longreprtext)
            # What follows an illegal access fails as well, in this process.
            self.broken = self.broken or (report.failed and "CUDA error" in report.longreprtext)


def outcomes(folder: Path) -> tuple[int, dict[str, tuple[str, str]]]:
    """Number of tests; of each that a worker has taken the outcome, and pytest's words."""
    number, results = 0, {}
    for path in sorted(folder.glob("*.jsonl")):
        # After the last newline there may be part of a line, of a worker that was stopped.
        for text in path.read_text(encoding="utf-8").split("\n")[:-1]:
            line: dict[str, Any] = json.loads(text)
            number = max(number, line.get("all", 0))
            if "test" in line and results.get(line["test"], ("",))[0] != "failed":
                results[line["test"]] = line["outcome"], line["text"]
    return number, results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="test files; the GPU's by default")
    parser.add_argument("--json", type=Path, help="write the outcome there")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2))
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds for all together")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    files = [str(path.resolve().relative_to(ROOT)) for path in options.files]
    if options.worker is not None:
        worker = Worker(options.worker, everything=bool(files))
        return int(pytest.main([*PYTEST, *(files or ["tests"])], plugins=[worker]))
    deadline = time.monotonic() + options.limit
    threads = str(max(1, (os.cpu_count() or 1) // options.workers))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "next").write_text("0", encoding="utf-8")
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", name, *files]

        def start() -> subprocess.Popen[bytes]:
            environment = {"OMP_NUM_THREADS": threads, **os.environ}
            with (folder / "said").open("ab") as said:
                return subprocess.Popen(
                    command, cwd=ROOT, env=environment, stdout=said, stderr=said
                )

        workers = [start() for _ in range(options.workers)]
        while workers and time.monotonic() < deadline:
            time.sleep(0.1)
            ended = [worker for worker in workers if worker.poll() is not None]
            workers = [worker for worker in workers if worker not in ended]
            total = outcomes(folder)[0] if ended else 0
            # In the place of one that a test has ended, while there are tests left.
            workers += [start() for _ in ended if int((folder / "next").read_text()) < total]
        for worker in workers:
            worker.kill()
            worker.wait()
        total, tests = outcomes(folder)
        said = (folder / "said").read_text(encoding="utf-8", errors="replace")
    if not total and not tests:
        print(said)
    passed, skipped = (
        sum(outcome == wanted for outcome, _ in tests.values()) for wanted in ("passed", "skipped")
    )
    failed = [test for test, (outcome, _) in tests.items() if outcome in ("failed", "stopped")]
    for test in failed:
        print(f"== {test}: {': '.join(tests[test])}", flush=True)
    left = max(0, total - sum("::" in test for test in tests))
    if options.json is not None:
        results = {"passed": passed, "skipped": skipped, "failed": failed, "not_run": left}
        options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    rest = f", {left} not run: the time was up" if left else ""
    print(
        f"{passed} passed, {skipped} skipped, {len(failed)} failed{rest}: {', '.join(failed[:5])}"
    )
    return int(bool(failed or left or not passed))


if __name__ == "__main__":
    sys.exit(main())
