"""How the compiled part of fastgan is configured and built; setup.py calls it.

Three separate steps: :func:`configure` reads the switches from the environment and finds compilers,
:func:`ninja_file` generates the build file, :func:`build` runs it. Importing this module runs
nothing and needs neither torch nor setuptools. ``python native_build.py`` builds into the checkout
without setuptools. ``docs/building.md`` describes the switches.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent

# --- What is compiled -----------------------------------------------------------------------------


def _sources(pattern: str) -> tuple[str, ...]:
    return tuple(sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)))


#: Compiled once per instruction set (csrc/cpu/instruction_sets.h, LOOPS_OF_SETS).
LOOP_SOURCES = _sources("csrc/cpu/*_loops.cpp")
#: Compiled once, for any processor of the architecture.
CPU_SOURCES = tuple(path for path in _sources("csrc/**/*.cpp") if path not in LOOP_SOURCES)
#: Compiled by nvcc, where CUDA is built.
CUDA_SOURCES = _sources("csrc/cuda/*.cu")
ALL_SOURCES = CPU_SOURCES + LOOP_SOURCES + CUDA_SOURCES

#: The oldest torch whose stable ABI the ops are written against.
TORCH_TARGET = "2.10"
TORCH_TARGET_VERSION = "0x020a000000000000"

# --- With which flags -----------------------------------------------------------------------------

CXX_FLAGS = (
    "-std=c++20",
    # As fast as -O3 but for most loops, and compiled in half the time.
    "-O2",
    "-ftree-vectorize",
    "-fvect-cost-model=dynamic",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    # Formulas use FMA explicitly (csrc/math/arithmetic.h), where torch does; compilers would add
    # more, and results would differ.
    "-ffp-contract=off",
    # Nothing reads floating-point exceptions or errno; without them compilers can vectorise
    # comparisons and selections.
    "-fno-math-errno",
    "-fno-trapping-math",
)
#: Loops that are as fast with -O2; -O3 makes the others up to 13% faster.
O2_LOOPS = ("csrc/cpu/bias_act_loops.cpp", "csrc/cpu/upfirdn2d_loops.cpp")
#: Flags of each instruction set by the machine's architecture; "baseline" is supported by all.
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        # For processors from before 2013: not worth twice the time of compiling.
        "baseline": ("-O2",),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "avx512": (
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mfma",
            "-mf16c",
            "-mprefer-vector-width=512",
        ),
        "avx512_vnni": (
            "-mavx512f",
            "-mavx512bw",
            "-mavx512dq",
            "-mavx512vl",
            "-mavx512vnni",
            "-mfma",
            "-mf16c",
            "-mprefer-vector-width=512",
        ),
    },
}
#: Instruction sets that only these files are compiled for; other loops use the set before it.
LOOPS_OF_SETS = {"avx512_vnni": ("csrc/cpu/winograd_loops.cpp",)}
OTHER_INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {"baseline": ()}

#: nvcc's own flags; -Xcompiler hands the rest to the host compiler.
CUDA_FLAGS = (
    "-std=c++20",
    "-O3",
    "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra",
    "-Xfatbin=-compress-all",
)
#: With FASTGAN_BUILD_STRICT=1 warnings are errors, and so are kernels that spill registers.
STRICT_CXX_FLAGS = ("-Werror",)
STRICT_CUDA_FLAGS = ("-Werror", "all-warnings", "-Xcompiler=-Werror", "-Xptxas=--warn-on-spills")
#: A100; H100 and H200; B200, and later GPUs by PTX.
DEFAULT_CUDA_ARCHS = "8.0;9.0;10.0+PTX"
#: For toolkits older than 12.8, which don't know 10.0.
FALLBACK_CUDA_ARCHS = "8.0+PTX;9.0"
#: The first with C++20.
OLDEST_NVCC = (12, 0)
#: The oldest that the kernels' instructions need.
OLDEST_CAPABILITY = (7, 0)


class BuildError(Exception):
    """The build failed; the message says what to change or install."""


# --- Configuration --------------------------------------------------------------------------------


@dataclass(frozen=True)
class CudaArchitecture:
    """One entry of FASTGAN_CUDA_ARCHS: a compute capability, and what to generate for it."""

    capability: str  # "80", "90a", "100"
    ptx: bool

    @property
    def virtual(self) -> str:
        """The architecture whose PTX it is made of: the kernels need no newer one than 8.0's.

        So the compiler runs once for all of these, the assembler for each. A suffix, as 9.0a's,
        asks for the PTX of its own.
        """
        shared = self.capability.isdecimal() and int(self.capability) > 80
        return f"compute_{80 if shared else self.capability}"

    @property
    def names(self) -> tuple[str, ...]:
        """What it adds to the binary: ``sm_80`` is machine code, ``compute_80`` is PTX."""
        real = (f"sm_{self.capability}",)
        return (*real, self.virtual) if self.ptx else real


def gencode_flags(architectures: tuple[CudaArchitecture, ...]) -> tuple[str, ...]:
    """nvcc's flags for architectures: one for each virtual architecture, with all that it makes."""
    codes: dict[str, list[str]] = {}
    for architecture in architectures:
        codes.setdefault(architecture.virtual, []).extend(architecture.names)
    return tuple(
        f"-gencode=arch={virtual},code=[{','.join(names)}]" for virtual, names in codes.items()
    )


