"""Builds and drivers that don't support the GPU: plain PyTorch runs, with the reason."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

import fastgan
from fastgan import _native
from fastgan.cli import doctor
from fastgan.explaining import fallback
from fastgan.ops import cuda_support, op_path
from fastgan.ops.cuda_support import cuda_obstacle, driver_version, has_code_for
from fastgan.ops.registration import replace_cuda_kernels
from fastgan.training.graphs import why_not_captured

Pretend = Callable[..., None]
WHEEL = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120", "compute_80")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """A machine with these GPUs and this driver, and a build of these architectures."""

    def machine(
        *capabilities: tuple[int, int],
        driver: tuple[int, int] | None = (13, 0),
        toolkit: str = "13.0.88",
        architectures: tuple[str, ...] = WHEEL,
        torch_cuda: str | None = "13.0",
    ) -> None:
        info = replace(
            fastgan.build_info(),
            native=True,
            cuda=True,
            cuda_toolkit=toolkit,
            cuda_architectures=architectures,
            cuda_left_out_because=None,
        )
        patches: dict[str, Any] = {
            "is_available": lambda: bool(capabilities),
            "device_count": lambda: len(capabilities),
            "get_device_capability": lambda index=0: capabilities[index],
            "get_device_name": lambda index=0: f"card {index}",
        }
        for name, value in patches.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        monkeypatch.setattr(_native, "load", lambda: True)
        monkeypatch.setattr(_native, "build_info", lambda: info)
        monkeypatch.setattr(cuda_support, "driver_version", lambda: driver)
        monkeypatch.setattr(doctor, "driver_version", lambda: driver)
        cuda_obstacle.cache_clear()

    monkeypatch.setattr(fallback, "_seen", set())
    yield machine
    monkeypatch.undo()
    cuda_obstacle.cache_clear()


def test_machine_code_runs_within_its_major_version_and_ptx_on_later_gpus() -> None:
    runs = {
        "sm_75": [(7, 5)],
        "sm_80": [(8, 0), (8, 6), (8, 9)],
        "sm_86": [(8, 6), (8, 9)],
        "sm_90a": [(9, 0)],
        "sm_100": [(10, 0), (10, 3)],
        "sm_100a": [(10, 0)],
        "sm_100f": [(10, 0), (10, 3)],
        "compute_90a": [(9, 0)],
        "compute_100f": [(10, 0), (10, 3)],
        "compute_89": [(8, 9), (9, 0), (10, 0), (10, 3), (12, 0)],
        "compute_120": [(12, 0)],
    }
    gpus = [(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    for name, expected in runs.items():
        assert [gpu for gpu in gpus if has_code_for(gpu, [name])] == expected, name
    assert not has_code_for((12, 0), ["compute_89"], driver_compiles=False)
    assert [gpu for gpu in gpus if not has_code_for(gpu, WHEEL)] == [(7, 0)]


def test_a_gpu_that_the_build_has_no_code_for(pretend: Pretend) -> None:
    pretend((9, 0), architectures=("sm_80", "sm_90a"))
    assert cuda_obstacle() is None
    for gpus, index in ([(7, 5)], 0), ([(9, 0), (12, 0)], 1):
        pretend(*gpus, architectures=("sm_80", "sm_90a"))
        major, minor = gpus[index]
        assert cuda_obstacle() == (
            f"this build of fastgan has no code for GPU {index}, card {index}, of compute "
            f"capability {major}.{minor} (it has sm_80 sm_90a): build it with "
            f"FASTGAN_CUDA_ARCHS={major}.{minor}, or hide the GPU with CUDA_VISIBLE_DEVICES"
        )


def test_a_driver_older_than_the_toolkit(pretend: Pretend) -> None:
    pretend((9, 0), driver=(12, 8))
    assert cuda_obstacle() == (
        "the GPU driver supports CUDA 12.8, and this build of fastgan needs a driver for CUDA 13 "
        "or later: update the driver, or build fastgan with nvcc 12"
    )
    # The same major version is old enough for machine code, but not for newer PTX.
    for driver, runs in ((12, 4), False), ((12, 8), True), ((13, 0), True), (None, True):
        pretend((12, 0), driver=driver, toolkit="12.8.61", architectures=("compute_90",))
        assert (cuda_obstacle() is None) == runs, driver
        pretend((9, 0), driver=driver, toolkit="12.8.61")
        assert cuda_obstacle() is None


def test_no_gpu_no_nvcc_and_rocm(pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(driver=None)
    assert cuda_obstacle() is None
    pretend((9, 0))
    info = replace(_native.build_info(), cuda=False, cuda_left_out_because="nvcc was not found")
    with monkeypatch.context() as patch:
        patch.setattr(_native, "build_info", lambda: info)
        reason = "this build of fastgan has no CUDA kernels (nvcc was not found)"
        assert cuda_obstacle() == why_not_captured(torch.device("cuda")) == reason
    pretend((9, 0), torch_cuda=None)
    assert cuda_obstacle() == "this torch is built for ROCm; fastgan's kernels are for CUDA"


def test_op_path_captures_and_doctor_give_the_reason(pretend: Pretend) -> None:
    pretend((7, 0), driver=(12, 4), toolkit="12.8.61")
    reason = cuda_obstacle()
    assert reason is not None
    found = op_path("bias_act", "cuda")
    assert (found.path, found.usable, found.reason) == ("aten", True, reason)
    assert why_not_captured(torch.device("cuda")) == reason
    assert doctor._versions()["CUDA of the driver"] == "12.4"
    assert doctor._build(_native.build_info())["CUDA kernels here"] == f"not used: {reason}"


def test_plain_pytorch_takes_the_place_of_kernels_that_would_fail(pretend: Pretend) -> None:
    def no_kernel_image(*args: object) -> None:
        raise RuntimeError("cudaErrorNoKernelImageForDevice")

    compiled = torch.library.Library("fastgan", "IMPL")
    on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    x = torch.tensor([-1.0, 2.0])
    op = torch.ops.fastgan.act_gradient.default
    arguments = (torch.ones(2), x, fastgan.activations.ACTIVATIONS["relu"].code, 0.0)
    try:
        compiled.impl("act_gradient", no_kernel_image, "CUDA")
        pretend((9, 0))
        assert replace_cuda_kernels() is None
        with pytest.raises(RuntimeError, match="NoKernelImage"):
            op.redispatch(on_cuda, *arguments)
        pretend((7, 0))
        replacements = replace_cuda_kernels()
        assert replacements is not None
        try:
            with pytest.warns(fastgan.FallbackWarning, match="ops run as plain PyTorch on cpu: "):
                assert op.redispatch(on_cuda, *arguments).tolist() == [0.0, 1.0]
        finally:
            replacements._destroy()
    finally:
        compiled._destroy()


def test_the_driver_is_asked_for_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        @staticmethod
        def cuDriverGetVersion(number: Any) -> int:
            number._obj.value = 12040
            return 0

    monkeypatch.setattr(ctypes, "CDLL", Driver)
    assert driver_version.__wrapped__() == (12, 4)

    def no_driver(name: str) -> None:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    assert driver_version.__wrapped__() is None
