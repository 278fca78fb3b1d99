"""Runs tests/kernels/execution in Triton's interpreter, in a process of its own.

TRITON_INTERPRET must be set before anything imports Triton, and torch.compile and the tests that
compile kernels need a Triton without it. ``TRITON_INTERPRET=1 pytest tests/kernels/execution`` is
the same by hand.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "execution"


def version_of(package: str) -> tuple[int, int]:
    major, minor, *_ = importlib.metadata.version(package).split(".")
    return int(major), int(minor)


# Triton 3.6 takes a loop's bound by int() of an array of one element, which NumPy 2.4 refuses.
pytestmark = pytest.mark.skipif(
    version_of("triton") < (3, 7) and version_of("numpy") >= (2, 4),
    reason="the interpreter of Triton 3.6 can't loop with NumPy 2.4 or later",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(600)
def test_in_the_interpreter():
    result = run(str(FOLDER))
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert " passed" in result.stdout


def test_its_failures_are_failures_here(tmp_path):
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_failing():\n    assert False\n")
    assert run(str(failing)).returncode == 1