@dataclass(frozen=True)
class Cuda:
    """A usable CUDA toolkit, and what to compile with it."""

    nvcc: str
    version: str
    architectures: tuple[CudaArchitecture, ...]
    include_dirs: tuple[str, ...]
    runtime: str  # libcudart_static.a


@dataclass(frozen=True)
class Configuration:
    """Everything that decides what is built."""

    version: str
    machine: str
    cxx: tuple[str, ...]
    cxx_version: str
    torch_version: str
    torch_root: Path
    cuda: Cuda | None
    cuda_left_out_because: str
    strict: bool

    @property
    def instruction_sets(self) -> dict[str, tuple[str, ...]]:
        """The flags of every instruction set that the CPU loops are compiled for."""
        return INSTRUCTION_SETS.get(self.machine, OTHER_INSTRUCTION_SETS)


def wants_native(environment: Mapping[str, str]) -> bool:
    """FASTGAN_BUILD_NATIVE: 1 (default) builds the compiled part, 0 leaves it out."""
    return _choice(environment, "FASTGAN_BUILD_NATIVE", "1", ("0", "1")) == "1"


def _choice(
    environment: Mapping[str, str], name: str, default: str, choices: tuple[str, ...]
) -> str:
    value = environment.get(name, "").strip() or default
    if value not in choices:
        raise BuildError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    return value


def parse_cuda_architectures(text: str) -> tuple[CudaArchitecture, ...]:
    """``"8.0;9.0;10.0+PTX"`` as architectures; separated by semicolons, commas or spaces."""
    architectures: dict[str, CudaArchitecture] = {}
    for entry in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d{1,2})\.(\d)([af]?)(\+PTX)?", entry, flags=re.IGNORECASE)
        if match is None:
            raise BuildError(
                f"FASTGAN_CUDA_ARCHS has the entry {entry!r}; expected compute capabilities like "
                f"{DEFAULT_CUDA_ARCHS!r}"
            )
        if (int(match[1]), int(match[2])) < OLDEST_CAPABILITY:
            raise BuildError(
                f"FASTGAN_CUDA_ARCHS has the entry {entry!r}; fastgan's kernels need compute "
                f"capability {OLDEST_CAPABILITY[0]}.{OLDEST_CAPABILITY[1]} or later"
            )
        capability = match[1] + match[2] + match[3].lower()
        ptx = match[4] is not None
        earlier = architectures.get(capability)
        ptx = ptx or (earlier is not None and earlier.ptx)
        architectures[capability] = CudaArchitecture(capability, ptx)
    return tuple(architectures.values())


def configure(
    version: str,
    environment: Mapping[str, str] = os.environ,
    *,
    say: Callable[[str], None] = print,
) -> Configuration:
    """Reads the switches and examines the machine; raises BuildError if it can't build."""
    if sys.platform != "linux":
        raise BuildError(
            f"the compiled part of fastgan builds on Linux, this is {sys.platform}; "
            "FASTGAN_BUILD_NATIVE=0 installs fastgan without it"
        )
    cxx = tuple(shlex.split(environment.get("CXX", "") or "g++"))
    cxx_version = _first_line_of_version(cxx)
    torch_root, torch_version = _find_torch()
    strict = _choice(environment, "FASTGAN_BUILD_STRICT", "0", ("0", "1")) == "1"
    cuda, left_out_because = _find_cuda(environment, cxx, say)
    if left_out_because:
        say(
            f"fastgan: leaving out the CUDA kernels: {left_out_because}. "
            "Tensors on a GPU will take plain PyTorch's path, with a warning."
        )
    return Configuration(
        version=version,
        machine=platform.machine(),
        cxx=cxx,
        cxx_version=cxx_version,
        torch_version=torch_version,
        torch_root=torch_root,
        cuda=cuda,
        cuda_left_out_because=left_out_because,
        strict=strict,
    )


