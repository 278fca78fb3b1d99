"""The build: its switches, its output, and broken installs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastgan
from fastgan import _native
from fastgan.errors import NativeLibraryError

ROOT = Path(__file__).resolve().parents[2]
G_PLUS_PLUS = shutil.which("g++")

pytestmark = pytest.mark.skipif(
    not (ROOT / "native_build.py").exists(),
    reason="tests of the build need a checkout; this is an install without its sources",
)


@pytest.fixture(scope="module")
def native_build():
    spec = importlib.util.spec_from_file_location("native_build", ROOT / "native_build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["native_build"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["native_build"]


@pytest.fixture
def no_nvcc(tmp_path):
    """An environment whose PATH has the usual tools, and no nvcc."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    return {"PATH": str(bin_dir)}


def write_program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


# --- Switches -------------------------------------------------------------------------------------


def test_architectures_are_read_as_documented(native_build):
    architectures = native_build.parse_cuda_architectures("8.0;9.0a 10.0+PTX,8.0")
    assert native_build.gencode_flags(architectures) == (
        "-gencode=arch=compute_80,code=[sm_80,sm_100,compute_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
    )
    assert [n for a in architectures for n in a.names] == [
        "sm_80",
        "sm_90a",
        "sm_100",
        "compute_80",
    ]


@pytest.mark.parametrize("text", ["sm_80", "8", "8.0;", "hopper", "9.0b", "8.0+SASS"])
def test_bad_architectures_are_an_error_that_shows_a_good_one(native_build, no_nvcc, text):
    with pytest.raises(native_build.BuildError, match=r"FASTGAN_CUDA_ARCHS.*8\.0;9\.0"):
        native_build.parse_cuda_architectures(text)
    with pytest.raises(native_build.BuildError, match="FASTGAN_CUDA_ARCHS"):
        native_build.configure("0", {**no_nvcc, "FASTGAN_CUDA_ARCHS": text})


@pytest.mark.parametrize("value", ["yes", "2", "AUTO"])
def test_bad_switches_are_an_error_that_lists_the_good_values(native_build, no_nvcc, value):
    with pytest.raises(native_build.BuildError, match=r"FASTGAN_BUILD_CUDA is .*auto, 0, 1"):
        native_build.configure("0", {**no_nvcc, "FASTGAN_BUILD_CUDA": value})
    with pytest.raises(native_build.BuildError, match=r"FASTGAN_BUILD_STRICT is .*0, 1"):
        native_build.configure("0", {**no_nvcc, "FASTGAN_BUILD_STRICT": value, "CXX": "true"})
    with pytest.raises(native_build.BuildError, match=r"FASTGAN_BUILD_NATIVE is .*0, 1"):
        native_build.wants_native({"FASTGAN_BUILD_NATIVE": value})


def test_auto_without_nvcc_says_what_it_leaves_out(native_build, no_nvcc):
    said = []
    configuration = native_build.configure("0", no_nvcc, say=said.append)
    assert configuration.cuda is None
    assert len(said) == 1
    assert "leaving out the CUDA kernels: nvcc was not found" in said[0]
    assert "nvcc was not found" in configuration.cuda_left_out_because


def test_cuda_0_says_so_and_does_not_look_for_nvcc(native_build, tmp_path):
    write_program(tmp_path / "bin" / "nvcc", f"touch {tmp_path}/asked")
    said = []
    configuration = native_build.configure(
        "0", {"PATH": str(tmp_path / "bin"), "FASTGAN_BUILD_CUDA": "0"}, say=said.append
    )
    assert configuration.cuda is None
    assert "FASTGAN_BUILD_CUDA=0" in said[0]
    assert not (tmp_path / "asked").exists()


