"""Loads the compiled part, and describes it.

The build writes two files next to this one, for every Python. ``_build.json`` describes the build;
``_ops.so`` has the ops and registers them with torch on loading. An install without both is pure
Python (``FASTGAN_BUILD_NATIVE=0``), with ops in plain PyTorch. If only one exists, or the library
doesn't load, this module raises an error with the reason.
"""

from __future__ import annotations

import ctypes
import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from fastgan._sources import sources_digest
from fastgan._version import __version__
from fastgan.errors import NativeLibraryError

_FOLDER = Path(__file__).resolve().parent
_REBUILD = "reinstall fastgan (in a checkout: pip install --no-build-isolation -e .)"


@dataclass(frozen=True)
class BuildInfo:
    """What this installation of fastgan contains.

    Attributes:
        version: fastgan's version.
        native: whether there is a compiled part; if not, the attributes below are empty.
        sources: a digest of the native sources that it was compiled from.
        torch_target: the oldest torch the compiled part runs with, such as ``"2.10"``.
        built_with_torch: the torch whose headers it was compiled with.
        cxx_compiler: the C++ compiler's own description of itself.
        cxx_flags: the flags that every C++ file was compiled with.
        cpu_instruction_sets: the CPU loops' instruction sets; the processor's widest is selected at
            run time.
        cpu_instruction_set: the selected one.
        cuda: whether the CUDA kernels were compiled.
        cuda_toolkit: the version of nvcc.
        cuda_architectures: ``sm_90a`` is machine code for compute capability 9.0, ``compute_80``
            is PTX, which the driver compiles for that capability and later ones.
        cuda_flags: the flags that every CUDA file was compiled with.
        cuda_left_out_because: why the CUDA kernels were not compiled.
    """

    version: str
    native: bool
    sources: str | None = None
    torch_target: str | None = None
    built_with_torch: str | None = None
    cxx_compiler: str | None = None
    cxx_flags: tuple[str, ...] = ()
    cpu_instruction_sets: tuple[str, ...] = ()
    cpu_instruction_set: str | None = None
    cuda: bool = False
    cuda_toolkit: str | None = None
    cuda_architectures: tuple[str, ...] = ()
    cuda_flags: tuple[str, ...] = ()
    cuda_left_out_because: str | None = None

    def summary(self) -> str:
        """The build in one line.

        Example:
            >>> BuildInfo(version="1.0", native=False).summary()
            'fastgan 1.0: no compiled part, the ops run as plain PyTorch'
        """
        if not self.native:
            return f"fastgan {self.version}: no compiled part, the ops run as plain PyTorch"
        cuda = f"CUDA kernels left out ({self.cuda_left_out_because})"
        if self.cuda:
            cuda = f"CUDA kernels for {', '.join(self.cuda_architectures)}"
        sets = ", ".join(self.cpu_instruction_sets)
        return f"fastgan {self.version}: CPU kernels for {sets}; {cuda}"


@cache
def load() -> bool:
    """Loads the ops once; returns whether there is a compiled part.

    Raises:
        NativeLibraryError: it is incomplete, of another version, of other sources than the
            checkout's, or doesn't load.
    """
    # Imported here, because fastgan.ops, imported with torch, needs all of this module.
    import torch
    from torch.torch_version import TorchVersion

    library = _FOLDER / "_ops.so"
    description = _description(_FOLDER)
    if description is None and not library.exists():
        return False
    if description is None or not library.exists():
        names = ("_ops.so", "_build.json")
        present, missing = names if library.exists() else names[::-1]
        raise NativeLibraryError(
            f"fastgan's compiled part is incomplete: {present} is there, {missing} is not; "
            f"{_REBUILD}"
        )
    if description["version"] != __version__:
        raise NativeLibraryError(
            f"fastgan's compiled part is of version {description['version']}, the Python part of "
            f"{__version__}; {_REBUILD}"
        )
    sources = sources_digest(_FOLDER.parent)
    if sources is not None and description.get("sources", sources) != sources:
        raise NativeLibraryError(
            "fastgan's compiled part is stale: csrc has changed since it was built; "
            f"{_REBUILD}, or run native_build.py"
        )
    # TorchVersion compares with a string as a version.
    if TorchVersion(torch.__version__) < str(description["torch_target"]):
        raise NativeLibraryError(
            f"fastgan's compiled part needs torch >= {description['torch_target']}, "
            f"this is torch {torch.__version__}"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise NativeLibraryError(
            f"fastgan's compiled part does not load: {error} (built with torch "
            f"{description['built_with_torch']}, this is torch {torch.__version__}); {_REBUILD}"
        ) from error
    return True


@cache
def build_info() -> BuildInfo:
    """Describes this installation's kernels.

    Returns:
        A :class:`BuildInfo`.

    Raises:
        NativeLibraryError: the compiled part exists but can't be used.

    Example:
        >>> import fastgan
        >>> info = fastgan.build_info()
        >>> info.version == fastgan.__version__
        True
        >>> info.native or not info.cuda
        True
    """
    if not load():
        return BuildInfo(version=__version__, native=False)
    description = _description(_FOLDER)
    assert description is not None, "load() has checked it"
    facts: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description.items()
    }
    return BuildInfo(native=True, cpu_instruction_set=_cpu_instruction_set(), **facts)


def _description(folder: Path) -> dict[str, Any] | None:
    """The content of ``_build.json``, or None if it doesn't exist."""
    path = folder / "_build.json"
    if not path.exists():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(BuildInfo)}
        if not isinstance(description, dict) or not {"version"} <= description.keys() <= known:
            raise ValueError("it has other entries than this version's")
    except (OSError, ValueError) as error:
        raise NativeLibraryError(
            f"fastgan's build description, {path}, can't be read: {error}; {_REBUILD}"
        ) from error
    return description


def _cpu_instruction_set() -> str:
    function = ctypes.CDLL(str(_FOLDER / "_ops.so")).fastgan_cpu_instruction_set
    function.restype = ctypes.c_char_p
    function.argtypes = [ctypes.POINTER(ctypes.c_char_p)]
    problem = ctypes.c_char_p()
    name: bytes | None = function(ctypes.byref(problem))
    if name is None:
        raise NativeLibraryError((problem.value or b"unknown instruction set").decode())
    return name.decode()