def _first_line_of_version(command: tuple[str, ...]) -> str:
    if shutil.which(command[0]) is None:
        raise BuildError(
            f"no C++ compiler: {command[0]!r} was not found. Install g++ 11 or later "
            "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++) or name one in CXX; "
            "FASTGAN_BUILD_NATIVE=0 installs fastgan without its compiled part"
        )
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise BuildError(f"the C++ compiler {command[0]!r} does not run: {result.stderr.strip()}")
    return result.stdout.splitlines()[0]


def _find_torch() -> tuple[Path, str]:
    # Found without importing it, which takes seconds.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise BuildError(
            "building fastgan needs the headers of the torch that it is to run with, any build of "
            "it: pip install torch setuptools ninja, then pip install --no-build-isolation with "
            "fastgan's name or folder; FASTGAN_BUILD_NATIVE=0 builds without a compiled part"
        )
    version = importlib.metadata.version("torch")
    match = re.match(r"(\d+)\.(\d+)", version)
    needed = tuple(int(part) for part in TORCH_TARGET.split("."))
    if match is None or (int(match[1]), int(match[2])) < needed:
        raise BuildError(f"building fastgan needs torch >= {TORCH_TARGET}, this is {version}")
    return Path(spec.origin).parent, version


def find_nvcc(environment: Mapping[str, str]) -> str | None:
    """nvcc in CUDA_HOME, else on PATH; None if there is neither."""
    home = environment.get("CUDA_HOME", "").strip()
    if home:
        return shutil.which(str(Path(home) / "bin" / "nvcc"))
    return shutil.which("nvcc", path=environment.get("PATH", ""))


def _find_cuda(
    environment: Mapping[str, str], cxx: tuple[str, ...], say: Callable[[str], None]
) -> tuple[Cuda | None, str]:
    """The toolkit to build with, or None and the reason for leaving CUDA out."""
    wish = _choice(environment, "FASTGAN_BUILD_CUDA", "auto", ("auto", "0", "1"))
    asked_for = environment.get("FASTGAN_CUDA_ARCHS", "").strip()
    # Checked even if it isn't used, to find typing errors early.
    architectures = parse_cuda_architectures(asked_for or DEFAULT_CUDA_ARCHS)
    if wish == "0":
        return None, "FASTGAN_BUILD_CUDA=0"
    nvcc = find_nvcc(environment)
    try:
        if nvcc is None:
            home = environment.get("CUDA_HOME", "").strip()
            where = f"in CUDA_HOME ({home})" if home else "on PATH, and CUDA_HOME is not set"
            raise BuildError(f"nvcc was not found {where}")
        cuda = _look_at_toolkit(nvcc, architectures, bool(asked_for), cxx, say)
    except BuildError as error:
        if wish == "auto":
            return None, str(error)
        raise BuildError(
            f"FASTGAN_BUILD_CUDA=1, but {error}. Install the CUDA toolkit 12.8 or later "
            "(nvcc and the static CUDA runtime; no GPU is needed) and set CUDA_HOME to it or put "
            "its bin on PATH; FASTGAN_BUILD_CUDA=0 builds without CUDA"
        ) from None
    return cuda, ""