def test_cuda_1_without_nvcc_is_an_error_that_says_what_to_install(native_build, no_nvcc):
    with pytest.raises(
        native_build.BuildError, match=r"nvcc was not found.*Install the CUDA toolk"
    ):
        native_build.configure("0", {**no_nvcc, "FASTGAN_BUILD_CUDA": "1"})
    with pytest.raises(native_build.BuildError, match=r"in CUDA_HOME \(/nowhere\)"):
        native_build.configure("0", {**no_nvcc, "FASTGAN_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"})


def test_nvcc_in_cuda_home_goes_before_the_one_on_path(native_build, tmp_path):
    in_home = write_program(tmp_path / "home" / "bin" / "nvcc", "true")
    on_path = write_program(tmp_path / "path" / "nvcc", "true")
    environment = {"CUDA_HOME": str(tmp_path / "home"), "PATH": str(on_path.parent)}
    assert native_build.find_nvcc(environment) == str(in_home)
    del environment["CUDA_HOME"]
    assert native_build.find_nvcc(environment) == str(on_path)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'release 11.8, V11.8.89'", r"CUDA 11\.8, which lacks .*needs 12\.0 or later"),
        ("echo no licence >&2; exit 1", "nvcc does not run: no licence"),
        (
            "case $1 in --version) echo 'release 13.0, V13.0.88';; "
            "--list-gpu-code) echo 'sm_80 sm_90 sm_100';; esac",
            "without libcudart_static",
        ),
    ],
)
def test_unusable_toolkit_is_left_out_or_refused_with_its_reason(
    native_build, tmp_path, script, reason
):
    write_program(tmp_path / "bin" / "nvcc", script)
    environment = {"PATH": str(tmp_path / "bin")}
    configuration = native_build.configure("0", environment, say=lambda _: None)
    assert configuration.cuda is None
    with pytest.raises(native_build.BuildError, match=reason):
        native_build.configure("0", {**environment, "FASTGAN_BUILD_CUDA": "1"})


