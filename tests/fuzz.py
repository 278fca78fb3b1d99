"""Runs the tests of hypothesis with new seeds until the time is over: ``make fuzz MINUTES=10``.

The rounds are in two processes by turns: in the one Triton compiles, in the other it interprets.
Each failure is printed as a line to paste above its test, where it stays as an ``@example``. Exits
with 1 if there was one.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

TESTS = Path(__file__).resolve().parent
#: For each kind of round, the environment and pytest's further arguments.
ROUNDS = itertools.cycle(
    (
        ({}, [str(TESTS), "--numprocesses", "auto"]),
        ({"TRITON_INTERPRET": "1"}, [str(TESTS / "kernels" / "execution")]),
    )
)
OPTIONS = ("-m", "hypothesis", "-p", "no:cacheprovider", "--tb=no", "--timeout=0")
#: What pytest exits with.
PASSED, FAILED = 0, 1


def fuzz(minutes: float, rounds: Iterable[tuple[dict[str, str], list[str]]] = ROUNDS) -> int:
    """Returns the exit code."""
    # A job in the background has Ctrl-C ignored, and so would pytest, which is ended by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end = time.monotonic() + 60 * minutes
    failed = False
    for environment, arguments in rounds:
        left = end - time.monotonic()
        if left <= 0:
            break
        seed = random.SystemRandom().getrandbits(32)
        print(f"\nFASTGAN_TEST_SEED={seed}, {left / 60:.1f} minutes left", flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *OPTIONS, *arguments],
            cwd=TESTS.parent,
            env={**os.environ, **environment, "FASTGAN_TEST_SEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=interrupt, args=(process, left), daemon=True).start()
        for line in process.stdout:
            print(line, end="", flush=True)
            failed |= line.startswith("FAILED ")
        code = process.wait()
        if code not in (PASSED, FAILED) and time.monotonic() < end:
            return code
    return FAILED if failed else PASSED


def interrupt(process: subprocess.Popen[str], seconds: float) -> None:
    """Ends pytest after so many seconds; it says what it has found so far."""
    # Python ignores a Ctrl-C that falls into some callback, such as the garbage collector's.
    for patience in (seconds, 10, 10, 10):
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
    process.kill()


if __name__ == "__main__":
    sys.exit(fuzz(float(sys.argv[1])))
