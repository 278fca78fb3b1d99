"""Runs CUDA kernels on the host: builds programs from ``.cu`` files with g++, and sends them cases.

``docs/host-harness.md`` says what is checked, how, and how to add a kernel. This file is the
driver: :class:`HostHarness` compiles, :class:`Program` runs :class:`Case` after :class:`Case`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"

#: The two builds of every program: the flags of its kernels' compiler, and of the linker.
BUILDS = {
    # Without UBSan's checks of pointers that AddressSanitizer makes too, and with the latter's
    # checks called, not inlined: large kernels compile almost twice as fast.
    "sanitized": (
        (
            "-Og",
            "-fsanitize=address,undefined",
            "-fno-sanitize=null,object-size,vptr,nonnull-attribute,returns-nonnull-attribute,return",
            "-fno-sanitize=pointer-overflow",
            "-fno-sanitize-recover=all",
            "-fno-omit-frame-pointer",
            *("--param", "asan-instrumentation-with-call-threshold=0"),
        ),
        ("-fsanitize=address,undefined",),
    ),
    # ThreadSanitizer's instrumentation without its library: runtime/trace.cpp takes its place.
    # Without moving loads out of loops: one moved to where it would not have been executed is
    # harmless on a CPU, but would be reported.
    "traced": (("-O1", "-fsanitize=thread", "-fno-tree-loop-im"), ()),
}
RUNTIME = ("blocks", "fibers", "memory", "program", "report", "streams", "symbols")
COMMON_FLAGS = (
    "-std=c++20",
    "-g1",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DFASTGAN_HOST_HARNESS",
    *("-I", str(HERE / "include"), "-I", str(HERE), "-I", str(CSRC)),
)
#: As fastgan::FloatType counts them.
TYPE_NUMBERS = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


class HarnessError(Exception):
    """A program found a bug in a kernel, or died of one; the message is all that it said."""


# --- What a program is sent, and what comes back --------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """What CUDA leaves open, fixed: in which order things happen, what shared memory begins with.

    ``order`` is of blocks, and of a block's threads between two barriers: ``ascending``,
    ``descending`` or ``shuffled`` by ``seed``. ``poison`` is the byte shared memory is full of.
    """

    order: str = "ascending"
    seed: int = 0
    poison: int = 0xFF


#: Three that differ in all they can.
SCHEDULES = (
    Schedule("ascending", poison=0xFF),  # NaN, or -1
    Schedule("descending", poison=0x00),
    Schedule("shuffled", seed=1, poison=0x3D),  # small, ordinary numbers
)


def orders_of(dtype: torch.dtype) -> Sequence[Schedule]:
    """What depends on the order does so in every dtype: one is run in all of them."""
    return SCHEDULES if dtype == torch.float32 else SCHEDULES[-1:]


@dataclass(frozen=True)
class SparseTensor:
    """A one-dimensional tensor too large to fill: only its windows (start: values) are sent."""

    dtype: torch.dtype
    numel: int
    windows: Mapping[int, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One call of an entry of a program.

    A tensor's memory on the other side spans just its own elements, so that the first byte beyond
    is out of bounds; it begins ``misalignment[name]`` bytes (0 to 15) after a 16-byte boundary.
    Kernels must not read tensors named in ``uninitialised`` before they write them. ``only_blocks``
    runs these blocks alone (-1 is the last). ``replays`` runs what was launched so often.
    """

    entry: str
    tensors: Mapping[str, torch.Tensor | SparseTensor | Sequence[torch.Tensor | SparseTensor]]
    numbers: Mapping[str, float] = field(default_factory=dict)
    integers: Mapping[str, int] = field(default_factory=dict)
    misalignment: Mapping[str, int] = field(default_factory=dict)
    uninitialised: frozenset[str] = frozenset()
    only_blocks: Sequence[int] = ()
    replays: int = 1
    label: str = ""