def fake_old_toolkit(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libcudart_static.a").touch()
    write_program(
        tmp_path / "bin" / "nvcc",
        "case $1 in --version) echo 'release 12.4, V12.4.131';; "
        "--list-gpu-code) echo 'sm_80 sm_90';; "
        f"--dryrun) echo '#$ LIBRARIES=\"-L{tmp_path}/lib\"' >&2;; esac",
    )
    return {"PATH": str(tmp_path / "bin"), "FASTGAN_BUILD_CUDA": "1"}


def test_older_toolkit_builds_the_defaults_it_knows_and_says_so(native_build, tmp_path):
    said = []
    configuration = native_build.configure("0", fake_old_toolkit(tmp_path), say=said.append)
    names = [name for a in configuration.cuda.architectures for name in a.names]
    assert names == ["sm_80", "compute_80", "sm_90"]
    assert configuration.cuda.version == "12.4.131"
    assert "does not know every default architecture" in said[0]


@pytest.mark.parametrize("entry", ["6.1", "5.2+PTX"])
def test_architecture_older_than_the_kernels_need_is_an_error(native_build, entry):
    with pytest.raises(native_build.BuildError, match=r"need compute capability 7\.0 or later"):
        native_build.parse_cuda_architectures(f"8.0;{entry}")
    assert native_build.parse_cuda_architectures("7.0")[0].names == ("sm_70",)


def test_architecture_asked_for_that_nvcc_does_not_know_is_an_error(native_build, tmp_path):
    environment = {**fake_old_toolkit(tmp_path), "FASTGAN_CUDA_ARCHS": "10.0"}
    with pytest.raises(native_build.BuildError, match="does not know 100"):
        native_build.configure("0", environment)


def test_missing_compiler_is_an_error_that_says_what_to_install(native_build, no_nvcc):
    with pytest.raises(native_build.BuildError, match=r"no C\+\+ compiler.*Install g\+\+"):
        native_build.configure("0", {**no_nvcc, "CXX": "no-such-compiler"})


def test_kernels_are_launched_through_our_launch_function_alone():
    for path in (ROOT / "csrc").rglob("*.cu"):
        assert "<<<" not in path.read_text(encoding="utf-8"), path


# --- What a strict build refuses, and what the CUDA part of this build is -------------------------

SPILLS = """
__global__ void __launch_bounds__(1024, 2) spills(float* x) {
    float v[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) v[i] = x[1024 * i + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 128; ++i) x[1024 * (127 - i) + threadIdx.x] = v[i] * v[(7 * i + 3) % 128];
}
"""
UNUSED = "inline int f() { int unused; return 0; }\n"


def compile_with(*command: str, text: str, source: Path) -> str:
    """What the compiler says where it refuses, and "" where it doesn't."""
    source.write_text(text, encoding="utf-8")
    result = subprocess.run(
        [*command, "-c", str(source), "-o", str(source.with_suffix(".o"))],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr if result.returncode else ""


def test_strict_build_refuses_warnings(native_build, tmp_path):
    source = tmp_path / "unused.cpp"
    command = ("g++", *native_build.CXX_FLAGS)
    assert not compile_with(*command, text=UNUSED, source=source)
    strict = (*command, *native_build.STRICT_CXX_FLAGS)
    assert "unused-variable" in compile_with(*strict, text=UNUSED, source=source)
    assert not compile_with(*strict, text="inline int f() { return 0; }\n", source=source)


def test_strict_build_refuses_cuda_kernels_that_spill_or_warn(native_build, tmp_path):
    nvcc = native_build.find_nvcc(os.environ)
    if nvcc is None:
        pytest.skip("needs nvcc: none in CUDA_HOME or on PATH")
    command = (nvcc, *native_build.CUDA_FLAGS, "-gencode=arch=compute_80,code=sm_80")
    strict = (*command, *native_build.STRICT_CUDA_FLAGS)
    source = tmp_path / "kernel.cu"
    assert not compile_with(*command, text=SPILLS, source=source)
    assert "spilled to local memory" in compile_with(*strict, text=SPILLS, source=source)
    assert "unused" in compile_with(*strict, text=UNUSED, source=source)
    assert not compile_with(*strict, text=SPILLS.replace("1024, 2", "256, 1"), source=source)


def test_strict_flags_are_in_strict_builds_alone(native_build, no_nvcc, tmp_path):
    for wish, strict in (("0", False), ("1", True)):
        write_program(tmp_path / "c" / "c++", "echo 'a compiler'")
        environment = {**no_nvcc, "FASTGAN_BUILD_STRICT": wish, "CXX": str(tmp_path / "c" / "c++")}
        configuration = native_build.configure("0", environment, say=lambda _: None)
        assert configuration.strict is strict
        ampere = native_build.parse_cuda_architectures("8.0")
        cuda = native_build.Cuda("nvcc", "13.0", ampere, (), "")
        text = native_build.ninja_file(dataclasses.replace(configuration, cuda=cuda), tmp_path)
        flags = dict(line.split(" = ", 1) for line in text.splitlines() if "_flags = " in line)
        assert ("-Werror" in flags["cxx_flags"]) is strict
        assert ("--warn-on-spills" in flags["cuda_flags"]) is strict


def built_objects(pattern: str) -> list[Path]:
    """What this checkout's own build compiled."""
    objects = list((ROOT / "build").glob(f"native-*/objects/{pattern}"))
    if not objects:
        pytest.skip("needs the objects of a build in this checkout: pip install -e .")
    return objects


def find_cuobjdump(native_build) -> str | None:
    """Beside nvcc, on PATH, or where Triton brings its own."""
    folders = [os.environ.get("PATH", "")]
    nvcc = native_build.find_nvcc(os.environ)
    if nvcc is not None:
        folders.insert(0, str(Path(nvcc).resolve().parent))
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


def test_dense_kernels_over_many_tensors_load_and_store_sixteen_bytes_at_once(native_build):
    """Each tensor that a kernel loads so it also stores so: a weight, a state, or a gradient."""
    info = fastgan.build_info()
    if not info.cuda:
        pytest.skip("this build has no CUDA kernels: `make test-all` builds them")
    cuobjdump = find_cuobjdump(native_build)
    if cuobjdump is None:
        pytest.skip("needs cuobjdump: none beside nvcc, on PATH or in Triton")
    real = {name for name in info.cuda_architectures if name.startswith("sm_")}
    checked = set()
    for stem in ("optimizers", "clip_tensors"):
        (compiled,) = built_objects(f"cuda/{stem}.cu.o")
        for part in run(cuobjdump, "-sass", str(compiled), cwd=ROOT).split("arch = ")[1:]:
            architecture = part.partition("\n")[0].strip()
            for kernel in part.split("Function : ")[1:]:
                name = kernel.partition("\n")[0]
                if "step_dense" not in name and "clip_dense_tensors" not in name:
                    continue
                loads = re.findall(r"\bLDG\.E(?:\.\w+)*\.128\b", kernel)
                stores = re.findall(r"\bSTG\.E(?:\.\w+)*\.128\b", kernel)
                assert loads, f"{architecture}: {name}"
                assert len(stores) >= len(loads), f"{architecture}: {name}"
                checked.add((stem, architecture))
    assert checked >= {(stem, name) for stem in ("optimizers", "clip_tensors") for name in real}


# --- Archives -------------------------------------------------------------------------------------


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": "", "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def unpacked_sdist(tmp_path_factory):
    """An sdist of this checkout, unpacked: all that is built below is built from it alone."""
    folder = tmp_path_factory.mktemp("sdist")
    checkout = folder / "checkout"
    left_out = shutil.ignore_patterns(
        ".*", "*.so", "_build.json", "*.egg-info", "__pycache__", "build", "dist", "runs", "demo"
    )
    shutil.copytree(ROOT, checkout, ignore=left_out)
    # The hook that `python -m build` and pip call.
    hook = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", hook, str(folder), cwd=checkout)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "unpacked", filter="data")
    (tree,) = (folder / "unpacked").iterdir()
    return tree


def build_wheel(tree: Path, **environment: str) -> tuple[Path, str]:
    out = tree.parent / f"wheel-{len(list(tree.parent.iterdir()))}"
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-v")
    output = run(*pip, "-w", str(out), ".", cwd=tree, **environment)
    (wheel,) = out.glob("*.whl")
    return wheel, output


def install(wheel: Path) -> Path:
    target = wheel.parent / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target))
    run(*pip, str(wheel), cwd=wheel.parent)
    return target


