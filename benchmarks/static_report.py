"""Reports every kernel's registers, spills, occupancy and instructions, without a GPU.

    python benchmarks/static_report.py                          # all; ten minutes on two cores
    python benchmarks/static_report.py --architecture sm_90 --only adam.cu
    python benchmarks/static_report.py --check --only adam.cu    # exit code 1 if it differs

Every CUDA source is compiled by nvcc with the build's own flags, every distinct Triton tile that is
shipped by Triton, with the most that is fused around it; those of 16 bits without anything on load
too, since that is what their loops are measured by. Nothing depends on the machine, only on
the code and on the compilers, whose versions are in the file: so a change that costs registers or
loses a 16-byte access shows as a change of benchmarks/results/static-<architecture>.json, which
holds

    architecture    "sm_80", "sm_90" or "sm_100"
    compilers       versions of nvcc and Triton
    kernels         one for each kernel, a template's instances each:
        source          the .cu file, or "triton"
        kernel          its name, with the template's arguments, or the tile
        threads         of a block
        registers       of a thread
        shared          bytes of a block: static for CUDA, all for Triton
        stack           bytes of a thread's local memory: what was spilled, and arrays whose
                        elements aren't known by number when compiling
        occupancy       percent of a multiprocessor's warps that registers, shared memory and
                        threads allow
        instructions    machine instructions by group (GROUPS below), and in all
        step            on tensor cores: machine instructions of a step of the reduction, which is
                        its loop

Counts are of the code, not of what runs: a loop's body counts once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import native_build  # noqa: E402
from fastgan.bench.tables import markdown_table  # noqa: E402
from fastgan.kernels.tiles import Tile, TileRow  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
PAGE = "../benchmarks/results"

#: What the build compiles CUDA for; Triton takes the plain name.
TARGETS = {"sm_80": "8.0", "sm_90": "9.0", "sm_100": "10.0"}
#: Of a multiprocessor: shared memory in bytes, of which CUDA takes 1 KiB a block for itself. All
#: three have 65,536 registers, 64 warps and 32 blocks.
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}
REGISTERS, WARPS, BLOCKS, SHARED_OF_CUDA = 65536, 64, 32, 1 << 10

#: What an instruction is called up to its first dot. Accesses of 16 bytes have their own group.
GROUPS: dict[str, str] = {
    "tensor core": r"[HQIBD]G?MMA|UTC\w*MMA",
    "LDG.128": r"",
    "LDG": r"LDG?",
    "STG.128": r"",
    "STG": r"STG?",
    "copy to shared": r"LDGSTS|UTMA\w+|UBLK\w+",
    "shared memory": r"LDSM?|STSM?|LDTM?|STTM?|UTCCP|ATOMS",
    "local memory": r"LDL|STL",
    "atomic": r"ATOMG?|REDG?|REDAS",
    "shuffle": r"SHFL|VOTE|MATCH|REDUX",
    "barrier": r"BAR|SYNCS|WARPSYNC|DEPBAR|LDGDEPBAR|WARPGROUP|MEMBAR|FENCE|UCGABAR\w*",
    "float32": r"F(FMA|ADD|MUL|SEL|SETP|SET|MNMX|CHK|FMA2|ADD2|MUL2)|FMNMX3",
    "float16": r"H(ADD|FMA|MUL|SET|SETP|MNMX)2?",
    "float64": r"D(ADD|MUL|FMA|SETP|MNMX)",
    "special function": r"MUFU",
    "conversion": r"F2F|F2I|I2F|F2FP|I2I|FRND|I2FP|F2IP",
    "branch": r"BRA|BRX|EXIT|CALL|RET|BSSY|BSYNC|JMP|NANOSLEEP|YIELD|BREAK|KILL|WARPEXIT",
}
OTHER = "integer and moves"
INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)(.*?);",
    flags=re.M,
)


# --- Machine code ---------------------------------------------------------------------------------


def find_cuobjdump() -> str:
    """Beside nvcc, on PATH, or where Triton brings its own."""
    folders = [os.environ.get("PATH", "")]
    nvcc = native_build.find_nvcc(os.environ)
    if nvcc is not None:
        folders.insert(0, str(Path(nvcc).resolve().parent))
    try:
        import triton
    except ImportError:
        pass
    else:
        folders.append(str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin"))
    program = shutil.which("cuobjdump", path=os.pathsep.join(folders))
    if program is None:
        raise SystemExit("static_report: no cuobjdump beside nvcc, on PATH or in Triton")
    return program


def output(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"static_report: {' '.join(map(str, command))}:\n{done.stderr}")
    return done.stdout


def instructions_of(code: str) -> dict[str, int]:
    """How many of which group, of a kernel's disassembly.

    Padding after the last instruction doesn't count.
    """
    counts = dict.fromkeys((*GROUPS, OTHER), 0)
    for _, name, _ in INSTRUCTION.findall(code):
        if name == "NOP":
            continue
        base, *modifiers = name.split(".")
        group = next((g for g, pattern in GROUPS.items() if re.fullmatch(pattern, base)), OTHER)
        wide = f"{group}.128"
        counts[wide if wide in GROUPS and "128" in modifiers else group] += 1
    present = {group: number for group, number in counts.items() if number}
    return {"all": sum(counts.values()), **present}


def step_of(code: str) -> int | None:
    """Instructions of the shortest loop with tensor-core instructions; None where there is none."""
    instructions = [
        (int(address, 16), name, operands)
        for address, name, operands in INSTRUCTION.findall(code)
        if name != "NOP"
    ]
    products = [
        a for a, name, _ in instructions if re.match(GROUPS["tensor core"], name.split(".")[0])
    ]
    loops = []
    for end, name, operands in instructions:
        target = re.search(r"\b0x([0-9a-f]+)\s*$", operands)
        if name.startswith("BRA") and target is not None:
            start = int(target[1], 16)
            if any(start <= place <= end for place in products):
                loops.append(sum(start <= address <= end for address, *_ in instructions))
    return min(loops, default=None)


def occupancy(architecture: str, threads: int, registers: int, shared: int) -> int:
    """Percent of the multiprocessor's warps, from CUDA's rules of allocation.

    Registers are given to warps in units of 256, warps come in multiples of four.
    """
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = (REGISTERS // per_warp) // 4 * 4 // warps if registers else BLOCKS
    by_shared = SHARED[architecture] // (shared + SHARED_OF_CUDA)
    blocks = min(BLOCKS, WARPS // warps, by_registers, by_shared)
    return round(100 * blocks * warps / WARPS)


def read_cubin(path: Path, cuobjdump: str) -> dict[str, dict]:
    """Mangled name -> registers, shared, stack, threads, instructions, of each kernel."""
    usage = output(cuobjdump, "--dump-resource-usage", path)
    kernels: dict[str, dict] = {}
    for name, line in re.findall(r"Function (\S+):\n\s*(.*)", usage):
        numbers = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", line)}
        kernels[name] = {
            "registers": numbers["REG"],
            "shared": numbers["SHARED"],
            "stack": numbers["STACK"] + numbers["LOCAL"],
        }
    for part in output(cuobjdump, "--dump-sass", path).split("Function : ")[1:]:
        name, _, code = part.partition("\n")
        kernels[name.strip()] |= {"instructions": instructions_of(code), "step": step_of(code)}
    elf = output(cuobjdump, "--dump-elf", path)
    for name, section in re.findall(r"^\.nv\.info\.(\S+)\n(.*?)(?=^\.|\Z)", elf, flags=re.M | re.S):
        match = re.search(r"EIATTR_MAX_THREADS\s+Format:.*\s+Value:\s+0x([0-9a-f]+)", section)
        if match is not None and name in kernels:
            kernels[name]["threads"] = int(match[1], 16)
    return kernels


# --- CUDA -----------------------------------------------------------------------------------------


def cuda_kernels(architecture: str, sources: Iterable[str], folder: Path) -> list[dict]:
    """Every kernel of these sources, compiled as the build compiles them."""
    nvcc = native_build.find_nvcc(os.environ)
    if nvcc is None:
        raise SystemExit("static_report: nvcc was not found in CUDA_HOME or on PATH")
    (target,) = native_build.parse_cuda_architectures(TARGETS[architecture])
    cuobjdump = find_cuobjdump()
    rows = []
    for source in sources:
        cubin = folder / f"{Path(source).stem}.cubin"
        virtual = f"-gencode=arch=compute_{target.capability},code=sm_{target.capability}"
        output(nvcc, *native_build.CUDA_FLAGS, virtual, "-cubin", ROOT / source, "-o", cubin)
        kernels = read_cubin(cubin, cuobjdump)
        names = demangled(kernels)
        rows += [
            row(architecture, source, names[mangled], facts) for mangled, facts in kernels.items()
        ]
    return rows


def demangled(names: Iterable[str]) -> dict[str, str]:
    """Without namespaces and parameters: a template's arguments tell its instances apart."""
    names = list(names)
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    short = {}
    for mangled, name in zip(names, done.stdout.splitlines(), strict=True):
        name = re.sub(r"\(anonymous namespace\)::", "", name)
        name = re.sub(r"\b(fastgan|cuda|math)::", "", name)
        name = re.sub(r"^\w+ (?=\w+<)", "", name)  # the return type of a template
        short[mangled] = without_parameters(name)
    return short


