"""Triton's requirements are checked before the first kernel, and missing ones are reported."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is a dependency on Linux only")

from fastgan.kernels import ConvGeometry, convolution, unsupported_reason
from fastgan.kernels.toolchain import triton_obstacle

probe = triton_obstacle.__wrapped__


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)


def test_nothing_is_missing_and_the_probe_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert probe() is None
    built = list((tmp_path / "cache").rglob("fastgan_probe*"))
    assert built
    # From the cache: it needs no compiler.
    monkeypatch.setenv("PATH", "")
    assert probe() is None


def test_no_c_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert probe() == (
        "Triton can't compile here, it finds no C compiler: install gcc or clang, or set CC"
    )


def test_no_python_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sysconfig, "get_paths", lambda scheme=None, **rest: {"include": str(tmp_path)}
    )
    assert probe() == (
        f"Triton can't compile here, {tmp_path}/Python.h is missing: install Python's development "
        "headers"
    )


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    reason = probe()
    assert reason is not None
    assert reason.startswith("Triton can't compile here, its cache can't be written, set TRITON_")
    assert str(tmp_path / "file") in reason


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    reason = probe()
    assert reason is not None
    assert reason.startswith("Triton can't compile here, CalledProcessError: Command")


def test_convolutions_are_left_to_others_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(convolution, "interpreted", lambda: False)
    for reason in (None, "Triton can't compile here, the moon is full"):
        monkeypatch.setattr(convolution, "triton_obstacle", lambda reason=reason: reason)
        convolution._device_lacks.cache_clear()
        geometry, device = ConvGeometry((4, 4)), torch.device("cuda")
        assert unsupported_reason(geometry, torch.float16, device=device) == reason
    convolution._device_lacks.cache_clear()
