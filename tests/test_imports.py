"""Imports: the command line's parser doesn't import torch; fastgan and torch define every op."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import fastgan

PACKAGES = ("fastgan", "fastgan.training")


def output_of(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


PARSING = """
import sys
from fastgan.cli import main

for arguments in (
    ["--help"], ["--version"], ["train", "--help"], ["bench", "--help"], ["no-such-command"], [],
    ["train", "--steps", "many"], ["train"], ["train", "--out", "x", "--image-size", "17"],
    ["train", "--out", "x", "--config", "/nowhere.toml"], ["sample", "x", "--n", "0"],
    ["interpolate", "x", "--stops", "1"], ["evaluate", "x", "--n", "5"],
    ["bench", "--out", "x", "--max-minutes", "5", "--suite", "no-such-suite"],
    ["bench", "--out", "x", "--max-minutes", "few"], ["bench", "--out", "x", "--max-minutes", "0"],
):
    try:
        code = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == (0 if {"--help", "--version"} & set(arguments) else 2), arguments
    slow = {"matplotlib", "numpy", "rich", "torch", "triton"} & set(sys.modules)
    assert not slow, (arguments, slow)
"""


def test_help_and_mistakes_in_arguments_are_answered_without_torch():
    output_of(PARSING)


# What the dispatcher knows of each op must not change when all else is imported.
DEFINING = """
import {first}
assert ("torch" in sys.modules) == ({first!r} == "torch")
import {second}

def registered():
    names = torch._C._dispatch_get_all_op_names()
    return {{
        name: torch._C._dispatch_dump(name) for name in names if name.startswith("fastgan::")
    }}

before = registered()
torch.ops.fastgan.clip_tensors_([torch.ones(3)], [], -1.0, 1.0, None)
import fastgan.cli.bench, fastgan.cli.doctor, fastgan.cli.evaluate, fastgan.cli.train
assert before == registered()
assert torch.__spec__.loader.get_source("torch")
print(len(before))
"""


@pytest.mark.parametrize(("first", "second"), [("fastgan", "torch"), ("torch", "fastgan")])
def test_fastgan_and_torch_define_every_op_in_either_order(first: str, second: str):
    script = "import sys\n" + DEFINING.format(first=first, second=second)
    assert int(output_of(script)) >= len({row.op for row in fastgan.explain().rows})


BUILD_FIRST = """
import sys
import fastgan
from fastgan._after_torch import NEEDED_WHOLE
fastgan.build_info()  # imports torch by itself
torch = sys.modules["torch"]
torch.ops.fastgan.clip_tensors_([torch.ones(3, device="meta")], [], -1.0, 1.0, None)
ours = [m for name, m in sys.modules.items() if name.startswith("fastgan.")]
print({
    m.__name__ for m in ours
    if not m.__name__.startswith("fastgan.ops") and torch in vars(m).values()
} == set(NEEDED_WHOLE))
"""


def test_ops_are_defined_whole_by_the_first_use_of_anything():
    assert output_of(BUILD_FIRST) == "True\n"


@pytest.mark.parametrize("package", PACKAGES)
def test_names_for_type_checkers_are_the_names_at_run_time(package: str):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    (checking,) = (
        node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING"
    )
    for node in checking.body:
        if isinstance(node, ast.ImportFrom):
            for each in node.names:
                if node.module == package:
                    expected = importlib.import_module(f"{package}.{each.name}")
                else:
                    expected = getattr(importlib.import_module(node.module), each.name)
                assert getattr(module, each.name) is expected
                assert each.name in dir(module)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_there_and_no_other(package: str):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert hasattr(module, name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("package", PACKAGES)
def test_no_submodule_can_take_the_place_of_a_function(package: str):
    """Importing ``package.name`` sets that attribute of the package."""
    module = importlib.import_module(package)
    submodules = {each.name for each in pkgutil.iter_modules(module.__path__)}
    for name in submodules & set(module.__all__):
        assert isinstance(getattr(module, name), types.ModuleType)


WITHOUT_POSIX = """
import os, signal, sys, types, warnings
import torch  # with all that it imports of Python's, which asks for msvcrt too

locked = []
sys.modules["fcntl"] = None
sys.modules["msvcrt"] = types.SimpleNamespace(
    LK_NBLCK=2, locking=lambda handle, mode, count: locked.append((mode, count))
)
for name in ("pthread_sigmask", "SIGHUP"):
    delattr(signal, name)
for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "pipe2", "pread", "sched_getaffinity"):
    delattr(os, name)

# Windows' own encoding of text is not UTF-8.
warnings.filterwarnings("error", category=EncodingWarning, module=r"fastgan\\b")

from fastgan.cli import main

small = ["--steps=1", "--nz=4", "--ngf=4", "--ndf=4", "--batch-size=4", "--device=cpu"]
assert main(["train", "--out", "run", *small]) == 0
assert locked == [(2, 1)]
assert main(["sample", "run", "--out", "grid.png"]) == 0
assert main(["train", "--out", "run", "--resume", "--steps=2"]) == 0
# It takes longer to import than such a run takes, and most of fastgan's start.
assert "torch._dynamo" not in sys.modules
# A notebook's own plots keep their backend.
assert "matplotlib.figure" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""


def test_training_needs_no_compiler_and_nothing_that_windows_or_macos_lack(tmp_path: Path) -> None:
    """As far as Linux can show: what only it or POSIX has is taken away."""
    environment = {**os.environ, "FASTGAN_CACHE_DIR": str(tmp_path / "cache")}
    words = [sys.executable, "-X", "warn_default_encoding", "-c", WITHOUT_POSIX]
    subprocess.run(words, cwd=tmp_path, check=True, env=environment)
    assert {"run", "grid.png"} <= {path.name for path in tmp_path.iterdir()}