def without_parameters(name: str) -> str:
    """``f<A (*)(B)>(C)`` is ``f<A (*)(B)>``."""
    depth = 0
    for index, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            return name[:index]
    return name


def row(architecture: str, source: str, kernel: str, facts: dict) -> dict:
    threads = facts.get("threads", 1024)
    allowed = occupancy(architecture, threads, facts["registers"], facts["shared"])
    return {
        "source": source,
        "kernel": kernel,
        "threads": threads,
        "registers": facts["registers"],
        "shared": facts["shared"],
        "stack": facts["stack"],
        "occupancy": allowed,
        "instructions": facts["instructions"],
        **({} if facts["step"] is None else {"step": facts["step"]}),
    }


# --- Triton ---------------------------------------------------------------------------------------


def triton_kernels(
    architecture: str, folder: Path, wanted: Callable[[str], bool] = lambda name: True
) -> list[dict]:
    """Every distinct tile of a wanted name, with the most that is fused around it."""
    import torch

    from fastgan.kernels import plans

    sys.path.insert(0, str(ROOT / "tests" / "kernels"))
    import test_compiled as shipped

    cuobjdump = find_cuobjdump()
    rows = []
    tile_rows = [
        tile_row
        for kernel in ("gather", "scatter", "weight_gradient")
        for tile_row in shipped.distinct_rows(architecture, kernel)
    ]
    if not tile_rows:
        raise SystemExit(f"static_report: no tile is shipped for {architecture}")
    for tile_row, loads in itertools.product(tile_rows, (True, False)):
        if (tile_row.bits != 16 and not loads) or not wanted(name_of_tile(tile_row, loads)):
            continue
        dtype = torch.bfloat16 if tile_row.bits == 16 else torch.float32
        if tile_row.kernel == "weight_gradient":
            fused = shipped.HEAVIEST_OPERANDS if loads else (shipped.PLAIN, shipped.PLAIN)
            compiled = shipped.compile_weight_gradient(
                architecture, tile_row, *fused, dtype, "ieee", folder
            )
        else:
            prologue, epilogue = shipped.HEAVIEST
            prologue = prologue if loads else shipped.PLAIN
            compiled = shipped.compile_convolution(
                architecture, tile_row, prologue, epilogue, dtype, "ieee", folder
            )
        (facts,) = read_cubin(compiled.cubin, cuobjdump).values()
        facts |= {"threads": 32 * tile_row.tile.warps, "shared": compiled.shared}
        rows.append(row(architecture, "triton", name_of_tile(tile_row, loads), facts))
    for tile, kernel in itertools.product(
        plans.DESCRIPTOR_TILES.get(architecture, ()), ("gather", "scatter", "weight_gradient")
    ):
        name = name_of_described(kernel, tile)
        if wanted(name):
            most = shipped.heaviest_on_store(tile)
            compiled = shipped.compile_by_descriptors(architecture, tile, kernel, most, folder)
            (facts,) = read_cubin(compiled.cubin, cuobjdump).values()
            facts |= {"threads": 32 * tile.warps, "shared": compiled.shared}
            rows.append(row(architecture, "triton", name, facts))
    return rows


