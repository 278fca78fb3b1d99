"""The scripts that record results start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


STARTS = """
import runpy, sys
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        assert not ended.code, script
"""


def test_recorder_starts() -> None:
    """All in one process, which imports torch once."""
    scripts = sorted(map(str, BENCHMARKS.glob("record_*.py")))
    done = subprocess.run(
        [sys.executable, "-c", STARTS, *scripts],
        # As if each had been started from its folder, whose modules it imports.
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for script in scripts:
        assert f"usage: {Path(script).name}" in done.stdout
