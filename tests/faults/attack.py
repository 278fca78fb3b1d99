"""``make attack MINUTES=20``: faults of every kind until time is up, and a table of them.

Prints a line a kind: how many were injected, how many the work survived, how many were refused in
one line, and how many were lost, with the seeds of those. The file is written at each turn, so that
an attack that is cut short leaves what it found.
"""

from __future__ import annotations

import json
import platform
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from injections import KINDS, LOST, REFUSED, RESULT, SLOW_KINDS, SURVIVED, Ground, ground

#: Seconds that each kind gets at a turn.
TURN = 6.0

INJECTIONS = {**KINDS, **SLOW_KINDS}


def main(minutes: float, seed: int) -> int:
    """Injects; returns 1 if anything was lost."""
    torch.set_num_threads(1)
    draws = random.Random(seed)
    ends: dict[str, Counter[str]] = {kind: Counter() for kind in INJECTIONS}
    lost: list[str] = []
    with ground() as folder:
        place = Ground(Path(folder))
        _ = place.sanitized  # compiling takes minutes, the first time
        began = time.monotonic()
        while time.monotonic() - began < 60 * minutes:
            for kind, inject in INJECTIONS.items():
                turn = time.monotonic()
                while time.monotonic() - turn < TURN:
                    trial = draws.randrange(2**32)
                    ended = inject(random.Random(trial), place)
                    ends[kind][ended] += 1
                    if ended == LOST:
                        lost.append(f"{kind} {trial}")
            write(ends, lost, seed, time.monotonic() - began)
    print(f"{'kind':20}{'tries':>8}{'survived':>10}{'refused':>9}{'lost':>6}")
    for kind, counts in ends.items():
        numbers = (counts[SURVIVED], counts[REFUSED], counts[LOST])
        print(f"{kind:20}{sum(numbers):8}{numbers[0]:10}{numbers[1]:9}{numbers[2]:6}")
    for each in lost:
        print(f"lost: {each}")
    return int(bool(lost))


def write(ends: dict[str, Counter[str]], lost: list[str], seed: int, seconds: float) -> None:
    """Writes the figures, beside those of ``health.py``."""
    kinds = {
        kind: {
            "what": (INJECTIONS[kind].__doc__ or "").strip(),
            "tries": sum(counts.values()),
            **{end: counts[end] for end in (SURVIVED, REFUSED, LOST)},
        }
        for kind, counts in ends.items()
    }
    found = {
        "schema": 1,
        "seed": seed,
        "minutes": round(seconds / 60, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kinds": kinds,
        "lost": lost,
        "runs": json.loads(RESULT.read_text()).get("runs", []),
    }
    RESULT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
