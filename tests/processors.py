"""Tests numbers as other processors would give them, by holding each library to fewer instructions.

``make test-processors`` runs the tests marked ``processors``, half a minute in all; with arguments,
pytest's, all that they name: ``python tests/processors.py tests/optim``. A core has a
processor's tests at a time. The exit status is 1 where a processor's tests fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fastgan

#: By name: what fastgan, ATen, oneDNN and MKL may use. MKL's COMPATIBLE is what it runs on
#: processors of other makers than its own; oneDNN's AVX512_CORE_BF16 leaves out AMX.
PROCESSORS = {
    "baseline": ("baseline", "default", "SSE41", "COMPATIBLE"),
    "avx2": ("avx2", "avx2", "AVX2", "AVX2"),
    "avx512": ("avx512", "avx512", "AVX512_CORE_BF16", "COMPATIBLE"),
    "avx512_vnni": ("avx512_vnni", "avx512", "AVX512_CORE_BF16", "COMPATIBLE"),
}
ROOT = Path(__file__).parents[1]
#: The files with tests marked so: to collect all takes longer than to run these.
TESTS = [
    str(path)
    for path in sorted((ROOT / "tests").rglob("test_*.py"))
    if "mark.processors" in path.read_text(encoding="utf-8")
]
#: Of what only this processor has, products of bfloat16; for the others, all.
TESTS_OF = {
    "avx512_vnni": [
        f"tests/ops/test_winograd_ops.py::{test}"
        for test in ("test_values", "test_errors_in_bfloat16_are_at_most_twice_those_of_torch")
    ]
}
VARIABLES = (
    "FASTGAN_CPU_INSTRUCTION_SET",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR",
)


def run(name: str, arguments: list[str]) -> bool:
    """Runs the tests as on that processor, prints a line, and says whether they passed."""
    settings = dict(zip(VARIABLES, PROCESSORS[name], strict=True))
    begin = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        # Hypothesis draws more examples in the tests as such.
        env={**os.environ, "OMP_NUM_THREADS": "1", "FASTGAN_TEST_EXAMPLES": "30", **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    outcome = "passed" if result.returncode == 0 else f"failed ({result.returncode})"
    seconds = time.perf_counter() - begin
    told = " ".join(f"{variable}={value}" for variable, value in settings.items())
    said = "" if result.returncode == 0 else f"{result.stdout}\n{result.stderr}\n"
    print(f"{name:11} {outcome} in {seconds:.0f} s: {told}\n{said}", end="", flush=True)
    return result.returncode == 0


def main(arguments: list[str]) -> int:
    """Tests as on each processor that this one can stand in for."""
    info = fastgan.build_info()
    sets = info.cpu_instruction_sets
    able = sets[: sets.index(info.cpu_instruction_set) + 1]
    for name in PROCESSORS.keys() - set(able):
        print(f"{name:11} left out: this build or processor lacks it")

    def passes(name: str) -> bool:
        return run(name, arguments or ["-m", "processors", *TESTS_OF.get(name, TESTS)])

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        outcomes = list(pool.map(passes, able))
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
