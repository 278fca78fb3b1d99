"""Every op of the compiled part in every instruction set that it is compiled for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import fastgan

#: A process for each set, forked from one that has imported torch.
SCRIPT = """
import os, sys, torch
for chosen in sys.argv[1:]:
    child = os.fork()
    if child:
        assert os.waitpid(child, 0)[1] == 0, chosen
        continue
    os.environ["FASTGAN_CPU_INSTRUCTION_SET"] = chosen
    import fastgan
    from fastgan.ops import check_op, op_paths
    compiled = [row.op for row in op_paths() if (row.device, row.path) == ("cpu", "cpu")]
    assert len(compiled) > 30, compiled
    for op in compiled:
        check_op(op, "cpu")
    print(fastgan.build_info().cpu_instruction_set)
    sys.exit()
"""


def instruction_sets() -> tuple[str, ...]:
    """Those of the build up to this processor's."""
    info = fastgan.build_info()
    if info.cpu_instruction_set is None:
        return ()
    return info.cpu_instruction_sets[
        : info.cpu_instruction_sets.index(info.cpu_instruction_set) + 1
    ]


@pytest.mark.skipif(not instruction_sets(), reason="this install has no compiled part")
def test_every_op_passes_its_check() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *instruction_sets()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(instruction_sets())