def _look_at_toolkit(
    nvcc: str,
    architectures: tuple[CudaArchitecture, ...],
    asked_for: bool,
    cxx: tuple[str, ...],
    say: Callable[[str], None],
) -> Cuda:
    def output(*arguments: str) -> str:
        result = subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise BuildError(f"nvcc does not run: {(result.stderr or result.stdout).strip()}")
        return result.stdout + result.stderr

    match = re.search(r"release (\d+)\.(\d+)(?:, V([\d.]+))?", output("--version"))
    if match is None:
        raise BuildError("nvcc does not say its version")
    if (int(match[1]), int(match[2])) < OLDEST_NVCC:
        raise BuildError(
            f"nvcc is of CUDA {match[1]}.{match[2]}, which lacks C++20; "
            f"fastgan needs {OLDEST_NVCC[0]}.{OLDEST_NVCC[1]} or later"
        )
    version = match[3] or f"{match[1]}.{match[2]}"

    known = set(re.findall(r"sm_(\d+)", output("--list-gpu-code")))
    unknown = [a for a in architectures if a.capability.rstrip("af") not in known]
    if unknown and asked_for:
        names = ", ".join(a.capability for a in unknown)
        raise BuildError(f"nvcc of CUDA {version} does not know {names} (FASTGAN_CUDA_ARCHS)")
    if unknown:
        architectures = parse_cuda_architectures(FALLBACK_CUDA_ARCHS)
        say(
            f"fastgan: CUDA {version} does not know every default architecture; building for "
            f"{FALLBACK_CUDA_ARCHS}"
        )

    # Ask nvcc for its files: on PATH it may be a link or a wrapper script.
    dry_run = output("--dryrun", "-ccbin", cxx[0], "-x", "cu", "-c", os.devnull, "-o", os.devnull)

    def listed(variable: str, option: str) -> tuple[str, ...]:
        line = re.search(rf"^#\$ {variable}=(.*)$", dry_run, flags=re.MULTILINE)
        words = shlex.split(line[1]) if line else []
        return tuple(os.path.normpath(w[len(option) :]) for w in words if w.startswith(option))

    include_dirs = listed("INCLUDES", "-I")
    for directory in listed("LIBRARIES", "-L"):
        runtime = Path(directory) / "libcudart_static.a"
        if runtime.exists():
            return Cuda(nvcc, version, architectures, include_dirs, str(runtime))
    raise BuildError(f"nvcc of CUDA {version} comes without libcudart_static.a")


# --- The build ------------------------------------------------------------------------------------


def ninja_file(configuration: Configuration, build_dir: Path) -> str:
    """The text of build.ninja. Sources are relative to the project's root, where ninja runs."""
    c = configuration
    lines = ["ninja_required_version = 1.5", f"builddir = {_escape_path(str(build_dir))}", ""]

    def flags(*words: str) -> str:
        return _escape(" ".join(shlex.quote(word) for word in words))

    # Relative sources and mapped prefixes keep this machine's paths out of the build.
    prefix_maps = (
        f"-ffile-prefix-map={ROOT}=fastgan",
        f"-ffile-prefix-map={c.torch_root}=torch",
    )
    strict_cxx_flags = STRICT_CXX_FLAGS if c.strict else ()
    define_cuda = ("-DFASTGAN_WITH_CUDA",) if c.cuda else ()
    torch_flags = (
        f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
        "-isystem",
        str(c.torch_root / "include"),
    )
    lines += [
        f"cxx = {flags(*c.cxx)}",
        f"cxx_flags = {flags(*CXX_FLAGS, *strict_cxx_flags, *prefix_maps, *define_cuda)}",
        "rule cxx",
        "  command = $cxx $cxx_flags $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compiling $in $variant",
        "rule link",
        # -z,defs makes undefined symbols an error here, not in a user's process.
        "  command = $cxx -shared -Wl,--exclude-libs,ALL -Wl,-z,defs -Wl,-s -o $out $in $flags",
        "  description = linking $out",
    ]
    if c.cuda:
        cuda_flags = (
            *("-ccbin", c.cxx[0]),
            *CUDA_FLAGS,
            *(STRICT_CUDA_FLAGS if c.strict else ()),
            *(f"-Xcompiler={prefix_map}" for prefix_map in prefix_maps),
            *gencode_flags(c.cuda.architectures),
        )
        lines += [
            f"nvcc = {flags(c.cuda.nvcc)}",
            f"cuda_flags = {flags(*cuda_flags)}",
            "rule nvcc",
            "  command = $nvcc $cuda_flags -MD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = compiling $in",
        ]
    lines.append("")

    def compile_with(rule: str, source: str, variant: str = "", extra: tuple[str, ...] = ()) -> str:
        stem = source.removeprefix("csrc/") + (f".{variant}" if variant else "")
        target = str(build_dir / "objects" / f"{stem}.o")
        lines.append(f"build {_escape_path(target)}: {rule} {_escape_path(source)}")
        if extra:
            lines.append(f"  flags = {flags(*extra)}")
        if variant:
            lines.append(f"  variant = for {variant}")
        return target

    # The longest first, so that no core waits for them at the end.
    objects = [compile_with("nvcc", source) for source in CUDA_SOURCES] if c.cuda else []
    objects += [compile_with("cxx", source, extra=torch_flags) for source in CPU_SOURCES]
    for source in LOOP_SOURCES:
        for name, set_flags in c.instruction_sets.items():
            if source not in LOOPS_OF_SETS.get(name, LOOP_SOURCES):
                continue
            o3 = () if source in O2_LOOPS else ("-O3",)
            extra = (f"-DFASTGAN_INSTRUCTION_SET={name}", *o3, *set_flags)
            objects.append(compile_with("cxx", source, name, extra))
    link_flags: tuple[str, ...] = (
        f"-L{c.torch_root / 'lib'}",
        "-ltorch_cpu",
        # libtorch.so depends on libtorch_cuda.so in torch with CUDA: so dlsym's default scope
        # includes the function for the current stream.
        "-Wl,--no-as-needed,-ltorch,--as-needed",
    )
    if c.cuda:
        link_flags += (c.cuda.runtime, "-ldl", "-lrt", "-lpthread")
    target = _escape_path(str(ops_library(build_dir)))
    lines.append(f"build {target}: link {' '.join(map(_escape_path, objects))}")
    lines.append(f"  flags = {flags(*link_flags)}")
    return "\n".join(lines) + "\n"


