"""Builds the compiled part with ninja; everything else is in pyproject.toml.

Run through pip (``pip install .``) or ``python -m build``. The work is in native_build.py; this
file connects it to setuptools.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # isolated builds don't put the project's root on the path

import native_build  # noqa: E402


class BuildNative(build_ext):  # type: ignore[misc]
    """Hands the whole job to ninja, then puts the library where setuptools expects it."""

    def build_extensions(self) -> None:
        try:
            native_build.install(
                Path(self.get_ext_fullpath("fastgan._ops")).parent, verbose=self.verbose > 1
            )
        except native_build.BuildError as error:
            raise SystemExit(f"error: {error}") from None

    def copy_extensions_to_source(self) -> None:
        """For editable builds; setuptools only knows the library."""
        super().copy_extensions_to_source()
        self.copy_file(str(Path(self.build_lib, "fastgan/_build.json")), str(ROOT / "fastgan"))

    def get_ext_filename(self, fullname: str) -> str:
        # The ops' library isn't a Python module and works with every Python.
        return os.path.join(*fullname.split(".")) + ".so"


class BuildWheel(bdist_wheel):  # type: ignore[misc]
    """Tags the wheel for every Python 3: nothing in it depends on the version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


class BuildPython(build_py):  # type: ignore[misc]
    """Without the native part, removes an earlier editable build's files."""

    def run(self) -> None:
        if self.editable_mode and not self.distribution.ext_modules:
            for stale in ("_ops.so", "_build.json"):
                (ROOT / "fastgan" / stale).unlink(missing_ok=True)
        super().run()


def extensions() -> list[Extension]:
    try:
        if native_build.wants_native(os.environ):
            return [Extension("fastgan._ops", list(native_build.ALL_SOURCES))]
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
        cmdclass={
            "bdist_wheel": BuildWheel,
            "build_ext": BuildNative,
            "build_py": BuildPython,
        },
    )
