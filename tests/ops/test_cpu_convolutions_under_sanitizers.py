"""The convolution loops of csrc/cpu, in every instruction set that this processor has.

They read and write maps by vectors, tiles and panels, whatever the shape. Here they are compiled
with AddressSanitizer and UndefinedBehaviorSanitizer around ``host_harness/cpu/convolutions.cpp``,
which draws shapes, gives each tensor memory of exactly its size, and compares each element with a
loop over the formula.
"""

from __future__ import annotations

import os
import platform
import runpy
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from host_harness import BUILDS, CSRC, HERE

BUILD: dict[str, Any] = runpy.run_path(str(CSRC.parent / "native_build.py"))
#: Name -> the compiler's flags, as the compiled part is built with.
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = BUILD["INSTRUCTION_SETS"].get(
    platform.machine(), BUILD["OTHER_INSTRUCTION_SETS"]
)
LOOPS: tuple[str, ...] = BUILD["LOOP_SOURCES"]
#: Shapes that are drawn for each dtype.
CASES = 20
FLAGS = ("-std=c++20", "-g1", "-Wall", "-Wextra", "-ffp-contract=off", "-I", str(CSRC))
SANITIZED, LINK_FLAGS = BUILDS["sanitized"]
#: Allocated memory is NaN, all of it.
ASAN_OPTIONS = "malloc_fill_byte=255:max_malloc_fill_size=1073741824:detect_leaks=0"


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu-convolutions")
    cxx = shlex.split(os.environ.get("CXX", "") or "g++")
    sources = [
        *(
            (f"cpu/{name}_loops.cpp", (*flags, *SANITIZED, f"-DFASTGAN_INSTRUCTION_SET={chosen}"))
            for name in ("winograd", "patches")
            for chosen, flags in INSTRUCTION_SETS.items()
            if f"csrc/cpu/{name}_loops.cpp" in BUILD["LOOPS_OF_SETS"].get(chosen, LOOPS)
        ),
        *((f"cpu/{name}.cpp", SANITIZED) for name in ("winograd", "patches")),
        ("cpu/instruction_sets.cpp", ("-O1",)),
        (str(HERE / "cpu" / "convolutions.cpp"), ("-O2",)),
    ]
    objects = [str(folder / f"{number}.o") for number in range(len(sources))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(
            pool.map(
                lambda source, target: run(
                    *cxx, *FLAGS, *source[1], "-c", str(CSRC / source[0]), "-o", target
                ),
                sources,
                objects,
            )
        )
    executable = folder / "convolutions"
    run(*cxx, *objects, *LINK_FLAGS, "-pthread", "-o", str(executable))
    return executable


@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_every_access_is_within_the_tensors_and_every_value_right(
    program: Path, instructions: str
) -> None:
    done = subprocess.run(
        [str(program), "1", str(CASES)],
        # A set that the processor lacks is lowered to its widest, which then runs twice.
        env={
            **os.environ,
            "FASTGAN_CPU_INSTRUCTION_SET": instructions,
            "ASAN_OPTIONS": ASAN_OPTIONS,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[-1] in INSTRUCTION_SETS