@dataclass(frozen=True)
class Result:
    """What became of a case.

    ``tensors`` has the case's names; a list there is a list here, a sparse tensor is its windows.
    ``extents`` has, for each tensor, all memory from its first to its last element, flat.
    ``error`` is the message of the exception that the entry threw, or ``""``.
    """

    tensors: dict[str, object]
    extents: dict[str, list[torch.Tensor]]
    error: str


def _extent(tensor: torch.Tensor) -> int:
    """How many elements lie from the first to the last one of the tensor, both included."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().as_strided((_extent(tensor),), (1,), tensor.storage_offset()).clone()


def _bytes(flat: torch.Tensor) -> bytes:
    return flat.contiguous().view(torch.uint8).numpy().tobytes()


def _from_bytes(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)


class _Writer:
    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def integers(self, *values: int) -> None:
        self.parts.append(struct.pack(f"<{len(values)}q", *values))

    def string(self, text: str) -> None:
        data = text.encode()
        self.integers(len(data))
        self.parts.append(data)

    def tensor(
        self, tensor: torch.Tensor | SparseTensor, misalignment: int, initialised: bool
    ) -> None:
        sparse = isinstance(tensor, SparseTensor)
        itemsize = tensor.dtype.itemsize
        if sparse:
            shape, strides, extent = (tensor.numel,), (1,), tensor.numel
            windows = {start: _bytes(values) for start, values in tensor.windows.items()}
        else:
            shape, strides, extent = tensor.shape, tensor.stride(), _extent(tensor)
            windows = {0: _bytes(_flat(tensor))}
        # Tensors that hold no floating-point numbers have no number of FloatType.
        self.integers(TYPE_NUMBERS.get(tensor.dtype, -1), len(shape), *shape, *strides)
        self.integers(extent * itemsize, misalignment, initialised, sparse, len(windows))
        for start, data in windows.items():
            self.integers(start * itemsize, len(data))
            self.parts.append(data)

    def case(self, case: Case, schedule: Schedule) -> None:
        self.string(case.entry)
        self.string(f"{case.label or case.entry}, {schedule.order} order")
        order = ("ascending", "descending", "shuffled").index(schedule.order)
        self.integers(order, schedule.seed, schedule.poison, case.replays)
        self.integers(len(case.only_blocks), *case.only_blocks)
        self.integers(len(case.integers))
        for name, value in case.integers.items():
            self.string(name)
            self.integers(int(value))
        self.integers(len(case.numbers))
        for name, number in case.numbers.items():
            self.string(name)
            self.parts.append(struct.pack("<d", number))
        self.integers(len(case.tensors))
        for name, given in case.tensors.items():
            tensors = _as_list(given)
            self.string(name)
            self.integers(len(tensors))
            for tensor in tensors:
                initialised = name not in case.uninitialised
                self.tensor(tensor, case.misalignment.get(name, 0), initialised)


def _as_list(
    given: torch.Tensor | SparseTensor | Sequence[torch.Tensor | SparseTensor],
) -> Sequence[torch.Tensor | SparseTensor]:
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _read_result(case: Case, answer: bytes, at: int) -> tuple[Result, int]:
    def take(size: int) -> bytes:
        nonlocal at
        at += size
        return answer[at - size : at]

    error = take(struct.unpack("<q", take(8))[0]).decode()
    result = Result({}, {}, error)
    for name, given in case.tensors.items():
        views: list[object] = []
        extents = result.extents.setdefault(name, [])
        for tensor in _as_list(given):
            itemsize = tensor.dtype.itemsize
            if isinstance(tensor, SparseTensor):
                windows = {
                    start: _from_bytes(take(values.numel() * itemsize), tensor.dtype)
                    for start, values in tensor.windows.items()
                }
                views.append(windows)
                continue
            flat = _from_bytes(take(_extent(tensor) * itemsize), tensor.dtype)
            extents.append(flat)
            views.append(flat.as_strided(tensor.shape, tensor.stride()))
        result.tensors[name] = views if isinstance(given, (list, tuple)) else views[0]
    return result, at


# --- Programs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Program:
    """A built program: the path of its executable, by the name of the build."""

    name: str
    executables: Mapping[str, Path]

    def run(
        self, cases: Sequence[Case], build: str, schedule: Schedule = SCHEDULES[0]
    ) -> list[Result]:
        """Runs the cases one after another in one process; raises HarnessError on any finding."""
        writer = _Writer()
        writer.integers(len(cases))
        for case in cases:
            writer.case(case, schedule)
        environment = {
            **os.environ,
            # Of what the process leaks it is relieved when it ends.
            "ASAN_OPTIONS": "detect_leaks=0:exitcode=1",
            "UBSAN_OPTIONS": "print_stacktrace=0",
        }
        done = subprocess.run(
            [str(self.executables[build])],
            input=b"".join(writer.parts),
            capture_output=True,
            env=environment,
            check=False,
        )
        said = self._with_lines(done.stderr.decode(errors="replace"), build)
        if done.returncode != 0:
            raise HarnessError(said or f"{self.name} ended with exit status {done.returncode}")
        results = []
        at = 0
        for case in cases:
            result, at = _read_result(case, done.stdout, at)
            results.append(result)
        assert at == len(done.stdout), f"{self.name} wrote more than it was asked for: {said}"
        return results

    def check(
        self,
        cases: Iterable[Case],
        builds: Sequence[str] = tuple(BUILDS),
        schedules: Sequence[Schedule] = SCHEDULES,
    ) -> list[Result]:
        """Runs the cases in both builds under every schedule: all must give the same, bit for bit.

        Raises HarnessError if one does not, or if a program finds a bug. Returns the results.
        """
        cases = list(cases)
        first: list[Result] | None = None
        for build in builds:
            for schedule in schedules:
                results = self.run(cases, build, schedule)
                if first is None:
                    first = results
                for case, one, other in zip(cases, first, results, strict=True):
                    _expect_same(case, one, other, f"{build} build, {schedule}")
        assert first is not None, "nothing to check: no build or no schedule was given"
        return first

    def _with_lines(self, text: str, build: str) -> str:
        """Puts the line in the place of an address, which is what the traced build knows."""
        addr2line = shutil.which("addr2line")

        def line(match: re.Match[str]) -> str:
            if addr2line is None:
                return match[0]
            found = subprocess.run(
                [addr2line, "-e", str(self.executables[build]), match[1]],
                capture_output=True,
                text=True,
                check=False,
            )
            return f"[at {Path(found.stdout.strip()).name}]" if found.stdout else match[0]

        return re.sub(r"\[at (0x[0-9a-f]+)\]", line, text)


def _expect_same(case: Case, one: Result, other: Result, circumstances: str) -> None:
    if one.error != other.error:
        raise HarnessError(f"{case.label}: {circumstances}: {other.error!r}, not {one.error!r}")
    for name, tensors in one.extents.items():
        for ours, theirs in zip(tensors, other.extents[name], strict=True):
            if _bytes(ours) != _bytes(theirs):
                raise HarnessError(
                    f"host harness: result depends on the schedule: tensor '{name}' of case "
                    f"{case.label or case.entry} is another one in the {circumstances}"
                )
    for name, given in case.tensors.items():
        pairs = zip(
            *(_as_list(result.tensors[name]) for result in (one, other)),
            _as_list(given),
            strict=True,
        )
        for ours, theirs, tensor in pairs:
            if isinstance(tensor, SparseTensor) and any(
                _bytes(ours[start]) != _bytes(theirs[start]) for start in tensor.windows
            ):
                raise HarnessError(
                    f"host harness: result depends on the schedule: sparse tensor '{name}' of "
                    f"case {case.label or case.entry} is another one in the {circumstances}"
                )


# --- Building -------------------------------------------------------------------------------------


class HostHarness:
    """Compiles programs into ``folder``, each object once, however many processes ask for it."""

    def __init__(self, folder: Path, cxx: Sequence[str] | None = None) -> None:
        self.folder = folder
        self.cxx = tuple(cxx or shlex.split(os.environ.get("CXX", "") or "g++"))

    @classmethod
    def of_session(cls, tmp_path_factory) -> HostHarness:
        """The one that all tests of a pytest session share, its workers too."""
        folder = tmp_path_factory.getbasetemp()
        if "PYTEST_XDIST_WORKER" in os.environ:
            folder = folder.parent
        return cls(folder / "host-harness")

    def kernels(self, name: str) -> Program:
        """The program of ``csrc/cuda/<name>.cu``, its entries being in ``programs/<name>.cpp``."""
        return self.program(name, [CSRC / "cuda" / f"{name}.cu", HERE / "programs" / f"{name}.cpp"])

    def program(
        self,
        name: str,
        sources: Sequence[Path],
        runtime_flags: Mapping[str, Sequence[str]] | None = None,
    ) -> Program:
        """Builds a program from files of kernels (``.cu``), in both builds, and of entries.

        ``runtime_flags`` are further flags for files of the runtime, by their stem.
        """
        executables = {build: self.folder / build / name for build in BUILDS}
        with self._lock():
            objects: dict[str, list[Path]] = {build: [] for build in BUILDS}
            missing: list[tuple[Path, list[str]]] = []

            def compiled(target: Path, source: Path, *flags: str) -> Path:
                if not target.exists():
                    command = [*self.cxx, *COMMON_FLAGS, *flags, "-x", "c++", "-c", str(source)]
                    missing.append((target, command))
                return target

            # Before the runtime, which compiles faster: the two processors end at the same time.
            for build, (flags, _) in BUILDS.items():
                for source in sources:
                    if source.suffix == ".cu":
                        target = self.folder / build / "objects" / f"{source.stem}.o"
                        objects[build].append(compiled(target, source, *flags))
            # Entries and the runtime are not instrumented: one object serves both builds. Entries
            # come after the kernels, whose inline functions are.
            for source in sources:
                if source.suffix != ".cu":
                    target = compiled(self.folder / "entries" / f"{source.stem}.o", source, "-O1")
                    for build in BUILDS:
                        objects[build].append(target)
            for stem in (*RUNTIME, "trace"):
                flags = tuple((runtime_flags or {}).get(stem, ()))
                # Every access that is traced goes through trace.cpp: it should be fast.
                target = compiled(
                    self.folder / "runtime" / f"{'_'.join((stem, *flags))}.o",
                    HERE / "runtime" / f"{stem}.cpp",
                    "-O2" if stem == "trace" else "-O1",
                    *flags,
                )
                # First: of an inline function that both have, the linker takes the first one, and
                # the runtime must not be traced itself.
                objects["traced"].insert(0, target)
                if stem != "trace":
                    objects["sanitized"].insert(0, target)
            self._run_all(missing)
            self._run_all(
                (executables[build], [*self.cxx, *map(str, objects[build]), *link_flags])
                for build, (_, link_flags) in BUILDS.items()
                if not executables[build].exists()
            )
        return Program(name, executables)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _run_all(commands: Iterable[tuple[Path, list[str]]]) -> None:
        def run(target: Path, command: list[str]) -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            done = subprocess.run(
                [*command, "-o", str(target)], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                target.unlink(missing_ok=True)
                raise HarnessError(f"{shlex.join(command)}\n{done.stderr}")

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for _ in pool.map(lambda task: run(*task), list(commands)):
                pass


__all__ = [
    "BUILDS",
    "SCHEDULES",
    "Case",
    "HarnessError",
    "HostHarness",
    "Program",
    "Result",
    "Schedule",
    "SparseTensor",
    "orders_of",
]
