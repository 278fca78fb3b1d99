"""``make gpu-check`` itself, with programs in place of the GPU's, and what it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

#: Does what it is told by the words that each part runs it with.
PYTHON = """#!/bin/sh
case "$*" in
  -\\ */environment.json) echo '{}' >"$2"; echo "gpu-check: a GPU" ;;
  -c*) echo 9.0a ;;
  *build_ext*) echo "built for $FASTGAN_CUDA_ARCHS"; exit ${BUILD:-0} ;;
  *run_tests.py*) echo "3 passed, 0 skipped, 1 failed: tests::t"; exit ${TESTS:-0} ;;
  *run_every_kernel.py*) echo "ran" ;;
  *fastgan\\ bench*) echo "suite $6"; for last; do :; done; mkdir -p "$last"
                     echo '{}' >"$last/results.json" ;;
  *record_optimizers.py*) echo "recorded" ;;
  *) echo "unexpected: $*" >&2; exit 9 ;;
esac
"""
SANITIZER = '#!/bin/sh\ncase "$*" in *$BAD*) echo "ERROR SUMMARY: 1 error"; exit 99 ;; esac\n'


def check(tmp_path: Path, parts: str, **environment: str) -> subprocess.CompletedProcess[str]:
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER)):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    return subprocess.run(
        [str(BENCHMARKS / "gpu_check.sh"), str(tmp_path / "out")],
        env={
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHON": str(programs / "python"),
            "PARTS": parts,
            "BAD": "none",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_parts_that_fail_lose_nothing_of_the_others(tmp_path: Path) -> None:
    done = check(tmp_path, "", BUILD="1", TESTS="1", BAD="racecheck")
    assert done.returncode == 1
    out = tmp_path / "out"
    lines = (out / "summary.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        "build: FAILED",
        "tests: FAILED",
        "sanitizers: FAILED",
        "benchmarks: ok",
    ]
    assert lines[0].endswith("built for 9.0a")
    assert lines[1].endswith("1 failed: tests::t")
    assert done.stdout.splitlines()[-4:] == lines
    log = (out / "sanitizers.log").read_text(encoding="utf-8")
    assert "memcheck: clean" in log
    assert "racecheck: FAILED" in log
    assert "ERROR SUMMARY: 1 error" in log
    for suite in ("models", "ops", "training"):
        assert (out / f"bench-{suite}" / "results.json").exists()


def test_parts_are_chosen_with_commas_or_spaces_in_their_order(tmp_path: Path) -> None:
    done = check(tmp_path, "tests,build tests")
    assert done.returncode == 0
    said = done.stdout.splitlines()[1:]
    assert [line.split(":")[0] for line in said] == ["tests", "build", "tests"]


def test_unknown_part_is_refused_before_anything_runs(tmp_path: Path) -> None:
    done = check(tmp_path, "build,speed")
    assert done.returncode == 2
    assert "no part is called speed; there are build, tests" in done.stderr
    assert not (tmp_path / "out" / "build.log").exists()


def test_a_part_beyond_its_limit_is_stopped_and_the_next_one_runs(tmp_path: Path) -> None:
    script = (BENCHMARKS / "gpu_check.sh").read_text(encoding="utf-8")
    here = tmp_path / "benchmarks"
    here.mkdir()
    (here / "gpu_check.sh").write_text(script.replace("[tests]=150", "[tests]=1"), "utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    slow = PYTHON.replace("*run_tests.py*)", "*run_tests.py*) echo started; sleep 30;")
    (programs / "python").write_text(slow, encoding="utf-8")
    (programs / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(here / "gpu_check.sh"), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": str(programs / "python"), "PARTS": "tests,build"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    tests, build = done.stdout.splitlines()[1:]
    assert tests.startswith("tests: FAILED (stopped after 1 s)")
    assert tests.endswith("started")
    assert build.startswith("build: ok")


# --- What it runs ---------------------------------------------------------------------------------


def run_tests(tmp_path: Path, *files: Path, limit: str = "60") -> tuple[int, str, dict]:
    # Files outside the checkout can't be named: they are put where the script looks for them.
    copy = tmp_path / "checkout" / "benchmarks" / "run_tests.py"
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text((BENCHMARKS / "run_tests.py").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "checkout" / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\naddopts = "--strict-config"\ntime_out_of_a_plugin = 3\n',
        encoding="utf-8",
    )
    report = tmp_path / "tests.json"
    done = subprocess.run(
        [sys.executable, str(copy), "--json", str(report), "--limit", limit, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, json.loads(report.read_text(encoding="utf-8"))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "checkout" / "tests"
    folder.mkdir(parents=True)
    texts = {
        "test_good.py": "import pytest\ndef test_a(): pass\n"
        "@pytest.mark.skip\ndef test_b(): pass\n",
        "test_bad.py": "def test_c(): assert 0, 'the reason'\ndef test_d(): pass\n",
        "test_broken.py": "import nothing_of_this_name\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def test_every_file_runs_and_every_failure_is_named(tmp_path: Path, files: list[Path]) -> None:
    code, said, found = run_tests(tmp_path, *files)
    assert code == 1
    assert (found["passed"], found["skipped"]) == (2, 1)
    assert len(found["failed"]) == 2
    assert any(name.endswith("test_c") for name in found["failed"])
    assert "the reason" in said
    assert said.splitlines()[-1].startswith("2 passed, 1 skipped, 2 failed: ")
    code, _, found = run_tests(tmp_path, files[0])
    assert (code, found["failed"]) == (0, [])


def test_what_is_not_done_in_time_has_failed(tmp_path: Path, files: list[Path]) -> None:
    files[0].write_text("import time\ndef test_a(): time.sleep(60)\n", encoding="utf-8")
    code, said, found = run_tests(tmp_path, files[0], limit="3")
    assert code == 1
    assert found["failed"] == ["tests/test_good.py: no report"]
    assert "stopped: the time was up" in said
