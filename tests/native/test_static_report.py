"""The committed report on the kernels' machine code matches this code."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
pytestmark = pytest.mark.skipif(
    not (ROOT / "native_build.py").exists(), reason="needs a checkout: it compiles the sources"
)

import static_report  # noqa: E402

import native_build  # noqa: E402

#: Takes seconds to compile, and has every kind of access.
CHEAP = "csrc/cuda/clip_tensors.cu"


def committed(architecture: str) -> dict:
    path = static_report.path_of(architecture)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("architecture", static_report.TARGETS)
def test_every_source_and_every_tile_is_in_the_report(architecture: str) -> None:
    kernels = committed(architecture)["kernels"]
    assert {kernel["source"] for kernel in kernels} == {*native_build.CUDA_SOURCES, "triton"}
    assert len({(kernel["source"], kernel["kernel"]) for kernel in kernels}) == len(kernels)
    triton = [kernel for kernel in kernels if kernel["source"] == "triton"]
    assert static_report.over_bars({"kernels": kernels}, triton) == []
    for kernel in kernels:
        assert 0 < kernel["occupancy"] <= 100
        groups = kernel["instructions"]
        assert groups["all"] == sum(count for group, count in groups.items() if group != "all")


def test_sixteen_bit_tiles_use_the_tensor_cores() -> None:
    for architecture in static_report.TARGETS:
        for kernel in committed(architecture)["kernels"]:
            if kernel["source"] == "triton" and "bfloat16" in kernel["kernel"]:
                assert kernel["instructions"]["tensor core"] > 0, (architecture, kernel["kernel"])


def test_cheapest_source_compiles_to_what_the_report_says(tmp_path: Path) -> None:
    if native_build.find_nvcc(os.environ) is None:
        pytest.skip("needs nvcc: none in CUDA_HOME or on PATH")
    report = committed("sm_90")
    ours = static_report.compilers()["nvcc"]
    if ours != report["compilers"]["nvcc"]:
        pytest.skip(f"the report is nvcc {report['compilers']['nvcc']}'s, here is {ours}")
    kernels = static_report.cuda_kernels("sm_90", [CHEAP], tmp_path)
    assert static_report.differences(report, {"kernels": kernels}, CHEAP) == []
    # And a kernel that takes more registers, or is gone, is found.
    worse = copy.deepcopy(kernels)
    worse[0]["registers"] += 8
    (line,) = static_report.differences(report, {"kernels": worse}, CHEAP)
    assert f"registers {kernels[0]['registers']} -> {worse[0]['registers']}" in line
    (line,) = static_report.differences(report, {"kernels": kernels[1:]}, CHEAP)
    assert line.endswith("in the committed report only")


def test_triton_kernels_keep_within_the_bars(tmp_path: Path) -> None:
    """One of each kind; ``static_report.py --check --only triton`` compiles all."""
    pytest.importorskip("triton", reason="Triton is a dependency on Linux only")
    report = committed("sm_90")
    ours = static_report.compilers()["triton"]
    if ours != report["compilers"]["triton"]:
        pytest.skip(f"the bars are of Triton {report['compilers']['triton']}, here is {ours}")
    names = {
        "gather, bfloat16, 64x64x64, 4 stages, nothing on load",
        "gather, bfloat16, 64x64x32, 2 stages, few channels, nothing on load",
        "weight_gradient, bfloat16, 64x64x64, 3 stages, nothing on load",
        "gather by TMA, bfloat16, 64x64x64, 4 stages",
    }
    kernels = static_report.triton_kernels("sm_90", tmp_path, names.__contains__)
    assert {kernel["kernel"] for kernel in kernels} == names
    assert static_report.over_bars(report, kernels) == []
    # And longer loops, and spills, are found.
    worse = copy.deepcopy(kernels)
    worse[0]["step"] += 1
    worse[1]["stack"] = 8
    longer, spilled = static_report.over_bars(report, worse)
    assert longer.endswith(
        f"{worse[0]['step']} instructions a step, the bar is {kernels[0]['step']}"
    )
    assert spilled.endswith("8 bytes of a stack")


def test_disassembly_is_counted_by_group() -> None:
    code = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;            /* 0x00000a00ff */
        /*0010*/              @!P0 LDG.E.128.CONSTANT R4, desc[UR16][R2.64] ;
        /*0020*/               @P1 LDG.E R6, desc[UR16][R2.64] ;
        /*0030*/                   STG.E.EF.128 desc[UR16][R2.64], R4 ;
        /*0040*/                   FFMA.FTZ R4, R4, R5, R6 ;
        /*0050*/                   HMMA.16816.F32.BF16 R12, R4, R2, R12 ;
        /*0060*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0070*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0078*/                   LDGSTS.E.BYPASS.128 [R1], desc[UR16][R2.64] ;
        /*0080*/                   EXIT ;
        /*0090*/                   BRA 0x90;
        /*00a0*/                   NOP;
    """
    assert static_report.instructions_of(code) == {
        "all": 11,
        "tensor core": 2,
        "LDG.128": 1,
        "LDG": 1,
        "STG.128": 1,
        "copy to shared": 1,
        "float32": 1,
        "branch": 2,
        static_report.OTHER: 2,
    }


def test_a_step_is_the_shortest_loop_with_products() -> None:
    code = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/                   WARPSYNC.ALL ;
        /*0030*/              @!P1 BRA 0x20 ;
        /*0040*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24 ;
        /*0050*/                   NOP ;
        /*0060*/              @P2  BRA 0x90 ;
        /*0070*/               @P0 BRA 0x20 ;
        /*0080*/              @!P3 BRA 0x10 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
    """
    assert static_report.step_of(code) == 5
    assert static_report.step_of(code.replace("HGMMA.64x64x16.F32.BF16", "FFMA")) is None


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "percent"),
    [
        (256, 32, 0, 100),
        (256, 40, 0, 75),  # 1,280 registers a warp: 51 warps, 48 in fours, 6 blocks
        (256, 255, 0, 12),
        (1024, 64, 0, 50),
        (128, 32, 100 << 10, 12),  # two blocks' shared memory
        (32, 16, 0, 50),  # 32 blocks
    ],
)
def test_occupancy_is_that_of_cudas_rules(
    threads: int, registers: int, shared: int, percent: int
) -> None:
    assert static_report.occupancy("sm_90", threads, registers, shared) == percent


def test_names_lose_parameters_but_keep_what_tells_instances_apart() -> None:
    assert static_report.without_parameters("f<A (*)(B), 2>(C<D>)") == "f<A (*)(B), 2>"
    mangled = "_ZN7fastgan4cuda12_GLOBAL__N_110clip_denseINS_8BFloat16EEEvPT_l"
    assert static_report.demangled([mangled]) == {mangled: "clip_dense<BFloat16>"}
