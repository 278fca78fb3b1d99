"""Checks whether Triton can compile on this machine.

Triton builds small C modules to load and launch its kernels, which takes a C compiler, Python's
headers and a writable cache folder. A missing one should be found before the first launch.
"""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

#: A module like those that Triton builds, without functions.
_MODULE = """#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "fastgan_probe", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_fastgan_probe(void) { return PyModule_Create(&definition); }
"""


@cache
def triton_obstacle() -> str | None:
    """Says why Triton can't compile and launch kernels here; None if it can.

    Builds a C module as Triton does; Triton's cache keeps it. Checked once per process.
    """
    from triton.runtime.build import compile_module_from_src

    try:
        compile_module_from_src(_MODULE, "fastgan_probe")
    except Exception as error:  # compilers and file systems fail in many ways
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        if "C compiler" in str(error):
            reason = "it finds no C compiler: install gcc or clang, or set CC"
        elif not header.exists():
            reason = f"{header} is missing: install Python's development headers"
        elif isinstance(error, OSError):
            reason = f"its cache can't be written, set TRITON_CACHE_DIR to a folder: {error}"
        else:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        return f"Triton can't compile here, {reason}"
    return None
