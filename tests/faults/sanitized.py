"""The ops of a build with AddressSanitizer and UndefinedBehaviorSanitizer, for injected arguments.

:func:`build` compiles ``csrc`` once more, with every check, beside a copy of the package.
:class:`SanitizedOps` is a process that imports that copy, and forks for each trial.
"""

from __future__ import annotations

import os
import random
import runpy
import shutil
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What is compiled stays there, for the next attack.
FOLDER = ROOT / "build" / "sanitized"

#: With AddressSanitizer's checks called, not inlined: that compiles in half the time. Torch's
#: classes have no run-time types to check against.
FLAGS = (
    *("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"),
    *("-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
    *("--param", "asan-instrumentation-with-call-threshold=0"),
)
#: An allocation of more fails, as on a machine that is full. Memory begins as NaN.
ASAN_OPTIONS = (
    "detect_leaks=0:exitcode=98:allocator_may_return_null=1:max_allocation_size_mb=2048:"
    "malloc_fill_byte=255:max_malloc_fill_size=1073741824"
)


def build() -> Path:
    """The folder that holds the package ``fastgan`` with sanitized ops."""
    sys.path.insert(0, str(ROOT))  # ninja's module is asked for there, too
    native_build: dict[str, Any] = runpy.run_path(str(ROOT / "native_build.py"))
    ninja_file = native_build["ninja_file"]
    flags = tuple(each for each in native_build["CXX_FLAGS"] if not each.startswith("-O"))
    ninja_file.__globals__["CXX_FLAGS"] = (*flags, *FLAGS)
    version: dict[str, str] = {}
    exec((ROOT / "fastgan" / "_version.py").read_text(), version)
    environment = {**os.environ, "FASTGAN_BUILD_CUDA": "0"}
    environment["CXX"] = f"{os.environ.get('CXX') or 'g++'} -fsanitize=address,undefined"
    configuration = native_build["configure"](version["__version__"], environment, say=print)
    native_build["build"](configuration, FOLDER)
    package = FOLDER / "package" / "fastgan"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "fastgan", package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(native_build["ops_library"](FOLDER), package / "_ops.so")
    return package.parent


def instruction_sets() -> list[str]:
    """Those that the build has loops for."""
    import fastgan

    return list(fastgan.build_info().cpu_instruction_sets)


class SanitizedOps:
    """A process with sanitized ops, which calls them with injected arguments.

    Args:
        package: the folder that :func:`build` returns.
        instruction_set: of the loops.
    """

    def __init__(self, package: Path, instruction_set: str) -> None:
        compiler = os.environ.get("CXX") or "g++"
        libraries = [
            subprocess.run(
                [compiler, f"-print-file-name=lib{name}.so"],
                capture_output=True, text=True, check=True,
            ).stdout.strip()
            for name in ("asan", "ubsan")
        ]  # fmt: skip
        #: What the sanitizers found, in their words.
        self.log = package / f"{instruction_set}.log"
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={
                **os.environ,
                "LD_PRELOAD": " ".join(libraries),
                "ASAN_OPTIONS": ASAN_OPTIONS,
                "FASTGAN_CPU_INSTRUCTION_SET": instruction_set,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(package),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log.open("w"),
            text=True,
        )

    def ended(self, seeds: list[int]) -> int:
        """How a process ended that made a call for each seed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(" ".join(map(str, seeds)) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # a finding in the calls that it records at its start
            return self._process.wait()
        return int(self._process.stdout.readline() or "99")

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def serve() -> None:
    """Forks for each line of seeds, and says how that process ended."""
    import torch
    from injections import call_with, recorded_calls

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    calls = recorded_calls()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 97
            try:
                for seed in line.split():
                    call_with(random.Random(int(seed)), calls)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