def ops_library(build_dir: Path) -> Path:
    """Where the library with the ops is built."""
    return build_dir / "_ops.so"


def _escape(text: str) -> str:
    return text.replace("$", "$$")


def _escape_path(path: str) -> str:
    return path.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def description(configuration: Configuration) -> dict[str, object]:
    """What the build contains: ``_build.json``, which :func:`fastgan.build_info` reads."""
    c = configuration
    architectures = c.cuda.architectures if c.cuda else ()
    return {
        "version": c.version,
        "sources": _of_package("_sources.py")["sources_digest"](ROOT),
        "torch_target": TORCH_TARGET,
        "built_with_torch": c.torch_version,
        "cxx_compiler": c.cxx_version,
        "cxx_flags": CXX_FLAGS,
        "cpu_instruction_sets": list(c.instruction_sets),
        "cuda": c.cuda is not None,
        "cuda_toolkit": c.cuda.version if c.cuda else None,
        "cuda_architectures": [name for each in architectures for name in each.names],
        "cuda_flags": [*CUDA_FLAGS, *gencode_flags(architectures)] if c.cuda else [],
        "cuda_left_out_because": c.cuda_left_out_because or None,
    }


def build(configuration: Configuration, build_dir: Path, *, verbose: bool = False) -> None:
    """Builds the library in build_dir; files whose inputs did not change stay as they are."""
    build_dir.mkdir(parents=True, exist_ok=True)
    _write_if_changed(build_dir / "build.ninja", ninja_file(configuration, build_dir))
    command = [_find_ninja(), "-f", str(build_dir / "build.ninja")]
    jobs = os.environ.get("MAX_JOBS", "").strip()
    if jobs:
        if not jobs.isdecimal() or int(jobs) < 1:
            raise BuildError(f"MAX_JOBS is {jobs!r}; expected a positive whole number")
        command += ["-j", jobs]
    if verbose:
        command.append("-v")
    result = subprocess.run(command, cwd=ROOT, check=False)
    if result.returncode != 0:
        hint = "; FASTGAN_BUILD_CUDA=0 builds without CUDA" if configuration.cuda else ""
        raise BuildError(f"compiling failed, see above{hint}")


def install(folder: Path, *, verbose: bool = False) -> None:
    """Configures and builds, then puts the library and its description into a folder."""
    # Not in setuptools' folder, which is new each time: later builds only compile changed files.
    build_dir = Path("build") / f"native-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    configuration = configure(package_version())
    build(configuration, ROOT / build_dir, verbose=verbose)
    folder.mkdir(parents=True, exist_ok=True)
    replace_library(ops_library(ROOT / build_dir), folder / "_ops.so")
    text = json.dumps(description(configuration), indent=1) + "\n"
    _write_if_changed(folder / "_build.json", text)


def package_version() -> str:
    """Fastgan's version."""
    version: str = _of_package("_version.py")["__version__"]
    return version


def _of_package(name: str) -> dict[str, Any]:
    """The names of one of the package's files, without importing the package."""
    return runpy.run_path(str(ROOT / "fastgan" / name))


def replace_library(built: Path, target: Path) -> None:
    """Replaces a library under a new inode, so that running processes keep the old one."""
    temporary = target.with_name(f".{target.name}.new")
    shutil.copyfile(built, temporary)
    os.replace(temporary, target)


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _find_ninja() -> str:
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        import ninja

        candidate = Path(ninja.BIN_DIR) / "ninja"
        if candidate.exists():
            return str(candidate)
    on_path = shutil.which("ninja")
    if on_path is None:
        raise BuildError("building fastgan needs ninja: pip install ninja")
    return on_path


if __name__ == "__main__":
    try:
        install(ROOT / "fastgan")
    except BuildError as failed:
        sys.exit(f"error: {failed}")
