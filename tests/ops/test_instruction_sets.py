"""Every op of the compiled part in every instruction set that it is compiled for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastgan

SCRIPT = """
import fastgan
from fastgan.ops import check_op, op_paths
compiled = [row.op for row in op_paths() if (row.device, row.path) == ("cpu", "cpu")]
assert len(compiled) > 30, compiled
for op in compiled:
    check_op(op, "cpu")
print(fastgan.build_info().cpu_instruction_set)
"""


def instruction_sets() -> tuple[str, ...]:
    """Those of the build up to this processor's."""
    info = fastgan.build_info()
    if info.cpu_instruction_set is None:
        return ()
    return info.cpu_instruction_sets[
        : info.cpu_instruction_sets.index(info.cpu_instruction_set) + 1
    ]


@pytest.mark.parametrize("chosen", instruction_sets())
def test_every_op_passes_its_check(chosen: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "FASTGAN_CPU_INSTRUCTION_SET": chosen, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == chosen
