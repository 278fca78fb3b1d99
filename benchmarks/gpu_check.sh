#!/usr/bin/env bash
# On a machine with a GPU: builds with its own python3 and packages (no network), runs the whole
# test suite there, and leaves machine-readable results.
#
#   benchmarks/gpu_check.sh DIR             or: make gpu-check OUT=DIR
#   PARTS="build tests" benchmarks/gpu_check.sh DIR
#
# Parts: build, tests, sanitizers (compute-sanitizer over the CUDA ops), benchmarks. A part that
# fails doesn't keep the others from running; the exit code is 0 only if all passed. DIR receives
# environment.json, one log a part, tests.xml, benchmarks.json, optimizers-cuda.json and
# summary.txt.
set -uo pipefail

out=${1:?usage: gpu_check.sh DIR}
parts=${PARTS:-build tests sanitizers benchmarks}
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

# The ops' own tests under each tool, without those that compile or that measure with subprocesses.
# torch's caching allocator would hide an access beyond a tensor inside a larger block.
sanitizers() {
    local tool status=0
    for tool in memcheck racecheck initcheck; do
        echo "== $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 99 \
            --target-processes application-only \
            "$python" -m pytest tests/test_clip_op.py tests/test_optim.py -x -q \
            -k "cuda and not compile and not graph" -p no:cacheprovider --timeout 600 || status=1
    done
    return "$status"
}

benchmarks() {
    local status=0
    "$python" -m pytest benchmarks --benchmark-only --benchmark-json "$out/benchmarks.json" \
        -p no:cacheprovider || status=1
    "$python" benchmarks/record_optimizers.py --device cuda --results "$out" || status=1
    return "$status"
}

failed=0
: >"$out/summary.txt"
for part in $parts; do
    case $part in
    build | tests | sanitizers | benchmarks) ;;
    *)
        echo "gpu-check: no part is called $part; there are build, tests, sanitizers, benchmarks" >&2
        exit 2
        ;;
    esac
    started=$SECONDS
    if "$part" >"$out/$part.log" 2>&1; then verdict=ok; else verdict=FAILED failed=1; fi
    last=$(tail -n 1 "$out/$part.log")
    echo "$part: $verdict in $((SECONDS - started)) s  $last" | tee -a "$out/summary.txt"
done
exit "$failed"
