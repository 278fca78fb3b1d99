"""``make gpu-check``, with stand-ins for the GPU's programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

#: Does what it is told by the words that each part runs it with.
PYTHON = """#!/bin/sh
case "$*" in
  -\\ */environment.json) echo '{}' >"$2"; echo "gpu-check: a GPU" ;;
  -c*) echo 9.0a ;;
  native_build.py) echo "built for $FASTGAN_CUDA_ARCHS"; exit ${BUILD:-0} ;;
  *run_tests.py*) echo "3 passed, 0 skipped, 1 failed: tests::t"; exit ${TESTS:-0} ;;
  *run_every_kernel.py*) echo "ran" ;;
  *fastgan\\ bench*) echo "suite $6"; for last; do :; done; mkdir -p "$last"
                     echo '{}' >"$last/results.json" ;;
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
    assert sorted(path.name for path in out.iterdir()) == [
        "environment.json",
        "results.tgz",
        "summary.txt",
    ]
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
    with tarfile.open(out / "results.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    log = (tmp_path / "sanitizers.log").read_text(encoding="utf-8")
    assert log.startswith("ran\n")  # once without a sanitizer, which fills Triton's cache
    assert "memcheck: clean" in log
    assert "racecheck: FAILED" in log
    assert "ERROR SUMMARY: 1 error" in log
    assert (tmp_path / "benchmarks.log").read_text(encoding="utf-8").splitlines() == [
        "suite training",
        "suite models",
        "suite ops",
    ]
    for suite in ("models", "ops", "training"):
        assert (tmp_path / f"bench-{suite}" / "results.json").exists()


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
    with tarfile.open(tmp_path / "out" / "results.tgz") as archive:
        assert {"./tests.log", "./build.log"} <= set(archive.getnames())


# --- What it runs ---------------------------------------------------------------------------------


def run_tests(checkout: Path, *arguments: str) -> tuple[int, str, dict]:
    report = checkout / "tests.json"
    done = subprocess.run(
        [
            *(sys.executable, str(checkout / "benchmarks" / "run_tests.py"), "--json", str(report)),
            *("--workers", "2", *arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout, json.loads(report.read_text(encoding="utf-8"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Another checkout, with the script and tests that end in every way."""
    texts = {
        "benchmarks/run_tests.py": (BENCHMARKS / "run_tests.py").read_text(encoding="utf-8"),
        "pyproject.toml": '[tool.pytest.ini_options]\naddopts = "--strict-config"\n'
        "time_out_of_a_plugin = 3\n",
        "tests/test_marked.py": "import os, pytest\n"
        "@pytest.mark.gpu\ndef test_a(): pass\n"
        "@pytest.mark.gpu\n@pytest.mark.skip\ndef test_b(): pass\n"
        "@pytest.mark.gpu\ndef test_c(): assert 0, 'the reason'\n"
        "@pytest.mark.gpu\ndef test_d(): raise RuntimeError('CUDA error: an illegal access')\n"
        "@pytest.mark.gpu\ndef test_e(): os._exit(1)\n"
        "@pytest.mark.gpu\n@pytest.mark.parametrize('n', range(9))\ndef test_f(n): pass\n"
        "def test_needs_no_gpu(): assert 0\n",
        "tests/kernels/execution/test_kernels.py": "def test_g(): pass\n",
    }
    for name, text in texts.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "checkout"


def test_the_gpus_tests_all_run_whatever_becomes_of_the_workers(checkout: Path) -> None:
    code, said, found = run_tests(checkout)
    assert code == 1
    assert (found["passed"], found["skipped"], found["not_run"]) == (11, 1, 0)
    assert sorted(name[-1] for name in found["failed"]) == ["c", "d", "e"]
    assert "the reason" in said
    assert "test_e: stopped" in said
    assert said.splitlines()[-1].startswith("11 passed, 1 skipped, 3 failed: ")


def test_of_files_that_are_named_all_runs_and_one_that_is_broken_has_failed(checkout: Path) -> None:
    broken, good = checkout / "tests" / "test_broken.py", checkout / "tests" / "test_good.py"
    broken.write_text("import nothing_of_this_name\n", encoding="utf-8")
    good.write_text("def test_h(): pass\n", encoding="utf-8")
    code, said, found = run_tests(checkout, str(broken), str(good))
    assert (code, found["passed"], found["failed"]) == (1, 1, ["tests/test_broken.py"])
    assert "nothing_of_this_name" in said
    assert run_tests(checkout, str(good))[0] == 0


def test_what_is_known_when_the_time_is_up_is_kept(checkout: Path) -> None:
    slow = checkout / "tests" / "test_slow.py"
    slow.write_text(
        "import pytest, time\n@pytest.mark.parametrize('n', [0, 0, 60, 60, 60])\n"
        "def test_i(n): time.sleep(n)\n",
        encoding="utf-8",
    )
    code, said, found = run_tests(checkout, str(slow), "--limit", "4")
    assert code == 1
    assert (found["passed"], len(found["failed"]), found["not_run"]) == (2, 2, 1)
    assert "1 not run: the time was up" in said.splitlines()[-1]