@pytest.fixture(scope="module")
def wheel(unpacked_sdist):
    # What is the same with CUDA and without isn't compiled again: where all headers are found, its
    # object is this checkout's, whose sources are the same bytes (see below). The rest is compiled,
    # but not optimised.
    objects = built_objects("cpu/parallel.cpp.o")[0].parents[1]
    compiler = write_program(
        unpacked_sdist.parent / "bin" / "g++",
        f"""for target; do :; done
case "$target" in
    */objects/cpu/*) {G_PLUS_PLUS} "$@" -E && cp "{objects}/${{target##*/objects/}}" "$target" ;;
    *) exec {G_PLUS_PLUS} "$@" -O0 ;;
esac""",
    )
    return build_wheel(
        unpacked_sdist, FASTGAN_BUILD_CUDA="0", FASTGAN_BUILD_STRICT="1", CXX=str(compiler)
    )


@pytest.fixture(scope="module")
def pure_wheel(unpacked_sdist):
    return build_wheel(unpacked_sdist, FASTGAN_BUILD_NATIVE="0")


@pytest.fixture(scope="module")
def installed(wheel):
    return install(wheel[0])


def test_sdist_holds_every_native_file(unpacked_sdist):
    for pattern in ("*.cpp", "*.cu", "*.h"):
        for path in (ROOT / "csrc").rglob(pattern):
            assert (unpacked_sdist / path.relative_to(ROOT)).exists(), path
    assert not list(unpacked_sdist.rglob("*.so"))