def name_of_described(kernel: str, tile: Tile) -> str:
    """What the report calls a kernel whose operands the tensor memory accelerator copies."""
    size = f"{tile.block_m}x{tile.block_n}x{tile.block_k}"
    return f"{kernel} by TMA, bfloat16, {size}, {tile.stages} stages"


def name_of_tile(tile_row: TileRow, loads: bool) -> str:
    """What the report calls a Triton kernel; ``loads``: whether with the most on load."""
    tile, number = tile_row.tile, "bfloat16" if tile_row.bits == 16 else "float32"
    name = f"{tile_row.kernel}, {number}, {tile.block_m}x{tile.block_n}x{tile.block_k}"
    name += f", {tile.stages} stages"
    if tile_row.kernel != "weight_gradient" and tile_row.max_channels is not None:
        name += ", few channels"
    return name if loads else f"{name}, nothing on load"


# --- The file, and its table ----------------------------------------------------------------------


def compilers() -> dict[str, str]:
    nvcc = native_build.find_nvcc(os.environ)
    version = re.search(r"V([\d.]+)", output(nvcc, "--version")) if nvcc else None
    versions = {"nvcc": version[1] if version else "none"}
    try:
        versions["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        versions["triton"] = "none"
    return versions


def report(architecture: str, only: str = "") -> dict:
    """As the module says; ``only`` keeps the sources whose names contain it."""
    sources = [source for source in native_build.CUDA_SOURCES if only in source]
    with tempfile.TemporaryDirectory() as folder:
        rows = cuda_kernels(architecture, sources, Path(folder))
        if only in "triton":
            rows += triton_kernels(architecture, Path(folder))
    rows.sort(key=lambda kernel: (kernel["source"], kernel["kernel"]))
    return {"architecture": architecture, "compilers": compilers(), "kernels": rows}


def path_of(architecture: str) -> Path:
    return RESULTS / f"static-{architecture}.json"


def text_of(report: dict) -> str:
    """A kernel a line, so that a diff names the kernel."""
    head = json.dumps({key: report[key] for key in ("architecture", "compilers")}, indent=2)
    rows = ",\n".join("    " + json.dumps(kernel) for kernel in report["kernels"])
    return f'{head[:-2]},\n  "kernels": [\n{rows}\n  ]\n}}\n'


def table(architecture: str) -> str:
    """A kernel a line, of a template's instances the one with the most registers."""
    path = path_of(architecture)
    if not path.exists():
        return f"{architecture}: not compiled."
    report = json.loads(path.read_text(encoding="utf-8"))
    groups: dict[tuple[str, str], list[dict]] = {}
    for kernel in report["kernels"]:
        name = kernel["kernel"]
        if kernel["source"] != "triton":
            name = name.partition("<")[0]
        groups.setdefault((kernel["source"], name), []).append(kernel)
    body = []
    for (source, name), rows in groups.items():
        worst = max(rows, key=lambda kernel: kernel["registers"])
        counts = worst["instructions"]
        mix = sorted(
            ((group, number) for group, number in counts.items() if group not in ("all", OTHER)),
            key=lambda item: -item[1],
        )
        body.append(
            (
                f"`{Path(source).name}`" if source != "triton" else source,
                name + (f" ({len(rows)})" if len(rows) > 1 else ""),
                str(worst["threads"]),
                str(worst["registers"]),
                f"{max(kernel['shared'] for kernel in rows):,}",
                str(max(kernel["stack"] for kernel in rows)),
                f"{min(kernel['occupancy'] for kernel in rows)}%",
                str(counts["all"]),
                str(max((kernel["step"] for kernel in rows if "step" in kernel), default="")),
                ", ".join(f"{group} {number}" for group, number in mix[:6]),
            )
        )
    versions = ", ".join(f"{name} {version}" for name, version in report["compilers"].items())
    head = ("source", "kernel", "threads", "registers", "shared", "stack", "occupancy")
    return (
        f"{versions}; [`{path.name}`]({PAGE}/{path.name}), {len(report['kernels'])} kernels:\n\n"
        + markdown_table((*head, "instructions", "a step", "of which"), body)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", choices=list(TARGETS), nargs="+", default=list(TARGETS))
    parser.add_argument("--only", default="", help="sources that contain this; triton is one")
    parser.add_argument("--check", action="store_true", help="compare with the files, write none")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the files")
    options = parser.parse_args()
    differing = 0
    for architecture in options.architecture:
        new = report(architecture, options.only)
        if options.check:
            old = json.loads(path_of(architecture).read_text(encoding="utf-8"))
            for line in differences(old, new, options.only):
                differing += 1
                print(f"{architecture}: {line}")
            continue
        if options.only and options.out == RESULTS:
            old = json.loads(path_of(architecture).read_text(encoding="utf-8"))
            new = merged(old, new, options.only)
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / path_of(architecture).name
        path.write_text(text_of(new), encoding="utf-8")
        print(f"{path}: {len(new['kernels'])} kernels")
    return int(differing > 0)


def merged(old: dict, new: dict, only: str) -> dict:
    """The old report with the new one's kernels of the sources that ``only`` keeps."""
    if old["compilers"] != new["compilers"]:
        raise SystemExit(
            f"static_report: the report is of {old['compilers']}, here are {new['compilers']}: "
            "write all of it"
        )
    kept = [kernel for kernel in old["kernels"] if only not in kernel["source"]]
    kernels = sorted(kept + new["kernels"], key=lambda kernel: (kernel["source"], kernel["kernel"]))
    return {**new, "kernels": kernels}


def differences(old: dict, new: dict, only: str = "") -> list[str]:
    """In words; empty where the two agree on all kernels of the sources that ``only`` keeps."""

    def by_name(report: dict) -> dict[tuple[str, str], dict]:
        return {(k["source"], k["kernel"]): k for k in report["kernels"] if only in k["source"]}

    then, now = by_name(old), by_name(new)
    lines = [f"{' '.join(key)}: not in the committed report" for key in now.keys() - then.keys()]
    lines += [f"{' '.join(key)}: in the committed report only" for key in then.keys() - now.keys()]
    for key in then.keys() & now.keys():
        changed = [
            f"{name} {then[key][name]} -> {now[key][name]}"
            for name in then[key]
            if then[key][name] != now[key].get(name)
        ]
        if changed:
            lines.append(f"{' '.join(key)}: {', '.join(changed)}")
    return sorted(lines)


def over_bars(report: dict, kernels: Iterable[dict]) -> list[str]:
    """In words, which Triton kernels spill, or take more instructions a step than in the report."""
    bars = {
        kernel["kernel"]: kernel for kernel in report["kernels"] if kernel["source"] == "triton"
    }
    lines = []
    for kernel in kernels:
        step, bar = kernel.get("step"), bars[kernel["kernel"]].get("step")
        if kernel["stack"]:
            lines.append(f"{kernel['kernel']}: {kernel['stack']} bytes of a stack")
        if step is not None and (bar is None or step > bar):
            lines.append(f"{kernel['kernel']}: {step} instructions a step, the bar is {bar}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
