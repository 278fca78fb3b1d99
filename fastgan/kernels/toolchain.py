"""Whether Triton can compile here.

Triton needs more than its package: it builds small C modules that load and launch its kernels, with
the machine's C compiler and Python's header, and keeps them in a folder of its own. A kernel's
first launch is no place to find that one of them is missing.
"""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

__all__ = ["triton_obstacle"]

#: A module of the kind that Triton builds. It has no functions.
_MODULE = """#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "fastgan_probe", NULL, -1, NULL};
PyMODINIT_FUNC PyInit_fastgan_probe(void) { return PyModule_Create(&definition); }
"""


@cache
def triton_obstacle() -> str | None:
    """Why Triton can't compile and launch kernels here, in words; None where it can.

    Builds a C module the way that Triton builds its own; Triton's cache keeps it. Asked once in a
    process.
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