def test_sdist_holds_what_the_site_and_the_examples_are_made_of(unpacked_sdist):
    found = [
        ROOT / "mkdocs.yml",
        *(ROOT / "docs").glob("*.py"),
        ROOT / "docs/site.css",
        *(ROOT / "examples").rglob("*.*"),
    ]
    for path in found:
        if path.is_file() and path.suffix != ".pyc":
            assert (unpacked_sdist / path.relative_to(ROOT)).exists(), path


def test_wheel_from_the_sdist_is_tagged_for_every_python_and_its_platform(wheel):
    path, output = wheel
    assert "-py3-none-linux_" in path.name
    assert "leaving out the CUDA kernels: FASTGAN_BUILD_CUDA=0" in output
    names = zipfile.ZipFile(path).namelist()
    assert "fastgan/_ops.so" in names
    assert "fastgan/py.typed" in names
    assert "fastgan/_build.json" in names
    sources = json.loads(zipfile.ZipFile(path).read("fastgan/_build.json"))["sources"]
    assert sources == _native.sources_digest(ROOT)
    assert "fastgan/data/digits.npz" in names
    # One library, and no module that is compiled for one Python.
    assert [name for name in names if name.endswith(".so")] == ["fastgan/_ops.so"]
    assert not [name for name in names if name.startswith(("csrc", "tests", "native_build"))]


def test_wheel_names_no_folder_of_the_machine_that_built_it(wheel, unpacked_sdist, installed):
    import torch

    assert str(ROOT) not in (installed / "fastgan" / "_build.json").read_text()
    for library in (installed / "fastgan").glob("*.so"):
        contents = library.read_bytes()
        for folder in (unpacked_sdist, ROOT, Path(torch.__file__).parent):
            assert os.fsencode(str(folder)) not in contents, f"{library.name} names {folder}"
        readelf = shutil.which("readelf")
        assert readelf, "readelf comes with the compiler that built the wheel"
        dynamic = run(readelf, "-d", str(library), cwd=installed)
        assert "RPATH" not in dynamic
        assert "RUNPATH" not in dynamic
        assert "libcudart" not in dynamic


def test_wheel_installs_and_runs(installed, tmp_path):
    script = (
        "import torch, fastgan, warnings\n"
        "warnings.simplefilter('error')\n"
        f"assert fastgan.__file__.startswith({str(installed)!r}), fastgan.__file__\n"
        "from fastgan.ops import check_op\n"
        "info = fastgan.build_info()\n"
        "assert info.native and not info.cuda and 'g++' in info.cxx_compiler.lower(), info\n"
        "assert info.cuda_left_out_because == 'FASTGAN_BUILD_CUDA=0'\n"
        "assert '-std=c++20' in info.cxx_flags and not [f for f in info.cxx_flags if '/' in f]\n"
        "check_op('adam_step_', 'cpu')\n"
    )
    run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(installed))


def test_only_what_changed_is_compiled_again(wheel, unpacked_sdist, native_build):
    (build_dir,) = (unpacked_sdist / "build").glob("native-*")

    def due() -> list[str]:
        ninja = (native_build._find_ninja(), "-n", "-f", str(build_dir / "build.ninja"))
        output = run(*ninja, cwd=unpacked_sdist)
        return [line for line in output.splitlines() if "compiling" in line]

    assert due() == []
    (unpacked_sdist / "csrc" / "cpu" / "instruction_sets.cpp").touch()
    assert [line.split()[-1] for line in due()] == ["csrc/cpu/instruction_sets.cpp"]
    (unpacked_sdist / "csrc" / "math" / "clip.h").touch()
    again = " ".join(due())
    assert "multi_tensor_loops.cpp for baseline" in again
    assert "csrc/ops.cpp" in again
    assert "parallel.cpp" not in again


