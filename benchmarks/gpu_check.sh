#!/usr/bin/env bash
# On a machine with a GPU: builds with its own python3 and packages (no network), runs the tests that
# need one, the sanitizers and the benchmarks, and leaves machine-readable results.
#
#   benchmarks/gpu_check.sh DIR             or: make gpu-check OUT=DIR
#   PARTS=build,tests benchmarks/gpu_check.sh DIR
#
# Parts, in this order unless PARTS says otherwise:
#   build        the compiled part, for this GPU alone
#   tests        the tests marked gpu, and the Triton kernels' (run_tests.py)
#   sanitizers   compute-sanitizer's memcheck, racecheck and initcheck over every CUDA op and the
#                Triton kernels
#   benchmarks   every suite of `fastgan bench --quick`
#   tune         not by default: refills fastgan/kernels/tile_tables.py, and copies it into DIR
#
# A part that fails, or takes longer than its limit (below), doesn't keep the others from running,
# and keeps what it has written. The exit code is 0 only if all passed. All default parts together
# end within nine minutes. DIR receives three files, for machines that give back few:
#   environment.json       machine, versions, commit
#   summary.txt            a line a part, as printed last
#   results.tgz            written anew after each part:
#       PART.log, tests.json   what each part said; of the tests how many ran, failed, were skipped
#       bench-SUITE/           results.json, results.csv, plots, index.html
set -uo pipefail

out=${1:?usage: gpu_check.sh DIR}
parts=${PARTS:-build,tests,sanitizers,benchmarks}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.."
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT

# Seconds.
declare -A limits=([build]=100 [tests]=150 [sanitizers]=110 [benchmarks]=170 [tune]=480)

for part in ${parts//,/ }; do
    if [[ ! -v limits[$part] ]]; then
        echo "gpu-check: no part is called $part; there are build, tests, sanitizers, benchmarks, tune" >&2
        exit 2
    fi
done

"$python" - "$out/environment.json" <<'PYTHON' || exit 1
import json
import sys

import torch

if not torch.cuda.is_available():
    sys.exit("gpu-check: torch sees no CUDA device here; `make test` is for machines without one")

from fastgan.bench.machine import commit, machine_facts, utc_now

facts = {
    "time": utc_now(),
    "commit": commit(),
    **machine_facts(torch.device("cuda")),
    "python": sys.version.split()[0],
    "torch": torch.__version__,
    "cuda": torch.version.cuda,
}
with open(sys.argv[1], "w") as file:
    json.dump(facts, file, indent=2)
print(f"gpu-check: {facts['gpu']}, torch {facts['torch']}, commit {facts['commit']}")
PYTHON

# What this GPU runs, with its own instructions where it has some: compiling for others takes as
# long again each.
architecture() {
    "$python" -c 'import torch
major, minor = torch.cuda.get_device_capability()
print(f"{major}.{minor}" + "a" * ((major, minor) == (9, 0)))'
}

# Without setuptools, of which the machine may have one that can't read pyproject.toml.
build() {
    FASTGAN_CUDA_ARCHS=${FASTGAN_CUDA_ARCHS:-$(architecture)} FASTGAN_BUILD_CUDA=1 \
        "$python" native_build.py
}

tests() {
    "$python" benchmarks/run_tests.py --json "$results/tests.json" --limit $((limits[tests] - 10))
}

# Once without: under a sanitizer Triton's compiler would take minutes. torch's caching allocator
# would hide an access beyond a tensor inside a larger block.
sanitizers() {
    local tool status=0
    "$python" benchmarks/run_every_kernel.py || return 1
    local -A running=()
    for tool in memcheck racecheck initcheck; do
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 99 \
            --target-processes application-only \
            "$python" benchmarks/run_every_kernel.py >"$results/sanitizer-$tool.log" 2>&1 &
        running[$tool]=$!
    done
    for tool in "${!running[@]}"; do
        if wait "${running[$tool]}"; then
            echo "$tool: clean"
        else
            echo "$tool: FAILED, see sanitizer-$tool.log"
            tail -n 20 "$results/sanitizer-$tool.log"
            status=1
        fi
    done
    [ "$status" = 0 ] && echo "memcheck, racecheck, initcheck: clean"
    return "$status"
}

benchmarks() {
    local suite status=0
    for suite in training models ops; do
        "$python" -m fastgan bench --quick --suite "$suite" --device cuda --max-minutes 0.8 \
            --out "$results/bench-$suite" || status=1
    done
    return "$status"
}

# Into the tree, where the parts after it find it, and from there into the results.
tune() {
    "$python" benchmarks/tune_convolutions.py && cp fastgan/kernels/tile_tables.py "$results/"
}

# A part runs in a process group of its own, so that the limit ends all it has started.
export results python
export -f architecture build tests sanitizers benchmarks tune
failed=0
: >"$out/summary.txt"
for part in ${parts//,/ }; do
    started=$SECONDS
    timeout --kill-after=5 "${limits[$part]}" \
        bash -c "$(declare -p limits); $part" >"$results/$part.log" 2>&1
    case $? in
    0) verdict=ok ;;
    124 | 137) verdict="FAILED (stopped after ${limits[$part]} s)" failed=1 ;;
    *) verdict=FAILED failed=1 ;;
    esac
    last=$(grep -v '^[[:space:]]*$' "$results/$part.log" | tail -n 1)
    echo "$part: $verdict in $((SECONDS - started)) s  $last" | tee -a "$out/summary.txt"
    tar -czf "$out/results.tgz" -C "$results" .
done
exit "$failed"
