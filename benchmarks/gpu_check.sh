#!/usr/bin/env bash
# On a machine with a GPU: builds with its own python3 and packages (no network), runs the whole
# test suite there, and leaves machine-readable results.
#
#   benchmarks/gpu_check.sh DIR             or: make gpu-check OUT=DIR
#   PARTS="build tests" benchmarks/gpu_check.sh DIR
#
# Parts: build, tests, benchmarks. A part that fails doesn't keep the others from running; the exit
# code is 0 only if all passed. DIR receives environment.json, one log a part, tests.xml,
# benchmarks.json and summary.txt.
set -uo pipefail

out=${1:?usage: gpu_check.sh DIR}
parts=${PARTS:-build tests benchmarks}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

"$python" - "$out/environment.json" <<'PYTHON' || exit 1
import json
import platform
import subprocess
import sys
import time

import torch

if not torch.cuda.is_available():
    sys.exit("gpu-check: torch sees no CUDA device here; `make test` is for machines without one")
commit = subprocess.run(
    ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
).stdout.strip()
properties = torch.cuda.get_device_properties(0)
facts = {
    "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    "commit": commit or None,
    "gpu": properties.name,
    "compute_capability": f"{properties.major}.{properties.minor}",
    "gpu_memory_bytes": properties.total_memory,
    "python": platform.python_version(),
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
}
with open(sys.argv[1], "w") as file:
    json.dump(facts, file, indent=2)
print(f"gpu-check: {facts['gpu']}, torch {facts['torch']}, commit {facts['commit']}")
PYTHON

# egg_info lets the machine's python3 find the command line's entry point without an install.
build() {
    FASTGAN_BUILD_CUDA=1 "$python" setup.py -q egg_info build_ext --inplace
}

tests() {
    "$python" -m pytest tests --junitxml "$out/tests.xml" -p no:cacheprovider &&
        "$python" -m pytest --doctest-modules fastgan -p no:cacheprovider
}

benchmarks() {
    "$python" -m pytest benchmarks --benchmark-only --benchmark-json "$out/benchmarks.json" \
        -p no:cacheprovider
}

failed=0
: >"$out/summary.txt"
for part in $parts; do
    case $part in
    build | tests | benchmarks) ;;
    *)
        echo "gpu-check: no part is called $part; there are build, tests, benchmarks" >&2
        exit 2
        ;;
    esac
    started=$SECONDS
    if "$part" >"$out/$part.log" 2>&1; then verdict=ok; else verdict=FAILED failed=1; fi
    last=$(tail -n 1 "$out/$part.log")
    echo "$part: $verdict in $((SECONDS - started)) s  $last" | tee -a "$out/summary.txt"
done
exit "$failed"