def test_loops_for_one_instruction_set_leak_nothing_into_the_others():
    """A weak symbol compiled for AVX-512 could be the one copy that every processor then runs."""
    nm = shutil.which("nm")
    assert nm, "nm comes with the compiler that built this"
    for path in built_objects("**/*_loops.cpp.*.o"):
        instruction_set = path.name.split(".")[-2]
        symbols = run(nm, "-C", "--defined-only", "--extern-only", str(path), cwd=ROOT)
        assert symbols, path
        for line in symbols.splitlines():
            assert f"fastgan::cpu::{instruction_set}::" in line, line


def test_without_the_native_part_the_wheel_is_pure_and_says_so(pure_wheel):
    path, output = pure_wheel
    assert path.name.endswith("-py3-none-any.whl")
    assert "leaving out the compiled part: FASTGAN_BUILD_NATIVE=0" in output
    names = zipfile.ZipFile(path).namelist()
    assert not [name for name in names if name.endswith((".so", "_build.json"))]
    assert "fastgan/data/digits.npz" in names


def test_pure_wheel_runs_on_plain_pytorch_with_one_warning(pure_wheel, tmp_path):
    target = install(pure_wheel[0])
    script = (
        "import torch, warnings\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    import fastgan\n"
        "    from fastgan.ops import check_op, op_paths\n"
        "    assert not [w for w in caught if 'fastgan' in str(w.message)], caught\n"
        "    assert not fastgan.build_info().native\n"
        "    assert {row.path for row in op_paths()} == {'aten'}\n"
        "    for op in ('adam_step_', 'adam_step_', 'bn_act'): check_op(op, 'cpu')\n"
        "ours = [w for w in caught if isinstance(w.message, fastgan.FallbackWarning)]\n"
        "assert len(ours) == 1 and 'no compiled part' in str(ours[0].message), ours\n"
        "op = torch.ops.fastgan.clip_tensors_.default\n"
        "from fastgan.ops.define import DEFINED\n"
        "schema = f'fastgan::{DEFINED[\"clip_tensors_\"].schema}'\n"
        "assert str(op._schema) == schema, op._schema\n"
        "torch.library.opcheck(op, ([torch.randn(9)], [], -0.1, 0.2, None))\n"
        "x = torch.ones(3)\n"
        "for bad in ((x, 1.0, -1.0), (x.long(), -1.0, 1.0), (x.half(), -1e6, 1.0),\n"
        "            (x.requires_grad_(), -1.0, 1.0), (x[:1].detach().expand(3), -1.0, 1.0)):\n"
        "    try: op([bad[0]], [], *bad[1:], None)\n"
        "    except RuntimeError: continue\n"
        "    raise AssertionError(bad)\n"
    )
    run(sys.executable, "-c", script, cwd=tmp_path, PYTHONPATH=str(target))


def test_setup_refuses_bad_switches_in_one_line(unpacked_sdist):
    for switches, message in (
        ({"FASTGAN_BUILD_NATIVE": "maybe"}, "error: FASTGAN_BUILD_NATIVE is 'maybe'"),
        ({"FASTGAN_BUILD_CUDA": "maybe"}, "error: FASTGAN_BUILD_CUDA is 'maybe'"),
    ):
        result = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext"],
            cwd=unpacked_sdist,
            env={**os.environ, **switches},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode != 0
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def test_an_isolated_build_stops_at_once_and_says_the_command(native_build, monkeypatch):
    """pip would fetch a CUDA torch for its headers: torch is no requirement of the build."""
    requires = re.search(r"^requires = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert requires is not None
    assert "torch" not in requires[1]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name)
    )
    with pytest.raises(native_build.BuildError, match="pip install --no-build-isolation with"):
        native_build._find_torch()


# --- Broken installs ------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """An empty folder in place of the package's, and a description like a real build's."""
    description = {
        "version": _native.__version__,
        "torch_target": "2.10",
        "built_with_torch": "2.1",
    }
    folder = tmp_path / "fastgan"
    folder.mkdir()
    monkeypatch.setattr(_native, "_FOLDER", folder)
    return folder, description


