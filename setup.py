"""Builds the compiled part with ninja; everything else is in pyproject.toml.

Run through pip (``pip install .``) or ``python -m build``. The work is in native_build.py; here
setuptools is told about it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # isolated builds don't put the project's root on the path

import native_build  # noqa: E402


class BuildNative(build_ext):  # type: ignore[misc]
    """Hands the whole job to ninja, then puts the two libraries where setuptools expects them."""

    def build_extensions(self) -> None:
        try:
            native_build.install(
                lambda name: Path(self.get_ext_fullpath(name)), verbose=self.verbose > 1
            )
        except native_build.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def get_ext_filename(self, fullname: str) -> str:
        # The library of ops is no Python module and serves every version of Python.
        if fullname.rpartition(".")[2] == "_ops":
            return os.path.join(*fullname.split(".")) + ".so"
        return str(super().get_ext_filename(fullname))


class BuildPython(build_py):  # type: ignore[misc]
    """Without the native part, removes what an earlier editable build left beside the sources."""

    def run(self) -> None:
        if self.editable_mode and not self.distribution.ext_modules:
            for pattern in ("_ops.so", "_build.*.so"):
                for stale in (ROOT / "fastgan").glob(pattern):
                    stale.unlink()
        super().run()


def extensions() -> list[Extension]:
    try:
        if native_build.wants_native(os.environ):
            ops_sources = [s for s in native_build.ALL_SOURCES if s != "csrc/module.cpp"]
            return [
                Extension("fastgan._ops", ops_sources),
                Extension("fastgan._build", list(native_build.MODULE_SOURCES)),
            ]
    except native_build.BuildError as error:
        raise SystemExit(f"error: {error}") from None
    print(
        "fastgan: leaving out the compiled part: FASTGAN_BUILD_NATIVE=0. Its ops will take plain "
        "PyTorch's path, with a warning."
    )
    return []


if __name__ == "__main__":
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildNative, "build_py": BuildPython},
    )