def test_install_without_either_part_is_a_pure_one(broken):
    assert _native.load.__wrapped__() is False


@pytest.mark.parametrize("there", ["_ops.so", "_build.json"])
def test_half_an_install_is_an_error(broken, there):
    folder, description = broken
    (folder / there).write_text(json.dumps(description))
    (missing,) = {"_ops.so", "_build.json"} - {there}
    with pytest.raises(NativeLibraryError, match=rf"{there} is there, {missing} is not"):
        _native.load.__wrapped__()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "0", "colour": "red"}'])
def test_a_description_that_is_none_is_an_error(broken, text):
    folder, _ = broken
    (folder / "_ops.so").touch()
    (folder / "_build.json").write_text(text)
    with pytest.raises(NativeLibraryError, match=r"_build\.json, can't be read: .*reinstall"):
        _native.load.__wrapped__()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, r"does not load: .*built with torch 2\.1"),
        ({"version": "0.0.0"}, r"of version 0\.0\.0, the Python part of"),
        ({"torch_target": "99.0"}, r"needs torch >= 99\.0, this is torch"),
    ],
)
def test_library_that_does_not_fit_is_an_error_with_its_reason(broken, change, message):
    folder, description = broken
    description.update(change)
    (folder / "_ops.so").write_bytes(b"not a library")
    (folder / "_build.json").write_text(json.dumps(description))
    with pytest.raises(NativeLibraryError, match=message):
        _native.load.__wrapped__()


@pytest.mark.parametrize("change", ["none", "content", "name", "another file"])
def test_a_library_of_other_sources_than_the_checkouts_is_stale(broken, change):
    folder, description = broken
    csrc = folder.parent / "csrc"
    (csrc / "cpu").mkdir(parents=True)
    for name in ("ops.cpp", "cpu/loops.h"):
        (csrc / name).write_text("int x;")
    description["sources"] = _native.sources_digest(folder.parent)
    if change == "content":
        (csrc / "ops.cpp").write_text("int y;")
    elif change == "name":
        (csrc / "cpu/loops.h").rename(csrc / "loops.h")
    elif change == "another file":
        (csrc / "new.cu").touch()
    (folder / "_ops.so").write_bytes(b"not a library")
    (folder / "_build.json").write_text(json.dumps(description))
    message = "does not load" if change == "none" else "is stale: csrc has changed since"
    with pytest.raises(NativeLibraryError, match=message):
        _native.load.__wrapped__()


def test_a_rebuild_leaves_a_loaded_library_alone(native_build, tmp_path: Path) -> None:
    built, target = tmp_path / "built.so", tmp_path / "installed.so"
    target.write_bytes(b"old")
    built.write_bytes(b"new")
    with target.open("rb") as loaded:  # as a process that has it mapped
        native_build.replace_library(built, target)
        assert loaded.read() == b"old"
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built.so", "installed.so"]


def test_native_build_by_itself_puts_both_files_into_the_checkout(
    native_build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_build, "ROOT", tmp_path)
    monkeypatch.setattr(native_build, "configure", lambda version: version)
    monkeypatch.setattr(native_build, "package_version", lambda: "1.2.3")
    monkeypatch.setattr(native_build, "description", lambda version: {"version": version})

    def build(configuration: str, folder: Path, *, verbose: bool) -> None:
        folder.mkdir(parents=True)
        native_build.ops_library(folder).write_text(configuration, encoding="utf-8")

    monkeypatch.setattr(native_build, "build", build)
    native_build.install(tmp_path / "fastgan")
    placed = {path.name: path.read_text() for path in (tmp_path / "fastgan").iterdir()}
    assert placed.pop("_ops.so") == "1.2.3"
    assert {name: json.loads(text) for name, text in placed.items()} == {
        "_build.json": {"version": "1.2.3"}
    }
